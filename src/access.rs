//! Who calls, and what they may do.
//!
//! A caller proves who it is in one of the ways that `auth.mode` names. The first of them for which the call brings a proof
//! decides: a proof that is bad is refused, and nothing weaker is looked at in its place.

mod bearer;
mod certificate;
mod file;
mod identity;
mod jwks;
mod jwt;
mod limits;
mod mesh;
mod mode;
mod policy;
mod tokens;

use std::fmt;
use std::future::ready;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, join_all};
use http::HeaderMap;
use tokio_util::sync::CancellationToken;
use tracing::debug;

pub use certificate::Certificate;
pub use file::FileError;
pub use identity::{Identity, Peer, Proof};
pub use jwks::{KeySetError, Keys};
pub use jwt::{Jwt, JwtSettings, NoSigningAlgorithm, SigningAlgorithm};
pub use limits::{CallRate, CallerLimits};
pub use mesh::{Mesh, MeshHeader, NoMeshHeader};
pub use mode::{Mode, NoMode};
pub use policy::{Granted, Method, Methods, Pattern, Policies, Policy, PolicyChanges, Rule, Sight};
pub use tokens::{TableError, Tokens};

use crate::telemetry::Metrics;

/// Tells callers apart, and knows what each may do. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// None where nobody has to prove anything.
    ways: Option<Arc<Ways>>,
    policies: Policies,
}

/// A way to prove who one is, with all that it needs.
#[derive(Clone, Debug)]
pub enum Way {
    /// By the certificate of the connection.
    Certificate,
    /// By a JSON web token.
    Jwt(Jwt),
    /// By a token of a file.
    Tokens(Tokens),
    /// By what a trusted proxy says.
    Mesh(Mesh),
}

impl Way {
    fn proof(&self) -> Proof {
        match self {
            Self::Certificate => Proof::Certificate,
            Self::Jwt(_) => Proof::Jwt,
            Self::Tokens(_) => Proof::Token,
            Self::Mesh(_) => Proof::Mesh,
        }
    }
}

/// The ways in which callers prove who they are, best first.
struct Ways {
    ways: Vec<Way>,
    metrics: Metrics,
}

impl fmt::Debug for Ways {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.ways.fmt(f)
    }
}

/// A caller has not proven who it is. Which check failed nobody is told: whoever guesses would learn from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the caller has not proven who it is")]
pub struct Unauthenticated;

/// The check that failed, for the log alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Refused(&'static str);

/// What became of a proof.
type Judged = BoxFuture<'static, Result<Identity, Refused>>;

impl Access {
    /// Nobody has to prove anything: callers are told apart by their addresses.
    pub fn open() -> Self {
        Self::default()
    }

    /// The same, where callers may do what a policy says.
    pub fn under(self, policies: Policies) -> Self {
        Self { policies, ..self }
    }

    /// What this caller may do.
    pub fn granted(&self, identity: &Identity) -> Granted {
        self.policies.granted(identity)
    }

    /// Callers prove who they are in one of these ways, of which the first for which there is a proof decides; where there are
    /// none, it is open.
    pub fn by(ways: Vec<Way>, metrics: Metrics) -> Self {
        let is_open = ways.is_empty();
        for proof in ways.iter().map(Way::proof).chain((!is_open).then_some(Proof::None)) {
            metrics.proof_made(proof.as_str());
        }
        let ways = (!is_open).then(|| Arc::new(Ways { ways, metrics }));
        Self { ways, policies: Policies::default() }
    }

    /// Whose the calls of a connection are, where none of them can say anything else.
    pub fn of_connection(&self, peer: &Peer) -> Option<Identity> {
        let Some(ways) = &self.ways else {
            return Some(Identity::of_address(peer.address));
        };
        match (ways.ways.first(), &peer.certificate) {
            (Some(Way::Certificate), Some(certificate)) => certificate.owner(Proof::Certificate).ok(),
            _ => None,
        }
    }

    /// Whose a call is.
    pub fn of_call(
        &self,
        peer: &Peer,
        headers: &HeaderMap,
    ) -> BoxFuture<'static, Result<Identity, Unauthenticated>> {
        let Some(ways) = self.ways.clone() else {
            return Box::pin(ready(Ok(Identity::of_address(peer.address))));
        };
        let found = ways.ways.iter().find_map(|way| Some((way.proof(), ways.judge(way, peer, headers)?)));
        Box::pin(async move {
            let (proof, judged) = match found {
                Some((proof, judged)) => (proof, judged.await),
                None => (Proof::None, Err(Refused("the call brings no proof"))),
            };
            ways.metrics.caller_judged(proof.as_str(), judged.is_ok());
            judged.map_err(|Refused(reason)| {
                debug!(proof = proof.as_str(), reason, "a caller has not proven who it is");
                Unauthenticated
            })
        })
    }

    /// Waits until proofs can be judged. It takes that they are kept up meanwhile.
    pub async fn ready(&self) {
        for way in self.ways.iter().flat_map(|ways| &ways.ways) {
            if let Way::Jwt(jwt) = way {
                jwt.ready().await;
            }
        }
    }

    /// Keeps up what the proofs are judged by until the token is cancelled.
    pub async fn upkeep(self, every: Duration, end: CancellationToken) {
        let Some(ways) = self.ways else { return end.cancelled().await };
        let upkeep = ways.ways.iter().map(|way| async {
            match way {
                Way::Certificate | Way::Mesh(_) => {}
                Way::Jwt(jwt) => jwt.upkeep(every, &ways.metrics).await,
                Way::Tokens(tokens) => tokens.upkeep(every, &ways.metrics).await,
            }
        });
        end.run_until_cancelled(join_all(upkeep)).await;
        end.cancelled().await;
    }
}

impl Ways {
    /// The bearer token for this way, of the two which take one: where there are both, its shape tells.
    fn bearer<'a>(&self, way: &Way, headers: &'a HeaderMap) -> Option<Result<&'a str, Refused>> {
        let bearer = bearer::of(headers)?;
        let has_both =
            [Proof::Jwt, Proof::Token].iter().all(|proof| self.ways.iter().any(|way| way.proof() == *proof));
        let is_for_another = match &bearer {
            Ok(token) => has_both && bearer::is_jwt_shaped(token) != (way.proof() == Proof::Jwt),
            Err(_) => false,
        };
        (!is_for_another).then_some(bearer)
    }

    /// What becomes of the proof of this kind; `None` where the call brings none.
    fn judge(&self, way: &Way, peer: &Peer, headers: &HeaderMap) -> Option<Judged> {
        let now = |judged: Result<Identity, Refused>| -> Judged { Box::pin(ready(judged)) };
        match way {
            Way::Certificate => {
                peer.certificate.as_ref().map(|certificate| now(certificate.owner(Proof::Certificate)))
            }
            Way::Jwt(jwt) => Some(match self.bearer(way, headers)? {
                Ok(token) => jwt.judge(token),
                Err(refused) => now(Err(refused)),
            }),
            Way::Tokens(tokens) => {
                let token = self.bearer(way, headers)?;
                Some(now(token.and_then(|token| tokens.owner(token))))
            }
            Way::Mesh(mesh) => match mesh.judge(peer.address, headers) {
                // Beside another way, a call without any proof would be none the worse for it.
                None if self.ways.len() == 1 && !mesh.is_required => {
                    Some(now(Ok(Identity::of_address(peer.address))))
                }
                judged => judged.map(now),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use http::HeaderValue;

    use super::*;

    const ENVOY: &str = "x-forwarded-client-cert";
    const HOME: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    fn mesh(is_required: bool) -> Way {
        let proxies = vec!["127.0.0.0/8".parse().unwrap()];
        Way::Mesh(Mesh { proxies, header: MeshHeader::Envoy, is_required })
    }

    fn access(ways: Vec<Way>) -> Access {
        Access::by(ways, Metrics::new(None).unwrap())
    }

    fn peer(uris: &[&str], dns: &[&str]) -> Peer {
        let [uris, dns] = [uris, dns].map(|names| names.iter().map(|name| (*name).to_owned()).collect());
        Peer { address: HOME, certificate: Some(Arc::new(Certificate { uris, dns })) }
    }

    fn nobody() -> Peer {
        Peer { address: HOME, certificate: None }
    }

    async fn name(access: &Access, peer: &Peer, headers: &[(&'static str, &'static str)]) -> Option<String> {
        let headers = headers
            .iter()
            .map(|(name, value)| (http::HeaderName::from_static(name), HeaderValue::from_static(value)));
        let identity = access.of_call(peer, &headers.collect()).await.ok()?;
        Some(identity.name().unwrap_or("anonymous").to_owned())
    }

    #[tokio::test]
    async fn a_certificate_names_its_owner_for_the_whole_connection() {
        let access = access(vec![Way::Certificate]);
        for (uris, dns, expected) in [
            (&["spiffe://a.example/b"][..], &["c.example"][..], Some("spiffe://a.example/b")),
            (&[], &["C.example", "d.example"], Some("dns:c.example")),
            (&["https://a.example"], &["c.example"], Some("dns:c.example")),
            (&["spiffe://a.example/b", "spiffe://a.example/c"], &["c.example"], None),
            (&["spiffe://a.example/b", "https://a.example"], &[], None),
            (&["spiffe://a.example"], &["c.example"], None),
            (&["https://a.example"], &[], None),
            (&[], &[], None),
        ] {
            let peer = peer(uris, dns);
            let of_connection = access.of_connection(&peer);
            assert_eq!(of_connection.as_ref().and_then(Identity::name), expected, "{peer:?}");
            assert_eq!(name(&access, &peer, &[]).await.as_deref(), expected, "{peer:?}");
        }
        assert_eq!(access.of_connection(&nobody()), None);
        assert_eq!(name(&access, &nobody(), &[]).await, None);
    }

    #[tokio::test]
    async fn the_first_proof_decides_and_a_bad_one_is_not_passed_over() {
        let (good, bad) = (peer(&["spiffe://a.example/b"], &[]), peer(&[], &[]));
        let by_mesh = [(ENVOY, "URI=spiffe://a.example/mesh")];
        let both = access(vec![Way::Certificate, mesh(true)]);
        assert_eq!(name(&both, &good, &by_mesh).await.as_deref(), Some("spiffe://a.example/b"));
        assert_eq!(name(&both, &bad, &by_mesh).await, None);
        assert_eq!(name(&both, &nobody(), &by_mesh).await.as_deref(), Some("spiffe://a.example/mesh"));
        let both = access(vec![mesh(true), Way::Certificate]);
        assert_eq!(both.of_connection(&good), None, "a call may say something else");
        assert_eq!(name(&both, &good, &by_mesh).await.as_deref(), Some("spiffe://a.example/mesh"));
        assert_eq!(name(&both, &good, &[(ENVOY, "URI=")]).await, None);
        assert_eq!(name(&both, &good, &[]).await.as_deref(), Some("spiffe://a.example/b"));
    }

    #[tokio::test]
    async fn only_a_mesh_alone_lets_in_whoever_it_says_nothing_of() {
        assert_eq!(name(&access(vec![mesh(false)]), &nobody(), &[]).await.as_deref(), Some("anonymous"));
        assert_eq!(name(&access(vec![mesh(true)]), &nobody(), &[]).await, None);
        for ways in [vec![Way::Certificate, mesh(false)], vec![mesh(false), Way::Certificate]] {
            assert_eq!(name(&access(ways), &nobody(), &[]).await, None);
        }
        let bad = [(ENVOY, "URI=spiffe://a.example/b;URI=spiffe://a.example/c")];
        assert_eq!(name(&access(vec![mesh(false)]), &nobody(), &bad).await, None);
    }

    #[tokio::test]
    async fn who_is_open_asks_for_nothing() {
        let open = Access::by(Vec::new(), Metrics::new(None).unwrap());
        let peer = peer(&["spiffe://a.example/b"], &[]);
        assert_eq!(open.of_connection(&peer), Some(Identity::of_address(HOME)));
        assert_eq!(name(&open, &peer, &[("authorization", "Bearer a")]).await.as_deref(), Some("anonymous"));
    }

    #[test]
    fn the_same_name_by_another_proof_is_another_caller() {
        let [one, other] = [Proof::Mesh, Proof::Certificate].map(|proof| Identity::proven(proof, "dns:a"));
        assert_ne!(one.id(), other.id());
        assert_eq!(one.id(), Identity::proven(Proof::Mesh, "dns:a").id());
    }
}
