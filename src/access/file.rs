//! A file that is read again while the gateway runs: what it held last that was of use holds.

use std::fmt::Display;
use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tracing::{info, warn};

use crate::telemetry::Metrics;

/// More than a thousand tokens, or a hundred keys, take.
const LARGEST_FILE: u64 = 1 << 20;

/// What a file can hold.
pub(super) trait Content: Sized + Send + Sync + 'static {
    /// Why something is none.
    type Error: Display + Send + Sync + 'static;

    /// That of these bytes.
    fn parse(bytes: &[u8]) -> Result<Self, Self::Error>;
}

/// A file is of no use. Nothing of what it holds is repeated.
#[derive(Debug, thiserror::Error)]
pub enum FileError<E: Display> {
    /// It is missing, or may not be read.
    #[error("the file cannot be read: {0}")]
    Unreadable(#[from] io::Error),
    /// It is a folder, a pipe or the like.
    #[error("must name a regular file")]
    NoFile,
    /// It is longer than any such file.
    #[error("the file must hold at most {LARGEST_FILE} bytes")]
    TooLarge,
    /// It holds something else.
    #[error("{0}")]
    Content(E),
}

/// What a file holds, with the file. Clones share it, with every change.
pub(super) struct Watched<T>(Arc<Shared<T>>);

impl<T> Clone for Watched<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

struct Shared<T> {
    setting: &'static str,
    path: PathBuf,
    current: watch::Sender<(Vec<u8>, Arc<T>)>,
}

impl<T: Content> Watched<T> {
    /// That of this file. It reads it, and blocks while it does.
    pub(super) fn read(setting: &'static str, path: PathBuf) -> Result<Self, FileError<T::Error>> {
        let bytes = read::<T>(&path)?;
        let content = T::parse(&bytes).map_err(FileError::Content)?;
        let current = watch::Sender::new((bytes, Arc::new(content)));
        Ok(Self(Arc::new(Shared { setting, path, current })))
    }

    /// What it held last that was of use.
    pub(super) fn current(&self) -> Arc<T> {
        self.0.current.borrow().1.clone()
    }

    /// Reads the file again and again.
    pub(super) async fn upkeep(&self, every: Duration, metrics: &Metrics) {
        let (mut interval, mut is_bad) = (tokio::time::interval(every), false);
        loop {
            interval.tick().await;
            is_bad = self.reload(is_bad, metrics).await;
        }
    }

    /// Whether the file is of no use. By content: a mount may keep its times.
    async fn reload(&self, was_bad: bool, metrics: &Metrics) -> bool {
        let (path, before) = (self.0.path.clone(), self.0.current.borrow().0.clone());
        let reading = spawn_blocking(move || {
            let bytes = read::<T>(&path)?;
            let is_new = bytes != before;
            let content = is_new.then(|| T::parse(&bytes).map_err(FileError::Content)).transpose()?;
            Ok::<_, FileError<T::Error>>(content.map(|content| (bytes, Arc::new(content))))
        });
        // It has no panic, and is not aborted.
        let Ok(read) = reading.await else { return was_bad };
        if was_bad != read.is_err() {
            metrics.secret_file_turned(read.is_err());
        }
        let setting = self.0.setting;
        match read {
            Ok(content) => {
                if was_bad || content.is_some() {
                    info!(setting, is_new = content.is_some(), "read the file of a setting again");
                }
                content.into_iter().for_each(|content| drop(self.0.current.send_replace(content)));
                false
            }
            Err(error) => {
                if !was_bad {
                    warn!(setting, "keep what the file of a setting held last: {error}");
                }
                true
            }
        }
    }
}

fn read<T: Content>(path: &Path) -> Result<Vec<u8>, FileError<T::Error>> {
    // Before it is opened: that of a pipe waits for a writer.
    if !fs::metadata(path)?.is_file() {
        return Err(FileError::NoFile);
    }
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(LARGEST_FILE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LARGEST_FILE { Err(FileError::TooLarge) } else { Ok(bytes) }
}
