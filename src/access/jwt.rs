//! JSON web tokens (RFC 7519, RFC 8725): by one issuer, for this gateway, signed by a key of the issuer's with an algorithm that
//! is allowed, and of now.

use std::fmt;
use std::future::ready;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, AlgorithmFamily, Validation};
use serde::Deserialize;
use tokio::time::Instant;

use super::jwks::Keys;
use super::{Identity, Judged, Proof, Refused};
use crate::telemetry::Metrics;

/// The longest name of a caller, in bytes.
const LONGEST_SUBJECT: usize = 256;

/// An algorithm by which the holder of the private key alone can sign.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SigningAlgorithm(Algorithm);

/// No such algorithm, or one by which whoever verifies could sign, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "must be some of RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384 and EdDSA, with commas between them"
)]
pub struct NoSigningAlgorithm;

impl FromStr for SigningAlgorithm {
    type Err = NoSigningAlgorithm;

    fn from_str(text: &str) -> Result<Self, NoSigningAlgorithm> {
        let algorithm = text.parse::<Algorithm>().map_err(|_| NoSigningAlgorithm)?;
        match algorithm.family() {
            AlgorithmFamily::Rsa | AlgorithmFamily::Ec | AlgorithmFamily::Ed => Ok(Self(algorithm)),
            AlgorithmFamily::Hmac => Err(NoSigningAlgorithm),
        }
    }
}

/// Which tokens are good.
#[derive(Clone, Debug)]
pub struct JwtSettings {
    /// Who has to have made them.
    pub issuer: String,
    /// Whom they have to be for.
    pub audience: String,
    /// How they may be signed.
    pub algorithms: Vec<SigningAlgorithm>,
    /// So far may the issuer's clock be off.
    pub leeway: Duration,
    /// The issuer's keys.
    pub keys: Keys,
}

/// Judges tokens. Clones share the keys.
#[derive(Clone)]
pub struct Jwt(Arc<Shared>);

struct Shared {
    /// One for each algorithm: no token may choose among them.
    validations: Vec<(Algorithm, Validation)>,
    leeway: Duration,
    keys: Keys,
}

/// What a token is asked for beside what its validation looks at.
#[derive(Deserialize)]
struct Claims {
    sub: String,
    exp: f64,
}

/// Why a token is not good.
enum Bad {
    /// Its key is not known, or not yet.
    UnknownKey,
    /// Anything else.
    Refused(&'static str),
}

impl Jwt {
    /// By these settings.
    pub fn new(settings: JwtSettings) -> Self {
        let JwtSettings { issuer, audience, algorithms, leeway, keys } = settings;
        let validation = |SigningAlgorithm(algorithm): SigningAlgorithm| {
            let mut validation = Validation::new(algorithm);
            validation.set_required_spec_claims(&["iss", "aud", "exp", "sub"]);
            validation.set_issuer(&[&issuer]);
            validation.set_audience(&[&audience]);
            validation.validate_nbf = true;
            validation.leeway = leeway.as_secs();
            (algorithm, validation)
        };
        let validations = algorithms.into_iter().map(validation).collect();
        Self(Arc::new(Shared { validations, leeway, keys }))
    }

    /// Whose the token is. Where its key is not known, the keys are asked for once more.
    pub(super) fn judge(&self, token: &str) -> Judged {
        match self.0.verify(token) {
            Ok(identity) => Box::pin(ready(Ok(identity))),
            Err(Bad::Refused(why)) => Box::pin(ready(Err(Refused(why)))),
            Err(Bad::UnknownKey) => {
                let (shared, token) = (self.0.clone(), token.to_owned());
                Box::pin(async move {
                    shared.keys.renewed().await;
                    shared.verify(&token).map_err(|bad| match bad {
                        Bad::UnknownKey => Refused("the token's key is not known"),
                        Bad::Refused(why) => Refused(why),
                    })
                })
            }
        }
    }

    pub(super) async fn ready(&self) {
        self.0.keys.ready().await;
    }

    pub(super) async fn upkeep(&self, every: Duration, metrics: &Metrics) {
        self.0.keys.upkeep(every, metrics).await;
    }
}

impl Shared {
    fn verify(&self, token: &str) -> Result<Identity, Bad> {
        let header = jsonwebtoken::decode_header(token).map_err(|_| Bad::Refused("the token's header"))?;
        if header.crit.is_some() {
            // It would ask for something that is not done here (RFC 7515, section 4.1.11).
            return Err(Bad::Refused("the token's crit"));
        }
        let allowed = self.validations.iter().find(|(algorithm, _)| *algorithm == header.alg);
        let (algorithm, validation) = allowed.ok_or(Bad::Refused("the token's algorithm"))?;
        let keys = self.keys.current().ok_or(Bad::UnknownKey)?;
        let key = keys.find(header.kid.as_deref(), *algorithm).ok_or(Bad::UnknownKey)?;
        let decoded = jsonwebtoken::decode::<Claims>(token, key, validation);
        let Claims { sub, exp } = decoded.map_err(|error| Bad::Refused(reason(error.kind())))?.claims;
        if sub.is_empty() || sub.len() > LONGEST_SUBJECT || sub.chars().any(char::is_control) {
            return Err(Bad::Refused("the token's sub"));
        }
        let identity = Identity::proven(Proof::Jwt, format!("jwt:{sub}"));
        Ok(identity.until(self.end(exp)))
    }

    /// When a token ends; `None`: not in this process's time.
    fn end(&self, exp: f64) -> Option<Instant> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        // Of a number that is too large, the largest.
        let exp = Duration::from_secs(exp as u64);
        Instant::now().checked_add(exp.checked_add(self.leeway)?.saturating_sub(now))
    }
}

/// Without a word of the token's.
fn reason(kind: &ErrorKind) -> &'static str {
    match kind {
        ErrorKind::InvalidSignature => "the token's signature",
        ErrorKind::ExpiredSignature => "the token has expired",
        ErrorKind::ImmatureSignature => "the token is not valid yet",
        ErrorKind::InvalidIssuer => "the token's iss",
        ErrorKind::InvalidAudience => "the token's aud",
        ErrorKind::MissingRequiredClaim(_) => "a claim is missing in the token",
        _ => "the token is malformed",
    }
}

impl fmt::Debug for Jwt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Jwt")
    }
}

#[cfg(test)]
mod properties {
    use base64::Engine as _;
    use base64::prelude::BASE64_URL_SAFE_NO_PAD as BASE64;
    use jsonwebtoken::jwk::{Jwk, JwkSet};
    use jsonwebtoken::{EncodingKey, Header};
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    /// By the key `one`, which signs.
    fn issuer() -> (Jwt, EncodingKey) {
        let key = EncodingKey::from_ec_der(&rcgen::KeyPair::generate().unwrap().serialize_der());
        let mut jwk = Jwk::from_encoding_key(&key, Algorithm::ES256).unwrap();
        jwk.common.key_id = Some("one".into());
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), serde_json::to_vec(&JwkSet { keys: vec![jwk] }).unwrap()).unwrap();
        let keys = Keys::file(file.path().to_owned()).unwrap();
        let (issuer, audience) = ("https://issuer.example".to_owned(), "gateway".to_owned());
        let algorithms = vec!["RS256".parse().unwrap(), "ES256".parse().unwrap()];
        let leeway = Duration::from_secs(60);
        (Jwt::new(JwtSettings { issuer, audience, algorithms, leeway, keys }), key)
    }

    fn claims(sub: &str) -> Value {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        json!({ "iss": "https://issuer.example", "aud": "gateway", "exp": now + 60, "sub": sub })
    }

    fn sign(key: &EncodingKey, claims: &Value) -> String {
        let header = Header { kid: Some("one".into()), ..Header::new(Algorithm::ES256) };
        jsonwebtoken::encode(&header, claims, key).unwrap()
    }

    fn is_good(jwt: &Jwt, token: &str) -> bool {
        jwt.0.verify(token).is_ok()
    }

    #[test]
    fn only_algorithms_that_the_issuer_alone_can_sign_by_can_be_allowed() {
        for word in ["HS256", "HS384", "HS512", "none", "None", "", "rs256", "RS256 "] {
            assert_eq!(word.parse::<SigningAlgorithm>(), Err(NoSigningAlgorithm), "{word}");
        }
        for word in ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "EdDSA"] {
            assert!(word.parse::<SigningAlgorithm>().is_ok(), "{word}");
        }
    }

    proptest! {
        #[test]
        fn a_name_is_told_as_it_is_and_a_changed_token_is_refused(
            sub in "\\PC{1,40}", at in any::<prop::sample::Index>(), byte in "[A-Za-z0-9_.-]"
        ) {
            let (jwt, key) = issuer();
            let token = sign(&key, &claims(&sub));
            let identity = jwt.0.verify(&token).unwrap_or_else(|_| panic!("the token is good"));
            prop_assert_eq!(identity.name(), Some(&*format!("jwt:{sub}")));
            prop_assert!(identity.expiry().is_some_and(|end| end > Instant::now()));
            let at = at.index(token.len());
            let changed = format!("{}{byte}{}", &token[..at], &token[at + 1..]);
            // The last digit of a signature has bits that mean nothing, which are not to be set.
            prop_assert!(changed == token || !is_good(&jwt, &changed));
        }

        #[test]
        fn any_text_is_refused(token in "[ -~]{0,200}|[A-Za-z0-9_-]{0,60}\\.[A-Za-z0-9_-]{0,60}\\.[A-Za-z0-9_-]{0,60}") {
            prop_assert!(!is_good(&issuer().0, &token));
        }

        #[test]
        fn any_header_and_claims_without_a_signature_are_refused(
            header in "[ -~]{0,60}|\\{\"alg\":\"(none|HS256|ES256|RS256)\"(,\"kid\":\"(one|\\.\\./\\.\\./x)\")?\\}", signature in "[A-Za-z0-9_-]{0,90}"
        ) {
            let claims = claims("a").to_string();
            let token = format!("{}.{}.{signature}", BASE64.encode(header), BASE64.encode(claims));
            prop_assert!(!is_good(&issuer().0, &token));
        }

        #[test]
        fn any_other_claims_are_refused_though_they_are_signed(
            name in prop::sample::select(vec!["iss", "aud", "exp", "sub"]),
            value in prop_oneof![
                Just(Value::Null), any::<bool>().prop_map(Value::from), (-9e9..1e9).prop_map(Value::from),
                Just(json!([])), Just(json!({})), Just(json!("")), Just(json!("a\nb")), Just(json!("a".repeat(257)))
            ],
        ) {
            let (jwt, key) = issuer();
            let mut changed = claims("a");
            changed[name] = value;
            let token = sign(&key, &changed);
            prop_assert!(!is_good(&jwt, &token));
        }
    }
}
