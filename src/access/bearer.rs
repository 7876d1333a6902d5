//! The bearer token of a call: `authorization: Bearer …`, as RFC 6750 has it.

use http::{HeaderMap, header};

use super::Refused;

/// The longest token that is looked at. Those of real issuers have 1 to 2 KiB.
const LONGEST: usize = 8 * 1024;

/// That which a call brings; `None` where it brings nothing of the kind. What is no token is a proof, too, and a bad one.
pub(super) fn of(headers: &HeaderMap) -> Option<Result<&str, Refused>> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let value = values.next()?;
    if values.next().is_some() {
        return Some(Err(Refused("more than one authorization header")));
    }
    Some(parse(value.as_bytes()))
}

fn parse(value: &[u8]) -> Result<&str, Refused> {
    const SCHEME: &str = "bearer ";
    if value.len() > LONGEST {
        return Err(Refused("the authorization header is too long"));
    }
    let text = str::from_utf8(value).map_err(|_| Refused("the authorization header is no text"))?;
    let scheme = text.get(..SCHEME.len()).filter(|scheme| scheme.eq_ignore_ascii_case(SCHEME));
    let token = scheme.map(|scheme| text[scheme.len()..].trim_matches(' '));
    let is_token = |b: u8| b.is_ascii_alphanumeric() || b"-._~+/=".contains(&b);
    token
        .filter(|token| !token.is_empty() && token.bytes().all(is_token))
        .ok_or(Refused("the authorization header holds no bearer token"))
}

/// Whether a token has the shape of a signed JWT.
pub(super) fn is_jwt_shaped(token: &str) -> bool {
    token.split('.').count() == 3
}

#[cfg(test)]
mod properties {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_bytes_are_a_token_or_refused(value in prop::collection::vec(any::<u8>(), 0..300)) {
            let Ok(value) = HeaderValue::from_bytes(&value) else { return Ok(()) };
            let headers = HeaderMap::from_iter([(header::AUTHORIZATION, value)]);
            if let Ok(token) = of(&headers).unwrap() {
                prop_assert!(!token.is_empty() && !token.contains([' ', ',']));
            }
        }

        #[test]
        fn any_token_is_told_as_it_is(scheme in "[Bb]earer +", token in "[A-Za-z0-9._~+/-]{1,200}=?") {
            let value = format!("{scheme}{token}");
            prop_assert_eq!(parse(value.as_bytes()), Ok(token.as_str()));
        }
    }
}
