//! TLS on the listeners: who gets a connection and who does not, and files that change under it. Row 33 of the faults.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hyper_util::rt::TokioIo;
use participant_gateway::proto::participant_service_client::ParticipantServiceClient;
use participant_gateway::sandbox;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    SanType,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::version::{TLS12, TLS13};
use tokio_rustls::rustls::{ClientConfig, HandshakeKind, RootCertStore, SupportedProtocolVersion};
use tonic::Code;
use tonic::transport::Endpoint;

use crate::events::{Event, listening};
use crate::harness::*;
use crate::metrics::Scrape;
use crate::on_both_versions;
use crate::raw::{Raw, frame};
use crate::wire::PREFACE;

const YEARS: Range<i32> = 2020..2100;
const SERVER: &[&str] = &["localhost", "gateway.example"];
const CALLER: &[&str] = &["spiffe://example.org/caller", "caller.example"];
const BOTH: &[&SupportedProtocolVersion] = &[&TLS13, &TLS12];

// === Certificates

struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate and its key, in PEM.
struct Issued {
    certificate: String,
    key: String,
}

impl Issued {
    fn der(&self) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(self.certificate.as_bytes()).unwrap()
    }
}

impl Authority {
    fn new() -> Self {
        Self::named("authority")
    }

    fn named(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn issue(&self, names: &[&str], years: Range<i32>, usage: ExtendedKeyUsagePurpose) -> Issued {
        let (uris, dns): (Vec<&str>, Vec<&str>) = names.iter().partition(|name| name.contains("://"));
        let mut params =
            CertificateParams::new(dns.into_iter().map(str::to_owned).collect::<Vec<_>>()).unwrap();
        params.subject_alt_names.extend(uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap())));
        params.not_before = rcgen::date_time_ymd(years.start, 1, 1);
        params.not_after = rcgen::date_time_ymd(years.end, 1, 1);
        params.extended_key_usages = vec![usage];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        Issued { certificate: certificate.pem(), key: key.serialize_pem() }
    }

    fn server(&self) -> Issued {
        self.issue(SERVER, YEARS, ExtendedKeyUsagePurpose::ServerAuth)
    }

    fn caller(&self) -> Issued {
        self.issue(CALLER, YEARS, ExtendedKeyUsagePurpose::ClientAuth)
    }
}

// === The gateway's side

/// A folder as Kubernetes mounts a secret: the files are links through `..data`, which is swapped for another folder.
struct Mount {
    folder: tempfile::TempDir,
    version: u32,
}

impl Mount {
    fn new(server: &Issued, clients: &Authority) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for name in ["tls.crt", "tls.key", "ca.crt"] {
            symlink(format!("..data/{name}"), folder.path().join(name)).unwrap();
        }
        let mut mount = Self { folder, version: 0 };
        mount.swap(&server.certificate, &server.key, &clients.0.pem());
        mount
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    fn swap(&mut self, certificate: &str, key: &str, clients: &str) {
        let (folder, old) = (self.folder.path().to_owned(), format!("..{}", self.version));
        self.version += 1;
        let new = format!("..{}", self.version);
        std::fs::create_dir(folder.join(&new)).unwrap();
        for (name, text) in [("tls.crt", certificate), ("tls.key", key), ("ca.crt", clients)] {
            std::fs::write(folder.join(&new).join(name), text).unwrap();
        }
        symlink(&new, folder.join("..data_tmp")).unwrap();
        std::fs::rename(folder.join("..data_tmp"), folder.join("..data")).unwrap();
        if self.version > 1 {
            std::fs::remove_dir_all(folder.join(old)).unwrap();
        }
    }
}

/// With TLS, and these variables.
async fn gateway(mount: &Mount, env: &[(&str, &str)]) -> Gateway {
    let (certificate, key) = (mount.path("tls.crt"), mount.path("tls.key"));
    let tls = [("GATEWAY_TLS_CERT_FILE", certificate.as_str()), ("GATEWAY_TLS_KEY_FILE", key.as_str())];
    Gateway::with(&[&tls[..], env].concat()).await
}

async fn mutual(mount: &Mount, env: &[(&str, &str)]) -> Gateway {
    let ca = mount.path("ca.crt");
    gateway(mount, &[&[("GATEWAY_TLS_CLIENT_CA_FILE", ca.as_str())], env].concat()).await
}

// === The caller's side

/// One that trusts the authority, and shows this certificate.
fn caller(
    authority: &Authority,
    own: Option<&Issued>,
    versions: &[&'static SupportedProtocolVersion],
) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(authority.0.der().clone()).unwrap();
    let config = ClientConfig::builder_with_protocol_versions(versions).with_root_certificates(roots);
    let mut config = match own {
        Some(own) => {
            let key = PrivateKeyDer::from_pem_slice(own.key.as_bytes()).unwrap();
            config.with_client_auth_cert(vec![own.der()], key).unwrap()
        }
        None => config.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

async fn shake_hands(
    address: SocketAddr,
    config: &ClientConfig,
    name: &'static str,
) -> io::Result<TlsStream<TcpStream>> {
    let socket = TcpStream::connect(address).await?;
    let connector = TlsConnector::from(Arc::new(config.clone()));
    connector.connect(ServerName::try_from(name).unwrap(), socket).await
}

async fn connected(gateway: &Gateway, config: &ClientConfig) -> TlsStream<TcpStream> {
    shake_hands(gateway.addresses.grpc, config, "localhost").await.unwrap()
}

async fn call(connection: &Raw, face: Face) -> Code {
    connection.call("GetParticipant", &[], &frame(&face.get())).await.code()
}

/// How a connection is refused. A server of TLS 1.3 says what it thinks of a certificate only after the client has done its
/// part.
async fn refused(gateway: &Gateway, config: &ClientConfig) -> String {
    match shake_hands(gateway.addresses.grpc, config, "localhost").await {
        Err(error) => error.to_string(),
        Ok(mut stream) => match soon(stream.read(&mut [0; 100])).await {
            Ok(0) => "closed".into(),
            Ok(_) => panic!("the gateway speaks to it"),
            Err(error) => error.to_string(),
        },
    }
}

/// Nothing here takes long, or it does not end at all.
async fn soon<T>(what: impl Future<Output = T>) -> T {
    timeout(PATIENCE, what).await.expect("it takes too long")
}

async fn refusals(gateway: &Gateway, reason: &str) -> f64 {
    let labels = [("participant_connections_reason", reason)];
    Scrape::of(gateway).await.sum("participant_connections_refused_total", &labels)
}

/// Waits until so many connections were refused for this reason.
async fn until_refused(gateway: &Gateway, reason: &str, count: f64) {
    let end = Instant::now() + PATIENCE;
    loop {
        let refused = refusals(gateway, reason).await;
        if refused == count {
            return;
        }
        assert!(Instant::now() < end && refused < count, "{refused} refused for {reason}, not {count}");
        tokio::task::yield_now().await;
    }
}

// === Who gets a connection

on_both_versions! {
    async fn a_call_passes_by_mutual_tls(face) {
        let authority = Authority::new();
        let gateway = mutual(&Mount::new(&authority.server(), &authority), &[]).await;
        for versions in [&[&TLS13][..], &[&TLS12]] {
            let config = caller(&authority, Some(&authority.caller()), versions);
            let address = gateway.addresses.grpc;
            let connector = tower::service_fn(move |_| {
                let config = config.clone();
                async move { shake_hands(address, &config, "gateway.example").await.map(TokioIo::new) }
            });
            let channel = Endpoint::from_static("http://gateway").connect_with_connector(connector).await.unwrap();
            ParticipantServiceClient::new(channel).get_participant(face.get()).await.unwrap();
        }
        assert_eq!(refusals(&gateway, "tls").await, 0.0);
    }

    async fn a_call_passes_without_a_certificate_of_its_own_where_none_is_asked_for(face) {
        let authority = Authority::new();
        let mount = Mount::new(&authority.server(), &authority);
        let none = caller(&authority, None, BOTH);
        for gateway in [gateway(&mount, &[]).await, mutual(&mount, &[("GATEWAY_TLS_CLIENT_AUTH", "optional")]).await] {
            let connection = Raw::over(connected(&gateway, &none).await).await;
            assert_eq!(call(&connection, face).await, Code::Ok);
        }
    }
}

#[tokio::test]
async fn who_shows_no_good_certificate_gets_no_connection() {
    use ExtendedKeyUsagePurpose::{ClientAuth, ServerAuth};
    let (authority, stranger, namesake) = (Authority::new(), Authority::named("stranger"), Authority::new());
    let mount = Mount::new(&authority.server(), &authority);
    for (client_auth, is_required) in [("required", true), ("optional", false)] {
        let gateway = mutual(&mount, &[("GATEWAY_TLS_CLIENT_AUTH", client_auth)]).await;
        let good = caller(&authority, Some(&authority.caller()), BOTH);
        let witness = Raw::over(connected(&gateway, &good).await).await;
        let mut count = 0.0;
        for (own, alert) in [
            (None, "CertificateRequired"),
            (Some(authority.issue(CALLER, 2020..2021, ClientAuth)), "CertificateExpired"),
            (Some(authority.issue(CALLER, 2099..2100, ClientAuth)), "CertificateExpired"),
            (Some(stranger.caller()), "UnknownCA"),
            (Some(namesake.caller()), "DecryptError"),
            (Some(authority.issue(CALLER, YEARS, ServerAuth)), "UnsupportedCertificate"),
        ] {
            if own.is_none() && !is_required {
                continue;
            }
            let told = refused(&gateway, &caller(&authority, own.as_ref(), &[&TLS13])).await;
            assert!(told.contains(alert), "{told} and not {alert}");
            refused(&gateway, &caller(&authority, own.as_ref(), &[&TLS12])).await;
            count += 2.0;
            assert_eq!(call(&witness, Face::V1).await, Code::Ok);
        }
        until_refused(&gateway, "tls", count).await;
    }
}

/// The connection is the authority's to allow; who calls, and what they may do, is told by the names in the certificate.
#[tokio::test]
async fn another_name_in_a_good_certificate_is_none_of_the_handshakes_business() {
    let authority = Authority::new();
    let gateway = mutual(&Mount::new(&authority.server(), &authority), &[]).await;
    for names in [&["other.example"][..], &["spiffe://elsewhere.example/x"], &[]] {
        let own = authority.issue(names, YEARS, ExtendedKeyUsagePurpose::ClientAuth);
        let connection = Raw::over(connected(&gateway, &caller(&authority, Some(&own), BOTH)).await).await;
        assert_eq!(call(&connection, Face::V1).await, Code::Ok);
    }
}

#[tokio::test]
async fn a_client_that_does_not_ask_for_http_2_is_refused() {
    let authority = Authority::new();
    let gateway = gateway(&Mount::new(&authority.server(), &authority), &[]).await;
    for (protocols, told) in [(vec![], "closed"), (vec![b"http/1.1".to_vec()], "NoApplicationProtocol")] {
        let mut config = caller(&authority, None, BOTH);
        config.alpn_protocols = protocols;
        let refused = refused(&gateway, &config).await;
        assert!(refused.contains(told), "{refused}");
    }
    until_refused(&gateway, "tls", 2.0).await;
}

/// What rustls cannot say: the hello of a client that knows nothing newer than these.
fn old_hello(version: u8) -> Vec<u8> {
    let suites = [0xc0, 0x13, 0xc0, 0x09, 0x00, 0x2f];
    let mut body = vec![3, version];
    body.extend([7; 32]);
    body.extend([0, 0, 6]);
    body.extend(suites);
    body.extend([1, 0, 0, 0]);
    let handshake = [&[1, 0, 0, u8::try_from(body.len()).unwrap()][..], &body].concat();
    [&[22, 3, 1, 0, u8::try_from(handshake.len()).unwrap()][..], &handshake].concat()
}

#[tokio::test]
async fn older_versions_than_1_2_are_refused() {
    let authority = Authority::new();
    let gateway = gateway(&Mount::new(&authority.server(), &authority), &[]).await;
    // SSL 3.0, TLS 1.0 and 1.1.
    for version in 0..3 {
        let mut stream = TcpStream::connect(gateway.addresses.grpc).await.unwrap();
        stream.write_all(&old_hello(version)).await.unwrap();
        let mut told = Vec::new();
        soon(stream.read_to_end(&mut told)).await.unwrap();
        // A fatal alert and nothing else.
        assert_eq!((told.len(), told[0], told[5]), (7, 21, 2), "{told:?}");
    }
    until_refused(&gateway, "tls", 3.0).await;
}

#[tokio::test]
async fn who_stalls_in_the_handshake_is_closed_and_keeps_nobody_out() {
    let authority = Authority::new();
    let mount = Mount::new(&authority.server(), &authority);
    let gateway = mutual(&mount, &[("GATEWAY_CONNECTIONS_HANDSHAKE_TIMEOUT", "500ms")]).await;
    let mut stalled = Vec::new();
    for sent in [&[][..], &[22], &old_hello(2)[..20], &[22, 3, 1, 0x3f, 0xff, 1]] {
        let mut stream = TcpStream::connect(gateway.addresses.grpc).await.unwrap();
        stream.write_all(sent).await.unwrap();
        stalled.push(stream);
    }
    let good = caller(&authority, Some(&authority.caller()), BOTH);
    let connection = Raw::over(connected(&gateway, &good).await).await;
    assert_eq!(call(&connection, Face::V1).await, Code::Ok);
    // One that has shaken hands, and then says nothing, is no better.
    let mut silent = connected(&gateway, &good).await;
    for mut stream in stalled {
        let _ = soon(stream.read_to_end(&mut Vec::new())).await;
    }
    let _ = soon(silent.read_to_end(&mut Vec::new())).await;
    until_refused(&gateway, "silent", 5.0).await;
    assert_eq!(call(&connection, Face::V1).await, Code::Ok);
}

#[tokio::test]
async fn connections_that_shake_hands_count_among_the_connections() {
    let authority = Authority::new();
    let mount = Mount::new(&authority.server(), &authority);
    let gateway = gateway(&mount, &[("GATEWAY_CONNECTIONS_MAX_PER_PEER", "2")]).await;
    let mut held = Vec::new();
    for _ in 0..2 {
        held.push(TcpStream::connect(gateway.addresses.grpc).await.unwrap());
    }
    assert!(shake_hands(gateway.addresses.grpc, &caller(&authority, None, BOTH), "localhost").await.is_err());
    until_refused(&gateway, "peer", 1.0).await;
}

#[tokio::test]
async fn plain_text_is_closed_by_tls_and_tls_by_plain_text() {
    let authority = Authority::new();
    let with_tls = gateway(&Mount::new(&authority.server(), &authority), &[]).await;
    let mut stream = TcpStream::connect(with_tls.addresses.grpc).await.unwrap();
    stream.write_all(PREFACE).await.unwrap();
    let mut told = Vec::new();
    let _ = soon(stream.read_to_end(&mut told)).await;
    assert!(told.len() <= 7, "at most an alert: {told:?}");
    until_refused(&with_tls, "tls", 1.0).await;

    let plain = Gateway::start().await;
    let config = caller(&authority, None, BOTH);
    assert!(soon(shake_hands(plain.addresses.grpc, &config, "localhost")).await.is_err());
}

// === Sessions

/// The kinds of two handshakes of one client, the second of which has a session to resume, if the gateway gives any.
async fn two_handshakes(gateway: &Gateway, config: &ClientConfig) -> [HandshakeKind; 2] {
    let mut kinds = Vec::new();
    for _ in 0..2 {
        let mut stream = connected(gateway, config).await;
        kinds.push(stream.get_ref().1.handshake_kind().unwrap());
        // What comes with the gateway's first words are its tickets.
        stream.write_all(PREFACE).await.unwrap();
        assert_ne!(soon(stream.read(&mut [0; 100])).await.unwrap(), 0);
    }
    kinds.try_into().unwrap()
}

#[tokio::test]
async fn a_session_is_resumed_unless_clients_have_to_prove_who_they_are() {
    let authority = Authority::new();
    let mount = Mount::new(&authority.server(), &authority);
    let (one_sided, mutual) = (gateway(&mount, &[]).await, mutual(&mount, &[]).await);
    for versions in [&[&TLS13][..], &[&TLS12]] {
        let config = caller(&authority, Some(&authority.caller()), versions);
        assert_eq!(two_handshakes(&one_sided, &config).await, [HandshakeKind::Full, HandshakeKind::Resumed]);
        assert_eq!(two_handshakes(&mutual, &config).await, [HandshakeKind::Full, HandshakeKind::Full]);
    }
}

// === Files that change

const OFTEN: (&str, &str) = ("GATEWAY_SECRETS_RELOAD_INTERVAL", "20ms");

async fn reloads(gateway: &Gateway, outcome: &str) -> f64 {
    let labels = [("participant_listener", "grpc"), ("participant_tls_outcome", outcome)];
    Scrape::of(gateway).await.sum("participant_tls_reloads_total", &labels)
}

async fn until_one_more_reload(gateway: &Gateway, outcome: &str, before: f64) {
    let end = Instant::now() + PATIENCE;
    while reloads(gateway, outcome).await <= before {
        assert!(Instant::now() < end, "no further reload is {outcome}");
        tokio::task::yield_now().await;
    }
}

async fn expiry(gateway: &Gateway) -> f64 {
    let labels = [("participant_listener", "grpc")];
    Scrape::of(gateway).await.sum("participant_tls_certificate_expiry_seconds", &labels)
}

/// Whose certificate a new connection is shown.
async fn shown(gateway: &Gateway, config: &ClientConfig) -> CertificateDer<'static> {
    let stream = connected(gateway, config).await;
    stream.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned()
}

/// Calls over one connection that is kept, and over ever new ones, until it is told to end: how many.
async fn load(
    address: SocketAddr,
    config: ClientConfig,
    face: Face,
    end: Arc<AtomicBool>,
    calls: Arc<AtomicU64>,
) {
    let connect = async || Raw::over(shake_hands(address, &config, "localhost").await.unwrap()).await;
    let kept = connect().await;
    while !end.load(Ordering::Relaxed) {
        for connection in [&kept, &connect().await] {
            assert_eq!(call(connection, face).await, Code::Ok);
            calls.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[tokio::test]
async fn new_files_are_for_new_connections_and_no_call_fails() {
    let authority = Authority::new();
    let mut mount = Mount::new(&authority.server(), &authority);
    let gateway = mutual(&mount, &[OFTEN]).await;
    let config = caller(&authority, Some(&authority.caller()), BOTH);
    let (end, calls) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let mut callers = JoinSet::new();
    for face in [Face::V1, Face::V2] {
        callers.spawn(load(gateway.addresses.grpc, config.clone(), face, end.clone(), calls.clone()));
    }
    let mut last = authority.server();
    for _ in 0..10 {
        let (next, ca, before) = (authority.server(), authority.0.pem(), calls.load(Ordering::Relaxed));
        // Half of it is there, and then all of it.
        let failed = reloads(&gateway, "failed").await;
        mount.swap(&next.certificate, &last.key, &ca);
        until_one_more_reload(&gateway, "failed", failed).await;
        let done = reloads(&gateway, "ok").await;
        mount.swap(&next.certificate, &next.key, &ca);
        until_one_more_reload(&gateway, "ok", done).await;
        assert_eq!(shown(&gateway, &config).await, next.der());
        while calls.load(Ordering::Relaxed) < before + 4 {
            tokio::task::yield_now().await;
        }
        last = next;
    }
    end.store(true, Ordering::Relaxed);
    while let Some(ended) = callers.join_next().await {
        ended.expect("no call and no connection fails");
    }
    assert_eq!(reloads(&gateway, "ok").await, 10.0);
    assert_eq!(refusals(&gateway, "tls").await, 0.0);
}

#[tokio::test]
async fn files_that_are_of_no_use_leave_the_last_good_ones_in_place() {
    let authority = Authority::new();
    let server = authority.server();
    let mut mount = Mount::new(&server, &authority);
    let gateway = mutual(&mount, &[OFTEN]).await;
    let config = caller(&authority, Some(&authority.caller()), BOTH);
    let (good, other) = (authority.0.pem(), authority.server());
    let before = expiry(&gateway).await;
    for (certificate, key, ca) in [
        ("", server.key.as_str(), good.as_str()),
        (&other.certificate, &server.key, &good),
        (&server.certificate, "-----BEGIN PRIVATE KEY-----\n", &good),
        (&server.certificate, &server.key, ""),
        (&server.certificate, &server.key, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
    ] {
        let failed = reloads(&gateway, "failed").await;
        mount.swap(certificate, key, ca);
        until_one_more_reload(&gateway, "failed", failed).await;
        let connection = Raw::over(connected(&gateway, &config).await).await;
        assert_eq!(call(&connection, Face::V1).await, Code::Ok);
        assert_eq!(shown(&gateway, &config).await, server.der());
    }
    std::fs::remove_file(Path::new(&mount.path("..data"))).unwrap();
    let failed = reloads(&gateway, "failed").await;
    until_one_more_reload(&gateway, "failed", failed).await;
    assert_eq!(shown(&gateway, &config).await, server.der());
    assert_eq!((expiry(&gateway).await, reloads(&gateway, "ok").await), (before, 0.0));
}

#[tokio::test]
async fn an_authority_that_is_taken_away_vouches_for_no_new_connection() {
    let (authority, next) = (Authority::new(), Authority::named("next"));
    let server = authority.server();
    let mut mount = Mount::new(&server, &authority);
    let gateway = mutual(&mount, &[OFTEN]).await;
    let old = caller(&authority, Some(&authority.caller()), BOTH);
    let new = caller(&authority, Some(&next.caller()), BOTH);
    let open = Raw::over(connected(&gateway, &old).await).await;
    assert!(refused(&gateway, &new).await.contains("UnknownCA"));
    // Both, as whoever changes an authority has to do it, and then the new one alone.
    for (ca, is_old_good) in [([authority.0.pem(), next.0.pem()].concat(), true), (next.0.pem(), false)] {
        let done = reloads(&gateway, "ok").await;
        mount.swap(&server.certificate, &server.key, &ca);
        until_one_more_reload(&gateway, "ok", done).await;
        let connection = Raw::over(connected(&gateway, &new).await).await;
        assert_eq!(call(&connection, Face::V1).await, Code::Ok);
        if is_old_good {
            assert_eq!(call(&Raw::over(connected(&gateway, &old).await).await, Face::V1).await, Code::Ok);
        } else {
            assert!(refused(&gateway, &old).await.contains("UnknownCA"));
        }
    }
    assert_eq!(call(&open, Face::V1).await, Code::Ok);
}

#[tokio::test]
async fn a_certificate_that_has_expired_is_shown_until_there_is_a_good_one() {
    let authority = Authority::new();
    let expired = authority.issue(SERVER, 2020..2021, ExtendedKeyUsagePurpose::ServerAuth);
    let mut mount = Mount::new(&expired, &authority);
    let gateway = gateway(&mount, &[OFTEN]).await;
    let config = caller(&authority, None, BOTH);
    // The first of January 2021, and of 2100.
    assert_eq!(expiry(&gateway).await, 1_609_459_200.0);
    let refused = shake_hands(gateway.addresses.grpc, &config, "localhost").await.unwrap_err().to_string();
    assert!(refused.contains("expired"), "{refused}");
    let good = authority.server();
    mount.swap(&good.certificate, &good.key, "");
    until_one_more_reload(&gateway, "ok", 0.0).await;
    assert_eq!(shown(&gateway, &config).await, good.der());
    assert_eq!(expiry(&gateway).await, 4_102_444_800.0);
}

// === Events

on_both_versions! {
    async fn events_are_taken_by_tls(face) {
        let authority = Authority::new();
        let mount = Mount::new(&authority.server(), &authority);
        let (certificate, key) = (mount.path("tls.crt"), mount.path("tls.key"));
        let gateway =
            listening(&format!("events.tls.cert_file = {certificate:?}\nevents.tls.key_file = {key:?}")).await;
        let address = gateway.addresses.events.unwrap();
        let root = reqwest::Certificate::from_pem(authority.0.pem().as_bytes()).unwrap();
        let twilio = reqwest::Client::builder().tls_certs_only([root]).build().unwrap();
        let delivery = Event::new(face, "one").delivery(sandbox::AUTH_TOKEN);
        assert_eq!(delivery.post_by(&twilio, &format!("https://localhost:{}", address.port())).await, 200);

        let mut plain = TcpStream::connect(address).await.unwrap();
        plain.write_all(b"POST /events HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        let mut told = Vec::new();
        let _ = soon(plain.read_to_end(&mut told)).await;
        assert!(told.len() <= 7, "at most an alert: {told:?}");
    }
}

/// At the end of a drain a connection that shakes hands is not waited for.
#[tokio::test]
async fn a_stalled_handshake_does_not_hold_up_the_end() {
    let authority = Authority::new();
    let mount = Mount::new(&authority.server(), &authority);
    let (certificate, key) = (mount.path("tls.crt"), mount.path("tls.key"));
    let of_events = [
        ("GATEWAY_EVENTS_TLS_CERT_FILE", certificate.as_str()),
        ("GATEWAY_EVENTS_TLS_KEY_FILE", key.as_str()),
    ];
    let mut gateway = gateway(&mount, &of_events).await;
    let _stalled = [
        TcpStream::connect(gateway.addresses.grpc).await.unwrap(),
        TcpStream::connect(gateway.addresses.events.unwrap()).await.unwrap(),
    ];
    let open = Raw::over(connected(&gateway, &caller(&authority, None, BOTH)).await).await;
    assert_eq!(call(&open, Face::V1).await, Code::Ok);
    gateway.stop(participant_gateway::app::Stop::Promptly);
    // Far less than the handshake may take.
    timeout(Duration::from_secs(4), gateway.ended()).await.expect("it is held up").unwrap();
}
