//! What the cache may hold, and how old its answers may be.

use super::{Sources, duration, limit, number, switch};
use crate::participants::{CacheSettings, Graces, Lifetimes};

pub(super) fn read(sources: &mut Sources<'_>) -> (CacheSettings, Lifetimes) {
    let ttl = sources.required("cache.ttl", duration);
    let graces = Graces {
        while_revalidating: sources.required("cache.stale_while_revalidate", duration),
        on_error: sources.required("cache.stale_on_error", duration),
        on_outage: sources.required("cache.stale_on_outage", duration),
        is_on_error_default: sources.required("cache.allow_stale_on_error", switch),
    };
    let cache = CacheSettings {
        ttl,
        grace: graces.longest(),
        negative_ttl: sources.required("cache.negative_ttl", duration),
        max_bytes: sources.required("cache.max_bytes", |text| number(text, 0, 1 << 40)),
    };
    let lifetimes = Lifetimes {
        with_events: ttl,
        without_events: sources.required("cache.ttl_without_events", duration),
        live_window: sources.required("events.live_window", limit),
        graces,
    };
    (cache, lifetimes)
}
