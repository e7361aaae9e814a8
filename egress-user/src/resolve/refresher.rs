//! Keeps a set of exact names fresh: one task, woken by deadlines, answers and changes of the set, and by nothing else.

use std::any::Any;
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _};
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until};

use super::answer::{Answer, AnswerSink, Family, Held, NameStatus, Reason};
use super::resolver::{Ask, Miss, Outcome};
use super::schedule::{Due, Queue, Schedule};
use super::settings::Settings;

mod name;
use name::{Event, LOOKUP_MAX, Name};

/// How often the names are looked at whose questions are overdue; none are while resolvers answer.
const OVERDUE_EVERY: Duration = Duration::from_secs(5);

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
    /// When overdue questions are looked at next.
    look_at: Instant,
}

type Query = (Arc<str>, Family);

/// What is to be done now.
struct Step {
    /// The queries that start.
    starts: Vec<Flight>,
    held: Vec<Held>,
    /// When to look again, if nothing happens before.
    wake: Option<Instant>,
}

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
        let look_at = Instant::now();
        let schedule = Schedule::new(&settings, look_at);
        let state = State { names: HashMap::new(), schedule, settings, allow_private, next_id: 0, look_at };
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

    /// Takes in what an earlier process knew of a name in the set: addresses, the life each has left, and how long ago a resolver
    /// said so last. Nothing lives longer by that alone; if resolvers fail it stays for `max_stale`, counted from then.
    pub fn recall(&self, name: &str, known: impl IntoIterator<Item = (IpAddr, Duration, Duration)>) {
        let now = Instant::now();
        let mut state = self.shared.lock();
        let State { names, settings, .. } = &mut *state;
        if let Some(entry) = names.get_mut(name) {
            for (address, left, ago) in known {
                entry.recall(address, left, ago, settings, now);
            }
        }
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

    /// Asks at once for all names whose last lookup gave no address, be it that there is none: other resolvers may know better. To
    /// be called when the resolvers have changed.
    pub fn retry_now(&self) {
        self.change(|state| {
            let now = Instant::now();
            state.schedule.hurry_retries(now);
            for (name, entry) in &state.names {
                for family in Family::BOTH.into_iter().filter(|family| entry.has_missed(*family)) {
                    state.schedule.hurry(&(name.clone(), family), now);
                }
            }
        });
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
    // Polled by this task, which they wake once together: a task for each would cost as much as a question.
    let mut lookups = FuturesUnordered::new();
    loop {
        let Step { starts, held, wake } = shared.lock().due(Instant::now());
        if !held.is_empty() {
            sink.held(&held);
        }
        lookups.extend(starts.into_iter().map(|flight| fly(&*ask, flight)));
        tokio::select! {
            () = shared.changed.notified() => {}
            () = sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => {}
            Some(first) = lookups.next() => {
                // Who is ready by now is taken along.
                let others = std::iter::from_fn(|| lookups.next().now_or_never().flatten());
                let landed: Vec<_> = std::iter::once(first).chain(others).collect();
                let events = shared.lock().landed(landed, Instant::now());
                tell(&*sink, events);
            }
        }
    }
}

/// A query on its way. A lookup that panics is one name's failure, not the end of all.
fn fly(ask: &dyn Ask, flight: Flight) -> impl Future<Output = (Flight, Outcome)> + use<> {
    let (name, family) = flight.query.clone();
    let lookup = AssertUnwindSafe(ask.ask(name, family)).catch_unwind();
    async move { (flight, lookup.await.unwrap_or_else(|panic| Err(crashed(&*panic)))) }
}

fn crashed(panic: &(dyn Any + Send)) -> Miss {
    let why = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    Miss {
        reason: Reason::Unusable { problem: format!("the lookup crashed: {}", why.unwrap_or("no message")) },
        resolver: None,
        negative_ttl: None,
    }
}

/// In their order; answers that follow one another at once.
fn tell(sink: &dyn AnswerSink, events: Vec<Event>) {
    let mut answers: Vec<Answer> = vec![];
    for event in events {
        match event {
            Event::Learned(answer) => answers.push(answer),
            Event::Failed(failure) => {
                if !answers.is_empty() {
                    sink.learned(&std::mem::take(&mut answers));
                }
                sink.failed(&failure);
            }
        }
    }
    if !answers.is_empty() {
        sink.learned(&answers);
    }
}

impl State {
    fn due(&mut self, now: Instant) -> Step {
        let mut starts = vec![];
        while let Some(Due { key: query, queue }) = self.schedule.next(now) {
            let id = self.names.get(&query.0).map_or(u64::MAX, |name| name.id);
            starts.push(Flight { query, queue, id });
        }
        let mut held = vec![];
        let first_due = self.schedule.first_due();
        if self.look_at <= now && first_due.is_some_and(|due| due <= now) {
            self.look_at = now + OVERDUE_EVERY;
            held = self.hold_overdue(now);
        }
        let look_at = first_due.map(|due| due.max(self.look_at));
        Step { starts, held, wake: [self.schedule.wake_at(), look_at].into_iter().flatten().min() }
    }

    /// What must be kept until the next look.
    fn hold_overdue(&mut self, now: Instant) -> Vec<Held> {
        // What starts right after this look is not overdue at the next one, and may hang.
        let until = now + 2 * OVERDUE_EVERY + LOOKUP_MAX;
        let overdue = self.schedule.overdue(now).into_iter();
        overdue
            .filter_map(|(name, family)| {
                let kept = self.names.get_mut(&name)?.overdue(family, until, now)?;
                Some((name, kept))
            })
            .collect()
    }

    /// What is to be told of what landed.
    fn landed(&mut self, landed: Vec<(Flight, Outcome)>, now: Instant) -> Vec<Event> {
        landed.into_iter().flat_map(|(flight, outcome)| self.take(flight, outcome, now)).collect()
    }

    fn take(&mut self, flight: Flight, outcome: Outcome, now: Instant) -> Vec<Event> {
        self.schedule.landed(flight.queue);
        let (name, family) = &flight.query;
        let Some(entry) = self.names.get_mut(name).filter(|entry| entry.id == flight.id) else {
            return vec![];
        };
        let private_allowed = (self.allow_private)(name);
        let taken = entry.take(name, *family, outcome, private_allowed, &self.settings, now);
        self.schedule.at(flight.query, taken.queue, now + taken.next_in);
        taken.events
    }
}
