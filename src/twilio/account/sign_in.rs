//! What the requests of one account send as `authorization`: the best that there is, and another after a 401.
//!
//! Reading it costs a request next to nothing. Only one that was refused, or that finds nothing to send, asks the account's
//! upkeep for more, and all who ask at the same time are served by one answer.

use std::sync::atomic::{AtomicU64, Ordering};

use http::HeaderValue;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout_at};

use super::Credentials;
use crate::twilio::error::NoToken;

/// How one account signs in.
pub(in crate::twilio) struct SignIn {
    pub(super) credentials: Credentials,
    pub(super) offer: watch::Sender<Offer>,
    /// How many have asked the upkeep for more.
    pub(super) asked: AtomicU64,
    pub(super) wake: Notify,
}

/// What there is to send.
pub(super) struct Offer {
    candidates: Vec<Candidate>,
    /// So many of the first are values in use; the others are older.
    in_use: usize,
    /// Whether calls that find nothing good wait for a file to change. They do until that was of no avail, and again once
    /// Twilio has taken something.
    pub(super) is_patient: bool,
    /// So many of those who asked have their answer: there is nothing but this.
    pub(super) answered: u64,
    /// Why there is no new token.
    pub(super) failure: Option<NoToken>,
}

struct Candidate {
    authorization: HeaderValue,
    /// Twilio refused it, and has not taken it since.
    is_refused: bool,
}

impl Offer {
    fn new(authorizations: Vec<HeaderValue>) -> Self {
        let mut offer =
            Self { candidates: Vec::new(), in_use: 0, is_patient: true, answered: 0, failure: None };
        let in_use = authorizations.len();
        offer.replace(authorizations, in_use);
        offer
    }

    /// Replaces what there is, best first, of which the first so many are in use: these get a second chance.
    pub(super) fn replace(&mut self, authorizations: Vec<HeaderValue>, in_use: usize) {
        let candidate = |(at, authorization)| {
            let is_refused = at >= in_use && self.is_refused(&authorization);
            Candidate { authorization, is_refused }
        };
        self.candidates = authorizations.into_iter().enumerate().map(candidate).collect();
        self.in_use = in_use;
    }

    /// Whether there is anything that Twilio has not refused.
    pub(super) fn is_good(&self) -> bool {
        self.candidates.iter().any(|candidate| !candidate.is_refused)
    }

    /// The best of those that were not tried. Of those that were refused, only what is in use is tried again.
    fn untried(&self, tried: &[HeaderValue]) -> Option<HeaderValue> {
        let is_left = |candidate: &&Candidate| !tried.contains(&candidate.authorization);
        let good = self.candidates.iter().filter(is_left).find(|candidate| !candidate.is_refused);
        let best = good.or_else(|| self.candidates.iter().take(self.in_use).find(is_left));
        best.map(|candidate| candidate.authorization.clone())
    }

    /// What is worth a try after a look at everything: also what was tried, if another request had it taken since then.
    fn revived(&self, tried: &[HeaderValue]) -> Option<HeaderValue> {
        let good = self.candidates.iter().find(|candidate| !candidate.is_refused);
        good.map(|candidate| candidate.authorization.clone()).or_else(|| self.untried(tried))
    }

    /// The one in use, where the last of several tries was another: Twilio may have changed between the tries.
    fn overtaken(&self, tried: &[HeaderValue]) -> Option<HeaderValue> {
        let in_use = &self.candidates.first()?.authorization;
        tried.last().filter(|last| *last != in_use).map(|_| in_use.clone())
    }

    fn is_refused(&self, authorization: &HeaderValue) -> bool {
        let mut refused = self.candidates.iter().filter(|candidate| candidate.is_refused);
        refused.any(|candidate| candidate.authorization == *authorization)
    }

    fn mark(&mut self, authorization: &HeaderValue, is_refused: bool) {
        for candidate in &mut self.candidates {
            if candidate.authorization == *authorization {
                candidate.is_refused = is_refused;
            }
        }
    }
}

impl SignIn {
    pub(in crate::twilio) fn new(credentials: Credentials) -> Self {
        let offer = watch::Sender::new(Offer::new(credentials.basic()));
        Self { credentials, offer, asked: AtomicU64::new(0), wake: Notify::new() }
    }

    /// What to send after these were refused. Where there is nothing else, it waits for the upkeep to look, but not beyond
    /// `until`; then it tells why there is no token, if one is missing.
    pub(in crate::twilio) async fn next(
        &self,
        refused: &[HeaderValue],
        until: Instant,
    ) -> Result<HeaderValue, Option<NoToken>> {
        let at_once = self.offer.borrow().untried(refused);
        if let Some(authorization) = at_once {
            return Ok(authorization);
        }
        if !self.can_change() {
            return Err(None);
        }
        let overtaken = self.offer.borrow().overtaken(refused);
        if let Some(authorization) = overtaken {
            return Ok(authorization);
        }
        let mut offers = self.offer.subscribe();
        let ticket = self.asked.fetch_add(1, Ordering::SeqCst) + 1;
        self.wake.notify_one();
        let settled = offers.wait_for(|offer| offer.answered >= ticket || offer.revived(refused).is_some());
        // Whether it was answered or the time is up: what there is now counts.
        let _ = timeout_at(until, settled).await.map(|_| ());
        let offer = self.offer.borrow();
        offer.revived(refused).ok_or(offer.failure)
    }

    /// Twilio took it.
    pub(in crate::twilio) fn accepted(&self, authorization: &HeaderValue) {
        let is_news = {
            let offer = self.offer.borrow();
            !offer.is_patient || offer.is_refused(authorization)
        };
        if is_news {
            self.offer.send_if_modified(|offer| {
                offer.mark(authorization, false);
                offer.is_patient = true;
                // Others may wait for it.
                true
            });
        }
    }

    /// Twilio refused it.
    pub(in crate::twilio) fn refused(&self, authorization: &HeaderValue) {
        self.offer.send_if_modified(|offer| {
            offer.mark(authorization, true);
            false
        });
    }

    fn can_change(&self) -> bool {
        matches!(self.credentials, Credentials::OAuth(_)) || self.has_files()
    }

    pub(super) fn has_files(&self) -> bool {
        self.credentials.secrets().iter().any(super::Secret::is_file)
    }
}
