//! Secrets: text that is never printed, and overwritten once nobody holds it any more. One that stands in a file is read again
//! while the gateway runs, and so is the SID that goes with it.

mod dump;
mod text;

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use zeroize::Zeroizing;

pub use dump::forbid_core_dumps;
pub use text::Text;

use crate::telemetry::Metrics;

/// Far more than any secret has.
const LONGEST_FILE: usize = 16 * 1024;
/// A file of a network mount may hang, and nobody who needs a token is to wait for it.
const LONGEST_READ: Duration = Duration::from_secs(1);
/// The value in use and the two before it. One would do, were a file always written at once: a reader between two halves
/// takes the first for a value.
pub(crate) const KEPT: usize = 3;

/// A secret, and where it stands. Clones share it, with every change.
#[derive(Clone)]
pub struct Secret(Arc<Source>);

struct Source {
    /// The setting that holds it, or names its file.
    place: String,
    file: Option<SecretFile>,
    /// The value in use, then those before it.
    values: watch::Sender<Vec<Text>>,
}

struct SecretFile {
    path: PathBuf,
    min_bytes: usize,
    /// Whether what was read last is of no use.
    is_bad: AtomicBool,
    /// One read at a time: each that hangs holds a thread.
    reading: Arc<Semaphore>,
}

/// A file holds no secret.
#[derive(Debug, thiserror::Error)]
pub enum SecretFileError {
    /// It is missing, or may not be read.
    #[error("the file cannot be read: {0}")]
    Unreadable(#[from] io::Error),
    /// It is a folder, a pipe or the like, which cannot be read again.
    #[error("must name a regular file")]
    NoFile,
    /// It is empty, or shorter than the secret has to be.
    #[error("the file must hold at least {0} characters")]
    TooShort(usize),
    /// It is too long for a secret.
    #[error("the file must hold at most {LONGEST_FILE} bytes")]
    TooLong,
    /// It is no line of text.
    #[error("the file must hold one line of UTF-8 text, without control characters")]
    NoText,
}

impl Secret {
    /// One that stays as it is.
    pub fn new(place: impl Into<String>, text: impl Into<Text>) -> Self {
        Self::with(place.into(), text.into(), None)
    }

    /// That of a file, of so many bytes at least. It reads the file, and blocks while it does.
    pub fn read(
        place: impl Into<String>,
        path: impl Into<PathBuf>,
        min_bytes: usize,
    ) -> Result<Self, SecretFileError> {
        let path = path.into();
        let text = read(&path, min_bytes)?;
        let file = SecretFile {
            path,
            min_bytes,
            is_bad: AtomicBool::new(false),
            reading: Arc::new(Semaphore::new(1)),
        };
        Ok(Self::with(place.into(), text, Some(file)))
    }

    fn with(place: String, text: Text, file: Option<SecretFile>) -> Self {
        Self(Arc::new(Source { place, file, values: watch::Sender::new(vec![text]) }))
    }

    /// The value in use.
    pub fn value(&self) -> Text {
        self.0.values.borrow()[0].clone()
    }

    /// The value in use, then those that it had before: what was made with them may still be about.
    pub fn values(&self) -> Vec<Text> {
        self.0.values.borrow().clone()
    }

    /// Whether one is a clone of the other.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// The setting that holds it, or names its file, with that.
    pub fn place(&self) -> String {
        let place = &self.0.place;
        self.0.file.as_ref().map_or(place.clone(), |file| format!("{place}: {}", file.path.display()))
    }

    /// Whether it can change.
    pub fn is_file(&self) -> bool {
        self.0.file.is_some()
    }

    /// Reads the file again and again until the token is cancelled.
    pub async fn upkeep(&self, every: Duration, metrics: &Metrics, end: CancellationToken) {
        let mut interval = tokio::time::interval(every);
        while end.run_until_cancelled(interval.tick()).await.is_some() {
            self.reload(metrics).await;
        }
    }

    /// Reads the file again and tells whether the value has changed. By content: a mount may keep its times.
    pub(crate) async fn reload(&self, metrics: &Metrics) -> bool {
        let Some(file @ SecretFile { is_bad, .. }) = &self.0.file else {
            return false;
        };
        let (from, min) = (file.path.clone(), file.min_bytes);
        let Some(read) = file.in_time(move || read(&from, min)).await else {
            return false;
        };
        let was_bad = is_bad.swap(read.is_err(), Ordering::Relaxed);
        if was_bad != read.is_err() {
            metrics.secret_file_turned(read.is_err());
        }
        let place = &self.0.place;
        match read {
            Ok(text) => {
                let is_new = self.replace(text);
                if was_bad || is_new {
                    info!(%place, is_new, "read the file of a secret");
                }
                is_new
            }
            Err(error) => {
                if !was_bad {
                    warn!(%place, "keep a secret's last good value: {error}");
                }
                false
            }
        }
    }

    fn replace(&self, text: Text) -> bool {
        self.0.values.send_if_modified(|values| {
            let is_new = values[0] != text;
            if is_new {
                values.retain(|value| *value != text);
                values.insert(0, text);
                values.truncate(KEPT);
            }
            is_new
        })
    }
}

impl SecretFile {
    /// What `read` gives, or that it takes too long; `None` while an earlier one still does.
    async fn in_time(
        &self,
        read: impl FnOnce() -> Result<Text, SecretFileError> + Send + 'static,
    ) -> Option<Result<Text, SecretFileError>> {
        let turn = self.reading.clone().try_acquire_owned().ok()?;
        let reading = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            read()
        });
        match timeout(LONGEST_READ, reading).await {
            Ok(read) => read.ok(),
            Err(_) => Some(Err(io::Error::from(io::ErrorKind::TimedOut).into())),
        }
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

fn read(path: &Path, min_bytes: usize) -> Result<Text, SecretFileError> {
    // Before it is opened: that of a pipe waits for a writer.
    if !fs::metadata(path)?.is_file() {
        return Err(SecretFileError::NoFile);
    }
    // With room for all of it: a buffer that grows leaves copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(LONGEST_FILE + 1));
    File::open(path)?.take(LONGEST_FILE as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > LONGEST_FILE {
        return Err(SecretFileError::TooLong);
    }
    let text = str::from_utf8(&bytes).map_err(|_| SecretFileError::NoText)?;
    let text = text.trim_end_matches(['\r', '\n']);
    if text.len() < min_bytes {
        return Err(SecretFileError::TooShort(min_bytes));
    }
    if text.chars().any(char::is_control) { Err(SecretFileError::NoText) } else { Ok(text.into()) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn written(content: &[u8], min_bytes: usize) -> Result<Text, SecretFileError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        fs::write(&path, content).unwrap();
        read(&path, min_bytes)
    }

    #[test]
    fn the_newline_at_the_end_is_no_part_of_the_secret() {
        for content in ["secret", "secret\n", "secret\r\n", "secret\n\n"] {
            assert_eq!(&*written(content.as_bytes(), 1).unwrap(), "secret");
        }
        assert_eq!(&*written(b" a b ", 1).unwrap(), " a b ");
    }

    #[test]
    fn what_is_no_secret_is_refused() {
        use SecretFileError::{NoFile, NoText, TooLong, TooShort, Unreadable};
        assert!(matches!(written(b"", 1), Err(TooShort(1))));
        assert!(matches!(written(b"\n", 1), Err(TooShort(1))));
        assert!(matches!(written(b"0123456789abcde\n", 16), Err(TooShort(16))));
        for content in [&b"a\nb"[..], b"a\tb", b"a\0", b"\xff\xfe", b"\nsecret"] {
            assert!(matches!(written(content, 1), Err(NoText)), "{content:?}");
        }
        assert!(matches!(written(&vec![b'a'; LONGEST_FILE + 1], 1), Err(TooLong)));
        assert!(written(&vec![b'a'; LONGEST_FILE], 1).is_ok());
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(read(folder.path(), 1), Err(NoFile)));
        assert!(matches!(read(&folder.path().join("none"), 1), Err(Unreadable(_))));
    }

    #[test]
    fn nothing_prints_it() {
        let secret = Secret::new("a test", "planted".to_owned());
        let debug = format!("{secret:?} {secret} {:?} {:?}", secret.value(), secret.values());
        assert_eq!((debug.as_str(), &*secret.value()), ("*** *** *** [***]", "planted"));
    }

    #[test]
    fn the_values_before_a_change_are_kept_and_each_once() {
        let secret = Secret::new("a test", "one");
        let values =
            |secret: &Secret| secret.values().iter().map(|text| text.to_string()).collect::<Vec<_>>();
        assert!(!secret.replace("one".into()));
        for text in ["two", "three", "four"] {
            assert!(secret.replace(text.into()));
        }
        assert_eq!(values(&secret), ["four", "three", "two"]);
        assert!(secret.clone().replace("two".into()));
        assert_eq!(values(&secret), ["two", "four", "three"]);
    }

    #[tokio::test]
    async fn a_read_that_hangs_is_given_up_and_not_joined_by_another() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "secret").unwrap();
        let secret = Secret::read("a test", file.path(), 1).unwrap();
        let file = secret.0.file.as_ref().unwrap();
        let (release, held) = std::sync::mpsc::channel::<()>();
        let hanging = move || {
            let _ = held.recv();
            Ok("late".into())
        };
        let given_up = file.in_time(hanging).await.unwrap().unwrap_err();
        assert_eq!(given_up.to_string(), "the file cannot be read: timed out");
        assert!(file.in_time(|| panic!("a second thread")).await.is_none());
        drop(release);
        // Once it has ended, the file is read again.
        drop(file.reading.acquire().await.unwrap());
        assert_eq!(&*file.in_time(|| Ok("new".into())).await.unwrap().unwrap(), "new");
    }

    proptest! {
        #[test]
        fn any_line_of_text_is_read_as_it_is(text in "\\PC{1,100}") {
            prop_assert_eq!(&*written(text.as_bytes(), 1).unwrap(), text.as_str());
        }

        #[test]
        fn no_content_is_a_panic_or_in_an_error(content in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(text) = written(&content, 1) {
                prop_assert!(!text.is_empty() && !text.chars().any(char::is_control));
            }
        }

        #[test]
        fn no_error_repeats_the_content(content in "planted[\\x00-\\x1f]{1,9}planted") {
            prop_assert!(!written(content.as_bytes(), 1).unwrap_err().to_string().contains("planted"));
        }
    }
}
