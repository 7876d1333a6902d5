//! Where events go, and what happens to them on the way.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use thiserror::Error;
use url::Url;

use crate::sandbox::Account;

/// Where events go, and what happens to them on the way.
///
/// Written as JSON (the control route) with these field names. What happens by chance happens the same way again
/// for the same changes and the same seed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::sandbox) struct Settings {
    /// Where they are posted; without, nothing is told.
    pub(in crate::sandbox) url: Option<Url>,
    /// Whose changes are told; without, those of every account.
    pub(in crate::sandbox) account: Option<String>,
    /// How likely an event is never sent, 0 to 1.
    pub(in crate::sandbox) loss: f64,
    /// How likely an event is sent twice, 0 to 1.
    pub(in crate::sandbox) duplicates: f64,
    /// How likely an event is held back until the next one has overtaken it, 0 to 1.
    pub(in crate::sandbox) reorder: f64,
    /// Every event is sent so much later.
    pub(in crate::sandbox) delay_ms: u32,
    /// CloudEvents in one request, at most.
    pub(in crate::sandbox) batch: usize,
    /// How long an answer may take.
    pub(in crate::sandbox) timeout_ms: u32,
    /// The wait before the first retry; it doubles with each, and up to half of it is taken off by chance.
    pub(in crate::sandbox) first_retry_ms: u32,
    /// An event is dropped when its next retry would come later than this after it was first sent.
    pub(in crate::sandbox) give_up_ms: u32,
    /// What chance begins with.
    pub(in crate::sandbox) seed: u64,
}

impl Default for Settings {
    /// Off. In time like Twilio, but for the retries, which go on for hours there.
    fn default() -> Self {
        Self {
            url: None,
            account: None,
            loss: 0.0,
            duplicates: 0.0,
            reorder: 0.0,
            delay_ms: 0,
            batch: 10,
            timeout_ms: 5000,
            first_retry_ms: 100,
            give_up_ms: 60_000,
            seed: 0,
        }
    }
}

/// Why the settings of events are refused.
#[derive(Debug, Error)]
pub(in crate::sandbox) enum SettingsError {
    /// It is no JSON object of settings.
    #[error("{0}")]
    Json(#[from] serde_path_to_error::Error<serde_json::Error>),
    /// It is some other JSON.
    #[error("the settings of events are a JSON object")]
    NotAnObject,
    /// Nothing can be posted there.
    #[error("`url` is not http, or has a fragment")]
    Url,
    /// There is no such account.
    #[error("`account`: there is no account {0}")]
    NoAccount(String),
    /// No chance is below 0 or above 1.
    #[error("`{0}` is not from 0 to 1")]
    Chance(&'static str),
    /// A request without events would be none.
    #[error("`batch` is less than 1")]
    Batch,
}

impl Settings {
    /// These settings with those keys put over them that the JSON has.
    pub(in crate::sandbox) fn with(&self, change: Value) -> Result<Settings, SettingsError> {
        let mut whole = serde_json::to_value(self).expect("no key of it is anything but text");
        let (Value::Object(keys), Value::Object(changed)) = (&mut whole, change) else {
            return Err(SettingsError::NotAnObject);
        };
        keys.extend(changed);
        Ok(serde_path_to_error::deserialize(whole)?)
    }

    /// Says what makes no sense.
    pub(in crate::sandbox) fn check(&self, accounts: &[Account]) -> Result<(), SettingsError> {
        let postable = |url: &Url| url.scheme() == "http" && url.fragment().is_none();
        if !self.url.as_ref().is_none_or(postable) {
            return Err(SettingsError::Url);
        }
        if let Some(sid) = &self.account
            && !accounts.iter().any(|account| account.sid == *sid)
        {
            return Err(SettingsError::NoAccount(sid.clone()));
        }
        let chances = [("loss", self.loss), ("duplicates", self.duplicates), ("reorder", self.reorder)];
        if let Some((key, _)) = chances.iter().find(|(_, chance)| !(0.0..=1.0).contains(chance)) {
            return Err(SettingsError::Chance(key));
        }
        if self.batch == 0 { Err(SettingsError::Batch) } else { Ok(()) }
    }
}
