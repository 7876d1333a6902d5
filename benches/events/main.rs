//! Whether events and replicas keep what is promised of them, and what they cost: processes, sockets and a redis-server.
//!
//! `cargo bench --bench events -- replicas`, or `faults`, or `watchers`; without a name all three. Each ends by itself, after
//! some two minutes at most. Linux only, because it reads /proc; all but `watchers` need redis-server.

mod delivery;
mod faults;
mod processes;
mod replicas;
mod watchers;

fn main() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    // Cargo adds a flag of its own.
    let named: Vec<String> = std::env::args().skip(1).filter(|name| !name.starts_with('-')).collect();
    let is_wanted = |name: &str| named.is_empty() || named.iter().any(|named| named == name);
    if is_wanted("replicas") {
        runtime.block_on(replicas::run());
    }
    if is_wanted("faults") {
        runtime.block_on(faults::run());
    }
    if is_wanted("watchers") {
        runtime.block_on(watchers::run());
    }
}
