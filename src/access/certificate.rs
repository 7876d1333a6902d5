//! What the certificate of a client says of whose it is.

use tokio_rustls::rustls::pki_types::CertificateDer;
use webpki::EndEntityCert;

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
