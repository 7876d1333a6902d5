//! How a fault is written: as JSON for the control routes, as text for the command line.

use std::str::FromStr;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::{Fault, FaultError, FaultMatch, TEXT_KEYS, bad_value};

const JSON_KEYS: [&str; 13] = [
    "match",
    "times",
    "latency_ms",
    "hold",
    "after",
    "status",
    "code",
    "message",
    "retry_after",
    "headers",
    "body",
    "content_type",
    "cut",
];
const MATCH_KEYS: [&str; 5] = ["api", "method", "path_contains", "account", "concurrent_above"];

impl Fault {
    /// Reads the JSON form.
    pub(in crate::sandbox) fn from_json(value: Value) -> Result<Fault, FaultError> {
        let mut keys = Keys::of(value)?;
        let matches = FaultMatch::read(Keys(keys.take("match")?.unwrap_or_default()))?;
        let fault = Fault {
            matches,
            times: keys.take("times")?,
            latency_ms: keys.take("latency_ms")?.unwrap_or_default(),
            hold: keys.take("hold")?.unwrap_or_default(),
            after: keys.take("after")?.unwrap_or_default(),
            status: keys.take("status")?,
            code: keys.take("code")?,
            message: keys.take("message")?,
            retry_after: keys.take("retry_after")?,
            headers: keys.take("headers")?.unwrap_or_default(),
            body: keys.take("body")?,
            content_type: keys.take("content_type")?,
            cut: keys.take("cut")?,
        };
        keys.end(&JSON_KEYS)?;
        fault.check()?;
        Ok(fault)
    }
}

impl FaultMatch {
    fn read(mut keys: Keys) -> Result<FaultMatch, FaultError> {
        let matches = FaultMatch {
            api: keys.take("api")?,
            method: keys.take("method")?,
            path_contains: keys.take("path_contains")?,
            account: keys.take("account")?,
            concurrent_above: keys.take("concurrent_above")?,
        };
        keys.end(&MATCH_KEYS)?;
        Ok(matches)
    }
}

/// The command line's form: `status=429,code=20429,retry-after=1,times=3,method=GET`. A value cannot
/// contain a comma; the JSON form can say all that this one can, and more.
impl FromStr for Fault {
    type Err = FaultError;

    fn from_str(text: &str) -> Result<Fault, FaultError> {
        let (mut fault, mut matches) = (Map::new(), Map::new());
        for pair in text.split(',') {
            let (key, value) = pair.split_once('=').ok_or_else(|| FaultError::NotAPair(pair.to_owned()))?;
            let (key, value) = (key.trim(), value.trim());
            // Left as text where it is not the JSON it should be, so that the error shows what was given.
            let literal = || serde_json::from_str(value).unwrap_or_else(|_| json!(value));
            match key {
                "api" | "method" | "account" => matches.insert(key.to_owned(), json!(value)),
                "path" => matches.insert("path_contains".to_owned(), json!(value)),
                "concurrent-above" => matches.insert("concurrent_above".to_owned(), literal()),
                "latency" => {
                    let latency = humantime::parse_duration(value)
                        .ok()
                        .and_then(|latency| u64::try_from(latency.as_millis()).ok())
                        .ok_or_else(|| bad_value(key, &value, "a duration like 200ms"))?;
                    fault.insert("latency_ms".to_owned(), json!(latency))
                }
                "retry-after" => fault.insert("retry_after".to_owned(), json!(value)),
                "body" | "cut" => fault.insert(key.to_owned(), json!(value)),
                "times" | "hold" | "after" | "status" | "code" => fault.insert(key.to_owned(), literal()),
                _ => return Err(unknown_key(key, &TEXT_KEYS)),
            };
        }
        fault.insert("match".to_owned(), Value::Object(matches));
        Fault::from_json(Value::Object(fault))
    }
}

/// The keys of an object that nobody has taken yet.
struct Keys(Map<String, Value>);

impl Keys {
    fn of(value: Value) -> Result<Keys, FaultError> {
        match value {
            Value::Object(map) => Ok(Keys(map)),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
                Err(FaultError::NotAnObject)
            }
        }
    }

    /// Null is the same as left out.
    fn take<T: DeserializeOwned>(&mut self, key: &str) -> Result<Option<T>, FaultError> {
        let Some(value) = self.0.remove(key) else {
            return Ok(None);
        };
        T::deserialize(&value).map(Some).or_else(|error| {
            if value.is_null() { Ok(None) } else { Err(bad_value(key, &value, &error.to_string())) }
        })
    }

    fn end(mut self, legal: &[&str]) -> Result<(), FaultError> {
        self.0.retain(|key, _| !legal.contains(&key.as_str()));
        match self.0.keys().next() {
            Some(key) => Err(unknown_key(key, legal)),
            None => Ok(()),
        }
    }
}

fn unknown_key(key: &str, legal: &[&str]) -> FaultError {
    FaultError::UnknownKey { key: key.to_owned(), legal: legal.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::{Api, Cut};

    #[test]
    fn the_command_lines_form() {
        let text = "status=429,code=20429,retry-after=1,times=3,method=GET,api=v1,path=/MB,account=AC1,concurrent-above=8,after=true";
        let fault: Fault = text.parse().unwrap();
        assert_eq!((fault.status, fault.code, fault.times), (Some(429), Some(20429), Some(3)));
        assert_eq!(fault.retry_after.as_deref(), Some("1"));
        assert_eq!(fault.matches.api, Some(Api::V1));
        assert_eq!(fault.matches.method.as_deref(), Some("GET"));
        assert_eq!(fault.matches.path_contains.as_deref(), Some("/MB"));
        assert_eq!(fault.matches.account.as_deref(), Some("AC1"));
        assert_eq!(fault.matches.concurrent_above, Some(8));
        assert!(fault.after && !fault.hold);

        let fault: Fault = "latency=1s 200ms, cut=mid".parse().unwrap();
        assert_eq!((fault.latency_ms, fault.cut), (1200, Some(Cut::Mid)));
        assert_eq!("body=17,status=200".parse::<Fault>().unwrap().body.as_deref(), Some("17"));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, named) in [
            ("", "key=value"),
            ("hold", "key=value"),
            ("colour=red", "retry-after"),
            ("status=teapot", "`status`"),
            ("status=100", "`status`"),
            ("status=500,times=0", "`times`"),
            ("latency=soon", "`latency`"),
            ("cut=off", "`cut`"),
            ("status=500,api=v3", "`api`"),
            ("status=500,method=A B", "`method`"),
            ("code=20429", "needs `status`"),
            ("times=3", "does nothing"),
        ] {
            let error = text.parse::<Fault>().unwrap_err().to_string();
            assert!(error.contains(named), "{text}: {error}");
        }
    }

    #[test]
    fn json_keys_are_named_too() {
        for (json, named) in [
            (json!([]), "object"),
            (json!({"status": 500, "match": "GET"}), "`match`"),
            (json!({"statsu": 500}), "`statsu`"),
            (json!({"status": 500, "match": {"path": "x"}}), "`path`"),
            (json!({"status": "500"}), "`status`"),
            (json!({"headers": {"a b": "c"}}), "`headers`"),
            (json!({"cut": "mid", "content_type": "text/html"}), "needs `body`"),
        ] {
            let error = Fault::from_json(json.clone()).unwrap_err().to_string();
            assert!(error.contains(named), "{json}: {error}");
        }
    }

    #[test]
    fn json_goes_out_as_it_comes_in() {
        let fault = Fault {
            hold: true,
            times: Some(1),
            headers: [("X-A".into(), "b".into())].into(),
            ..Fault::default()
        };
        let json = serde_json::to_value(&fault).unwrap();
        let again = Fault::from_json(json.clone()).unwrap();
        assert_eq!(serde_json::to_value(&again).unwrap(), json);
    }
}
