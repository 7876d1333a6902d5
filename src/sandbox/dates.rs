//! Dates in and out.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Reads an RFC 3339 date with any offset. Twilio's samples show `2015-12-16T22:18:37Z` and
/// `2023-05-04T09:42:00+00:00`.
pub(super) fn parse(text: &str) -> Option<SystemTime> {
    if text.ends_with('Z') {
        return humantime::parse_rfc3339(text).ok();
    }
    let (local, offset) = text.split_at_checked(text.len().checked_sub("+00:00".len())?)?;
    let (hours, minutes) = offset.get(1..)?.split_once(':')?;
    let number = |part: &str, most: u64| {
        let digits = part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_digit());
        part.parse::<u64>().ok().filter(|number| digits && *number <= most)
    };
    let shift = Duration::from_secs(number(hours, 23)? * 3600 + number(minutes, 59)? * 60);
    let local = humantime::parse_rfc3339(&format!("{local}Z")).ok()?;
    let utc = match offset.as_bytes().first()? {
        b'+' => local.checked_sub(shift)?,
        b'-' => local.checked_add(shift)?,
        _ => return None,
    };
    // What lies outside of 1970..=9999 could not be written out again.
    let last_second = Duration::from_secs(253_402_300_799);
    utc.duration_since(UNIX_EPOCH).ok().filter(|age| *age <= last_second).map(|_| utc)
}

/// As v1 writes them: whole seconds, `Z`.
pub(super) fn seconds(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string()
}

/// As Event Streams writes them: milliseconds.
pub(super) fn millis(time: SystemTime) -> String {
    humantime::format_rfc3339_millis(time).to_string()
}

/// As v2 writes them: nanoseconds.
pub(super) fn nanos(time: SystemTime) -> String {
    humantime::format_rfc3339_nanos(time).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_are_taken_off() {
        for (text, utc) in [
            ("2023-05-04T09:42:00Z", "2023-05-04T09:42:00Z"),
            ("2023-05-04T09:42:00.75+00:00", "2023-05-04T09:42:00Z"),
            ("2023-05-04T09:42:00+02:30", "2023-05-04T07:12:00Z"),
            ("2023-05-04T23:42:00-01:00", "2023-05-05T00:42:00Z"),
        ] {
            assert_eq!(seconds(parse(text).unwrap()), utc, "{text}");
        }
    }

    #[test]
    fn no_dates() {
        for text in [
            "",
            "yesterday",
            "2023-05-04",
            "2023-13-04T09:42:00Z",
            "2023-05-04T09:42:00+2:30",
            "2023-05-04T09:42:00",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
        assert_eq!(parse("1970-01-01T00:00:00+01:00"), None);
        assert_eq!(parse("9999-12-31T23:59:59-01:00"), None);
        assert_eq!(parse("é2023-05-04T09:42é00:00"), None);
    }
}
