//! Places in the order of events. As texts they are Redis's ids of entries, and resume tokens.

use std::fmt;
use std::str::FromStr;
use std::time::{SystemTime, UNIX_EPOCH};

/// A place in the order of events. Later ones are greater, also those of a process that began later.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// Milliseconds of a system's clock.
    pub(super) epoch: u64,
    pub(super) number: u64,
}

impl Position {
    /// The next that there can be.
    pub(super) fn next(self) -> Self {
        match self.number.checked_add(1) {
            Some(number) => Self { number, ..self },
            None => Self { epoch: self.epoch.saturating_add(1), number: 0 },
        }
    }

    /// The last place before it, whether anything stands there or not.
    pub(crate) fn before(self) -> Self {
        match self.number.checked_sub(1) {
            Some(number) => Self { number, ..self },
            None => Self { epoch: self.epoch.saturating_sub(1), number: u64::MAX },
        }
    }
}

/// Milliseconds of the system's clock.
pub(super) fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    u64::try_from(now).unwrap_or_default()
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.epoch, self.number)
    }
}

/// The text is none of a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoPosition;

impl FromStr for Position {
    type Err = NoPosition;

    fn from_str(text: &str) -> Result<Self, NoPosition> {
        let (epoch, number) = text.split_once('-').ok_or(NoPosition)?;
        let parse = |digits: &str| {
            let is_plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
            digits.parse().ok().filter(|_| is_plain).ok_or(NoPosition)
        };
        Ok(Self { epoch: parse(epoch)?, number: parse(number)? })
    }
}

#[cfg(test)]
mod properties {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_place_is_read_as_it_was_written(epoch: u64, number: u64) {
            let place = Position { epoch, number };
            prop_assert_eq!(place.to_string().parse(), Ok(place));
        }

        /// As a caller sends it in `resume_token`.
        #[test]
        fn any_other_text_is_a_place_in_digits_or_none(text in prop_oneof![any::<String>(), "[0-9+ -]{0,45}"]) {
            if let Ok(Position { epoch, number }) = text.parse() {
                let (first, second) = text.split_once('-').unwrap();
                let digits = |text: &str| text.trim_start_matches('0').to_owned();
                let told = |number: u64| if number == 0 { String::new() } else { number.to_string() };
                prop_assert_eq!((digits(first), digits(second)), (told(epoch), told(number)));
            }
        }
    }
}
