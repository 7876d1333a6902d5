//! The log of what was asked, so that a test can look at requests on the wire.

use std::borrow::Cow;
use std::collections::{BTreeMap, VecDeque};

use axum::http::{Method, header};
use serde::Serialize;
use serde_json::{Value, json};

use super::call::Call;
use super::oauth;
use super::route::Target;

const ENTRIES: usize = 1000;
/// Bodies are cut to this in the log, which bounds its memory.
const BODY_BYTES: usize = 16 * 1024;

#[derive(Default)]
pub(super) struct Journal {
    total: u64,
    by: BTreeMap<(&'static str, String), u64>,
    last: VecDeque<Entry>,
}

#[derive(Serialize)]
struct Entry {
    method: String,
    path: String,
    query: String,
    headers: BTreeMap<String, String>,
    body: String,
    account: Option<String>,
}

#[derive(Serialize)]
struct Count<'a> {
    method: &'a str,
    path_template: &'static str,
    count: u64,
}

impl Journal {
    pub(super) fn record(&mut self, call: &Call) {
        self.total += 1;
        *self.by.entry((call.route.template(), counted_method(&call.method))).or_default() += 1;
        if self.last.len() == ENTRIES {
            self.last.pop_front();
        }
        self.last.push_back(Entry::of(call));
    }

    pub(super) fn clear(&mut self) {
        *self = Journal::default();
    }

    pub(super) fn report(&self) -> Value {
        let by = self.by.iter();
        let by: Vec<Count<'_>> = by
            .map(|((path_template, method), count)| Count { method, path_template, count: *count })
            .collect();
        json!({"total": self.total, "by": by, "last": self.last})
    }
}

impl Entry {
    fn of(call: &Call) -> Entry {
        let mut headers = BTreeMap::<String, String>::new();
        for (name, value) in call.headers.iter().filter(|(name, _)| *name != header::AUTHORIZATION) {
            let value = String::from_utf8_lossy(value.as_bytes());
            headers
                .entry(name.as_str().to_owned())
                .and_modify(|earlier| {
                    earlier.push_str(", ");
                    earlier.push_str(&value);
                })
                .or_insert_with(|| value.clone().into_owned());
        }
        let body = match call.route.target {
            Some(Target::Token) => Cow::from(oauth::masked(&call.body).into_bytes()),
            _ => Cow::from(&*call.body),
        };
        let body = &body[..body.len().min(BODY_BYTES)];
        Entry {
            method: call.method.to_string(),
            path: call.path.clone(),
            query: call.query.clone(),
            headers,
            body: String::from_utf8_lossy(body).into_owned(),
            account: call.account.clone(),
        }
    }
}

/// Methods of the caller's invention share a counter, or they could fill the memory.
fn counted_method(method: &Method) -> String {
    const KNOWN: [Method; 7] = [
        Method::GET,
        Method::POST,
        Method::PUT,
        Method::PATCH,
        Method::DELETE,
        Method::HEAD,
        Method::OPTIONS,
    ];
    if KNOWN.contains(method) { method.to_string() } else { "(other)".to_owned() }
}
