//! How callers prove who they are: the words of `auth.mode`.

use std::fmt;
use std::str::FromStr;

/// A way to tell who calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// By the client certificate of the connection.
    Mtls,
    /// By a JSON web token that an issuer has signed.
    Jwt,
    /// By a token of a file.
    Tokens,
    /// By what a trusted proxy, which does the mutual TLS, says of the caller's certificate.
    Mesh,
    /// Not at all: everybody who can reach the listener may call.
    Open,
}

/// A word of `auth.mode` that is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be some of mtls, jwt, tokens, mesh and open, with commas between them")]
pub struct NoMode;

impl Mode {
    /// Its word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Mtls => "mtls",
            Self::Jwt => "jwt",
            Self::Tokens => "tokens",
            Self::Mesh => "mesh",
            Self::Open => "open",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Mode {
    type Err = NoMode;

    fn from_str(text: &str) -> Result<Self, NoMode> {
        let all = [Self::Mtls, Self::Jwt, Self::Tokens, Self::Mesh, Self::Open];
        all.into_iter().find(|mode| mode.as_str() == text).ok_or(NoMode)
    }
}
