//! By when a call has to be answered: `grpc-timeout`, and the gateway's own bound.

use std::time::Duration;

use http::HeaderMap;
use tokio::time::Instant;

/// By when a call has to be answered.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadline {
    unary: Instant,
    asked: Option<Instant>,
}

impl Deadline {
    /// A call with one answer: the caller's deadline or the gateway's own bound, whichever is earlier.
    pub(super) fn unary(self) -> Instant {
        self.unary
    }

    /// A stream lasts as long as its caller wants it to; a day stands for ever.
    pub(super) fn stream(self) -> Instant {
        self.asked.unwrap_or_else(|| Instant::now() + Duration::from_secs(24 * 3600))
    }
}

/// The two moments at which a call is over, both a little before the caller's own deadline, at which its client gives up and
/// learns nothing. The handler's comes first, because it knows whether a write was sent.
pub(super) struct Limits {
    pub(super) deadline: Deadline,
    pub(super) fires: Instant,
}

impl Limits {
    pub(super) fn of(headers: &HeaderMap, longest: Duration) -> Self {
        let now = Instant::now();
        let asked = headers.get("grpc-timeout").and_then(|value| grpc_timeout(value.to_str().ok()?));
        let earlier = |limit: Duration, share: u32| {
            now + limit.saturating_sub((limit / share).min(Duration::from_millis(200 / u64::from(share))))
        };
        let limit = asked.unwrap_or(longest).min(longest);
        let deadline =
            Deadline { unary: earlier(limit, 10), asked: asked.map(|asked| earlier(asked.min(DAY), 10)) };
        Self { deadline, fires: earlier(limit, 20) }
    }
}

const DAY: Duration = Duration::from_secs(24 * 3600);

/// `1*8DIGIT` and a unit, as the gRPC protocol says; what is not that is no deadline.
fn grpc_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let amount: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(amount * 3600)),
        "M" => Some(Duration::from_secs(amount * 60)),
        "S" => Some(Duration::from_secs(amount)),
        "m" => Some(Duration::from_millis(amount)),
        "u" => Some(Duration::from_micros(amount)),
        "n" => Some(Duration::from_nanos(amount)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_is_eight_digits_and_a_unit() {
        for (text, expected) in [
            ("0n", Some(Duration::ZERO)),
            ("200m", Some(Duration::from_millis(200))),
            ("99999999H", Some(Duration::from_secs(99_999_999 * 3600))),
            ("15u", Some(Duration::from_micros(15))),
            ("2M", Some(Duration::from_secs(120))),
        ] {
            assert_eq!(grpc_timeout(text), expected, "{text}");
        }
        for garbage in ["", "n", "-5x", "-5S", "5x", "999999999S", "1.5S", "5 S", "é"] {
            assert_eq!(grpc_timeout(garbage), None, "{garbage}");
        }
    }

    #[test]
    fn both_limits_come_before_the_callers_deadline_and_the_handlers_first() {
        for timeout in ["0n", "1m", "50m", "3S", "99999999H"] {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-timeout", timeout.parse().unwrap());
            let limits = Limits::of(&headers, Duration::from_secs(30));
            let end = Instant::now() + grpc_timeout(timeout).unwrap().min(Duration::from_secs(30));
            assert!(limits.deadline.unary() <= limits.fires && limits.fires <= end, "{timeout}");
        }
    }
}

#[cfg(test)]
mod properties {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_timeout_is_as_long_as_it_says(amount in 0_u64..100_000_000, digits in 1..9_usize, unit in 0..6_usize) {
            let (letter, nanos) = [("H", 3_600_000_000_000_u128), ("M", 60_000_000_000), ("S", 1_000_000_000),
                ("m", 1_000_000), ("u", 1000), ("n", 1)][unit];
            let text = format!("{amount:0digits$}{letter}");
            prop_assert_eq!(grpc_timeout(&text).map(|timeout| timeout.as_nanos()), Some(u128::from(amount) * nanos));
        }

        #[test]
        fn any_other_text_is_no_timeout(text in prop_oneof!["\\PC{0,12}", "[-+ .0-9a-zA-Z]{0,11}", "[0-9]{0,12}[HMSmunx]"]) {
            let digits = text.trim_end_matches(['H', 'M', 'S', 'm', 'u', 'n']);
            let is_timeout = (1..=8).contains(&digits.len())
                && text.len() == digits.len() + 1
                && digits.chars().all(|c| c.is_ascii_digit());
            prop_assert_eq!(grpc_timeout(&text).is_some(), is_timeout, "{}", text);
        }

        #[test]
        fn no_header_moves_a_limit_past_the_longest(value in proptest::collection::vec(any::<u8>(), 0..12)) {
            let mut headers = HeaderMap::new();
            headers.extend(http::HeaderValue::from_bytes(&value).ok().map(|value| (http::HeaderName::from_static("grpc-timeout"), value)));
            let limits = Limits::of(&headers, Duration::from_secs(30));
            let end = Instant::now() + Duration::from_secs(30);
            prop_assert!(limits.deadline.unary() <= limits.fires && limits.fires <= end);
        }
    }
}
