//! The state of a circuit: pure, on a clock and with random numbers that are handed in.

use std::time::Duration;

use tokio::time::Instant;

use crate::telemetry::CircuitState;

/// Failures that are further apart belong to no one outage: a quiet process does not add up those of a night.
const MEMORY: Duration = Duration::from_secs(30);
const FIRST_PAUSE: Duration = Duration::from_millis(250);

/// When a circuit opens, and how soon it is tried again.
#[derive(Clone, Copy, Debug)]
pub struct BreakerSettings {
    /// So many failures in a row open it; 0: none do.
    pub failures: u32,
    /// Between two probes there is no longer pause.
    pub max_pause: Duration,
}

/// What a request tells of whether Twilio works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It works.
    Good,
    /// It answers, before it does anything: whether it works is told only by that it does so again.
    Refused,
    /// It does not.
    Bad,
    /// Nothing.
    Silent,
}

/// The right to send one request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ticket {
    epoch: u64,
}

/// Opens after a run of failures, and then lets a probe through after each pause until one succeeds. A run, and no share of
/// failures over some seconds: it finds a dead upstream after as many requests at any rate, and where half of the requests
/// succeed, refusing them all would be the greater harm.
#[derive(Debug)]
pub(super) struct Circuit {
    settings: BreakerSettings,
    state: State,
    /// Counts openings and closings. A request that began before the last one tells of a time that is over.
    epoch: u64,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Closed {
        run: u32,
        last_failure: Option<Instant>,
    },
    Open {
        /// Set when a probe begins, not when it ends: one that hangs must keep no other waiting, or Twilio could be well for
        /// long before that shows.
        next_probe: Instant,
        probes: u32,
        under_way: u32,
    },
}

impl Circuit {
    pub(super) fn new(settings: BreakerSettings) -> Self {
        Self { settings, state: State::Closed { run: 0, last_failure: None }, epoch: 0 }
    }

    pub(super) fn phase(&self) -> CircuitState {
        match self.state {
            State::Closed { .. } => CircuitState::Closed,
            State::Open { under_way: 0, .. } => CircuitState::Open,
            State::Open { .. } => CircuitState::HalfOpen,
        }
    }

    /// Whether a request that is sent now could be; else how long until the next probe.
    pub(super) fn check(&self, now: Instant) -> Result<(), Duration> {
        match self.state {
            State::Open { next_probe, .. } if now < next_probe => Err(next_probe - now),
            State::Open { .. } | State::Closed { .. } => Ok(()),
        }
    }

    /// Called just before a request is sent. `random` is from 0 to 1.
    pub(super) fn enter(&mut self, now: Instant, random: f64) -> Result<Ticket, Duration> {
        self.check(now)?;
        if let State::Open { next_probe, probes, under_way } = &mut self.state {
            *probes = probes.saturating_add(1);
            *under_way += 1;
            *next_probe = now + pause(self.settings.max_pause, *probes, random);
        }
        Ok(Ticket { epoch: self.epoch })
    }

    /// Called before a request queues: the right to be a probe, where only those are sent; `None` where all are.
    pub(super) fn probe(&mut self, now: Instant, random: f64) -> Result<Option<Ticket>, Duration> {
        if self.phase() == CircuitState::Closed { Ok(None) } else { self.enter(now, random).map(Some) }
    }

    /// Called once for each ticket.
    pub(super) fn leave(&mut self, ticket: Ticket, outcome: Outcome, now: Instant, random: f64) {
        if ticket.epoch != self.epoch {
            return;
        }
        match (&mut self.state, outcome) {
            (State::Closed { run, .. }, Outcome::Good) => *run = 0,
            (State::Closed { .. }, Outcome::Silent | Outcome::Refused) => {}
            (State::Closed { .. }, Outcome::Bad) => self.failed(now, random),
            (State::Open { .. }, Outcome::Good | Outcome::Refused) => {
                self.turn(State::Closed { run: 0, last_failure: None });
            }
            (State::Open { under_way, .. }, Outcome::Bad) => *under_way -= 1,
            (State::Open { under_way, next_probe, .. }, Outcome::Silent) => {
                *under_way -= 1;
                // It was none, so the next one comes sooner; not at once, for those who come may all be as impatient.
                *next_probe = now + next_probe.saturating_duration_since(now) / 2;
            }
        }
    }

    fn failed(&mut self, now: Instant, random: f64) {
        let State::Closed { run, last_failure } = &mut self.state else {
            return;
        };
        let is_recent = last_failure.is_some_and(|last| now.saturating_duration_since(last) <= MEMORY);
        *run = if is_recent { run.saturating_add(1) } else { 1 };
        *last_failure = Some(now);
        if self.settings.failures > 0 && *run >= self.settings.failures {
            let next_probe = now + pause(self.settings.max_pause, 0, random);
            self.turn(State::Open { next_probe, probes: 0, under_way: 0 });
        }
    }

    fn turn(&mut self, state: State) {
        self.state = state;
        self.epoch += 1;
    }
}

/// Before the next probe when there were so many. Half of it at least, so that probes stay few; the rest is chance, so that
/// replicas do not probe together.
fn pause(longest: Duration, probes: u32, random: f64) -> Duration {
    let whole = FIRST_PAUSE.saturating_mul(2_u32.saturating_pow(probes)).min(longest);
    whole.mul_f64(0.5 + random / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTINGS: BreakerSettings = BreakerSettings { failures: 3, max_pause: Duration::from_secs(2) };

    /// A circuit and the time at it, which only the test moves; the jitter is none.
    struct Bench {
        circuit: Circuit,
        now: Instant,
    }

    impl Bench {
        fn new(settings: BreakerSettings) -> Self {
            Self { circuit: Circuit::new(settings), now: Instant::now() }
        }

        fn open() -> Self {
            let mut bench = Self::new(SETTINGS);
            bench.send_all(&[Outcome::Bad; 3]);
            assert_eq!(bench.circuit.phase(), CircuitState::Open);
            bench
        }

        fn enter(&mut self) -> Result<Ticket, Duration> {
            self.circuit.enter(self.now, 1.0)
        }

        fn leave(&mut self, ticket: Ticket, outcome: Outcome) {
            self.circuit.leave(ticket, outcome, self.now, 1.0);
        }

        fn send_all(&mut self, outcomes: &[Outcome]) {
            for outcome in outcomes {
                let ticket = self.enter().unwrap();
                self.leave(ticket, *outcome);
            }
        }

        /// Waits as long as it is told, and sends a probe.
        fn probe(&mut self) -> (Duration, Ticket) {
            let wait = self.enter().unwrap_err();
            self.now += wait;
            (wait, self.enter().unwrap())
        }
    }

    #[test]
    fn a_run_of_failures_opens_it_and_an_answer_ends_the_run() {
        let mut bench = Bench::new(SETTINGS);
        let (good, bad, silent) = (Outcome::Good, Outcome::Bad, Outcome::Silent);
        bench.send_all(&[bad, bad, good, bad, bad, good, bad, silent, bad, silent]);
        assert_eq!(bench.circuit.phase(), CircuitState::Closed);
        bench.send_all(&[bad]);
        assert_eq!(bench.circuit.phase(), CircuitState::Open);
        assert!(bench.enter().is_err());
    }

    #[test]
    fn failures_far_apart_are_no_run() {
        let mut bench = Bench::new(SETTINGS);
        for _ in 0..10 {
            bench.send_all(&[Outcome::Bad; 2]);
            bench.now += MEMORY + Duration::from_millis(1);
        }
        assert_eq!(bench.circuit.phase(), CircuitState::Closed);
    }

    #[test]
    fn it_can_be_turned_off() {
        let mut bench = Bench::new(BreakerSettings { failures: 0, ..SETTINGS });
        bench.send_all(&[Outcome::Bad; 1000]);
        assert_eq!(bench.circuit.phase(), CircuitState::Closed);
    }

    #[test]
    fn probes_come_after_pauses_that_grow_to_a_bound() {
        let mut bench = Bench::open();
        let mut pauses = Vec::new();
        for _ in 0..40 {
            let (wait, ticket) = bench.probe();
            assert_eq!(bench.circuit.phase(), CircuitState::HalfOpen);
            bench.leave(ticket, Outcome::Bad);
            assert_eq!(bench.circuit.phase(), CircuitState::Open);
            pauses.push(wait.as_millis());
        }
        assert_eq!(pauses[..5], [250, 500, 1000, 2000, 2000]);
        assert_eq!(pauses[39], 2000);
    }

    #[test]
    fn one_success_closes_it_and_the_next_outage_begins_anew() {
        let mut bench = Bench::open();
        let (_, ticket) = bench.probe();
        bench.leave(ticket, Outcome::Good);
        assert_eq!(bench.circuit.phase(), CircuitState::Closed);
        bench.send_all(&[Outcome::Bad; 3]);
        assert_eq!(bench.probe().0, FIRST_PAUSE);
    }

    #[test]
    fn a_probe_that_hangs_keeps_no_other_waiting() {
        let mut bench = Bench::open();
        let hanging = bench.probe().1;
        // It is held back for a pause, and not for as long as the first one takes.
        let (wait, answered) = bench.probe();
        assert_eq!(wait, FIRST_PAUSE * 2);
        bench.leave(answered, Outcome::Good);
        // What the first one tells now is of a time that is over.
        bench.leave(hanging, Outcome::Bad);
        bench.send_all(&[Outcome::Bad; 2]);
        assert_eq!(bench.circuit.phase(), CircuitState::Closed);
    }

    #[test]
    fn after_a_probe_that_tells_nothing_half_of_the_pause_is_left() {
        let mut bench = Bench::open();
        let ticket = bench.probe().1;
        bench.leave(ticket, Outcome::Silent);
        assert_eq!(bench.probe().0, FIRST_PAUSE);
    }

    #[test]
    fn a_refusal_closes_it_and_ends_no_run() {
        let mut bench = Bench::new(SETTINGS);
        bench.send_all(&[Outcome::Bad, Outcome::Bad, Outcome::Refused, Outcome::Bad]);
        assert_eq!(bench.circuit.phase(), CircuitState::Open);
        let (_, ticket) = bench.probe();
        bench.leave(ticket, Outcome::Refused);
        assert_eq!(bench.circuit.phase(), CircuitState::Closed);
    }

    #[test]
    fn what_began_before_it_opened_neither_closes_it_nor_fails_after_it_closed() {
        let mut bench = Bench::new(SETTINGS);
        let early: Vec<_> = (0..20).map(|_| bench.enter().unwrap()).collect();
        bench.send_all(&[Outcome::Bad; 3]);
        bench.leave(early[0], Outcome::Good);
        assert_eq!(bench.circuit.phase(), CircuitState::Open);
        let (_, ticket) = bench.probe();
        bench.leave(ticket, Outcome::Good);
        for ticket in &early[1..] {
            bench.leave(*ticket, Outcome::Bad);
        }
        assert_eq!(bench.circuit.phase(), CircuitState::Closed);
    }

    #[test]
    fn a_check_takes_no_probe() {
        let mut bench = Bench::open();
        let wait = bench.circuit.check(bench.now).unwrap_err();
        bench.now += wait;
        for _ in 0..3 {
            bench.circuit.check(bench.now).unwrap();
        }
        bench.enter().unwrap();
        assert!(bench.circuit.check(bench.now).is_err());
    }

    #[test]
    fn a_pause_is_half_chance() {
        let second = Duration::from_secs(1);
        assert_eq!(pause(second, 30, 0.0), second / 2);
        assert_eq!(pause(second, 30, 1.0), second);
    }
}
