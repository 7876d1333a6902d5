//! Who calls at the moment, the places among the calls in flight, which callers share, and what each of them may take.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::time::Instant;

use super::CallLimits;
use super::methods::Kind;
use super::rate::{Bucket, time_to_fill};
use crate::access::{Access, CallRate, Granted, Identity};
use crate::grpc::audit::Audit;
use crate::ids::CallerId;
use crate::telemetry::CallShed;

/// So many callers are remembered at most for the sake of their rate, who call no more. Who has more names than that gains
/// nothing by coming back under one of them.
const MOST_REMEMBERED: usize = 65_536;

/// By the kind's counter: calls, watchers, and others.
type PerKind<T> = [T; 3];

/// Everybody who calls at the moment. Cheap to clone.
#[derive(Clone)]
pub(super) struct Callers(Arc<Shared>);

struct Shared {
    places: PerKind<usize>,
    places_per_caller: PerKind<usize>,
    rate: Option<CallRate>,
    in_flight: PerKind<AtomicUsize>,
    access: Access,
    audit: Audit,
    known: Mutex<Known>,
}

impl Callers {
    pub(super) fn new(limits: CallLimits, access: Access) -> Self {
        let own = limits.per_caller;
        let bound = |bound: Option<NonZeroU32>| bound.map_or(usize::MAX, |bound| bound.get() as usize);
        Self(Arc::new(Shared {
            places: [limits.in_flight, limits.watchers, usize::MAX],
            places_per_caller: [bound(own.in_flight), bound(own.watchers), usize::MAX],
            rate: own.rate,
            in_flight: Default::default(),
            access,
            audit: Audit::default(),
            known: Mutex::default(),
        }))
    }

    pub(super) fn audit(&self) -> &Audit {
        &self.0.audit
    }

    /// One for all calls and connections of a caller.
    pub(super) fn get(&self, identity: Identity) -> Arc<Caller> {
        let mut known = self.0.known.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = known.callers.entry(identity.id()).or_default();
        slot.caller.upgrade().unwrap_or_else(|| {
            if slot.bucket.is_none() {
                slot.bucket = self.0.rate.map(|rate| Arc::new(Bucket::new(rate)));
            }
            let (granted, in_flight) = (self.0.access.granted(&identity), Default::default());
            let bucket = slot.bucket.clone();
            let caller = Arc::new(Caller { identity, granted, in_flight, bucket, callers: self.clone() });
            slot.caller = Arc::downgrade(&caller);
            caller
        })
    }

    /// How many calls have begun and not ended.
    pub(super) fn in_flight(&self) -> usize {
        self.0.in_flight.iter().map(|kind| kind.load(Ordering::Relaxed)).sum()
    }
}

/// Who calls, and who has called so much that a new name would be a gain.
#[derive(Default)]
struct Known {
    callers: HashMap<CallerId, Slot>,
    swept: Option<Instant>,
}

#[derive(Default)]
struct Slot {
    caller: Weak<Caller>,
    bucket: Option<Arc<Bucket>>,
}

impl Slot {
    fn matters(&self) -> bool {
        self.caller.strong_count() > 0 || self.bucket.as_ref().is_some_and(|bucket| !bucket.is_full())
    }
}

impl Known {
    fn forget(&mut self, caller: CallerId, rate: Option<CallRate>) {
        let Some(slot) = self.callers.get(&caller) else { return };
        // It may have come back meanwhile.
        let is_gone = slot.caller.strong_count() == 0;
        let is_full_up = self.callers.len() > MOST_REMEMBERED;
        if !slot.matters() || (is_gone && is_full_up) {
            self.callers.remove(&caller);
        }
        // By then whoever had gone at the last time has nothing to be remembered for.
        let pause = rate.map(time_to_fill).unwrap_or_default().max(Duration::from_secs(1));
        if rate.is_some() && self.swept.is_none_or(|swept| swept.elapsed() >= pause) {
            self.callers.retain(|_, slot| slot.matters());
            self.swept = Some(Instant::now());
        }
    }
}

/// Who calls, what it may do, and the calls that it has in flight.
pub(in crate::grpc) struct Caller {
    pub(in crate::grpc) identity: Identity,
    pub(in crate::grpc) granted: Granted,
    in_flight: PerKind<AtomicUsize>,
    bucket: Option<Arc<Bucket>>,
    callers: Callers,
}

impl Caller {
    pub(in crate::grpc) fn audit(&self) -> &Audit {
        self.callers.audit()
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        let Shared { known, rate, .. } = &*self.callers.0;
        known.lock().unwrap_or_else(PoisonError::into_inner).forget(self.identity.id(), *rate);
    }
}

/// Why there was no place for a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// As many are in flight as there may be.
    Total,
    /// What is left is not the caller's.
    Share,
    /// It has as many as it may.
    Caller,
    /// It calls too often, and may call again then.
    Rate(Duration),
}

impl Refused {
    /// What the metric calls it.
    pub(super) fn limit(self) -> CallShed {
        match self {
            Self::Total => CallShed::Total,
            Self::Share => CallShed::Share,
            Self::Caller => CallShed::Caller,
            Self::Rate(_) => CallShed::Rate,
        }
    }

    /// How long the caller is to wait, where that is known.
    pub(super) fn wait(self) -> Option<Duration> {
        match self {
            Self::Rate(wait) => Some(wait),
            Self::Total | Self::Share | Self::Caller => None,
        }
    }
}

/// A place among the calls in flight.
pub(super) struct Place {
    kind: Kind,
    caller: Arc<Caller>,
}

impl Place {
    /// A caller may have as many calls in flight as places are left, so that nobody takes them all. What is refused for
    /// want of a place does not count towards the rate.
    pub(super) fn take(kind: Kind, caller: Arc<Caller>) -> Result<Self, Refused> {
        let Callers(shared) = caller.callers.clone();
        let at = kind.index();
        let place = Self { kind, caller };
        let all = shared.in_flight[at].fetch_add(1, Ordering::Relaxed);
        let own = place.caller.in_flight[at].fetch_add(1, Ordering::Relaxed);
        if all >= shared.places[at] {
            Err(Refused::Total)
        } else if all.saturating_add(own) >= shared.places[at] {
            Err(Refused::Share)
        } else if own >= shared.places_per_caller[at] {
            Err(Refused::Caller)
        } else {
            match &place.caller.bucket {
                Some(bucket) if kind.index() != Kind::Other.index() => {
                    bucket.take().map_err(Refused::Rate)?;
                }
                _ => {}
            }
            Ok(place)
        }
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
    use tokio::time::advance;

    use super::*;
    use crate::access::CallerLimits;

    fn callers(places: usize, per_caller: CallerLimits) -> Callers {
        let day = Duration::from_secs(86_400);
        let limits = CallLimits { longest: day, stall: day, in_flight: places, watchers: places, per_caller };
        Callers::new(limits, Access::open())
    }

    fn rated(per_second: u32, burst: u32) -> Callers {
        let [per_second, burst] = [per_second, burst].map(|number| NonZeroU32::new(number).unwrap());
        let rate = Some(CallRate { per_second, burst });
        callers(usize::MAX, CallerLimits { rate, ..Default::default() })
    }

    fn places(callers: &Callers, kind: Kind, last: u8, count: usize) -> Vec<Result<Place, Refused>> {
        let identity = Identity::of_address([127, 0, 0, last].into());
        (0..count).map(|_| Place::take(kind, callers.get(identity.clone()))).collect()
    }

    fn granted(places: &[Result<Place, Refused>]) -> usize {
        places.iter().flatten().count()
    }

    fn last(mut places: Vec<Result<Place, Refused>>) -> Refused {
        places.pop().unwrap().err().unwrap()
    }

    fn remembered(callers: &Callers) -> usize {
        callers.0.known.lock().unwrap().callers.len()
    }

    #[test]
    fn a_callers_connections_share_its_places_and_nobody_is_remembered() {
        for kind in [Kind::Call, Kind::Watcher] {
            let callers = callers(8, CallerLimits::default());
            let own = places(&callers, kind, 1, 5);
            let others = places(&callers, kind, 2, 3);
            assert_eq!((granted(&own), granted(&others)), (4, 2), "{kind:?}");
            assert_eq!(remembered(&callers), 2);
            drop((own, others));
            assert_eq!((callers.in_flight(), remembered(&callers)), (0, 0));
        }
    }

    #[test]
    fn what_is_refused_takes_no_place() {
        let callers = callers(1, CallerLimits::default());
        let first = places(&callers, Kind::Call, 1, 4);
        assert_eq!((granted(&first), callers.in_flight()), (1, 1));
        drop(first);
        assert_eq!(granted(&places(&callers, Kind::Call, 1, 1)), 1);
    }

    #[test]
    fn the_limit_that_refuses_is_told() {
        let three = NonZeroU32::new(3);
        let bounds = CallerLimits { in_flight: three, watchers: three, rate: None };
        for kind in [Kind::Call, Kind::Watcher] {
            let callers = callers(8, bounds);
            let first = places(&callers, kind, 1, 4);
            assert_eq!((granted(&first), first[3].as_ref().err()), (3, Some(&Refused::Caller)));
            let _second = places(&callers, kind, 2, 3);
            assert_eq!(last(places(&callers, kind, 3, 3)), Refused::Share);
            let _rest = [4, 5].map(|last| places(&callers, kind, last, 1));
            assert_eq!(last(places(&callers, kind, 6, 1)), Refused::Total);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_comes_back_finds_its_bucket_as_it_was() {
        let callers = rated(1, 2);
        assert_eq!(granted(&places(&callers, Kind::Call, 1, 5)), 2);
        assert_eq!(remembered(&callers), 1);
        assert_eq!(last(places(&callers, Kind::Call, 1, 1)), Refused::Rate(Duration::from_secs(1)));
        assert_eq!(granted(&places(&callers, Kind::Other, 1, 5)), 5);
        // Watchers take from it, too, and others have one of their own.
        advance(Duration::from_secs(1)).await;
        assert_eq!(granted(&places(&callers, Kind::Watcher, 1, 2)), 1);
        assert_eq!(granted(&places(&callers, Kind::Call, 2, 2)), 2);
        // When theirs are full again, nobody is remembered.
        advance(Duration::from_secs(2)).await;
        drop(places(&callers, Kind::Other, 3, 1));
        assert_eq!(remembered(&callers), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_are_remembered_than_there_may_be() {
        let callers = rated(1, 1);
        for number in 0..u32::try_from(MOST_REMEMBERED).unwrap() + 10 {
            let identity = Identity::of_address(std::net::Ipv4Addr::from(number).into());
            assert!(Place::take(Kind::Call, callers.get(identity)).is_ok());
        }
        assert_eq!(remembered(&callers), MOST_REMEMBERED);
    }
}
