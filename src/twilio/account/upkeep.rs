//! Keeps what an account signs in with: reads the files of its secrets again, and renews its access token ahead of its end.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tower::util::rng::{HasherRng, Rng as _};
use tracing::{info, warn};

use super::sign_in::{Offer, SignIn};
use super::{Client, Credentials};
use crate::ids::AccountId;
use crate::secret::KEPT;
use crate::telemetry::Metrics;
use crate::twilio::error::NoToken;
use crate::twilio::http::Http;

/// Twilio and the files do not change at the same moment. Where all is refused, calls wait so long for a file to change.
const GRACE: Duration = Duration::from_secs(5);
/// How often it looks while calls wait.
const POLL: Duration = Duration::from_millis(50);
/// A token that is refused so soon after it was fetched is not renewed at once: its age is not the reason. The pause grows
/// where that happens again and again.
const MIN_TOKEN_AGE: Duration = Duration::from_millis(250);
const FIRST_BACKOFF: Duration = Duration::from_millis(250);
const LONGEST_BACKOFF: Duration = Duration::from_secs(30);

/// The upkeep of one account.
pub(in crate::twilio) struct Upkeep<'a> {
    pub(in crate::twilio) account: &'a AccountId,
    pub(in crate::twilio) apis: [&'a SignIn; 2],
    pub(in crate::twilio) http: &'a Http,
    /// How often files are read.
    pub(in crate::twilio) every: Duration,
    pub(in crate::twilio) metrics: &'a Metrics,
}

/// What it remembers from one round to the next.
struct State {
    /// When the token is to be renewed.
    renew_at: Instant,
    /// Not before it is the token endpoint asked again.
    not_before: Instant,
    failures: u32,
    apis: [ApiState; 2],
}

/// What it remembers of one API.
#[derive(Clone, Copy)]
struct ApiState {
    /// Not before it does the API get another token in place of one that it refused.
    not_before: Instant,
    /// Until when calls wait for a file to change.
    grace: Option<Instant>,
}

impl Upkeep<'_> {
    /// Goes on until the token is cancelled.
    pub(in crate::twilio) async fn run(self, end: CancellationToken) {
        let now = Instant::now();
        let apis = [ApiState { not_before: now, grace: None }; 2];
        let mut state = State { renew_at: now, not_before: now, failures: 0, apis };
        while end.run_until_cancelled(self.round(&mut state)).await.is_some() {}
    }

    async fn round(&self, state: &mut State) {
        // Before it looks: whoever asks from here on is served by the next round.
        let asked = self.apis.map(|api| api.asked.load(Ordering::SeqCst));
        if self.reload().await {
            (state.not_before, state.failures) = (Instant::now(), 0);
            self.offer(|offer| (offer.is_hopeless, offer.useless) = (false, 0));
            state.apis.iter_mut().for_each(|api| api.not_before = state.not_before);
            if let Credentials::Basic { .. } = self.credentials() {
                self.offer(|offer| offer.replace(self.credentials().basic(), KEPT));
            }
        }
        if let Credentials::OAuth(client) = self.credentials() {
            self.renew_if_due(client, state).await;
        }
        let is_answered = [0, 1].map(|api| self.answer(api, asked[api], state));
        if is_answered.contains(&false) {
            return sleep(POLL).await;
        }
        tokio::select! {
            () = self.apis[0].wake.notified() => {}
            () = sleep_until(self.next_round(state)) => {}
        }
    }

    /// Those of both APIs.
    fn credentials(&self) -> &Credentials {
        &self.apis[0].credentials
    }

    fn offer(&self, change: impl Fn(&mut Offer)) {
        for api in self.apis {
            api.offer.send_modify(&change);
        }
    }

    async fn reload(&self) -> bool {
        let mut has_changed = false;
        for part in self.credentials().parts() {
            has_changed |= part.reload(self.metrics).await;
        }
        has_changed
    }

    async fn renew_if_due(&self, client: &Client, state: &mut State) {
        if Instant::now() < self.renewal(state) {
            return;
        }
        let result = client.token(self.http).await;
        let (now, account) = (Instant::now(), self.account);
        match result {
            Ok(token) => {
                if state.failures > 0 {
                    info!(%account, "got an access token again");
                }
                state.failures = 0;
                state.not_before = now + MIN_TOKEN_AGE;
                // Well ahead of its end, and replicas not all at once.
                state.renew_at = now + token.life.mul_f64(0.7 + 0.2 * HasherRng::new().next_f64());
                for (api, sign_in) in state.apis.iter_mut().zip(self.apis) {
                    let useless = sign_in.offer.borrow().useless;
                    api.not_before = if useless == 0 { now } else { now + backoff(useless) };
                }
                self.offer(|offer| {
                    offer.replace(vec![token.authorization.clone()], 1);
                    offer.failure = None;
                });
            }
            Err(failure) => {
                if state.failures == 0 {
                    warn!(%account, "no new access token: {failure}");
                }
                state.failures = state.failures.saturating_add(1);
                state.not_before = now + backoff(state.failures);
                self.offer(|offer| offer.failure = Some(failure));
            }
        }
    }

    /// Tells those who had asked for this API by then that this is all that there is; or does not, where they had better wait.
    fn answer(&self, api: usize, asked: u64, state: &mut State) -> bool {
        let (sign_in, now) = (self.apis[api], Instant::now());
        let is_token_young = matches!(sign_in.credentials, Credentials::OAuth(_))
            && state.failures == 0
            && now < state.not_before.max(state.apis[api].not_before);
        let grace = &mut state.apis[api].grace;
        sign_in.offer.send_if_modified(|offer| {
            if asked == offer.answered {
                return true;
            }
            if offer.is_good() {
                // Whatever was refused, the credentials were not the reason.
                *grace = None;
            } else if is_token_young && !offer.is_hopeless {
                return false;
            } else if !offer.is_hopeless && sign_in.has_files() && !is_endpoint_down(offer) {
                if now < *grace.get_or_insert(now + GRACE) {
                    return false;
                }
                // From now on calls fail at once, until one succeeds again or a file changes.
                (offer.is_hopeless, *grace) = (true, None);
            }
            offer.answered = asked;
            true
        })
    }

    fn next_round(&self, state: &State) -> Instant {
        let files = Instant::now() + self.every;
        match self.credentials() {
            Credentials::Basic { .. } => files,
            Credentials::OAuth(_) => files.min(self.renewal(state)),
        }
    }

    /// When the next token is fetched: for its age, or for an API that has refused this one.
    fn renewal(&self, state: &State) -> Instant {
        let refused =
            self.apis.iter().zip(&state.apis).filter(|(sign_in, _)| !sign_in.offer.borrow().is_good());
        let due = refused.map(|(_, api)| api.not_before).fold(state.renew_at, Instant::min);
        due.max(state.not_before)
    }
}

/// Then no file is the reason.
fn is_endpoint_down(offer: &Offer) -> bool {
    matches!(offer.failure, Some(NoToken::Unavailable(_)))
}

/// Exponential, half of it jitter.
fn backoff(failures: u32) -> Duration {
    let ceiling = FIRST_BACKOFF.saturating_mul(2_u32.saturating_pow(failures - 1)).min(LONGEST_BACKOFF);
    ceiling.mul_f64(0.5 + 0.5 * HasherRng::new().next_f64())
}
