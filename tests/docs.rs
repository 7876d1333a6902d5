//! The documents say what the program does: tables that are made from the source are compared with it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use participant_gateway::grpc::catalogue;
use participant_gateway::{config, telemetry};

/// A document with a table, what its markers are called, and what writes the table.
type Document = (&'static str, &'static str, fn() -> String);

const TABLES: [Document; 6] = [
    ("docs/configuration.md", "settings", config::markdown),
    ("docs/errors.md", "reasons", catalogue::reasons),
    ("docs/errors.md", "rows", catalogue::rows),
    ("docs/errors.md", "twilio-codes", catalogue::twilio_codes),
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

/// `errors::name` is a test of tests/gateway/errors.rs, of tests/errors.rs, or of one in a folder of src;
/// `feed::tests::name` one of src/feed/tests.rs. The chart's are Python.
fn is_a_test(named: &str) -> bool {
    let Some((module, name)) = named.rsplit_once("::") else { return false };
    let module = module.replace("::", "/");
    let folders = ["tests/gateway", "tests", "src", "src/grpc", "src/grpc/call", "src/access", "tests/chart"];
    let files = folders.iter().flat_map(|folder| ["rs", "py"].map(|end| format!("{folder}/{module}.{end}")));
    let mut sources = files.filter_map(|file| std::fs::read_to_string(path(&file)).ok());
    sources.any(|source| ["fn", "def"].iter().any(|word| source.contains(&format!("{word} {name}("))))
}

/// `.ci/image` is a script, `benches/flood` a benchmark.
fn is_run_by_hand(named: &str) -> bool {
    let is_bench = || [".rs", "/main.rs"].iter().any(|end| path(&format!("{named}{end}")).exists());
    (named.starts_with(".ci/") && path(named).exists()) || (named.starts_with("benches/") && is_bench())
}

/// Each that a cell names is there, and it names one.
fn check_tests(cell: &str, row: &str) {
    for named in cell.split('`').skip(1).step_by(2) {
        assert!(is_a_test(named) || is_run_by_hand(named), "there is no test {named}: {row}");
    }
    assert!(cell.contains('`'), "no test is named: {row}");
}

#[test]
fn each_fault_has_a_row_and_the_tests_that_it_names() {
    let document = read("docs/faults.md");
    let (_, table, _) = around_the_table(&document, "faults");
    let mut numbers = Vec::new();
    for row in table.lines().filter(|line| line.starts_with("| ")).skip(1) {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let [_, number, fault, told, tests, _] = cells[..] else {
            panic!("a row of four cells: {row}");
        };
        assert!(![fault, told, tests].contains(&""), "{row}");
        numbers.push(number.parse::<u32>().expect("a number"));
        check_tests(tests, row);
    }
    assert_eq!(numbers, (1..=90).collect::<Vec<_>>());
}

#[test]
fn each_bound_of_callers_names_the_tests_that_show_it() {
    let document = read("docs/configuration.md");
    let (_, table, _) = around_the_table(&document, "bounds");
    for row in table.lines().skip(2) {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let [_, _bound, _value, _why, tests, _] = cells[..] else {
            panic!("a row of four cells: {row}");
        };
        check_tests(tests, row);
    }
}

// === Twilio's codes, spelled from its error dictionary and from the contract, not from the source

const REJECTED: &str = "INVALID_ARGUMENT `UPSTREAM_REJECTED_ARGUMENT`";
const STATE: &str = "FAILED_PRECONDITION `UPSTREAM_STATE`";
const CREDENTIALS: &str = "FAILED_PRECONDITION `UPSTREAM_CREDENTIALS_REJECTED`";
const FORBIDDEN: &str = "FAILED_PRECONDITION `UPSTREAM_FORBIDDEN`";
const CONVERSATION: &str = "NOT_FOUND `CONVERSATION_NOT_FOUND`";
const PARTICIPANT: &str = "NOT_FOUND `PARTICIPANT_NOT_FOUND`";
const EITHER: &str = "get, update, delete: NOT_FOUND `PARTICIPANT_NOT_FOUND`; \
                      list, create, list conversations: NOT_FOUND `CONVERSATION_NOT_FOUND`";
const EXISTS: &str = "get, list, update, delete, list conversations: ABORTED `CONFLICT`; create: ALREADY_EXISTS `PARTICIPANT_EXISTS`";
const CONFLICT: &str = "ABORTED `CONFLICT`";
const THROTTLED: &str = "RESOURCE_EXHAUSTED `UPSTREAM_THROTTLED`";
const LIMIT: &str = "RESOURCE_EXHAUSTED `UPSTREAM_LIMIT`";
const CONTRACT: &str = "INTERNAL `UPSTREAM_CONTRACT_BROKEN`";
const BY_STATUS: &str = "by the HTTP status";

const CODES: &[(&str, &[u32])] = &[
    (REJECTED, &[20001, 20422, 50100, 50109, 50200, 50203, 50204, 50206, 50207, 50211]),
    (REJECTED, &[50303, 50304, 50308, 50309, 50407, 50408, 50409, 50411, 50412, 50414]),
    (REJECTED, &[50420, 50421, 50424, 50431, 50434, 50451]),
    (
        STATE,
        &[50377, 50385, 50413, 50415, 50427, 50435, 50439, 50440, 50441, 50442, 50443, 50444, 50452, 50453],
    ),
    (CREDENTIALS, &[20003]),
    (FORBIDDEN, &[20005, 20006, 20403, 50107, 50430]),
    (CONVERSATION, &[50350]),
    (PARTICIPANT, &[50432]),
    (EITHER, &[20404]),
    (EXISTS, &[20409, 50416, 50425, 50433, 50437, 50438]),
    (CONFLICT, &[50213, 50391, 50419, 50449]),
    (THROTTLED, &[20429, 50063, 50074]),
    (LIMIT, &[50208, 50214, 50417, 50418, 50422, 50426, 50436]),
    (CONTRACT, &[20004]),
    (BY_STATUS, &[20500, 20503, 50400, 50402, 50404, 50405, 50406]),
];

#[test]
fn each_of_twilios_codes_has_a_row_that_says_what_the_contract_says() {
    let expected: BTreeMap<u32, &str> =
        CODES.iter().flat_map(|(told, codes)| codes.iter().map(move |code| (*code, *told))).collect();
    let document = read("docs/errors.md");
    let (_, table, _) = around_the_table(&document, "twilio-codes");
    let mut documented = BTreeMap::new();
    for row in table.lines().skip(2) {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let [_, code, meaning, told, _] = cells[..] else {
            panic!("a row of three cells: {row}");
        };
        assert!(!meaning.is_empty(), "{row}");
        documented.insert(code.parse().expect("a code"), told);
    }
    assert_eq!(documented, expected);
}
