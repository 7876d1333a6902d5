//! A write runs in a task of its own, and its caller may leave at any time: whether it is then still sent is agreed on here.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;
use tokio::time::Instant;

/// What a write and its caller have agreed on: either it is sent, or it is given up, never both.
#[derive(Clone, Default)]
pub struct Agreement(Arc<Agreed>);

#[derive(Default)]
struct Agreed {
    state: AtomicU8,
    sent_at: Mutex<Option<Instant>>,
    left: Notify,
}

/// Nothing is sent that Twilio may process.
const OPEN: u8 = 0;
const SENT: u8 = 1;
const GIVEN_UP: u8 = 2;
const ABANDONED: u8 = 3;

impl Agreement {
    /// Called just before each attempt, when nothing is left to wait for: false where the write was given up.
    pub(super) fn send(&self) -> bool {
        let is_agreed =
            self.0.state.compare_exchange(OPEN, SENT, Ordering::SeqCst, Ordering::SeqCst) != Err(GIVEN_UP);
        if is_agreed {
            *self.0.sent_at.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        }
        is_agreed
    }

    /// When the last attempt began. Of a create it is the only one that Twilio may have processed: no other follows such a one.
    pub fn sent_at(&self) -> Option<Instant> {
        *self.0.sent_at.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Called when Twilio is sure to have processed none of the attempts: until the next one the write can be given up.
    pub(super) fn unsent(&self) {
        // Where the caller has left meanwhile, it was told otherwise.
        let _ = self.0.state.compare_exchange(SENT, OPEN, Ordering::SeqCst, Ordering::SeqCst);
    }

    /// Whether nobody waits for the write any more, and it is never sent.
    pub fn is_given_up(&self) -> bool {
        self.0.state.load(Ordering::SeqCst) == GIVEN_UP
    }

    /// Until nobody waits for the write any more; never where it was sent. One task at a time may wait for it.
    pub(super) async fn given_up(&self) {
        while !self.is_given_up() {
            self.0.left.notified().await;
        }
    }

    /// Called when the caller leaves; tells whether that was too late, and the write goes on without anyone to tell.
    pub fn give_up(&self) -> bool {
        // In one step: an attempt may end just now.
        let left = |state| match state {
            OPEN => Some(GIVEN_UP),
            SENT => Some(ABANDONED),
            _ => None,
        };
        let _ = self.0.state.fetch_update(Ordering::SeqCst, Ordering::SeqCst, left);
        self.0.left.notify_one();
        self.is_abandoned()
    }

    /// Whether its caller left after it was sent.
    pub fn is_abandoned(&self) -> bool {
        self.0.state.load(Ordering::SeqCst) == ABANDONED
    }
}

/// The caller's side: a caller that goes away gives up what was not sent.
pub struct Caller(pub Agreement);

impl Drop for Caller {
    fn drop(&mut self) {
        self.0.give_up();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_given_up_is_never_sent() {
        let agreement = Agreement::default();
        assert!(agreement.send());
        agreement.unsent();
        assert!(!agreement.give_up(), "no attempt may have been processed");
        assert!(agreement.is_given_up() && !agreement.send());
        agreement.unsent();
        assert!(!agreement.send() && !agreement.give_up());
    }

    #[test]
    fn what_was_sent_goes_on_without_its_caller() {
        let agreement = Agreement::default();
        assert!(agreement.send() && agreement.send());
        assert!(agreement.give_up() && agreement.give_up());
        agreement.unsent();
        assert!(agreement.is_abandoned() && agreement.send());
    }
}
