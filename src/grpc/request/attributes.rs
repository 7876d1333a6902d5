//! Attributes: JSON text within Twilio's bound, and without what JSON parsers disagree on.

use std::collections::HashSet;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};

use super::text::IS_MASKED;
use crate::proto::MASKED_JSON;

/// "Conversations limits": participant attributes, 4 KB.
const MAX_BYTES: usize = 4096;

/// What is wrong with the text is said without repeating it.
pub(super) fn check(text: &str) -> Result<(), String> {
    if text.len() > MAX_BYTES {
        return Err(format!("must not be longer than {MAX_BYTES} bytes"));
    }
    if text == MASKED_JSON {
        return Err(IS_MASKED.into());
    }
    match serde_json::from_str::<Unambiguous>(text) {
        Ok(Unambiguous) => Ok(()),
        Err(error) if error.is_data() => Err("must be JSON without duplicate keys".into()),
        Err(error) => Err(format!(
            "must be JSON, nested less than 128 deep: see line {}, column {}",
            error.line(),
            error.column()
        )),
    }
}

/// JSON whose meaning is the same for every parser: no key twice in an object, no number that fits no double. Nesting is
/// bounded by serde_json.
struct Unambiguous;

impl<'de> Deserialize<'de> for Unambiguous {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Walk)
    }
}

struct Walk;

impl<'de> Visitor<'de> for Walk {
    type Value = Unambiguous;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Unambiguous, E> {
        Ok(Unambiguous)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Unambiguous, E> {
        Ok(Unambiguous)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Unambiguous, E> {
        Ok(Unambiguous)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Unambiguous, E> {
        Ok(Unambiguous)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Unambiguous, E> {
        Ok(Unambiguous)
    }

    fn visit_str<E>(self, _: &str) -> Result<Unambiguous, E> {
        Ok(Unambiguous)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Unambiguous, A::Error> {
        while items.next_element::<Unambiguous>()?.is_some() {}
        Ok(Unambiguous)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Unambiguous, A::Error> {
        let mut keys = HashSet::new();
        while let Some((key, Unambiguous)) = entries.next_entry::<String, Unambiguous>()? {
            if !keys.insert(key) {
                return Err(A::Error::custom("a key stands twice"));
            }
        }
        Ok(Unambiguous)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_json() {
        for good in ["{}", "null", "[1,2.5e10,\"é\"]", r#"{"a":{"b":[{}]},"b":1}"#, " {\n} "] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        assert_eq!(check(&format!("\"{}\"", "a".repeat(MAX_BYTES - 2))), Ok(()));
    }

    #[test]
    fn anything_else_is_refused_without_repeating_it() {
        let deep = "[".repeat(2000);
        for bad in ["{", "secret", "1e400", r#"{"a":1,"a":2}"#, "{}{}", "\"\u{0}\"", "'a'", deep.as_str()] {
            let error = check(bad).unwrap_err();
            assert!(!error.contains("secret"), "{error}");
        }
        assert!(check(&"1".repeat(MAX_BYTES + 1)).unwrap_err().contains("4096"));
    }
}
