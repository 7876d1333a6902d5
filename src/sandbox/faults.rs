//! The faults that are in force, and the requests they hold.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use super::Fault;
use super::call::Call;

const MOST_FAULTS: usize = 1000;

pub(super) struct Faults {
    in_force: Mutex<Vec<Fault>>,
    /// Counted up to let go of all that wait.
    releases: watch::Sender<u64>,
    held: watch::Sender<usize>,
}

impl Faults {
    pub(super) fn new(faults: Vec<Fault>) -> Faults {
        Faults { in_force: Mutex::new(faults), releases: watch::Sender::new(0), held: watch::Sender::new(0) }
    }

    /// False when there are too many already.
    pub(super) fn add(&self, fault: Fault) -> bool {
        let mut in_force = self.in_force();
        let room = in_force.len() < MOST_FAULTS;
        if room {
            in_force.push(fault);
        }
        room
    }

    /// Those with times left, which is what their `times` says.
    pub(super) fn list(&self) -> Vec<Fault> {
        self.in_force().clone()
    }

    /// Puts these in place of all others, and lets go of what is held.
    pub(super) fn replace(&self, faults: Vec<Fault>) {
        *self.in_force() = faults;
        self.release();
    }

    /// The first that strikes this call, which uses it up by one time.
    pub(super) fn strike(&self, call: &Call) -> Option<Fault> {
        let mut in_force = self.in_force();
        let index = in_force.iter().position(|fault| matches(fault, call))?;
        let fault = in_force[index].clone();
        match &mut in_force[index].times {
            Some(1) => {
                in_force.remove(index);
            }
            Some(times) => *times -= 1,
            None => {}
        }
        Some(fault)
    }

    /// As long as the fault says.
    pub(super) async fn wait(&self, fault: &Fault) {
        if fault.latency_ms > 0 {
            tokio::time::sleep(Duration::from_millis(fault.latency_ms)).await;
        }
        if fault.hold {
            // Subscribed before it counts as held: who sees it held and releases, releases it.
            let mut releases = self.releases.subscribe();
            let _held = Held::enter(&self.held);
            // Fails only without a sender, and that one lives in self.
            let _ = releases.changed().await;
        }
    }

    /// Lets go of all that wait; says how many those were.
    pub(super) fn release(&self) -> usize {
        let held = *self.held.borrow();
        self.releases.send_modify(|releases| *releases += 1);
        held
    }

    /// How many requests are held, once they are at least so many.
    pub(super) async fn held(&self, at_least: usize) -> usize {
        let mut held = self.held.subscribe();
        // As above, this cannot fail.
        held.wait_for(|held| *held >= at_least).await.map_or(0, |held| *held)
    }

    fn in_force(&self) -> MutexGuard<'_, Vec<Fault>> {
        self.in_force.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn matches(fault: &Fault, call: &Call) -> bool {
    let wanted = &fault.matches;
    wanted.api.is_none_or(|api| call.route.api == Some(api))
        && wanted.method.as_ref().is_none_or(|method| call.method.as_str().eq_ignore_ascii_case(method))
        && wanted.path_contains.as_ref().is_none_or(|part| call.path.contains(part))
        && wanted.account.as_ref().is_none_or(|account| call.account.as_ref() == Some(account))
        && wanted.concurrent_above.is_none_or(|most| call.concurrent > most)
}

/// Counts a request as held for as long as it is there: also when its client hangs up first.
struct Held<'a>(&'a watch::Sender<usize>);

impl<'a> Held<'a> {
    fn enter(held: &'a watch::Sender<usize>) -> Held<'a> {
        held.send_modify(|held| *held += 1);
        Held(held)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|held| *held -= 1);
    }
}
