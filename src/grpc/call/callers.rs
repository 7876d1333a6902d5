//! Who calls at the moment, and the places among the calls in flight, which callers share.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::methods::Kind;
use crate::access::{Access, Granted, Identity};
use crate::grpc::audit::Audit;
use crate::ids::CallerId;

/// How many calls there may be at once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Places {
    pub(super) calls: usize,
    pub(super) watchers: usize,
}

impl Places {
    fn of(self, kind: Kind) -> usize {
        [self.calls, self.watchers, usize::MAX][kind.index()]
    }
}

/// Everybody who calls at the moment. Cheap to clone.
#[derive(Clone)]
pub(super) struct Callers(Arc<Shared>);

struct Shared {
    places: Places,
    access: Access,
    audit: Audit,
    /// By the kind's counter.
    in_flight: [AtomicUsize; 3],
    known: Mutex<HashMap<CallerId, Weak<Caller>>>,
}

impl Callers {
    pub(super) fn new(places: Places, access: Access) -> Self {
        let (audit, in_flight, known) = Default::default();
        Self(Arc::new(Shared { places, access, audit, in_flight, known }))
    }

    pub(super) fn audit(&self) -> &Audit {
        &self.0.audit
    }

    /// One for all calls and connections of a caller.
    pub(super) fn get(&self, identity: Identity) -> Arc<Caller> {
        let mut known = self.0.known.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = known.entry(identity.id()).or_default();
        slot.upgrade().unwrap_or_else(|| {
            let (granted, in_flight) = (self.0.access.granted(&identity), Default::default());
            let caller = Arc::new(Caller { identity, granted, in_flight, callers: self.clone() });
            *slot = Arc::downgrade(&caller);
            caller
        })
    }

    /// How many calls have begun and not ended.
    pub(super) fn in_flight(&self) -> usize {
        self.0.in_flight.iter().map(|kind| kind.load(Ordering::Relaxed)).sum()
    }
}

/// Who calls, what it may do, and the calls that it has in flight.
pub(in crate::grpc) struct Caller {
    pub(in crate::grpc) identity: Identity,
    pub(in crate::grpc) granted: Granted,
    in_flight: [AtomicUsize; 3],
    callers: Callers,
}

impl Caller {
    pub(in crate::grpc) fn audit(&self) -> &Audit {
        self.callers.audit()
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        let mut known = self.callers.0.known.lock().unwrap_or_else(PoisonError::into_inner);
        // It may have come back meanwhile.
        if known.get(&self.identity.id()).is_some_and(|known| known.strong_count() == 0) {
            known.remove(&self.identity.id());
        }
    }
}

/// A place among the calls in flight.
pub(super) struct Place {
    kind: Kind,
    caller: Arc<Caller>,
}

impl Place {
    /// A caller may have as many calls in flight as places are left, so that nobody takes them all.
    pub(super) fn take(kind: Kind, caller: Arc<Caller>) -> Option<Self> {
        let Callers(shared) = caller.callers.clone();
        let place = Self { kind, caller };
        let all = shared.in_flight[kind.index()].fetch_add(1, Ordering::Relaxed);
        let own = place.caller.in_flight[kind.index()].fetch_add(1, Ordering::Relaxed);
        (all.saturating_add(own) < shared.places.of(kind)).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.caller.in_flight[self.kind.index()].fetch_sub(1, Ordering::Relaxed);
        self.caller.callers.0.in_flight[self.kind.index()].fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EIGHT: Places = Places { calls: 8, watchers: 8 };

    fn places(callers: &Callers, kind: Kind, last: u8, count: usize) -> Vec<Option<Place>> {
        let identity = Identity::of_address([127, 0, 0, last].into());
        (0..count).map(|_| Place::take(kind, callers.get(identity.clone()))).collect()
    }

    fn granted(places: &[Option<Place>]) -> usize {
        places.iter().flatten().count()
    }

    #[test]
    fn a_callers_connections_share_its_places_and_nobody_is_remembered() {
        for kind in [Kind::Call, Kind::Watcher] {
            let callers = Callers::new(EIGHT, Access::open());
            let own = places(&callers, kind, 1, 5);
            let others = places(&callers, kind, 2, 3);
            assert_eq!((granted(&own), granted(&others)), (4, 2), "{kind:?}");
            assert_eq!(callers.0.known.lock().unwrap().len(), 2);
            drop((own, others));
            assert_eq!(callers.in_flight(), 0);
            assert!(callers.0.known.lock().unwrap().is_empty());
        }
    }

    #[test]
    fn what_is_refused_takes_no_place() {
        let callers = Callers::new(Places { calls: 1, watchers: 1 }, Access::open());
        let first = places(&callers, Kind::Call, 1, 4);
        assert_eq!((granted(&first), callers.in_flight()), (1, 1));
        drop(first);
        assert_eq!(granted(&places(&callers, Kind::Call, 1, 1)), 1);
    }
}
