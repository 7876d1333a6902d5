//! A write runs in a task of its own, and its caller may leave at any time: whether it is then still sent is agreed on here.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use super::Error;

/// What a write and its caller have agreed on: either it is sent, or it is given up, never both.
#[derive(Clone, Default)]
pub(super) struct Agreement(Arc<AtomicU8>);

const OPEN: u8 = 0;
const SENT: u8 = 1;
const GIVEN_UP: u8 = 2;
const ABANDONED: u8 = 3;

impl Agreement {
    /// Called just before the write is sent: fails where nobody waits for it any more.
    pub(super) fn send(&self) -> Result<(), Error> {
        let sent = self.0.compare_exchange(OPEN, SENT, Ordering::SeqCst, Ordering::SeqCst);
        sent.map(|_| ()).map_err(|_| Error::Deadline { sent: false })
    }

    /// Fails where nobody waits for the write any more.
    pub(super) fn still_wanted(&self) -> Result<(), Error> {
        if self.0.load(Ordering::SeqCst) == GIVEN_UP { Err(Error::Deadline { sent: false }) } else { Ok(()) }
    }

    /// Called when the caller leaves; tells whether that was too late, and the write goes on without anyone to tell.
    pub(super) fn give_up(&self) -> bool {
        if self.0.compare_exchange(OPEN, GIVEN_UP, Ordering::SeqCst, Ordering::SeqCst) == Err(SENT) {
            self.0.store(ABANDONED, Ordering::SeqCst);
        }
        self.is_abandoned()
    }

    pub(super) fn is_abandoned(&self) -> bool {
        self.0.load(Ordering::SeqCst) == ABANDONED
    }
}

/// The caller's side: a caller that goes away gives up what was not sent.
pub(super) struct Caller(pub(super) Agreement);

impl Drop for Caller {
    fn drop(&mut self) {
        self.0.give_up();
    }
}
