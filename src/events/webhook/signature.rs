//! Who has signed a delivery. `X-Twilio-Signature` is an HMAC over the URL that Twilio called, by the account's auth token; the
//! URL's `bodySHA256` is the hash of the body. Either alone proves nothing: a signed URL could be used again with another
//! body, and anybody can hash.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use axum::http::{HeaderMap, Uri};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha1::Sha1;
use sha2::{Digest as _, Sha256};
use url::{Host, Url};

use super::header;
use crate::ids::AccountId;
use crate::secret::Secret;

const BODY_HASH: &str = "bodySHA256";

/// The URL under which Twilio calls the listener. It is never rebuilt from a request, whose headers anybody can write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicUrl {
    scheme: String,
    /// As it was given: Twilio signs the text that it was given.
    host: String,
    port: Option<String>,
    path: String,
}

/// The text is no URL that Twilio could call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PublicUrlError {
    /// It is none at all.
    #[error("must be the URL that Twilio calls, such as https://gateway.example.com/events")]
    NoUrl,
    /// It has what Twilio's requests bring themselves, or what must not stand there.
    #[error("must hold no user, password, query or fragment")]
    NotBare,
    /// Events would travel readable.
    #[error("must begin with https://, unless it is on loopback")]
    Insecure,
}

impl FromStr for PublicUrl {
    type Err = PublicUrlError;

    fn from_str(text: &str) -> Result<Self, PublicUrlError> {
        // `Url` passes over white space, which would be part of what is signed.
        if text.contains(|c: char| c.is_whitespace() || c.is_control()) {
            return Err(PublicUrlError::NoUrl);
        }
        let url = Url::parse(text).map_err(|_| PublicUrlError::NoUrl)?;
        let is_loopback = match url.host().ok_or(PublicUrlError::NoUrl)? {
            Host::Domain(name) => name == "localhost",
            Host::Ipv4(ip) => ip.is_loopback(),
            Host::Ipv6(ip) => ip.is_loopback(),
        };
        let (scheme, rest) = text.split_once("://").ok_or(PublicUrlError::NoUrl)?;
        match url.scheme() {
            _ if rest.contains(['@', '?', '#']) => return Err(PublicUrlError::NotBare),
            "https" => {}
            "http" if is_loopback => {}
            _ => return Err(PublicUrlError::Insecure),
        }
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => (host, Some(port.to_owned())),
            _ => (authority, None),
        };
        Ok(Self { scheme: scheme.to_owned(), host: host.to_owned(), port, path: path.to_owned() })
    }
}

impl fmt::Display for PublicUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { scheme, host, port, path } = self;
        let port = port.as_ref().map_or(String::new(), |port| format!(":{port}"));
        write!(f, "{scheme}://{host}{port}{path}")
    }
}

impl PublicUrl {
    /// What Twilio may have signed: it is not consistent about ports.
    fn candidates(&self, query: &str) -> Vec<String> {
        let Self { scheme, host, port, path } = self;
        let default = if scheme.eq_ignore_ascii_case("https") { "443" } else { "80" };
        let own = port.as_deref().filter(|port| *port != default);
        let ports = [None, Some(default), own];
        let ports = ports.iter().take(if own.is_some() { 3 } else { 2 });
        let url = |port: &Option<&str>| {
            let port = port.map_or(String::new(), |port| format!(":{port}"));
            format!("{scheme}://{host}{port}{path}?{query}")
        };
        ports.map(url).collect()
    }
}

/// The auth tokens that sign deliveries. Cheap to clone.
#[derive(Clone)]
pub struct Keys {
    url: Arc<PublicUrl>,
    tokens: Arc<[(AccountId, Vec<Secret>)]>,
}

/// A request whose URL was signed.
pub(super) struct Signed {
    /// By this account.
    pub(super) account: AccountId,
    body_hash: String,
}

impl Signed {
    /// Whether it was signed with this body.
    pub(super) fn covers(&self, body: &[u8]) -> bool {
        let hash: String = Sha256::digest(body).iter().map(|byte| format!("{byte:02x}")).collect();
        self.body_hash.eq_ignore_ascii_case(&hash)
    }
}

impl Keys {
    /// Of these accounts, called under this URL.
    pub fn new(url: PublicUrl, tokens: impl IntoIterator<Item = (AccountId, Vec<Secret>)>) -> Self {
        Self { url: Arc::new(url), tokens: tokens.into_iter().collect() }
    }

    /// Whose auth token signed the URL; the tokens that a file held before count, too, because Twilio and the file do not
    /// change at the same moment.
    pub(super) fn signer(&self, uri: &Uri, headers: &HeaderMap) -> Option<Signed> {
        let query = uri.query()?;
        let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        let (_, body_hash) = pairs.find(|(name, _)| *name == BODY_HASH)?;
        let signature = BASE64_STANDARD.decode(header(headers, "x-twilio-signature")).ok()?;
        let urls = self.url.candidates(query);
        let is_signer = |token: &Secret| {
            let values = token.values();
            values.iter().any(|value| urls.iter().any(|url| is_signed(value, url, &signature)))
        };
        let (account, _) = self.tokens.iter().find(|(_, tokens)| tokens.iter().any(is_signer))?;
        Some(Signed { account: account.clone(), body_hash: body_hash.to_owned() })
    }
}

fn is_signed(token: &str, signed: &str, signature: &[u8]) -> bool {
    let mut mac = Hmac::<Sha1>::new_from_slice(token.as_bytes()).expect("HMAC takes a key of any length");
    mac.update(signed.as_bytes());
    // In constant time.
    mac.verify_slice(signature).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str = "12345";
    const URL: &str = "https://mycompany.com/myapp.php?foo=1&bar=2";

    /// Twilio's own vectors, from the tests of its Python SDK. Parameters of a form are appended, sorted.
    #[test]
    fn signatures_are_twilios() {
        let form = "CallSidCA1234567890ABCDECaller+14158675309Digits1234From+14158675309To+18005551212";
        let hash = "0a1ff7634d9ab3b95db5c9a2dfe9416e41502b283a80c7cf19632632f96e6620";
        let with_port =
            |scheme: &str, port: &str| format!("{scheme}://mycompany.com{port}/myapp.php?foo=1&bar=2{form}");
        for (signed, signature) in [
            (format!("{URL}{form}"), "RSOYDt4T1cUTdK1PDd93/VVr8B8="),
            (with_port("https", ":443"), "kvajT1Ptam85bY51eRf/AJRuM3w="),
            (with_port("http", ":80"), "0ZXoZLH/DfblKGATFgpif+LLRf4="),
            (with_port("http", ":1234"), "Zmvh+3yNM1Phv2jhDCwEM3q5ebU="),
            (format!("{URL}&bodySHA256={hash}"), "a9nBmqA0ju/hNViExpshrM61xv4="),
            (format!("{URL}Digits1234Digits5678SidCA123SidAccountAC123"), "IK+Dwps556ElfBT0I3Rgjkr1wJU="),
        ] {
            let signature = BASE64_STANDARD.decode(signature).unwrap();
            assert!(is_signed(TOKEN, &signed, &signature), "{signed}");
            assert!(!is_signed("12346", &signed, &signature));
            assert!(!is_signed(TOKEN, &format!("{signed}."), &signature));
            assert!(!is_signed(TOKEN, &signed, &signature[..19]));
        }
    }

    /// Whether a request with this query and signature is of the account, and with this body.
    fn is_taken(public_url: &str, query: &str, signature: &str, body: &[u8]) -> bool {
        let account = AccountId::parse(&format!("AC{}", "0".repeat(32))).unwrap();
        let tokens = [(account, vec![Secret::new("a test", "other"), Secret::new("a test", TOKEN)])];
        let keys = Keys::new(public_url.parse().unwrap(), tokens);
        let uri: Uri = format!("/events?{query}").parse().unwrap();
        let headers =
            HeaderMap::from_iter([("x-twilio-signature".parse().unwrap(), signature.parse().unwrap())]);
        keys.signer(&uri, &headers).is_some_and(|signed| signed.covers(body))
    }

    #[test]
    fn both_the_url_and_the_body_have_to_fit() {
        let body = br#"{"property": "value", "boolean": true}"#;
        let query = "foo=1&bar=2&bodySHA256=0a1ff7634d9ab3b95db5c9a2dfe9416e41502b283a80c7cf19632632f96e6620";
        let url = "https://mycompany.com/myapp.php";
        let (plain, with_port) = ("a9nBmqA0ju/hNViExpshrM61xv4=", "uzN7O1319XdYoYMfTT2eUM1PJT0=");
        for url in [url, "https://mycompany.com:443/myapp.php", "https://mycompany.com:8443/myapp.php"] {
            assert!(is_taken(url, query, plain, body), "{url}");
            assert!(is_taken(url, query, with_port, body), "{url}");
        }
        assert!(!is_taken(url, query, plain, br#"{"property": "other"}"#));
        assert!(!is_taken(url, &query.replace("bar=2", "bar=3"), plain, body));
        assert!(!is_taken("https://other.com/myapp.php", query, plain, body));
        for signature in ["", "=", "a9nBmqA0ju", with_port.to_lowercase().as_str()] {
            assert!(!is_taken(url, query, signature, body), "{signature:?}");
        }
    }

    #[test]
    fn a_signed_url_without_a_hash_of_the_body_is_not_taken() {
        let mut mac = Hmac::<Sha1>::new_from_slice(TOKEN.as_bytes()).unwrap();
        mac.update(URL.as_bytes());
        let signature = BASE64_STANDARD.encode(mac.finalize().into_bytes());
        for body in [&b""[..], b"{}"] {
            assert!(!is_taken("https://mycompany.com/myapp.php", "foo=1&bar=2", &signature, body));
        }
    }

    #[test]
    fn a_public_url_is_tried_with_each_port_that_twilio_may_have_signed() {
        let candidates = |url: &str| url.parse::<PublicUrl>().unwrap().candidates("q=1");
        assert_eq!(candidates("https://a.b/c"), ["https://a.b/c?q=1", "https://a.b:443/c?q=1"]);
        assert_eq!(candidates("https://A.b:443"), ["https://A.b?q=1", "https://A.b:443?q=1"]);
        assert_eq!(
            candidates("http://[::1]:8080/c"),
            ["http://[::1]/c?q=1", "http://[::1]:80/c?q=1", "http://[::1]:8080/c?q=1"]
        );
    }

    #[test]
    fn what_twilio_could_not_call_is_refused() {
        use PublicUrlError::{Insecure, NoUrl, NotBare};
        let refused = |url: &str| url.parse::<PublicUrl>().unwrap_err();
        for url in [
            "",
            "gateway.example.com/events",
            "https://",
            "/events",
            "https:gateway/events",
            " https://a.b",
            "https://a.b/\n",
        ] {
            assert_eq!(refused(url), NoUrl, "{url}");
        }
        for url in
            ["https://u@a.b/c", "https://u:p@a.b/c", "https://a.b/c?d=1", "https://a.b/c?", "https://a.b#d"]
        {
            assert_eq!(refused(url), NotBare, "{url}");
        }
        for url in ["http://a.b/c", "http://10.0.0.1/c", "ftp://127.0.0.1/c", "http://localhost.a.b"] {
            assert_eq!(refused(url), Insecure, "{url}");
        }
        for url in ["http://127.0.0.1:1/c", "http://localhost/c", "http://[::1]/c", "HTTPS://a.b/c"] {
            assert!(url.parse::<PublicUrl>().is_ok(), "{url}");
        }
    }
}
