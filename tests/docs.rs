//! The documents say what the program does: tables that are made from the source are compared with it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use participant_gateway::config::markdown;
use participant_gateway::grpc::TABLE;

const BEGIN: &str = "<!-- settings: begin -->\n";
const END: &str = "<!-- settings: end -->";

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn read(name: &str) -> String {
    std::fs::read_to_string(path(name)).expect("the document is there")
}

/// The document before its table, the table, and what follows.
fn around_the_table(document: &str) -> (&str, &str, &str) {
    let (before, rest) = document.split_once(BEGIN).expect("the marker that begins the table");
    let (table, after) = rest.split_once(END).expect("the marker that ends the table");
    (before, table, after)
}

#[test]
fn the_table_of_settings_is_the_sources() {
    let document = read("docs/configuration.md");
    let (_, table, _) = around_the_table(&document);
    assert!(
        table == markdown(),
        "docs/configuration.md is out of date: `cargo test --test docs -- --ignored` writes its table anew"
    );
}

#[test]
#[ignore = "writes docs/configuration.md"]
fn write_the_table_of_settings() {
    let document = read("docs/configuration.md");
    let (before, _, after) = around_the_table(&document);
    let written = format!("{before}{BEGIN}{}{END}{after}", markdown());
    std::fs::write(path("docs/configuration.md"), written).expect("the document can be written");
}

#[test]
fn the_readme_explains_every_reason_under_its_code() {
    let readme = read("README.md");
    let (_, rest) = readme.split_once("| code | reason | what to do |\n").expect("the table of reasons");
    let mut explained = BTreeSet::new();
    let mut code = "";
    for row in rest.lines().skip(1).take_while(|line| line.starts_with('|')) {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let [_, first, reasons, _, _] = cells[..] else {
            panic!("a row of three cells: {row}");
        };
        if !first.is_empty() {
            code = first;
        }
        let reasons = reasons.split(',').map(|reason| reason.trim().trim_matches('`'));
        explained.extend(reasons.map(|reason| (code.to_owned(), reason.to_owned())));
    }
    let told: BTreeSet<_> = TABLE
        .iter()
        .map(|row| (upper_snake(&format!("{:?}", row.code)), row.reason.as_str().to_owned()))
        .collect();
    assert_eq!(explained, told);
}

/// tonic's name of a code as the gRPC protocol spells it.
fn upper_snake(name: &str) -> String {
    let mut text = String::new();
    for letter in name.chars() {
        if letter.is_uppercase() && !text.is_empty() {
            text.push('_');
        }
        text.push(letter.to_ascii_uppercase());
    }
    text
}
