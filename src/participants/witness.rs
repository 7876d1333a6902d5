//! Who is told how a write ended.

use std::fmt;
use std::sync::Arc;

use super::Error;
use crate::proto::Participant;

/// The participant that was written, but for one that is gone; or why it failed.
type Outcome<'a> = Result<Option<&'a Participant>, &'a Error>;

/// Is told how a write ended that was begun, also where its caller has gone.
#[derive(Clone)]
pub struct Witness(Arc<dyn Fn(Outcome<'_>) + Send + Sync>);

impl Witness {
    /// It is told the participant that was written, but for one that is gone; or why it failed.
    pub fn new(tell: impl Fn(Result<Option<&Participant>, &Error>) + Send + Sync + 'static) -> Self {
        Self(Arc::new(tell))
    }

    pub(super) fn saw(&self, outcome: Outcome<'_>) {
        (self.0)(outcome);
    }
}

impl fmt::Debug for Witness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Witness")
    }
}
