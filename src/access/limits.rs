//! What one caller may take, whatever is left for the others.

use std::num::NonZeroU32;

/// Bounds of one caller, each beside those that all share. None of them is set by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CallerLimits {
    /// Bounds its calls in flight, watchers apart.
    pub in_flight: Option<NonZeroU32>,
    /// Bounds its watchers.
    pub watchers: Option<NonZeroU32>,
    /// Bounds how often it calls.
    pub rate: Option<CallRate>,
}

/// How often a caller may call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallRate {
    /// So many calls a second, for as long as it likes.
    pub per_second: NonZeroU32,
    /// So many at once, after it has been silent.
    pub burst: NonZeroU32,
}
