//! What the certificate of a client says of whose it is.

use tokio_rustls::rustls::pki_types::CertificateDer;
use webpki::EndEntityCert;

use super::{Identity, Proof, Refused};

/// The longest SPIFFE ID, by its specification.
const LONGEST_SPIFFE_ID: usize = 2048;
const LONGEST_DNS_NAME: usize = 253;
const SPIFFE: &str = "spiffe://";

/// The names in a client's certificate, as its subject alternative names hold them. Whether to believe them is the
/// handshake's to say: it comes before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Certificate {
    /// Its URIs, such as a SPIFFE ID.
    pub uris: Vec<String>,
    /// Its DNS names, without those that hold for many: a wildcard is nobody's name.
    pub dns: Vec<String>,
}

impl Certificate {
    /// Those of a certificate in DER, read by what verifies certificates, so that both see the same; `None` where it is none.
    pub fn parse(der: &[u8]) -> Option<Self> {
        let der = CertificateDer::from(der);
        let certificate = EndEntityCert::try_from(&der).ok()?;
        let dns = certificate.valid_dns_names().filter(|name| !name.contains('*'));
        Some(Self {
            uris: certificate.valid_uri_names().map(str::to_owned).collect(),
            dns: dns.map(str::to_owned).collect(),
        })
    }

    /// Whose it is: its SPIFFE ID's, beside which there must be no other URI; without one, that of its first DNS name.
    pub(super) fn owner(&self, proof: Proof) -> Result<Identity, Refused> {
        // By any spelling of the scheme: what only looks like a SPIFFE ID is not passed over.
        let is_spiffe =
            |uri: &String| uri.get(..SPIFFE.len()).is_some_and(|scheme| scheme.eq_ignore_ascii_case(SPIFFE));
        if self.uris.iter().any(is_spiffe) {
            return match &self.uris[..] {
                [id] if is_spiffe_id(id) => Ok(Identity::proven(proof, id.as_str())),
                [_] => Err(Refused("the certificate holds a malformed SPIFFE ID")),
                _ => Err(Refused("the certificate holds another URI beside a SPIFFE ID")),
            };
        }
        match self.dns.first() {
            Some(name) if is_dns_name(name) => {
                Ok(Identity::proven(proof, format!("dns:{}", name.to_ascii_lowercase())))
            }
            Some(_) => Err(Refused("the certificate's first DNS name is malformed")),
            None => Err(Refused("the certificate holds neither a SPIFFE ID nor a DNS name")),
        }
    }
}

/// Of a workload, as the SPIFFE specification spells it: a trust domain and a path that is not empty.
fn is_spiffe_id(id: &str) -> bool {
    let Some((domain, path)) = id.strip_prefix(SPIFFE).and_then(|rest| rest.split_once('/')) else {
        return false;
    };
    let is_sign = |b: u8| matches!(b, b'.' | b'_' | b'-');
    let is_domain = (1..=255).contains(&domain.len())
        && domain.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || is_sign(b));
    let is_segment = |segment: &str| {
        !matches!(segment, "" | "." | "..")
            && segment.bytes().all(|b| b.is_ascii_alphanumeric() || is_sign(b))
    };
    id.len() <= LONGEST_SPIFFE_ID && is_domain && path.split('/').all(is_segment)
}

fn is_dns_name(name: &str) -> bool {
    let is_label = |label: &str| {
        !label.is_empty() && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
    };
    name.len() <= LONGEST_DNS_NAME && name.split('.').all(is_label)
}

#[cfg(test)]
mod properties {
    use proptest::prelude::*;
    use rcgen::string::Ia5String;
    use rcgen::{CertificateParams, KeyPair, SanType};

    use super::*;

    fn certificate(uris: &[String], dns: &[String]) -> Vec<u8> {
        let mut params = CertificateParams::new(dns).unwrap();
        let uris = uris.iter().map(|uri| SanType::URI(Ia5String::try_from(uri.as_str()).unwrap()));
        params.subject_alt_names.extend(uris);
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = Certificate::parse(&bytes);
        }

        #[test]
        fn any_damage_is_read_or_refused(at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<bool>()) {
            let mut der = certificate(&["spiffe://a.example/caller".into()], &["caller.example".into()]);
            let at = at.index(der.len());
            der[at] = byte;
            der.truncate(if cut { at } else { der.len() });
            let _ = Certificate::parse(&der);
        }

        #[test]
        fn any_names_are_read_as_they_are(
            uris in prop::collection::vec("spiffe://[a-z]{1,9}\\.example/[!-~]{0,20}", 0..3),
            dns in prop::collection::vec("[a-z]{1,9}\\.example", 0..3),
        ) {
            let der = certificate(&uris, &[&dns[..], &["*.many.example".to_owned()]].concat());
            prop_assert_eq!(Certificate::parse(&der).unwrap(), Certificate { uris, dns });
        }
    }
}
