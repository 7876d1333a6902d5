//! The documents say what the program does: tables that are made from the source are compared with it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use participant_gateway::grpc::TABLE;
use participant_gateway::{config, telemetry};

/// A document with a table, what its markers are called, and what writes the table.
type Document = (&'static str, &'static str, fn() -> String);

const TABLES: [Document; 3] = [
    ("docs/configuration.md", "settings", config::markdown),
    ("docs/metrics.md", "metrics", telemetry::metrics::markdown),
    ("docs/tracing.md", "spans", telemetry::traces::markdown),
];

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn read(name: &str) -> String {
    std::fs::read_to_string(path(name)).expect("the document is there")
}

/// The document before its table, the table, and what follows; the markers stay outside of the table.
fn around_the_table<'a>(document: &'a str, name: &str) -> (&'a str, &'a str, &'a str) {
    let (begin, end) = (format!("<!-- {name}: begin -->\n"), format!("<!-- {name}: end -->"));
    let begins = document.find(&begin).expect("the marker that begins the table") + begin.len();
    let ends = document.find(&end).expect("the marker that ends the table");
    (&document[..begins], &document[begins..ends], &document[ends..])
}

#[test]
fn the_tables_are_the_sources() {
    for (file, name, markdown) in TABLES {
        let document = read(file);
        let (_, table, _) = around_the_table(&document, name);
        let advice = "is out of date: `cargo test --test docs -- --ignored` writes its table anew";
        assert!(table == markdown(), "{file} {advice}");
    }
}

#[test]
#[ignore = "writes the tables into docs/"]
fn write_the_tables() {
    for (file, name, markdown) in TABLES {
        let document = read(file);
        let (before, _, after) = around_the_table(&document, name);
        std::fs::write(path(file), format!("{before}{}{after}", markdown()))
            .expect("the document can be written");
    }
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
