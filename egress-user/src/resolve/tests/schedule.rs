use std::time::Duration;

use tokio::time::Instant;

use crate::resolve::Settings;
use crate::resolve::schedule::{Due, Queue, Schedule};

fn settings() -> Settings {
    Settings { max_in_flight: 2, max_retries_in_flight: 1, per_second: 10, burst: 3, ..Settings::default() }
}

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn fresh(key: u32) -> Option<Due<u32>> {
    Some(Due { key, queue: Queue::Fresh })
}

#[test]
fn earliest_first_and_not_before_its_time() {
    let now = Instant::now();
    let mut schedule = Schedule::new(&settings(), now);
    schedule.at(1, Queue::Fresh, now + millis(700));
    schedule.at(2, Queue::Fresh, now + millis(300));
    assert_eq!(schedule.next(now), None);
    assert_eq!(schedule.wake_at(), Some(now + millis(300)));
    assert_eq!(schedule.next(now + millis(300)), fresh(2));
    assert_eq!(schedule.next(now + millis(300)), None);
    assert_eq!(schedule.wake_at(), Some(now + millis(700)));
    assert_eq!(schedule.next(now + millis(700)), fresh(1));
    assert_eq!(schedule.wake_at(), None, "idle: nothing to wake up for");
}

#[test]
fn the_rate_holds_after_the_burst() {
    let now = Instant::now();
    let mut schedule = Schedule::new(&Settings { max_in_flight: 100, ..settings() }, now);
    for key in 0..5 {
        schedule.at(key, Queue::Fresh, now);
    }
    let at_once = std::iter::from_fn(|| schedule.next(now)).count();
    assert_eq!(at_once, 3);
    assert_eq!(schedule.wake_at(), Some(now + millis(100)));
    assert!(schedule.next(now + millis(100)).is_some());
    assert_eq!(schedule.next(now + millis(100)), None);
}

#[test]
fn what_is_due_soon_starts_along_but_for_retries() {
    let now = Instant::now();
    let mut schedule = Schedule::new(&Settings { per_second: 1000, burst: 100, ..Settings::default() }, now);
    for (key, due) in [(1, 1000), (2, 1100), (3, 1250), (4, 1251)] {
        schedule.at(key, Queue::Fresh, now + millis(due));
    }
    schedule.at(5, Queue::Retry, now + millis(1200));
    assert_eq!(schedule.next(now + millis(999)), None);
    let bunch = now + millis(1000);
    assert_eq!(std::iter::from_fn(|| schedule.next(bunch)).map(|due| due.key).collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!(schedule.wake_at(), Some(now + millis(1200)));
    assert_eq!(schedule.next(now + millis(1100)), None, "an answer in between begins no bunch");
}

#[test]
fn a_rate_that_is_used_up_rests_so_that_several_start_then() {
    let now = Instant::now();
    let mut schedule = Schedule::new(&Settings { per_second: 1000, burst: 64, ..Settings::default() }, now);
    for key in 0..200 {
        schedule.at(key, Queue::Fresh, now);
    }
    assert_eq!(std::iter::from_fn(|| schedule.next(now)).count(), 64);
    assert_eq!(schedule.wake_at(), Some(now + millis(1 + 16)));
    assert_eq!(std::iter::from_fn(|| schedule.next(now + millis(17))).count(), 17);
}

#[test]
fn retries_have_slots_of_their_own() {
    let now = Instant::now();
    let mut schedule = Schedule::new(&Settings { per_second: 1000, burst: 100, ..settings() }, now);
    for key in 0..3 {
        schedule.at(key, Queue::Retry, now);
        schedule.at(10 + key, Queue::Fresh, now);
    }
    let started: Vec<_> = std::iter::from_fn(|| schedule.next(now)).map(|due| due.queue).collect();
    assert_eq!(started, [Queue::Fresh, Queue::Fresh, Queue::Retry]);
    assert_eq!(schedule.wake_at(), None, "all slots taken: the next landing wakes");
    schedule.landed(Queue::Retry);
    assert_eq!(schedule.next(now).map(|due| due.queue), Some(Queue::Retry));
    assert_eq!(schedule.next(now), None);
}

#[test]
fn a_forgotten_or_moved_key_does_not_start_at_its_old_time() {
    let now = Instant::now();
    let mut schedule = Schedule::new(&settings(), now);
    schedule.at(1, Queue::Fresh, now);
    schedule.at(1, Queue::Fresh, now + millis(700));
    schedule.at(2, Queue::Fresh, now);
    schedule.forget(&2);
    assert_eq!(schedule.next(now), None);
    assert_eq!(schedule.next(now + millis(700)), fresh(1));
    assert_eq!(schedule.next(now + millis(700)), None);
}
