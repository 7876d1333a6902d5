//! What the requests of one account send to one API as `authorization`: the best that there is, and another after a 401.
//!
//! What one API refuses the other may take, by permission or audience, so each has its own marks. The credentials are the same.
//!
//! Reading it costs a request next to nothing. Only one that was refused, or that finds nothing to send, asks the account's
//! upkeep for more, and all who ask at the same time are served by one answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use http::HeaderValue;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout_at};

use super::Credentials;
use crate::secret::KEPT;
use crate::twilio::error::NoToken;

/// So many tokens in a row that are refused from the start are no accident.
const MOST_USELESS: u32 = 3;

/// How one account signs in to one API.
pub(in crate::twilio) struct SignIn {
    pub(super) credentials: Credentials,
    pub(super) offer: watch::Sender<Offer>,
    /// How many have asked the upkeep for more.
    pub(super) asked: AtomicU64,
    /// That of the account's upkeep, which serves both APIs.
    pub(super) wake: Arc<Notify>,
}

/// What there is to send.
#[derive(Default)]
pub(super) struct Offer {
    candidates: Vec<Candidate>,
    /// So many of the first are in use; the others are older.
    in_use: usize,
    /// Whether waiting for a file to change, or for another token, was of no avail, and since then no file has changed and
    /// Twilio has taken nothing.
    pub(super) is_hopeless: bool,
    /// So many in a row were refused as soon as they came.
    pub(super) useless: u32,
    /// So many of those who asked have their answer: there is nothing but this.
    pub(super) answered: u64,
    /// Why there is no new token.
    pub(super) failure: Option<NoToken>,
}

struct Candidate {
    authorization: HeaderValue,
    offered: Instant,
    mark: Mark,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mark {
    Untried,
    Taken,
    /// And not taken since.
    Refused,
}

impl Candidate {
    fn is_refused(&self) -> bool {
        self.mark == Mark::Refused
    }
}

impl Offer {
    /// Replaces what is in use, best first. What was in use stays behind it, for so many generations in all.
    pub(super) fn replace(&mut self, in_use: Vec<HeaderValue>, generations: usize) {
        let mut older = std::mem::take(&mut self.candidates);
        older.retain(|candidate| !in_use.contains(&candidate.authorization));
        self.in_use = in_use.len();
        let offered = Instant::now();
        let candidate = |authorization| Candidate { authorization, offered, mark: Mark::Untried };
        self.candidates = in_use.into_iter().map(candidate).chain(older).collect();
        self.candidates.truncate(self.in_use * generations);
    }

    /// Whether there is anything that Twilio has not refused.
    pub(super) fn is_good(&self) -> bool {
        self.candidates.iter().any(|candidate| !candidate.is_refused())
    }

    /// The best of those that were not tried. Of those that were refused, only what is in use is tried again.
    fn untried(&self, tried: &[HeaderValue]) -> Option<HeaderValue> {
        let is_left = |candidate: &&Candidate| !tried.contains(&candidate.authorization);
        let good = self.candidates.iter().filter(is_left).find(|candidate| !candidate.is_refused());
        let best = good.or_else(|| self.candidates.iter().take(self.in_use).find(is_left));
        best.map(|candidate| candidate.authorization.clone())
    }

    /// What is worth a try after a look at everything: also what was tried, if another request had it taken since then.
    fn revived(&self, tried: &[HeaderValue]) -> Option<HeaderValue> {
        let good = self.candidates.iter().find(|candidate| !candidate.is_refused());
        good.map(|candidate| candidate.authorization.clone()).or_else(|| self.untried(tried))
    }

    /// The one in use, where the last of several tries was another: Twilio may have changed between the tries.
    fn overtaken(&self, tried: &[HeaderValue]) -> Option<HeaderValue> {
        let in_use = &self.candidates.first()?.authorization;
        tried.last().filter(|last| *last != in_use).map(|_| in_use.clone())
    }

    fn is_taken(&self, authorization: &HeaderValue) -> bool {
        let mut taken = self.candidates.iter().filter(|candidate| candidate.mark == Mark::Taken);
        taken.any(|candidate| candidate.authorization == *authorization)
    }

    fn find(&mut self, authorization: &HeaderValue) -> Option<&mut Candidate> {
        self.candidates.iter_mut().find(|candidate| candidate.authorization == *authorization)
    }

    fn take(&mut self, authorization: &HeaderValue) {
        if let Some(candidate) = self.find(authorization) {
            candidate.mark = Mark::Taken;
        }
        (self.is_hopeless, self.useless) = (false, 0);
    }

    /// It is useless if it is refused to a request that had begun, at `began`, before it came, and nobody had it taken.
    fn refuse(&mut self, authorization: &HeaderValue, began: Instant) {
        let Some(candidate) = self.find(authorization) else {
            return;
        };
        let is_useless = candidate.mark == Mark::Untried && candidate.offered > began;
        candidate.mark = Mark::Refused;
        self.useless = self.useless.saturating_add(is_useless.into());
    }
}

impl SignIn {
    /// For v1 and for v2.
    pub(in crate::twilio) fn pair(credentials: &Credentials) -> [Arc<Self>; 2] {
        let wake = Arc::new(Notify::new());
        [(); 2].map(|()| Arc::new(Self::new(credentials.clone(), wake.clone())))
    }

    fn new(credentials: Credentials, wake: Arc<Notify>) -> Self {
        let mut offer = Offer::default();
        offer.replace(credentials.basic(), KEPT);
        let offer = watch::Sender::new(offer);
        Self { credentials, offer, asked: AtomicU64::new(0), wake }
    }

    /// What to send first. Where there is nothing, it waits for the upkeep to look, but not beyond `until`.
    pub(in crate::twilio) async fn first(&self, until: Instant) -> Result<HeaderValue, NoToken> {
        self.next(&[], until).await.map_err(|why| why.unwrap_or(NoToken::Unavailable("timed_out")))
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
            offer.is_hopeless || !offer.is_taken(authorization)
        };
        if is_news {
            self.offer.send_if_modified(|offer| {
                offer.take(authorization);
                // Others may wait for it.
                true
            });
        }
    }

    /// Twilio refused it to a request that had begun then.
    pub(in crate::twilio) fn refused(&self, authorization: &HeaderValue, began: Instant) {
        let is_token = matches!(self.credentials, Credentials::OAuth(_));
        self.offer.send_if_modified(|offer| {
            offer.refuse(authorization, began);
            offer.is_hopeless |= is_token && offer.useless >= MOST_USELESS;
            false
        });
    }

    fn can_change(&self) -> bool {
        matches!(self.credentials, Credentials::OAuth(_)) || self.has_files()
    }

    pub(super) fn has_files(&self) -> bool {
        self.credentials.parts().iter().any(|part| part.is_file())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::secret::Secret;

    fn values(texts: &[&'static str]) -> Vec<HeaderValue> {
        texts.iter().map(|text| HeaderValue::from_static(text)).collect()
    }

    /// With the value in use and an older one, and nobody who would look for more.
    fn new_and_old() -> SignIn {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "secret").unwrap();
        let passwords = vec![Secret::read("a test", file.path(), 1).unwrap()];
        let user = Secret::new("a test", "AC1");
        let sign_in = SignIn::new(Credentials::Basic { user, passwords }, Arc::default());
        for value in ["old", "new"] {
            sign_in.offer.send_modify(|offer| offer.replace(values(&[value]), 2));
        }
        sign_in
    }

    /// What comes after these were refused, at once.
    async fn next(sign_in: &SignIn, refused: &[&'static str]) -> Option<HeaderValue> {
        for value in values(refused) {
            sign_in.refused(&value, Instant::now());
        }
        sign_in.next(&values(refused), Instant::now()).await.ok()
    }

    #[tokio::test]
    async fn each_is_tried_and_the_one_in_use_again_because_twilio_may_have_changed_between_the_tries() {
        let sign_in = new_and_old();
        assert_eq!(next(&sign_in, &[]).await.unwrap(), "new");
        assert_eq!(next(&sign_in, &["new"]).await.unwrap(), "old");
        assert_eq!(next(&sign_in, &["new", "old"]).await.unwrap(), "new");
        assert_eq!(next(&sign_in, &["new", "old", "new"]).await, None);
    }

    #[tokio::test]
    async fn what_was_refused_comes_last_until_it_is_taken_again() {
        let sign_in = new_and_old();
        sign_in.refused(&values(&["new"])[0], Instant::now());
        assert_eq!(next(&sign_in, &[]).await.unwrap(), "old");
        assert_eq!(next(&sign_in, &["old"]).await.unwrap(), "new");
        // Of what is refused altogether, the old one is not worth a request.
        assert_eq!(next(&sign_in, &["new"]).await, None);
        sign_in.accepted(&values(&["new"])[0]);
        assert_eq!(next(&sign_in, &[]).await.unwrap(), "new");
    }

    #[tokio::test]
    async fn whoever_waits_goes_on_with_what_another_request_had_taken() {
        let sign_in = new_and_old();
        assert_eq!(next(&sign_in, &["new", "old", "new"]).await, None);
        let tried = values(&["new", "old", "new"]);
        let waiting = sign_in.next(&tried, Instant::now() + Duration::from_secs(20));
        let other = async {
            tokio::task::yield_now().await;
            sign_in.accepted(&values(&["old"])[0]);
        };
        let (found, ()) = tokio::join!(waiting, other);
        assert_eq!(found.unwrap(), "old");
    }

    #[tokio::test]
    async fn a_change_brings_the_new_value_first_and_does_not_revive_old_ones() {
        let sign_in = new_and_old();
        assert_eq!(next(&sign_in, &["new"]).await.unwrap(), "old");
        sign_in.offer.send_modify(|offer| offer.replace(values(&["newer"]), 3));
        assert_eq!(next(&sign_in, &["newer"]).await.unwrap(), "old");
        // Only that it is in use again gives it another chance.
        sign_in.offer.send_modify(|offer| offer.replace(values(&["new"]), 3));
        assert_eq!(next(&sign_in, &[]).await.unwrap(), "new");
    }

    #[test]
    fn so_many_generations_are_kept_and_each_once() {
        let mut offer = Offer::default();
        let kept = |offer: &Offer| {
            let texts = offer.candidates.iter().map(|candidate| candidate.authorization.to_str().unwrap());
            texts.collect::<Vec<_>>().join(" ")
        };
        for (in_use, expected) in [
            (["p1", "s1"], "p1 s1"),
            (["p2", "s1"], "p2 s1 p1"),
            (["p3", "s3"], "p3 s3 p2 s1"),
            (["p2", "s3"], "p2 s3 p3 s1"),
        ] {
            offer.replace(values(&in_use), 2);
            assert_eq!(kept(&offer), expected);
        }
        offer.replace(values(&["token"]), 1);
        assert_eq!(kept(&offer), "token");
    }
}
