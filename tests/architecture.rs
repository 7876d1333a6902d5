//! The rules of ARCHITECTURE.md that the compiler cannot hold in one crate: who may use whom, and which crate is whose.

#![allow(clippy::unwrap_used)] // in helpers: clippy spares the tests themselves only

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Each module with those of this crate that it may use, low to high.
const LAYERS: &[(&str, &[&str])] = &[
    ("proto", &[]),
    ("ids", &[]),
    ("telemetry", &[]),
    ("secret", &["telemetry"]),
    ("sandbox", &[]),
    ("wire", &["proto"]),
    ("twilio", &["proto", "ids", "telemetry", "secret", "wire"]),
    ("cache", &["proto", "ids", "telemetry"]),
    ("feed", &["proto", "ids", "telemetry"]),
    ("access", &["ids", "telemetry", "secret"]),
    ("tls", &["telemetry"]),
    ("participants", &["proto", "ids", "telemetry", "secret", "twilio", "cache", "feed"]),
    ("events", &["proto", "ids", "telemetry", "secret", "wire", "participants"]),
    ("grpc", &["proto", "ids", "telemetry", "access", "participants"]),
    ("probe", &["proto", "grpc"]),
    (
        "config",
        &[
            "proto",
            "ids",
            "telemetry",
            "secret",
            "sandbox",
            "twilio",
            "access",
            "tls",
            "participants",
            "events",
            "probe",
        ],
    ),
    (
        "app",
        &[
            "proto",
            "ids",
            "telemetry",
            "secret",
            "sandbox",
            "twilio",
            "access",
            "tls",
            "participants",
            "events",
            "grpc",
            "config",
        ],
    ),
];

/// What one file may use beyond its module's row.
const EXCEPTIONS: &[(&str, &str)] =
    &[("src/grpc/status.rs", "twilio"), ("src/grpc/status/table.rs", "twilio")];

/// Crates that only some modules may name.
const CONFINED: &[(&str, &[&str])] = &[
    ("aws_config", &["events"]),
    ("aws_sdk_kinesis", &["events"]),
    ("reqwest", &["sandbox", "twilio", "access"]),
    ("moka", &["cache"]),
    ("redis", &["feed"]),
    ("prost", &["proto"]),
    ("tonic", &["proto", "grpc", "probe", "app"]),
    ("tonic_types", &["grpc", "probe", "app"]),
    ("tonic_health", &["probe", "app"]),
    ("tonic_reflection", &["probe", "app"]),
    ("axum", &["sandbox", "events", "app"]),
    ("hyper", &["sandbox", "app"]),
    ("hyper_util", &["sandbox", "app"]),
    ("tokio_rustls", &["access", "tls", "app"]),
    ("webpki", &["access", "tls"]),
    ("clap", &["config"]),
    ("toml", &["access", "config"]),
    ("jsonwebtoken", &["access"]),
    ("tracing_subscriber", &["telemetry"]),
    ("opentelemetry", &["telemetry"]),
    ("opentelemetry_sdk", &["telemetry"]),
    ("opentelemetry_prometheus", &["telemetry"]),
    ("prometheus", &["telemetry"]),
];

/// A source file of the library: its path from the root, its top module, and its text without comments.
struct Source {
    path: String,
    module: String,
    code: String,
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn sources() -> Vec<Source> {
    let mut files = Vec::new();
    collect(&root().join("src"), &mut files);
    let sources = files.into_iter().map(|file| {
        let path = file.strip_prefix(root()).unwrap().to_str().unwrap().replace('\\', "/");
        let module = path.trim_start_matches("src/").trim_end_matches(".rs").split('/').next().unwrap();
        let text = fs::read_to_string(&file).unwrap();
        let code = text.lines().map(|line| line.split("//").next().unwrap()).collect::<Vec<_>>().join("\n");
        Source { module: module.to_owned(), path, code }
    });
    sources.filter(|source| source.module != "lib" && source.module != "main").collect()
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

/// The names that follow `crate::`, those of a group `crate::{a, b}` included.
fn modules_used(code: &str) -> BTreeSet<String> {
    let mut used = BTreeSet::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        // `some_crate::` ends in the same letters.
        if code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_') {
            continue;
        }
        match rest.strip_prefix('{') {
            None => used.extend(word(rest)),
            Some(group) => {
                let mut depth = 0;
                for (at, c) in group.char_indices() {
                    match c {
                        '{' => depth += 1,
                        '}' if depth == 0 => break,
                        '}' => depth -= 1,
                        _ if depth == 0 && group[..at].trim_end().is_empty() => {
                            used.extend(word(&group[at..]));
                        }
                        ',' if depth == 0 => used.extend(word(group[at + 1..].trim_start())),
                        _ => {}
                    }
                }
            }
        }
    }
    used
}

fn word(text: &str) -> Option<String> {
    let word: String = text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    (!word.is_empty()).then_some(word)
}

fn names(code: &str, vendor: &str) -> bool {
    let pattern = format!("{vendor}::");
    code.match_indices(&pattern)
        .any(|(at, _)| !code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_'))
}

fn allowed(module: &str) -> BTreeSet<&'static str> {
    let row = LAYERS.iter().find(|(name, _)| *name == module);
    row.unwrap_or_else(|| panic!("{module} stands in no layer: give it a row")).1.iter().copied().collect()
}

#[test]
fn a_module_uses_only_what_its_layer_may_use() {
    for Source { path, module, code } in sources() {
        for used in modules_used(&code) {
            let is_exception = EXCEPTIONS.contains(&(path.as_str(), used.as_str()));
            let is_allowed = used == module || allowed(&module).contains(used.as_str()) || is_exception;
            assert!(is_allowed, "{path} uses crate::{used}, which {module} must not know");
        }
    }
}

#[test]
fn the_layers_have_no_cycle() {
    let mut below = BTreeSet::new();
    for (module, uses) in LAYERS {
        for used in *uses {
            assert!(below.contains(used), "{module} uses {used}, which stands above it");
        }
        below.insert(*module);
    }
}

#[test]
fn no_row_allows_what_nobody_needs() {
    let mut used: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for source in sources() {
        used.entry(source.module.clone()).or_default().extend(modules_used(&source.code));
    }
    for (module, _) in LAYERS {
        assert!(used.contains_key(*module), "{module} is no module any more");
    }
    for (path, exception) in EXCEPTIONS {
        let source = sources().into_iter().find(|source| source.path == *path).expect(path);
        assert!(modules_used(&source.code).contains(*exception), "{path} does not use {exception}");
    }
}

#[test]
fn vendor_crates_stay_where_they_belong() {
    for Source { path, module, code } in sources() {
        for (vendor, owners) in CONFINED {
            let is_owner = owners.contains(&module.as_str());
            assert!(is_owner || !names(&code, vendor), "{path} names {vendor}, which is for {owners:?}");
        }
    }
}

#[test]
fn the_sandbox_imports_nothing_from_the_gateway() {
    for source in sources().into_iter().filter(|source| source.module == "sandbox") {
        let outside: Vec<_> =
            modules_used(&source.code).into_iter().filter(|used| used != "sandbox").collect();
        assert!(outside.is_empty(), "{} uses {outside:?}", source.path);
    }
}

#[test]
fn only_the_configuration_and_the_process_read_the_environment() {
    for Source { path, code, .. } in sources() {
        assert!(!code.contains("env::var"), "{path} reads the environment, which is an argument");
    }
}

#[test]
fn the_tree_has_no_mod_rs_and_no_way_up_two_floors() {
    for Source { path, code, .. } in sources() {
        assert!(!path.ends_with("/mod.rs"), "{path}: foo.rs stands beside foo/");
        assert!(!code.contains("super::super"), "{path}: name the module from the crate's root");
    }
    let library = fs::read_to_string(root().join("src/lib.rs")).unwrap();
    assert!(!library.contains("pub use"), "the root re-exports nothing");
}

#[test]
fn the_process_shell_stays_a_shell() {
    let lines = fs::read_to_string(root().join("src/main.rs")).unwrap().lines().count();
    assert!(lines <= 90, "src/main.rs has {lines} lines: move what is not the process's");
}

#[test]
fn the_finder_of_imports_finds_them() {
    let code = "use crate::{a, b::{c, d}, e};\nuse crate::f::g;\nlet x = crate::h::i();\nuse some_crate::z;";
    let found: Vec<_> = modules_used(code).into_iter().collect();
    assert_eq!(found, ["a", "b", "e", "f", "h"]);
    assert!(names("use moka::x;", "moka") && !names("use my_moka::x;", "moka"));
}
