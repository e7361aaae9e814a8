//! What the daemon itself measures while it works.

use std::{
    net::SocketAddr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::future::BoxFuture;
use prometheus_client::{
    metrics::{counter::Counter, family::Family as Labelled, histogram::Histogram},
    registry::{Registry, Unit},
};

use crate::{
    events::{Tally, Timestamp},
    resolve::{Ask, Family, Outcome, Reason},
};

/// Seconds: from a resolver next door to its last retry.
const RESOLVER_BUCKETS: [f64; 9] = [0.001, 0.005, 0.02, 0.05, 0.1, 0.5, 1.0, 3.0, 10.0];
/// Seconds from the kernel's record to the daemon's notice.
const DELAY_BUCKETS: [f64; 7] = [0.0001, 0.001, 0.01, 0.1, 0.5, 1.0, 5.0];

type ByResolver<M> = Labelled<Vec<(&'static str, String)>, M, fn() -> M>;

/// Counters and histograms; a clone is the same ones.
#[derive(Clone, Debug)]
pub struct Measures {
    resolver_seconds: ByResolver<Histogram>,
    resolver_failures: ByResolver<Counter>,
    noticed: Histogram,
    /// When the policy in force was put there, in microseconds since 1970.
    applied: Arc<AtomicU64>,
    /// One for each `run --events`, in its order; written once.
    sinks: Arc<OnceLock<Vec<Arc<Tally>>>>,
}

impl Default for Measures {
    fn default() -> Self {
        let histogram: fn() -> Histogram = || Histogram::new(RESOLVER_BUCKETS);
        let counter: fn() -> Counter = Counter::default;
        Self {
            resolver_seconds: Labelled::new_with_constructor(histogram),
            resolver_failures: Labelled::new_with_constructor(counter),
            noticed: Histogram::new(DELAY_BUCKETS),
            applied: Arc::new(AtomicU64::new(Timestamp::now().0)),
            sinks: Arc::default(),
        }
    }
}

impl Measures {
    /// A policy is in force from now on.
    pub fn policy_applied(&self) {
        self.applied.store(Timestamp::now().0, Ordering::Relaxed);
    }

    /// The sinks of events, told once.
    pub fn set_sinks(&self, sinks: Vec<Arc<Tally>>) {
        // A second word would be the same one.
        let _ = self.sinks.set(sinks);
    }

    /// The sinks of events.
    pub fn sinks(&self) -> &[Arc<Tally>] {
        self.sinks.get().map_or(&[], Vec::as_slice)
    }

    /// When the policy in force was put there.
    pub fn applied(&self) -> Timestamp {
        Timestamp(self.applied.load(Ordering::Relaxed))
    }

    /// The daemon took notice of an answer so long after the kernel had learned it.
    pub fn noticed(&self, delay: Duration) {
        self.noticed.observe(delay.as_secs_f64());
    }

    /// A resolver was asked.
    pub fn asked(&self, outcome: &Outcome, took: Duration) {
        // Who is asked comes from the policy or the system: as many labels as there are resolvers.
        let label = |resolver: Option<SocketAddr>| {
            ("resolver", resolver.map_or_else(|| "none".to_owned(), |resolver| resolver.to_string()))
        };
        match outcome {
            Ok(found) => {
                let labels = vec![label(Some(found.resolver))];
                self.resolver_seconds.get_or_create(&labels).observe(took.as_secs_f64());
            }
            Err(miss) => {
                let labels = vec![label(miss.resolver), ("reason", kind(&miss.reason).to_owned())];
                self.resolver_failures.get_or_create(&labels).inc();
            }
        }
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        let (seconds, failures) = (self.resolver_seconds.clone(), self.resolver_failures.clone());
        registry.register_with_unit(
            "egress_resolver_answer",
            "How long the daemon's questions took that were answered",
            Unit::Seconds,
            seconds,
        );
        registry.register("egress_resolver_failures", "The daemon's questions that gave no address, by why", failures);
        registry.register_with_unit(
            "egress_learned_notice",
            "From the kernel learning an answer to the daemon's notice; connections do not wait for it",
            Unit::Seconds,
            self.noticed.clone(),
        );
    }
}

fn kind(reason: &Reason) -> &'static str {
    match reason {
        Reason::NxDomain => "nxdomain",
        Reason::Empty => "empty",
        Reason::ServFail => "servfail",
        Reason::Refused => "refused",
        Reason::Code { .. } => "code",
        Reason::Timeout => "timeout",
        Reason::Unreachable { .. } => "unreachable",
        Reason::Unusable { .. } => "unusable",
        Reason::Rebinding { .. } => "rebinding",
        Reason::TooMany { .. } => "too-many",
        Reason::NoResolver => "no-resolver",
    }
}

/// A resolver whose answers are timed.
pub struct Timed<A> {
    ask: A,
    measures: Measures,
}

impl<A: Ask> Timed<A> {
    /// Times what `ask` does.
    pub fn new(ask: A, measures: Measures) -> Self {
        Self { ask, measures }
    }
}

impl<A: Ask> Ask for Timed<A> {
    fn ask(&self, name: Arc<str>, family: Family) -> BoxFuture<'static, Outcome> {
        let (asked, measures, start) = (self.ask.ask(name, family), self.measures.clone(), Instant::now());
        Box::pin(async move {
            let outcome = asked.await;
            measures.asked(&outcome, start.elapsed());
            outcome
        })
    }
}
