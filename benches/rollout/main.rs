//! A rolling update under load, with processes: how many calls fail of a client that repeats none.
//!
//! `cargo bench --bench rollout -- client`, or `envoy`; without a name both. The balancer is a round robin in the client, or a real
//! Envoy before replicas that restart in place: the binary that `ENVOY` names or `.ci/get-envoy` has fetched, without which that
//! part is skipped. It fails where a call fails; and where none fails without the drain's delay, because then it would prove
//! nothing.

mod envoy;
mod load;
mod replica;
mod round_robin;

use std::process::ExitCode;

fn main() -> ExitCode {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    // Cargo adds a flag of its own.
    let named: Vec<String> = std::env::args().skip(1).filter(|name| !name.starts_with('-')).collect();
    let is_wanted = |name: &str| named.is_empty() || named.iter().any(|named| named == name);
    let mut is_proven = true;
    if is_wanted("client") {
        is_proven &= runtime.block_on(round_robin::run());
    }
    if is_wanted("envoy") {
        is_proven &= runtime.block_on(envoy::run());
    }
    if is_proven {
        return ExitCode::SUCCESS;
    }
    eprintln!("with the delay no call may fail, and without it some have to");
    ExitCode::FAILURE
}
