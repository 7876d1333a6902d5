//! The keys by which an issuer's tokens are verified: a JSON Web Key Set (RFC 7517), of a file or of a URL.
//!
//! Those of a URL are renewed at an interval, and at once where a token names a key that is not known: its issuer may just have
//! begun to use it. All who wait share one request, and there is no second one for a while, so that whoever makes names up
//! makes no requests. A failure leaves the last good keys in use.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyOperations, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey};
use reqwest::{StatusCode, redirect};
use serde::Deserialize;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{info, warn};
use url::Url;

use super::file::{Content, FileError, Watched};
use crate::telemetry::Metrics;

/// Issuers have a handful.
const MOST_KEYS: usize = 100;
const LARGEST_SET: usize = 1 << 20;
/// A request takes no longer, its answer included.
const LONGEST_FETCH: Duration = Duration::from_secs(5);
/// Between the end of a request and the next one that is not due by its age.
const PAUSE: Duration = Duration::from_secs(10);

/// A key, and what it verifies.
struct Key {
    id: Option<String>,
    algorithms: &'static [Algorithm],
    key: DecodingKey,
}

/// The keys of an issuer.
pub(super) struct KeySet(Vec<Key>);

impl KeySet {
    /// The key of this name for this algorithm. A token that names none is for the only one that there is.
    pub(super) fn find(&self, id: Option<&str>, algorithm: Algorithm) -> Option<&DecodingKey> {
        let mut fitting = self
            .0
            .iter()
            .filter(|key| key.algorithms.contains(&algorithm) && (id.is_none() || key.id.as_deref() == id));
        let found = fitting.next()?;
        (id.is_some() || fitting.next().is_none()).then_some(&found.key)
    }
}

/// Why something is no set of keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeySetError {
    /// It is another kind of text.
    #[error("must hold a JSON Web Key Set")]
    NoSet,
    /// None of its keys can verify a signature.
    #[error("the set must hold a public RSA, P-256, P-384 or Ed25519 key for signatures")]
    NoKey,
    /// There are too many.
    #[error("the set must hold at most {MOST_KEYS} keys")]
    TooMany,
}

#[derive(Deserialize)]
struct Set {
    keys: Vec<serde_json::Value>,
}

impl Content for KeySet {
    type Error = KeySetError;

    fn parse(bytes: &[u8]) -> Result<Self, KeySetError> {
        let Set { keys } = serde_json::from_slice(bytes).map_err(|_| KeySetError::NoSet)?;
        if keys.len() > MOST_KEYS {
            return Err(KeySetError::TooMany);
        }
        // Keys of other kinds are to be passed over (RFC 7517, section 5).
        let keys: Vec<_> = keys.into_iter().filter_map(key).collect();
        if keys.is_empty() { Err(KeySetError::NoKey) } else { Ok(Self(keys)) }
    }
}

fn key(json: serde_json::Value) -> Option<Key> {
    let jwk: Jwk = serde_json::from_value(json).ok()?;
    let is_for_signatures =
        jwk.common.public_key_use.as_ref().is_none_or(|usage| *usage == PublicKeyUse::Signature);
    let verifies = jwk.common.key_operations.as_ref().is_none_or(|all| all.contains(&KeyOperations::Verify));
    let algorithms: &'static [Algorithm] = match &jwk.algorithm {
        AlgorithmParameters::RSA(_) => &RSA,
        AlgorithmParameters::EllipticCurve(parameters) => match parameters.curve {
            EllipticCurve::P256 => &[Algorithm::ES256],
            EllipticCurve::P384 => &[Algorithm::ES384],
            _ => return None,
        },
        AlgorithmParameters::OctetKeyPair(parameters) if parameters.curve == EllipticCurve::Ed25519 => {
            &[Algorithm::EdDSA]
        }
        // A symmetric key is a secret, and whoever verifies by it could sign.
        _ => return None,
    };
    let algorithms = match jwk.common.key_algorithm {
        None => algorithms,
        Some(only) => {
            let only = Algorithm::try_from(only).ok()?;
            let at = algorithms.iter().position(|algorithm| *algorithm == only)?;
            &algorithms[at..=at]
        }
    };
    let key = DecodingKey::from_jwk(&jwk).ok().filter(|_| is_for_signatures && verifies)?;
    Some(Key { id: jwk.common.key_id, algorithms, key })
}

const RSA: [Algorithm; 6] = [
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
];

/// The keys in use. Clones share them, with every change.
#[derive(Clone)]
pub struct Keys(Source);

#[derive(Clone)]
enum Source {
    File(Watched<KeySet>),
    Url(Arc<Remote>),
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keys")
    }
}

impl Keys {
    /// Those of this file. It reads it, and blocks while it does.
    pub fn file(path: PathBuf) -> Result<Self, FileError<KeySetError>> {
        Watched::read("auth.jwt.jwks_file", path).map(Source::File).map(Self)
    }

    /// Those that this URL tells, asked again so often.
    pub fn url(url: Url, refresh: Duration) -> Result<Self, reqwest::Error> {
        let client = reqwest::Client::builder()
            // The URL that is configured is the one that is trusted.
            .redirect(redirect::Policy::none())
            .referer(false)
            .no_proxy()
            .user_agent(concat!("participant-gateway/", env!("CARGO_PKG_VERSION")))
            .http1_only()
            .retry(reqwest::retry::never())
            .build()?;
        let (state, wanted) = (watch::Sender::new(State::default()), Notify::new());
        Ok(Self(Source::Url(Arc::new(Remote { url, client, refresh, state, wanted }))))
    }

    /// Those there are; `None` before there are any.
    pub(super) fn current(&self) -> Option<Arc<KeySet>> {
        match &self.0 {
            Source::File(file) => Some(file.current()),
            Source::Url(remote) => remote.state.borrow().keys.clone(),
        }
    }

    /// Waits until they have been asked for once more; not at all where that was a moment ago, or cannot be.
    pub(super) async fn renewed(&self) {
        if let Source::Url(remote) = &self.0 {
            remote.renewed().await;
        }
    }

    /// Waits until there are some.
    pub(super) async fn ready(&self) {
        if let Source::Url(remote) = &self.0 {
            // The sender is here, so it is not gone.
            let _ = remote.state.subscribe().wait_for(|state| state.keys.is_some()).await;
        }
    }

    /// Keeps them up, for ever.
    pub(super) async fn upkeep(&self, every: Duration, metrics: &Metrics) {
        match &self.0 {
            Source::File(file) => file.upkeep(every, metrics).await,
            Source::Url(remote) => remote.upkeep(metrics).await,
        }
    }
}

struct Remote {
    url: Url,
    client: reqwest::Client,
    refresh: Duration,
    state: watch::Sender<State>,
    wanted: Notify,
}

#[derive(Default)]
struct State {
    keys: Option<Arc<KeySet>>,
    requests: u64,
    /// When the last one ended.
    last: Option<Instant>,
}

/// Why there are no new keys.
#[derive(Debug, thiserror::Error)]
enum FetchError {
    #[error("no answer: {0}")]
    NoAnswer(&'static str),
    #[error("the answer is HTTP {0}")]
    Status(StatusCode),
    #[error("the answer is larger than {LARGEST_SET} bytes")]
    TooLarge,
    #[error("{0}")]
    NoSet(#[from] KeySetError),
}

impl From<reqwest::Error> for FetchError {
    fn from(error: reqwest::Error) -> Self {
        let what = if error.is_timeout() {
            "it takes too long"
        } else if error.is_connect() {
            "no connection"
        } else {
            "it was cut, or is no HTTP"
        };
        Self::NoAnswer(what)
    }
}

impl Remote {
    async fn renewed(&self) {
        let mut state = self.state.subscribe();
        let requests = {
            let State { requests, last, .. } = &*state.borrow_and_update();
            if last.is_some_and(|last| last.elapsed() < PAUSE) {
                return;
            }
            *requests
        };
        self.wanted.notify_one();
        let _ = state.wait_for(|state| state.requests > requests).await;
    }

    async fn upkeep(&self, metrics: &Metrics) {
        let mut was_bad = false;
        metrics.jwks_made();
        loop {
            let fetched = self.fetch().await;
            metrics.jwks_refreshed(fetched.is_ok());
            let pause = if fetched.is_ok() { self.refresh } else { self.refresh.min(PAUSE) };
            // Replicas do not ask all at once.
            let due = Instant::now() + pause.mul_f64(0.9 + 0.2 * fastrand::f64());
            match &fetched {
                Ok(_) if was_bad => info!("got the keys of auth.jwt.jwks_url again"),
                Err(error) if !was_bad => {
                    warn!("no new keys of auth.jwt.jwks_url, the last good ones stay: {error}");
                }
                Ok(_) | Err(_) => {}
            }
            was_bad = fetched.is_err();
            self.state.send_modify(|state| {
                state.requests += 1;
                state.last = Some(Instant::now());
                if let Ok(keys) = fetched {
                    state.keys = Some(Arc::new(keys));
                }
            });
            self.wait(due).await;
        }
    }

    async fn wait(&self, due: Instant) {
        let wanted = async {
            loop {
                self.wanted.notified().await;
                // Whoever asked while the last request was under way has its answer.
                if self.state.borrow().last.is_none_or(|last| last.elapsed() >= PAUSE) {
                    return;
                }
            }
        };
        tokio::select! {
            () = wanted => {}
            () = sleep_until(due) => {}
        }
    }

    async fn fetch(&self) -> Result<KeySet, FetchError> {
        let fetching = async {
            let mut answer = self.client.get(self.url.clone()).send().await?;
            if answer.status() != StatusCode::OK {
                return Err(FetchError::Status(answer.status()));
            }
            let mut body = Vec::new();
            while let Some(chunk) = answer.chunk().await? {
                if body.len() + chunk.len() > LARGEST_SET {
                    return Err(FetchError::TooLarge);
                }
                body.extend_from_slice(&chunk);
            }
            Ok(KeySet::parse(&body)?)
        };
        timeout(LONGEST_FETCH, fetching).await.unwrap_or(Err(FetchError::NoAnswer("it takes too long")))
    }
}
