//! Who is next: writes before reads, callers in turn, and of one caller who came first.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;

/// After so many writes in a row a read has its turn.
const WRITES_IN_A_ROW: u32 = 8;

/// Whether a request changes something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in crate::twilio) enum Kind {
    /// It does not, and waits for those that do.
    Read,
    /// It does.
    Write,
}

/// Those who wait, of callers `C`. Each step takes time that grows with the logarithm of how many they are.
pub(super) struct Queue<C, W> {
    reads: Lane<C, W>,
    writes: Lane<C, W>,
    max: usize,
    writes_in_a_row: u32,
    arrivals: u64,
}

/// Where somebody stands.
#[derive(Clone, Copy, Debug)]
pub(super) struct Spot<C> {
    kind: Kind,
    caller: C,
    arrival: u64,
}

/// Those of one kind.
struct Lane<C, W> {
    callers: HashMap<C, Waiting<W>>,
    /// Which caller has the next turn; one that had it goes to the end.
    turns: BTreeMap<u64, C>,
    last_turn: u64,
    len: usize,
}

/// Those of one caller, by arrival. There is no caller without any.
struct Waiting<W> {
    turn: u64,
    arrived: BTreeMap<u64, W>,
}

impl<C: Copy + Eq + Hash, W> Queue<C, W> {
    pub(super) fn new(max: usize) -> Self {
        Self { reads: Lane::new(), writes: Lane::new(), max, writes_in_a_row: 0, arrivals: 0 }
    }

    pub(super) fn len(&self, kind: Kind) -> usize {
        self.lane(kind).len
    }

    /// Whether the caller may wait, too. It may have as many there as there are places left: so one has half of them at most,
    /// two have a third each, and there is room for another caller.
    pub(super) fn has_room(&self, caller: C) -> bool {
        let left = self.max.saturating_sub(self.reads.len + self.writes.len);
        self.reads.of(caller) + self.writes.of(caller) < left
    }

    /// How many have their turn before the caller's next one, at most.
    pub(super) fn ahead(&self, kind: Kind, caller: C) -> usize {
        let (in_lane, row) = (self.lane(kind).ahead(caller), WRITES_IN_A_ROW as usize);
        match kind {
            Kind::Write => in_lane + self.reads.len.min(in_lane / row + 1),
            Kind::Read => in_lane + self.writes.len.min((in_lane + 1) * row),
        }
    }

    pub(super) fn push(&mut self, kind: Kind, caller: C, waiter: W) -> Spot<C> {
        self.arrivals += 1;
        let arrival = self.arrivals;
        self.lane_mut(kind).push(caller, arrival, waiter);
        Spot { kind, caller, arrival }
    }

    /// False for somebody who had a turn, or left.
    pub(super) fn remove(&mut self, spot: Spot<C>) -> bool {
        self.lane_mut(spot.kind).remove(spot.caller, spot.arrival)
    }

    pub(super) fn pop(&mut self) -> Option<W> {
        let is_reads_turn = self.writes_in_a_row >= WRITES_IN_A_ROW && self.reads.len > 0;
        if !is_reads_turn && let Some(write) = self.writes.pop() {
            self.writes_in_a_row = if self.reads.len > 0 { self.writes_in_a_row + 1 } else { 0 };
            return Some(write);
        }
        self.writes_in_a_row = 0;
        self.reads.pop()
    }

    fn lane(&self, kind: Kind) -> &Lane<C, W> {
        match kind {
            Kind::Read => &self.reads,
            Kind::Write => &self.writes,
        }
    }

    fn lane_mut(&mut self, kind: Kind) -> &mut Lane<C, W> {
        match kind {
            Kind::Read => &mut self.reads,
            Kind::Write => &mut self.writes,
        }
    }
}

impl<C: Copy + Eq + Hash, W> Lane<C, W> {
    fn new() -> Self {
        Self { callers: HashMap::new(), turns: BTreeMap::new(), last_turn: 0, len: 0 }
    }

    fn of(&self, caller: C) -> usize {
        self.callers.get(&caller).map_or(0, |waiting| waiting.arrived.len())
    }

    /// In each round every caller has one turn.
    fn ahead(&self, caller: C) -> usize {
        self.len.min((self.of(caller) + 1) * self.callers.len())
    }

    fn push(&mut self, caller: C, arrival: u64, waiter: W) {
        let turn = self.last_turn + 1;
        let waiting = self.callers.entry(caller).or_insert_with(|| {
            self.last_turn = turn;
            self.turns.insert(turn, caller);
            Waiting { turn, arrived: BTreeMap::new() }
        });
        waiting.arrived.insert(arrival, waiter);
        self.len += 1;
    }

    fn remove(&mut self, caller: C, arrival: u64) -> bool {
        let Some(waiting) = self.callers.get_mut(&caller) else {
            return false;
        };
        let was_there = waiting.arrived.remove(&arrival).is_some();
        self.len -= usize::from(was_there);
        if waiting.arrived.is_empty() {
            self.turns.remove(&waiting.turn);
            self.callers.remove(&caller);
        }
        was_there
    }

    fn pop(&mut self) -> Option<W> {
        let (_, caller) = self.turns.pop_first()?;
        let waiting = self.callers.get_mut(&caller)?;
        let (_, waiter) = waiting.arrived.pop_first()?;
        self.len -= 1;
        if waiting.arrived.is_empty() {
            self.callers.remove(&caller);
        } else {
            self.last_turn += 1;
            waiting.turn = self.last_turn;
            self.turns.insert(self.last_turn, caller);
        }
        Some(waiter)
    }
}

#[cfg(test)]
mod tests {
    use std::iter::from_fn;

    use proptest::collection::vec;
    use proptest::prelude::*;
    use proptest::sample::select;

    use super::Kind::{Read, Write};
    use super::*;

    #[test]
    fn callers_have_their_turns_one_after_the_other() {
        let mut queue = Queue::new(100);
        for number in 0..5 {
            queue.push(Read, 'a', ('a', number));
        }
        for number in 0..2 {
            queue.push(Read, 'b', ('b', number));
        }
        let order: Vec<_> = from_fn(|| queue.pop()).collect();
        assert_eq!(order, [('a', 0), ('b', 0), ('a', 1), ('b', 1), ('a', 2), ('a', 3), ('a', 4)]);
    }

    #[test]
    fn a_write_goes_first_and_a_read_after_eight_of_them() {
        let mut queue = Queue::new(100);
        queue.push(Read, 'a', Read);
        queue.push(Read, 'a', Read);
        for _ in 0..17 {
            queue.push(Write, 'a', Write);
        }
        let order: Vec<_> = from_fn(|| queue.pop()).collect();
        let expected = [&[Write; 8][..], &[Read], &[Write; 8], &[Read], &[Write]].concat();
        assert_eq!(order, expected);
    }

    #[test]
    fn one_caller_fills_half_of_it_and_another_finds_room() {
        let mut queue = Queue::new(10);
        let fill = |queue: &mut Queue<char, ()>, caller| {
            while queue.has_room(caller) {
                let kind = if queue.arrivals.is_multiple_of(2) { Read } else { Write };
                queue.push(kind, caller, ());
            }
            queue.reads.of(caller) + queue.writes.of(caller)
        };
        assert_eq!([fill(&mut queue, 'a'), fill(&mut queue, 'b'), fill(&mut queue, 'c')], [5, 3, 1]);
        assert!(!Queue::<_, ()>::new(0).has_room('a'));
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Push(Kind, u8),
        Leave(usize),
        Pop,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => (select(vec![Read, Write]), 0..4_u8).prop_map(|(kind, caller)| Step::Push(kind, caller)),
            1 => any::<usize>().prop_map(Step::Leave),
            2 => Just(Step::Pop),
        ]
    }

    /// The same by going through a list.
    #[derive(Default)]
    struct Model {
        waiting: Vec<Spot<u8>>,
        /// By kind and caller, when it last had a turn, or came first.
        turns: HashMap<(Kind, u8), usize>,
        clock: usize,
        writes_in_a_row: u32,
    }

    impl Model {
        fn push(&mut self, spot: Spot<u8>) {
            self.clock += 1;
            if !self.waiting.iter().any(|other| (other.kind, other.caller) == (spot.kind, spot.caller)) {
                self.turns.insert((spot.kind, spot.caller), self.clock);
            }
            self.waiting.push(spot);
        }

        fn pop(&mut self) -> Option<u64> {
            let [has_reads, has_writes] =
                [Read, Write].map(|kind| self.waiting.iter().any(|spot| spot.kind == kind));
            let kind = if has_writes && (!has_reads || self.writes_in_a_row < WRITES_IN_A_ROW) {
                Write
            } else {
                Read
            };
            self.writes_in_a_row = if kind == Write && has_reads { self.writes_in_a_row + 1 } else { 0 };
            let of_kind = (0..self.waiting.len()).filter(|at| self.waiting[*at].kind == kind);
            let next = of_kind.min_by_key(|at| {
                let spot = self.waiting[*at];
                (self.turns[&(kind, spot.caller)], spot.arrival)
            });
            let spot = self.waiting.remove(next?);
            self.clock += 1;
            self.turns.insert((kind, spot.caller), self.clock);
            Some(spot.arrival)
        }
    }

    proptest! {
        #[test]
        fn nobody_is_lost_and_everybody_has_their_turn(steps in vec(step(), 0..200)) {
            let (mut queue, mut model, mut gone) = (Queue::new(1000), Model::default(), Vec::new());
            for step in steps {
                match step {
                    Step::Push(kind, caller) => {
                        let number = queue.arrivals + 1;
                        model.push(queue.push(kind, caller, number));
                    }
                    Step::Leave(at) if !model.waiting.is_empty() => {
                        let spot = model.waiting.remove(at % model.waiting.len());
                        prop_assert!(queue.remove(spot));
                        gone.push(spot);
                    }
                    Step::Leave(_) => {}
                    Step::Pop => prop_assert_eq!(queue.pop(), model.pop()),
                }
                for kind in [Read, Write] {
                    prop_assert_eq!(queue.len(kind), model.waiting.iter().filter(|spot| spot.kind == kind).count());
                }
            }
            for spot in gone {
                prop_assert!(!queue.remove(spot));
            }
            while let Some(next) = model.pop() {
                prop_assert_eq!(queue.pop(), Some(next));
            }
            prop_assert_eq!(queue.pop(), None);
            prop_assert!(queue.reads.callers.is_empty() && queue.writes.turns.is_empty());
        }

        #[test]
        fn nobody_waits_for_more_turns_than_foretold(
            waiting in vec((select(vec![Read, Write]), 0..5_u8), 0..100),
            kind in select(vec![Read, Write]),
            caller in 0..5_u8,
        ) {
            let mut queue = Queue::new(1000);
            for (kind, caller) in waiting {
                queue.push(kind, caller, false);
            }
            let ahead = queue.ahead(kind, caller);
            queue.push(kind, caller, true);
            let turns = from_fn(|| queue.pop()).position(|is_it| is_it);
            prop_assert!(turns.is_some_and(|turns| turns <= ahead), "{turns:?} > {ahead}");
        }
    }
}
