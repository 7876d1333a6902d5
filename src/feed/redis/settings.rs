//! Where Redis is, and what may stay there.

use std::fmt;
use std::fs;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use ::redis::{ConnectionInfo, ErrorKind, IntoConnectionInfo as _, RedisError};
use url::{Host, Url};
use zeroize::Zeroizing;

/// The bus between replicas.
#[derive(Clone, Debug)]
pub struct RedisSettings {
    /// Where Redis is.
    pub url: RedisUrlSource,
    /// What the names of all keys begin with.
    pub key_prefix: String,
    /// About so many entries stay in the stream.
    pub max_len: u64,
    /// So long they stay.
    pub retention: Duration,
}

/// What holds the URL.
#[derive(Clone, Debug)]
pub enum RedisUrlSource {
    /// The setting.
    Value(RedisUrl),
    /// A file, which is read for every connection anew: its password may change.
    File(PathBuf),
}

/// A URL of Redis or Valkey, with the password that it may hold.
#[derive(Clone)]
pub struct RedisUrl(Url);

/// The text is no URL of Redis; it is not repeated, for it may hold a password.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be redis://[user:password@]host[:port][/database], or rediss:// for TLS")]
pub struct BadRedisUrl;

impl FromStr for RedisUrl {
    type Err = BadRedisUrl;

    fn from_str(text: &str) -> Result<Self, BadRedisUrl> {
        let url = Url::parse(text.trim()).map_err(|_| BadRedisUrl)?;
        // A query or a fragment changes what the client does: `#insecure` checks no certificate.
        let is_plain = url.query().is_none() && url.fragment().is_none();
        let is_known = matches!(url.scheme(), "redis" | "rediss" | "valkey" | "valkeys");
        let is_usable = is_plain && is_known && url.clone().into_connection_info().is_ok();
        is_usable.then_some(Self(url)).ok_or(BadRedisUrl)
    }
}

impl RedisUrl {
    /// Whether what is sent there can be read on the way.
    fn is_readable_on_the_way(&self) -> bool {
        let is_loopback = match self.0.host() {
            // The host of a scheme that the URL standard does not know is never an address to it.
            Some(Host::Domain(name)) => {
                name == "localhost" || name.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
            }
            Some(Host::Ipv4(ip)) => ip.is_loopback(),
            Some(Host::Ipv6(ip)) => ip.is_loopback(),
            None => false,
        };
        !is_loopback && !matches!(self.0.scheme(), "rediss" | "valkeys")
    }
}

impl fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.0.scheme(), self.0.host_str().unwrap_or_default())
    }
}

impl RedisUrlSource {
    /// That of a file, which has to hold one now, too.
    pub fn file(path: &str) -> Result<Self, BadRedisUrl> {
        let source = Self::File(path.into());
        source.read().map(|_| source)
    }

    pub(super) fn current(&self) -> Result<ConnectionInfo, RedisError> {
        let url =
            self.read().map_err(|_| (ErrorKind::InvalidClientConfig, "the file holds no URL of Redis"))?;
        url.0.into_connection_info()
    }

    /// Whether events would travel readable to another machine.
    pub(super) fn is_readable_on_the_way(&self) -> bool {
        self.read().is_ok_and(|url| url.is_readable_on_the_way())
    }

    fn read(&self) -> Result<RedisUrl, BadRedisUrl> {
        match self {
            Self::Value(url) => Ok(url.clone()),
            Self::File(path) => Zeroizing::new(fs::read_to_string(path).map_err(|_| BadRedisUrl)?).parse(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_checked_and_never_shown_with_its_password() {
        for text in
            ["redis://localhost", "rediss://user:secret@cache.example:6380/2", "redis://:secret@[::1]:1"]
        {
            let url: RedisUrl = text.parse().unwrap();
            assert!(!format!("{url:?}").contains("secret"), "{url:?}");
        }
        for text in [
            "",
            "localhost:6379",
            "http://localhost",
            "redis://",
            "rediss://host/#insecure",
            "redis://host/x",
        ] {
            assert_eq!(text.parse::<RedisUrl>().err(), Some(BadRedisUrl), "{text}");
        }
    }

    #[test]
    fn only_what_leaves_the_machine_in_plain_text_is_readable_on_the_way() {
        for (text, is_readable) in [
            ("redis://localhost", false),
            ("redis://127.0.0.1:6379", false),
            ("redis://[::1]", false),
            ("rediss://redis.example", false),
            ("redis://redis.example", true),
            ("redis://10.0.0.1", true),
        ] {
            assert_eq!(text.parse::<RedisUrl>().unwrap().is_readable_on_the_way(), is_readable, "{text}");
        }
    }
}
