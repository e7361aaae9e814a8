//! Keeps a set of exact names fresh: one task, woken by deadlines, answers and changes of the set, and by nothing else.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio::task::{AbortHandle, Id, JoinError, JoinSet};
use tokio::time::{Instant, sleep_until};

use super::answer::{AnswerSink, Family, NameStatus, Reason};
use super::resolver::{Ask, Miss, Outcome};
use super::schedule::{Due, Queue, Schedule};
use super::settings::Settings;

mod name;
use name::{Event, Name};

/// Whether a name may have private addresses (`dns.allowPrivate`).
pub type AllowPrivate = Arc<dyn Fn(&str) -> bool + Send + Sync>;

/// A handle on the task; dropping it ends the task and every lookup.
pub struct Refresher {
    shared: Arc<Shared>,
    task: AbortHandle,
}

struct Shared {
    state: Mutex<State>,
    changed: Notify,
}

struct State {
    names: HashMap<Arc<str>, Name>,
    schedule: Schedule<Query>,
    settings: Settings,
    allow_private: AllowPrivate,
    /// Tells a name that was taken out and put in again from its predecessor.
    next_id: u64,
}

type Query = (Arc<str>, Family);

/// A query under way.
struct Flight {
    query: Query,
    queue: Queue,
    id: u64,
}

impl Refresher {
    /// Starts with no names. Must be called within a Tokio runtime.
    pub fn start(
        ask: Arc<dyn Ask>,
        settings: Settings,
        allow_private: AllowPrivate,
        sink: Arc<dyn AnswerSink>,
    ) -> Self {
        let schedule = Schedule::new(&settings, Instant::now());
        let state = State { names: HashMap::new(), schedule, settings, allow_private, next_id: 0 };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Notify::new() });
        let task = tokio::spawn(run(shared.clone(), ask, sink)).abort_handle();
        Self { shared, task }
    }

    /// Makes `names` (lower case, A-labels, no trailing dot) the set. Names in both sets keep their answers and their
    /// next refresh; new ones are asked for at once, as far as the limits let them; the others are forgotten.
    pub fn set_names(&self, names: impl IntoIterator<Item = impl AsRef<str>>) {
        let wanted: HashSet<Arc<str>> = names.into_iter().map(|name| name.as_ref().into()).collect();
        self.change(|state| {
            let gone: Vec<_> = state.names.keys().filter(|name| !wanted.contains(*name)).cloned().collect();
            for name in gone {
                state.names.remove(&name);
                for family in Family::BOTH {
                    state.schedule.forget(&(name.clone(), family));
                }
            }
            let now = Instant::now();
            for name in wanted {
                if !state.names.contains_key(&name) {
                    state.names.insert(name.clone(), Name::new(state.next_id));
                    state.next_id += 1;
                    for family in Family::BOTH {
                        state.schedule.at((name.clone(), family), Queue::Fresh, now);
                    }
                }
            }
        });
    }

    /// Takes other settings for the answers to come; those taken keep their life. Names that failed are asked for
    /// again, since `allow_private` may let through now what was refused.
    pub fn reconfigure(&self, settings: Settings, allow_private: AllowPrivate) {
        self.change(|state| {
            state.schedule.configure(&settings);
            state.settings = settings;
            state.allow_private = allow_private;
            state.schedule.hurry_retries(Instant::now());
        });
    }

    /// Asks at once for all names whose last lookup failed; to be called when the resolvers have changed.
    pub fn retry_now(&self) {
        self.change(|state| state.schedule.hurry_retries(Instant::now()));
    }

    /// The names as they stand, ordered by name.
    pub fn names(&self) -> Vec<NameStatus> {
        let state = self.shared.lock();
        let now = Instant::now();
        let mut names: Vec<_> = state
            .names
            .iter()
            .map(|(name, entry)| {
                let due = Family::BOTH.iter().filter_map(|family| state.schedule.due(&(name.clone(), *family))).min();
                entry.status(name, due, now)
            })
            .collect();
        names.sort_by(|a, b| a.name.cmp(&b.name));
        names
    }

    /// The living addresses of one name; empty when it is not in the set.
    pub fn addresses(&self, name: &str) -> Vec<IpAddr> {
        let state = self.shared.lock();
        state.names.get(name).map(|entry| entry.addresses(Instant::now())).unwrap_or_default()
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.shared.lock());
        self.shared.changed.notify_one();
    }
}

impl Drop for Refresher {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // No invariant spans a call into foreign code under this lock but `allow_private`'s, which changes nothing.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn run(shared: Arc<Shared>, ask: Arc<dyn Ask>, sink: Arc<dyn AnswerSink>) {
    let mut lookups = JoinSet::new();
    let mut flights: HashMap<Id, Flight> = HashMap::new();
    loop {
        let (starts, wake) = shared.lock().due(Instant::now());
        for flight in starts {
            let (name, family) = flight.query.clone();
            flights.insert(lookups.spawn(ask.ask(name, family)).id(), flight);
        }
        tokio::select! {
            () = shared.changed.notified() => {}
            () = sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => {}
            Some(ended) = lookups.join_next_with_id() => {
                let (id, outcome) = ended.unwrap_or_else(|error| (error.id(), Err(crashed(&error))));
                let flight = flights.remove(&id).expect("every lookup is entered when it is spawned");
                let events = shared.lock().landed(&flight, outcome, Instant::now());
                for event in events {
                    match event {
                        Event::Learned(answer) => sink.learned(&answer),
                        Event::Failed(failure) => sink.failed(&failure),
                    }
                }
            }
        }
    }
}

/// A lookup that panicked is one name's failure, not the end of all.
fn crashed(error: &JoinError) -> Miss {
    Miss {
        reason: Reason::Unusable { problem: format!("the lookup crashed: {error}") },
        resolver: None,
        negative_ttl: None,
    }
}

impl State {
    /// The queries that start now, and when to look again.
    fn due(&mut self, now: Instant) -> (Vec<Flight>, Option<Instant>) {
        let mut starts = vec![];
        while let Some(Due { key: query, queue }) = self.schedule.next(now) {
            let id = self.names.get(&query.0).map_or(u64::MAX, |name| name.id);
            starts.push(Flight { query, queue, id });
        }
        (starts, self.schedule.wake_at())
    }

    fn landed(&mut self, flight: &Flight, outcome: Outcome, now: Instant) -> Vec<Event> {
        self.schedule.landed(flight.queue);
        let (name, family) = &flight.query;
        let Some(entry) = self.names.get_mut(name).filter(|entry| entry.id == flight.id) else {
            return vec![];
        };
        let private_allowed = (self.allow_private)(name);
        let taken = entry.take(name, *family, outcome, private_allowed, &self.settings, now);
        self.schedule.at(flight.query.clone(), taken.queue, now + taken.next_in);
        taken.events
    }
}
