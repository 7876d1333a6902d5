//! Whose a call is by the word of a mesh's proxy: it has done mutual TLS with the caller, and tells what the caller's certificate
//! says in a header. From anybody else such a header is worth nothing.

use std::net::IpAddr;
use std::str::FromStr;

use http::{HeaderMap, HeaderName};
use ipnet::IpNet;

use super::{Certificate, Identity, Proof, Refused};

/// The header in which a mesh tells of the caller. One alone counts: a proxy replaces its own, and hands those of other meshes
/// on as the caller has written them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MeshHeader {
    /// `x-forwarded-client-cert`, of Envoy and Istio.
    #[default]
    Envoy,
    /// `l5d-client-id`, of Linkerd.
    Linkerd,
}

const ENVOY: &str = "x-forwarded-client-cert";
const LINKERD: &str = "l5d-client-id";

/// Neither of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be {ENVOY} (Envoy, Istio) or {LINKERD} (Linkerd)")]
pub struct NoMeshHeader;

impl MeshHeader {
    fn name(self) -> HeaderName {
        HeaderName::from_static(match self {
            Self::Envoy => ENVOY,
            Self::Linkerd => LINKERD,
        })
    }
}

impl FromStr for MeshHeader {
    type Err = NoMeshHeader;

    fn from_str(text: &str) -> Result<Self, NoMeshHeader> {
        match text {
            ENVOY => Ok(Self::Envoy),
            LINKERD => Ok(Self::Linkerd),
            _ => Err(NoMeshHeader),
        }
    }
}

/// Whom to believe, and what.
#[derive(Clone, Debug)]
pub struct Mesh {
    /// The proxies' addresses.
    pub proxies: Vec<IpNet>,
    /// Where they tell of the caller.
    pub header: MeshHeader,
    /// Whether a call needs it.
    pub is_required: bool,
}

impl Mesh {
    /// Whose a call from this address is; `None` where nobody who is believed says so.
    pub(super) fn judge(&self, from: IpAddr, headers: &HeaderMap) -> Option<Result<Identity, Refused>> {
        let from = from.to_canonical();
        if !self.proxies.iter().any(|proxies| proxies.contains(&from)) {
            return None;
        }
        let values: Vec<_> = headers.get_all(self.header.name()).iter().collect();
        let texts: Result<Vec<_>, _> = values.iter().map(|value| value.to_str()).collect();
        let certificate = match (self.header, texts.as_deref()) {
            (_, Ok([])) => return None,
            // Several lines are one list (RFC 9110, section 5.3), of which the nearest proxy has written the end.
            (MeshHeader::Envoy, Ok(texts)) => forwarded(&texts.join(",")),
            (MeshHeader::Linkerd, Ok([id])) => Some(linkerd(id)),
            (MeshHeader::Linkerd, Ok(_)) | (_, Err(_)) => None,
        };
        let certificate = certificate.ok_or(Refused("the mesh's header is malformed"));
        Some(certificate.and_then(|certificate| certificate.owner(Proof::Mesh)))
    }
}

fn linkerd(id: &str) -> Certificate {
    let id = vec![id.to_owned()];
    if id[0].contains("://") {
        Certificate { uris: id, dns: Vec::new() }
    } else {
        Certificate { uris: Vec::new(), dns: id }
    }
}

/// What the last element of the list says: pairs of a key and a value, with semicolons between, such as
/// `By=spiffe://a/gateway;Hash=…;Subject="CN=a, \"b\"";URI=spiffe://a/caller`. `None` where any of the list is not of that form: its
/// end could else be within what a caller wrote.
fn forwarded(list: &str) -> Option<Certificate> {
    let mut certificate = Certificate::default();
    let mut rest = list;
    loop {
        let (key, after) = rest.split_once('=')?;
        let key = key.trim_start_matches(' ');
        if key.is_empty() || !key.bytes().all(|b| b.is_ascii_alphabetic()) {
            return None;
        }
        let (value, after) = value(after)?;
        match key {
            // Envoy writes the key with nothing behind it where the certificate has none.
            _ if value.is_empty() => {}
            _ if key.eq_ignore_ascii_case("uri") => certificate.uris.push(value),
            _ if key.eq_ignore_ascii_case("dns") => certificate.dns.push(value),
            _ => {}
        }
        let after = after.trim_start_matches(' ');
        match after.as_bytes().first() {
            None => return Some(certificate),
            Some(b';') => {}
            Some(b',') => certificate = Certificate::default(),
            Some(_) => return None,
        }
        rest = &after[1..];
    }
}

/// A value, with or without quotation marks around it, and what is after it.
fn value(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([';', ',', '"', ' ']).unwrap_or(text.len());
        return Some((text[..end].to_owned(), &text[end..]));
    };
    let (mut value, mut chars) = (String::new(), quoted.char_indices());
    loop {
        match chars.next()? {
            (at, '"') => return Some((value, &quoted[at + 1..])),
            (_, '\\') => value.push(chars.next()?.1),
            (_, other) => value.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    pub(super) const CALLER: &str = "spiffe://mesh.example/ns/a/sa/caller";

    /// The caller's name by these lines of the header, from a proxy that is believed.
    fn judged(header: MeshHeader, lines: &[&str]) -> Option<Result<String, Refused>> {
        let mesh = Mesh { proxies: vec!["127.0.0.0/8".parse().unwrap()], header, is_required: true };
        let line = |line: &&str| (header.name(), HeaderValue::from_bytes(line.as_bytes()).unwrap());
        let mut headers = HeaderMap::new();
        lines.iter().map(line).for_each(|(name, value)| _ = headers.append(name, value));
        assert_eq!(mesh.judge([128, 0, 0, 1].into(), &headers), None, "a stranger is not believed");
        let mapped = "::ffff:127.0.0.1".parse().unwrap();
        let judged = mesh.judge([127, 0, 0, 1].into(), &headers);
        assert_eq!(mesh.judge(mapped, &headers), judged);
        Some(judged?.map(|identity| {
            assert_eq!(identity.proof(), Proof::Mesh);
            identity.name().unwrap().to_owned()
        }))
    }

    pub(super) fn by_envoy(lines: &[&str]) -> Option<String> {
        judged(MeshHeader::Envoy, lines).expect("there is a header").ok()
    }

    #[test]
    fn the_nearest_proxys_element_counts() {
        let near =
            format!("By=spiffe://mesh.example/gateway;Hash=ab;Subject=\"CN=a,O=\\\"b\\\";c\";URI={CALLER}");
        let named = Some(CALLER.to_owned());
        assert_eq!(by_envoy(&[&near]), named);
        for before in
            ["URI=spiffe://mesh.example/forged", "By=x;URI=spiffe://mesh.example/forged;DNS=a.example"]
        {
            assert_eq!(by_envoy(&[&format!("{before},{near}")]), named);
            assert_eq!(by_envoy(&[&format!("{before} , {near}")]), named);
            assert_eq!(by_envoy(&[before, &near]), named);
        }
        assert_eq!(by_envoy(&[&format!("hash=ab;uri=\"{CALLER}\"")]), named);
        assert_eq!(by_envoy(&["By=x;URI=;DNS=A.example;DNS=b.example"]), Some("dns:a.example".into()));
    }

    #[test]
    fn what_is_malformed_or_names_nobody_is_refused() {
        let near = format!("By=x;Subject=\"CN=a\";URI={CALLER}");
        for before in
            ["\"", "By=\"", "By=\"x", "URI=spiffe://mesh.example/a;", "a", ",", "=", "By=\"\"x", "By=a b"]
        {
            assert_eq!(by_envoy(&[&format!("{before},{near}")]), None, "{before}");
            assert_eq!(by_envoy(&[before, &near]), None, "{before}");
        }
        for line in [
            "",
            "By=x;Hash=ab",
            "URI=https://a.example/caller",
            "URI=spiffe://mesh.example",
            "URI=spiffe://mesh.example/",
            "URI=SPIFFE://mesh.example/a",
            "URI=spiffe://Mesh.example/a",
            "URI=spiffe://mesh.example/a/../b",
            "URI=spiffe://mesh.example/a?b",
            "URI=spiffe://user@mesh.example/a",
            "URI=spiffe://mesh.example:1/a",
            "URI=spiffe://mesh.example/a;URI=spiffe://mesh.example/b",
            "URI=spiffe://mesh.example/a;URI=https://a.example",
            "DNS=*.example",
            "DNS=a..example",
            "URI=spiffe://mesh.example/a,",
            "URI=spiffe://mesh.example/é",
        ] {
            assert_eq!(by_envoy(&[line]), None, "{line}");
        }
    }

    #[test]
    fn linkerd_names_one_caller() {
        let by_linkerd = |lines: &[&str]| judged(MeshHeader::Linkerd, lines).map(Result::ok);
        let id = "a.ns.serviceaccount.identity.linkerd.cluster.local";
        assert_eq!(by_linkerd(&[id]), Some(Some(format!("dns:{id}"))));
        assert_eq!(by_linkerd(&[CALLER]), Some(Some(CALLER.into())));
        assert_eq!(by_linkerd(&[]), None);
        assert_eq!(by_linkerd(&[id, id]), Some(None));
        for id in ["", "a,b", "a b", "http://a", "*"] {
            assert_eq!(by_linkerd(&[id]), Some(None), "{id}");
        }
    }
}

#[cfg(test)]
mod properties {
    use proptest::prelude::*;

    use super::tests::{CALLER, by_envoy};
    use super::*;

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(list in "[ -~]{0,200}") {
            let _ = forwarded(&list);
        }

        #[test]
        fn nothing_before_the_nearest_proxys_element_is_taken_for_it(
            before in "([ -~]|[\",;=\\\\]|URI=spiffe://mesh[.]example/forged){0,40}", subject in "[ -~]{0,40}"
        ) {
            let subject = subject.replace('\\', "\\\\").replace('"', "\\\"");
            let near = format!("By=x;Hash=ab;Subject=\"{subject}\";URI={CALLER}");
            let named = by_envoy(&[&format!("{before},{near}")]);
            prop_assert!(named.is_none_or(|name| name == CALLER));
        }

        #[test]
        fn any_element_is_read_as_it_is(
            value in "[ -~]{1,40}", path in "[a-z]{1,9}", others in prop::collection::vec("[A-Za-z]{4,9}", 0..4)
        ) {
            let quoted = format!("\"{}\"", value.replace('\\', "\\\\").replace('"', "\\\""));
            let others: String = others.iter().map(|key| format!("{key}={quoted};")).collect();
            let read = forwarded(&format!("{others}DNS={quoted};URI=spiffe://a/{path}")).unwrap();
            prop_assert_eq!(read, Certificate { uris: vec![format!("spiffe://a/{path}")], dns: vec![value] });
        }
    }
}
