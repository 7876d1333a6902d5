//! A write that only has to be sent: what tells it from another, and what may be shown of it.

use sha2::{Digest as _, Sha256};

use super::http::Request;
use crate::proto::UpstreamRequest;

/// Stands where a value is not shown.
pub(super) const MASKED: &str = "***";

/// A create or an update that only has to be sent.
pub struct Prepared {
    /// `None`: nothing differs, so nothing is sent.
    pub(super) request: Option<Request>,
}

impl Prepared {
    /// Whether the participant already is as the update wants it.
    pub fn is_no_change(&self) -> bool {
        self.request.is_none()
    }

    /// Tells one write from another: a hash of all that Twilio would see of it, but not of where Twilio is: that may differ
    /// between replicas.
    pub fn fingerprint(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        let mut part = |bytes: &[u8]| {
            hash.update((bytes.len() as u64).to_be_bytes());
            hash.update(bytes);
        };
        if let Some(request) = &self.request {
            part(request.method.as_str().as_bytes());
            part(request.url.path().as_bytes());
            part(request.url.query().unwrap_or_default().as_bytes());
            for (name, value) in request.headers() {
                part(name.as_str().as_bytes());
                part(value.as_bytes());
            }
            part(request.body.as_ref().map(|body| body.bytes.as_ref()).unwrap_or_default());
        }
        hash.finalize().into()
    }

    /// What would be sent, without credentials and PII; `None` where nothing would be.
    pub fn shown(&self) -> Option<UpstreamRequest> {
        let request = self.request.as_ref()?;
        let authorization = ("authorization".to_owned(), MASKED.to_owned());
        let headers = request.headers().map(|(name, value)| (name.to_string(), value.to_owned()));
        Some(UpstreamRequest {
            method: request.method.to_string(),
            url_template: request.template.to_owned(),
            headers: headers.chain([authorization]).collect(),
            body: request.body.as_ref().map(|body| body.shown.to_string()).unwrap_or_default(),
        })
    }
}
