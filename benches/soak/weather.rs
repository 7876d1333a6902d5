//! Faults that come and go: at Twilio, on the way there, and between the callers and the gateway.

use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::processes::Twilio;
use crate::relay::Relay;
use crate::tally::Tally;

const CALM: Duration = Duration::from_secs(20);
const TROUBLE: Duration = Duration::from_secs(10);
/// Shorter: what waits for a frozen sandbox must not overflow its journal. Longer than an attempt may take.
const FROST: Duration = Duration::from_millis(5500);
/// The journal is read a while after a request came.
const LATE: Duration = Duration::from_secs(3);
/// How often some requests fail where not all do.
const NOW_AND_THEN: Duration = Duration::from_millis(200);

enum Trouble {
    /// A fault of the sandbox's, for all requests that it matches.
    Always(&'static str),
    /// One that its `times` use up, again and again.
    NowAndThen(&'static str),
    Down,
    Frozen,
}

const TROUBLES: [(&str, Trouble); 12] = [
    ("every answer 503", Trouble::Always(r#"{"status":503,"code":20503}"#)),
    ("some answers 503", Trouble::NowAndThen(r#"{"status":503,"code":20503,"times":5}"#)),
    ("Twilio killed, and started again", Trouble::Down),
    (THROTTLED, Trouble::Always(r#"{"status":429,"code":20429,"retry_after":"1"}"#)),
    ("answers 300 ms late", Trouble::Always(r#"{"latency_ms":300}"#)),
    ("answers cut off in the middle", Trouble::Always(r#"{"cut":"mid","after":true}"#)),
    ("answers 7 s late, beyond an attempt's time", Trouble::Always(r#"{"latency_ms":7000,"after":true}"#)),
    (
        "POSTs done, and answered 500",
        Trouble::Always(r#"{"match":{"method":"POST"},"status":500,"after":true}"#),
    ),
    ("requests held", Trouble::Always(r#"{"hold":true}"#)),
    ("connections cut before an answer", Trouble::NowAndThen(r#"{"cut":"before","after":true,"times":5}"#)),
    ("PUTs done, and cut", Trouble::Always(r#"{"match":{"method":"PUT"},"cut":"before","after":true}"#)),
    ("Twilio frozen", Trouble::Frozen),
];

/// While Twilio says that it has not processed a request, the gateway may send it again.
const THROTTLED: &str = "every answer 429";

/// From when to when creates may be sent again.
pub(crate) type Windows = Vec<(Instant, Instant)>;

/// One trouble after the other, with calm between, until the end.
pub(crate) async fn change(
    twilio: &Twilio,
    upstream: &Relay,
    tally: &Tally,
    end: &CancellationToken,
) -> (Windows, usize) {
    let (mut windows, mut troubles) = (Vec::new(), 0);
    tally.set_calm(true);
    for (name, trouble) in TROUBLES.iter().cycle() {
        if end.run_until_cancelled(sleep(CALM)).await.is_none() {
            break;
        }
        eprintln!("        {name}");
        tally.set_calm(false);
        let began = Instant::now();
        cause(trouble, twilio, upstream).await;
        if *name == THROTTLED {
            windows.push((began, Instant::now() + LATE));
        }
        tally.set_calm(true);
        troubles += 1;
    }
    (windows, troubles)
}

async fn cause(trouble: &Trouble, twilio: &Twilio, upstream: &Relay) {
    let fault = |text: &str| serde_json::from_str::<Value>(text).expect("JSON");
    let length = if matches!(trouble, Trouble::Frozen) { FROST } else { TROUBLE };
    let end = Instant::now() + length;
    match trouble {
        Trouble::Always(text) => twilio.post("faults", fault(text)).await,
        Trouble::NowAndThen(text) => {
            while Instant::now() < end {
                twilio.post("faults", fault(text)).await;
                sleep(NOW_AND_THEN).await;
            }
        }
        Trouble::Down => upstream.take_down(),
        Trouble::Frozen => twilio.freeze(true),
    }
    sleep(end.saturating_duration_since(Instant::now())).await;
    match trouble {
        Trouble::Always(_) | Trouble::NowAndThen(_) => twilio.clear_faults().await,
        Trouble::Down => upstream.cut(),
        Trouble::Frozen => twilio.freeze(false),
    }
}

/// Breaks the fragile callers' connections every few seconds.
pub(crate) async fn break_connections(front: &Relay, end: &CancellationToken) {
    while end.run_until_cancelled(sleep(Duration::from_secs(fastrand::u64(3..10)))).await.is_some() {
        front.cut();
    }
}
