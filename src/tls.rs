//! TLS on a listener: what it shows, and what it asks of clients, both from files that are read again while the gateway runs.
//!
//! Hands are shaken by what the files hold at that moment. A connection that is open stays as it is.

mod files;

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::telemetry::Metrics;
pub use files::{ClientAuth, Clients, File, FileError, Files, Reason};

/// A listener that can have TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listener {
    /// That of the API, which speaks HTTP/2.
    Grpc,
    /// That of Twilio's events, which speaks HTTP/1.1.
    Events,
}

impl Listener {
    fn as_str(self) -> &'static str {
        match self {
            Self::Grpc => "grpc",
            Self::Events => "events",
        }
    }

    /// The name of its protocol in the handshake.
    fn protocol(self) -> &'static [u8] {
        match self {
            Self::Grpc => b"h2",
            Self::Events => b"http/1.1",
        }
    }
}

/// The TLS of a listener. Clones share it, with every change.
#[derive(Clone)]
pub struct Tls(Arc<Shared>);

struct Shared {
    listener: Listener,
    files: Files,
    set: watch::Sender<Arc<Set>>,
}

/// What the files hold, ready to be used.
struct Set {
    config: Arc<ServerConfig>,
    digest: files::Digest,
    /// When the first certificate of the chain to end ends, in seconds of Unix time.
    expiry: u64,
    is_key_readable: bool,
}

impl Tls {
    /// That of these files. It reads them, and blocks while it does.
    pub fn read(listener: Listener, files: Files) -> Result<Self, FileError> {
        let set = files.read()?.into_set(listener.protocol())?;
        Ok(Self(Arc::new(Shared { listener, files, set: watch::Sender::new(Arc::new(set)) })))
    }

    /// Whether clients are asked for a certificate.
    pub fn asks_for_certificates(&self) -> bool {
        self.0.files.clients.is_some()
    }

    /// Shakes hands, for as long as that takes. A client that does not ask for HTTP/2 by name is no gRPC client, or one that
    /// would not speak it.
    pub async fn accept<S>(&self, stream: S) -> io::Result<TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let config = self.0.set.borrow().config.clone();
        let mut stream = TlsAcceptor::from(config).accept(stream).await?;
        if self.0.listener == Listener::Grpc && stream.get_ref().1.alpn_protocol().is_none() {
            stream.shutdown().await?;
            return Err(io::Error::new(io::ErrorKind::Unsupported, "the client does not offer h2 (ALPN)"));
        }
        Ok(stream)
    }

    /// Reads the files again and again until the token is cancelled.
    pub async fn upkeep(self, every: Duration, metrics: Metrics, end: CancellationToken) {
        let (mut interval, mut is_bad) = (tokio::time::interval(every), false);
        let forever = async {
            loop {
                interval.tick().await;
                is_bad = self.reload(is_bad, &metrics).await;
            }
        };
        let _: Option<Infallible> = end.run_until_cancelled(forever).await;
    }

    /// Whether the files are of no use. By content: a mount may keep its times.
    async fn reload(&self, was_bad: bool, metrics: &Metrics) -> bool {
        let Shared { listener, files, set } = &*self.0;
        let (files, before) = (files.clone(), set.borrow().digest);
        let protocol = listener.protocol();
        let read = spawn_blocking(move || {
            let content = files.read()?;
            (content.digest() != before).then(|| content.into_set(protocol)).transpose()
        });
        // It has no panic, and is not aborted.
        let Ok(read) = read.await else { return was_bad };
        let listener = listener.as_str();
        match read {
            Ok(None) => {
                if was_bad {
                    info!(listener, "the files of TLS are again what is in use");
                }
                false
            }
            Ok(Some(new)) => {
                set.send_replace(Arc::new(new));
                metrics.tls_reloaded(listener, true);
                info!(listener, expiry = %self.expiry(), "new connections get the new files of TLS");
                self.tell(metrics);
                false
            }
            Err(error) => {
                metrics.tls_reloaded(listener, false);
                if !was_bad {
                    warn!(listener, "keep the last good files of TLS: {error}");
                }
                true
            }
        }
    }

    /// Tells whoever runs the gateway what there is to know of the files in use.
    pub fn tell(&self, metrics: &Metrics) {
        let Shared { listener, files, set } = &*self.0;
        let (set, listener) = (set.borrow().clone(), listener.as_str());
        metrics.certificate_expires(listener, set.expiry);
        if UNIX_EPOCH + Duration::from_secs(set.expiry) < SystemTime::now() {
            warn!(listener, expiry = %self.expiry(), "the certificate has expired: clients will refuse it");
        }
        if set.is_key_readable {
            warn!(listener, file = %files.key.display(), "every user of this machine may read the private key");
        }
    }

    fn expiry(&self) -> impl fmt::Display + use<> {
        humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(self.0.set.borrow().expiry))
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("listener", &self.0.listener).field("files", &self.0.files).finish()
    }
}
