//! The files of TLS: read whole, and of use or not.

use std::fmt;
use std::fs;
use std::io::{self, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use tokio_rustls::rustls::crypto::aws_lc_rs::sign::any_supported_type;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use tokio_rustls::rustls::server::danger::ClientCertVerifier;
use tokio_rustls::rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use tokio_rustls::rustls::sign::{CertifiedKey, SingleCertAndKey};
use tokio_rustls::rustls::version::{TLS12, TLS13};
use tokio_rustls::rustls::{RootCertStore, ServerConfig};
use webpki::{EndEntityCert, KeyUsage};
use zeroize::Zeroizing;

use super::Set;

/// More than the roots of the whole web have.
const LARGEST_FILE: u64 = 1 << 20;
/// Its end in a certificate cannot be written later: the year 9999.
const LATEST: Duration = Duration::from_secs(253_402_300_799);

pub(super) type Digest = [u8; 32];

/// Where the files are.
#[derive(Clone, Debug)]
pub struct Files {
    /// The certificate's chain, its own first, in PEM.
    pub certificate: PathBuf,
    /// Its private key, in PEM.
    pub key: PathBuf,
    /// How clients prove who they are, where they do.
    pub clients: Option<Clients>,
}

/// How clients prove who they are.
#[derive(Clone, Debug)]
pub struct Clients {
    /// Who may vouch for them: certificates of authorities, in PEM.
    pub ca: PathBuf,
    /// Whether they have to.
    pub auth: ClientAuth,
}

/// Whether a client has to show a certificate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClientAuth {
    /// Without one there is no connection.
    #[default]
    Required,
    /// It may do without; one that it shows has to be good.
    Optional,
}

/// Neither of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be required or optional")]
pub struct NoClientAuth;

impl FromStr for ClientAuth {
    type Err = NoClientAuth;

    fn from_str(text: &str) -> Result<Self, NoClientAuth> {
        match text {
            "required" => Ok(Self::Required),
            "optional" => Ok(Self::Optional),
            _ => Err(NoClientAuth),
        }
    }
}

/// One of the files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum File {
    /// The certificate's chain.
    Certificate,
    /// Its private key.
    Key,
    /// The authorities of clients.
    ClientCa,
}

impl fmt::Display for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Certificate => "certificate",
            Self::Key => "private key",
            Self::ClientCa => "clients' authorities",
        })
    }
}

/// A file is of no use.
#[derive(Debug, thiserror::Error)]
#[error("{file}: {reason}")]
pub struct FileError {
    /// Which.
    pub file: File,
    /// Why.
    pub reason: Reason,
}

/// Why a file is of no use.
#[derive(Debug, thiserror::Error)]
pub enum Reason {
    /// It is missing, or may not be read.
    #[error("the file cannot be read: {0}")]
    Unreadable(#[from] io::Error),
    /// It is a folder, a pipe or the like.
    #[error("must name a regular file")]
    NoFile,
    /// It is longer than any such file.
    #[error("the file must hold at most {LARGEST_FILE} bytes")]
    TooLarge,
    /// There is no certificate in it.
    #[error("the file holds no certificate in PEM")]
    NoCertificate,
    /// There is something in it that is no certificate.
    #[error("the file holds a certificate that cannot be read")]
    BadCertificate,
    /// There is no key in it.
    #[error("the file holds no private key in PEM (PKCS #8, PKCS #1 or SEC 1, not encrypted)")]
    NoKey,
    /// The key is of no kind that is supported.
    #[error("the file holds a private key that is neither RSA nor ECDSA nor Ed25519, or is broken")]
    BadKey,
    /// The key is not the certificate's.
    #[error("the private key is not that of the certificate")]
    OtherKey,
}

impl Reason {
    fn of(self, file: File) -> FileError {
        FileError { file, reason: self }
    }
}

/// What the files held when they were read. Of the key no copy stays behind here.
pub(super) struct Content {
    certificate: Vec<u8>,
    key: Zeroizing<Vec<u8>>,
    is_key_readable: bool,
    clients: Option<(Vec<u8>, ClientAuth)>,
}

impl Files {
    pub(super) fn read(&self) -> Result<Content, FileError> {
        let (certificate, _) = read(&self.certificate).map_err(|reason| reason.of(File::Certificate))?;
        let (key, mode) = read(&self.key).map_err(|reason| reason.of(File::Key))?;
        let clients = self.clients.as_ref().map(|clients| {
            let (ca, _) = read(&clients.ca).map_err(|reason| reason.of(File::ClientCa))?;
            Ok((ca, clients.auth))
        });
        Ok(Content {
            certificate,
            key: Zeroizing::new(key),
            is_key_readable: mode & 0o004 != 0,
            clients: clients.transpose()?,
        })
    }
}

fn read(path: &Path) -> Result<(Vec<u8>, u32), Reason> {
    // Before it is opened: that of a pipe waits for a writer.
    let metadata = fs::metadata(path)?;
    if !metadata.is_file() {
        return Err(Reason::NoFile);
    }
    if metadata.len() > LARGEST_FILE {
        return Err(Reason::TooLarge);
    }
    // At once as large as it gets: growing would leave a part of a key behind. What is written meanwhile the next read finds.
    let size = metadata.len() + 1;
    let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or_default());
    fs::File::open(path)?.take(size).read_to_end(&mut bytes)?;
    Ok((bytes, metadata.permissions().mode()))
}

impl Content {
    pub(super) fn digest(&self) -> Digest {
        let mut hasher = Sha256::new();
        let ca = self.clients.as_ref().map_or(&[][..], |(ca, _)| ca);
        for part in [&self.certificate[..], &self.key, ca] {
            hasher.update((part.len() as u64).to_be_bytes());
            hasher.update(part);
        }
        hasher.finalize().into()
    }

    pub(super) fn into_set(self, protocol: &[u8]) -> Result<Set, FileError> {
        let chain = certificates(&self.certificate).map_err(|reason| reason.of(File::Certificate))?;
        let expiry = expiry(&chain).ok_or(Reason::BadCertificate.of(File::Certificate))?;
        let key = certified(chain, &self.key)?;
        // By the one provider that is linked.
        let builder = ServerConfig::builder_with_protocol_versions(&[&TLS13, &TLS12]);
        let mut config = match &self.clients {
            None => builder.with_no_client_auth(),
            Some((ca, auth)) => {
                let verifier = verifier(ca, *auth).map_err(|reason| reason.of(File::ClientCa))?;
                builder.with_client_cert_verifier(verifier)
            }
        }
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(key)));
        config.alpn_protocols = vec![protocol.to_vec()];
        if self.clients.is_some() {
            // A session that is resumed brings the certificate that it began with, whatever has become of it since.
            config.session_storage = Arc::new(NoServerSessionStorage {});
            config.send_tls13_tickets = 0;
        }
        let digest = self.digest();
        Ok(Set { config: Arc::new(config), digest, expiry, is_key_readable: self.is_key_readable })
    }
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, Reason> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let certificates = certificates.map_err(|_| Reason::BadCertificate)?;
    if certificates.is_empty() { Err(Reason::NoCertificate) } else { Ok(certificates) }
}

/// When the first of them ends, in seconds of Unix time; `None` where one is no certificate. What verifies certificates says
/// when one ends only where it refuses it for that, so it is asked for a time after all times, and of no authority: that
/// comes first.
fn expiry(chain: &[CertificateDer<'_>]) -> Option<u64> {
    let end = |certificate| {
        let certificate = EndEntityCert::try_from(certificate).ok()?;
        let (time, usage) =
            (UnixTime::since_unix_epoch(LATEST + Duration::from_secs(1)), KeyUsage::server_auth());
        match certificate.verify_for_usage(&[], &[], &[], time, usage, None, None) {
            Err(webpki::Error::CertExpired { not_after, .. }) => Some(not_after.as_secs()),
            _ => None,
        }
    };
    chain.iter().map(end).try_fold(u64::MAX, |first, end| Some(first.min(end?)))
}

fn certified(chain: Vec<CertificateDer<'static>>, pem: &[u8]) -> Result<CertifiedKey, FileError> {
    let key = PrivateKeyDer::from_pem_slice(pem).map_err(|_| Reason::NoKey.of(File::Key))?;
    let key = Zeroizing::new(key);
    let key = any_supported_type(&key).map_err(|_| Reason::BadKey.of(File::Key))?;
    let certified = CertifiedKey::new(chain, key);
    certified.keys_match().map_err(|_| Reason::OtherKey.of(File::Key))?;
    Ok(certified)
}

fn verifier(pem: &[u8], auth: ClientAuth) -> Result<Arc<dyn ClientCertVerifier>, Reason> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(pem)? {
        roots.add(certificate).map_err(|_| Reason::BadCertificate)?;
    }
    let verifier = WebPkiClientVerifier::builder(Arc::new(roots));
    let verifier = match auth {
        ClientAuth::Required => verifier,
        ClientAuth::Optional => verifier.allow_unauthenticated(),
    };
    verifier.build().map_err(|_| Reason::BadCertificate)
}

#[cfg(test)]
mod properties {
    use proptest::prelude::*;
    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    fn content(certificate: &[u8], key: &[u8], ca: &[u8]) -> Content {
        Content {
            certificate: certificate.to_vec(),
            key: Zeroizing::new(key.to_vec()),
            is_key_readable: false,
            clients: Some((ca.to_vec(), ClientAuth::Required)),
        }
    }

    fn pair() -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(["gateway.example".to_owned()]).unwrap();
        (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
    }

    /// What is not whole: noise, or a good file with one byte changed, or a part of it left out.
    fn damage() -> impl Strategy<Value = (prop::sample::Index, Option<u8>, Vec<u8>)> {
        (any::<prop::sample::Index>(), any::<Option<u8>>(), prop::collection::vec(any::<u8>(), 0..200))
    }

    proptest! {
        #[test]
        fn no_damage_to_a_file_is_a_panic_or_in_an_error(which in 0..3_usize, is_noise: bool, (at, byte, noise) in damage()) {
            let (certificate, key) = pair();
            let mut files = [certificate.clone().into_bytes(), key.clone().into_bytes(), certificate.into_bytes()];
            let file = &mut files[which];
            let at = at.index(file.len());
            match byte {
                _ if is_noise => *file = noise,
                Some(byte) => file[at] = byte,
                None => file.truncate(at),
            }
            if let Err(error) = content(&files[0], &files[1], &files[2]).into_set(b"h2") {
                let secret = key.lines().nth(1).unwrap();
                let told = format!("{error} {error:?}");
                prop_assert!(!told.contains(&secret[40..]), "{}", told);
            }
        }

        #[test]
        fn no_two_contents_have_one_digest(one in "[ab]{0,4}", two in "[ab]{0,4}", three in "[ab]{0,4}") {
            let digest = |parts: [&str; 3]| content(parts[0].as_bytes(), parts[1].as_bytes(), parts[2].as_bytes()).digest();
            let (parts, moved) = ([one.as_str(), &two, &three], [&format!("{one}{two}"), "", three.as_str()]);
            prop_assert_eq!(digest(parts) == digest(moved), parts == moved);
        }
    }
}
