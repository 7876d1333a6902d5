//! What any text of a write may hold.

use crate::proto::MASKED;

/// A caller that is shown no PII would else write back what it was shown.
pub(super) const IS_MASKED: &str = "stands for what the caller may not see, and cannot be written";

/// Text of a bounded length without control characters, which have no business in a name, an identity or an address.
pub(super) fn text(text: &str, max_chars: usize) -> Result<(), String> {
    if text.chars().any(char::is_control) {
        Err("must not hold control characters".into())
    } else if text == MASKED {
        Err(IS_MASKED.into())
    } else if text.chars().count() > max_chars {
        Err(format!("must not be longer than {max_chars} characters"))
    } else {
        Ok(())
    }
}

/// Twilio's own word beside the contract's: required beside OTHER, else it must agree. `known` is the contract's word.
pub(super) fn word(known: &str, upstream: &str, is_other: bool) -> Result<(), String> {
    if upstream.bytes().any(|b| !b.is_ascii_alphanumeric() && b != b'_') || upstream.len() > 64 {
        Err("must be letters, digits and `_`, at most 64".into())
    } else if is_other && upstream.is_empty() {
        Err("is required with OTHER: it is the word that is sent".into())
    } else if is_other || upstream.is_empty() || upstream.eq_ignore_ascii_case(known) {
        Ok(())
    } else {
        Err(format!("disagrees with {known}; leave it empty, or use OTHER"))
    }
}
