//! When which query (name and family) is sent: deadlines in two heaps, in-flight limits and a rate. Pure: the time
//! comes in.
//!
//! Queries start in bunches, which share what it takes to wake up, and much of what follows.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::hash::Hash;
use std::time::Duration;

use tokio::time::Instant;

use super::settings::Settings;

/// What is due so soon after another query starts with it. It only starts early: nothing waits for a bunch.
const TOGETHER: Duration = Duration::from_millis(250);

/// Queries that failed last time stand in a queue of their own, with in-flight slots of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Queue {
    Fresh,
    Retry,
}

/// One query may start.
#[derive(Debug, PartialEq, Eq)]
pub struct Due<K> {
    pub key: K,
    pub queue: Queue,
}

#[derive(Debug)]
pub struct Schedule<K> {
    fresh: Lane<K>,
    retry: Lane<K>,
    /// The generic cell rate algorithm's theoretical arrival time (ITU-T I.371): one addition per start, no timer.
    arrival: Instant,
    interval: Duration,
    burst: Duration,
    /// How long the rate, once used up, is left alone, so that several can start then.
    rest: Duration,
    /// The end of the bunch that was begun last.
    bunch_until: Instant,
}

#[derive(Debug)]
struct Lane<K> {
    heap: BinaryHeap<Reverse<(Instant, K)>>,
    /// The deadline that counts; heap entries that say otherwise are old.
    due: HashMap<K, Instant>,
    in_flight: usize,
    limit: usize,
}

impl<K: Ord + Hash + Clone> Schedule<K> {
    pub fn new(settings: &Settings, now: Instant) -> Self {
        let mut schedule = Self {
            fresh: Lane::default(),
            retry: Lane::default(),
            arrival: now,
            interval: Duration::ZERO,
            burst: Duration::ZERO,
            rest: Duration::ZERO,
            bunch_until: now,
        };
        schedule.configure(settings);
        schedule
    }

    pub fn configure(&mut self, settings: &Settings) {
        self.fresh.limit = settings.max_in_flight.max(1);
        self.retry.limit = settings.max_retries_in_flight.max(1);
        self.interval = Duration::from_secs(1) / settings.per_second.max(1);
        self.burst = self.interval * settings.burst.saturating_sub(1);
        self.rest = self.interval * (settings.burst / 4);
    }

    /// Sets the next time of a query, in place of what was set.
    pub fn at(&mut self, key: K, queue: Queue, due: Instant) {
        self.forget(&key);
        self.lane(queue).push(key, due);
    }

    pub fn forget(&mut self, key: &K) {
        self.fresh.due.remove(key);
        self.retry.due.remove(key);
    }

    pub fn due(&self, key: &K) -> Option<Instant> {
        self.fresh.due.get(key).or_else(|| self.retry.due.get(key)).copied()
    }

    /// Makes all retries due now (the resolvers have changed).
    pub fn hurry_retries(&mut self, now: Instant) {
        for key in self.retry.due.keys().cloned().collect::<Vec<_>>() {
            self.retry.push(key, now);
        }
    }

    /// Makes a query due now, if it waits among those that did not fail.
    pub fn hurry(&mut self, key: &K, now: Instant) {
        if self.fresh.due.get(key).is_some_and(|due| *due > now) {
            self.fresh.push(key.clone(), now);
        }
    }

    /// Takes the next query that may start now; it is in flight until [`Self::landed`].
    pub fn next(&mut self, now: Instant) -> Option<Due<K>> {
        if self.earliest_start() > now {
            return None;
        }
        if self.first().is_some_and(|due| due <= now) {
            self.bunch_until = now + TOGETHER;
        }
        // A backoff is kept to: who fails is not to be asked sooner.
        let (key, queue) = [(Queue::Fresh, self.bunch_until.max(now)), (Queue::Retry, now)]
            .into_iter()
            .find_map(|(queue, until)| self.lane(queue).pop_due(until).map(|key| (key, queue)))?;
        self.arrival = self.arrival.max(now) + self.interval;
        Some(Due { key, queue })
    }

    pub fn landed(&mut self, queue: Queue) {
        self.lane(queue).in_flight -= 1;
    }

    /// When [`Self::next`] has something again, if nothing lands or is set before; `None` is never.
    pub fn wake_at(&mut self) -> Option<Instant> {
        let due = self.first()?;
        let start = self.earliest_start();
        Some(if due < start { start + self.rest } else { due })
    }

    /// When the first query is due that has a slot.
    fn first(&mut self) -> Option<Instant> {
        [self.fresh.first(), self.retry.first()].into_iter().flatten().min()
    }

    /// When the first query is due, whether it can start then or not.
    pub fn first_due(&mut self) -> Option<Instant> {
        [self.fresh.earliest(), self.retry.earliest()].into_iter().flatten().min()
    }

    /// The queries whose time has come and that could not start: their slots are taken, or the rate is.
    pub fn overdue(&self, now: Instant) -> Vec<K> {
        let lanes = [&self.fresh, &self.retry].into_iter();
        lanes.flat_map(|lane| &lane.due).filter(|(_, due)| **due <= now).map(|(key, _)| key.clone()).collect()
    }

    fn earliest_start(&self) -> Instant {
        self.arrival.checked_sub(self.burst).unwrap_or(self.arrival)
    }

    fn lane(&mut self, queue: Queue) -> &mut Lane<K> {
        match queue {
            Queue::Fresh => &mut self.fresh,
            Queue::Retry => &mut self.retry,
        }
    }
}

impl<K: Ord> Default for Lane<K> {
    fn default() -> Self {
        Self { heap: BinaryHeap::new(), due: HashMap::new(), in_flight: 0, limit: 1 }
    }
}

impl<K: Ord + Hash + Clone> Lane<K> {
    fn push(&mut self, key: K, due: Instant) {
        // Old entries go when their time comes; a set that changes all the time must not pile them up till then.
        if self.heap.len() > 64 + 4 * self.due.len() {
            self.heap = self.due.iter().map(|(key, due)| Reverse((*due, key.clone()))).collect();
        }
        self.due.insert(key.clone(), due);
        self.heap.push(Reverse((due, key)));
    }

    /// The first deadline, if there is a free slot for it.
    fn first(&mut self) -> Option<Instant> {
        if self.in_flight >= self.limit { None } else { self.earliest() }
    }

    fn earliest(&mut self) -> Option<Instant> {
        while let Some(Reverse((due, key))) = self.heap.peek() {
            if self.due.get(key) == Some(due) {
                return Some(*due);
            }
            self.heap.pop();
        }
        None
    }

    fn pop_due(&mut self, now: Instant) -> Option<K> {
        if self.first()? > now {
            return None;
        }
        let Reverse((_, key)) = self.heap.pop()?;
        self.due.remove(&key);
        self.in_flight += 1;
        Some(key)
    }
}
