//! One name's state, and what an answer or a failure does to it. Pure but for the jitter.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rand::RngExt;
use tokio::time::Instant;

use crate::resolve::answer::{Answer, Failure, Family, NameStatus, Reason};
use crate::resolve::lives::Lives;
use crate::resolve::private::is_private;
use crate::resolve::resolver::{Found, Miss, Outcome};
use crate::resolve::schedule::Queue;
use crate::resolve::settings::Settings;

/// How much longer than the next try the last good answer is held: the try itself, and a queue before it.
const HOLD_MARGIN: Duration = Duration::from_secs(60);
/// What a question takes that is not answered: three resolvers (resolv.conf(5) has no more), asked twice, 2 s each. A refresh that
/// begins this long before the TTL's end keeps the address even where there is no grace.
pub const LOOKUP_MAX: Duration = Duration::from_secs(12);
/// A TTL of 0 with `minTtl: 0s` must not become a busy loop.
const SHORTEST_REFRESH: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub struct Name {
    pub id: u64,
    v4: Side,
    v6: Side,
}

/// What the queries for one family gave.
#[derive(Debug, Default)]
struct Side {
    addresses: Lives<IpAddr>,
    aliases: Lives<Arc<str>>,
    last: Option<Last>,
    last_answer: Option<(SocketAddr, Instant)>,
    last_error: Option<(Reason, Instant)>,
    failures: u32,
    /// How often in a row it was said that there is no such record, and none lived, while the other family has some.
    absences: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Last {
    Found,
    Empty,
    Failed,
}

#[derive(Debug)]
pub enum Event {
    Learned(Answer),
    Failed(Failure),
}

/// What follows from one outcome.
pub struct Taken {
    pub events: Vec<Event>,
    pub queue: Queue,
    pub next_in: Duration,
}

impl Family {
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];
}

impl Name {
    pub fn new(id: u64) -> Self {
        Self { id, v4: Side::default(), v6: Side::default() }
    }

    /// Takes in an address that an earlier process knew: said last `ago`, it lives `left`.
    pub fn recall(&mut self, address: IpAddr, left: Duration, ago: Duration, settings: &Settings, now: Instant) {
        let family = if address.is_ipv4() { Family::V4 } else { Family::V6 };
        self.side(family).addresses.recall(address, left, ago, now, settings);
    }

    /// Whether the last answer for this family gave no address.
    pub fn has_missed(&self, family: Family) -> bool {
        matches!(self.other(family.other()).last, Some(Last::Empty | Last::Failed))
    }

    pub fn take(
        &mut self,
        name: &Arc<str>,
        family: Family,
        outcome: Outcome,
        private_allowed: bool,
        settings: &Settings,
        now: Instant,
    ) -> Taken {
        match outcome {
            Ok(mut found) => {
                let resolver = found.resolver;
                let rebinding = if private_allowed { None } else { refuse_private(&mut found) };
                if found.addresses.is_empty() {
                    let reason = rebinding.unwrap_or(Reason::Empty);
                    let miss = Miss { reason, resolver: Some(resolver), negative_ttl: None };
                    return self.missed(name, family, miss, settings, now);
                }
                self.learned(name, family, found, rebinding, settings, now)
            }
            Err(miss) => self.missed(name, family, miss, settings, now),
        }
    }

    fn learned(
        &mut self,
        name: &Arc<str>,
        family: Family,
        found: Found,
        rebinding: Option<Reason>,
        settings: &Settings,
        now: Instant,
    ) -> Taken {
        let least_ttl = found.addresses.iter().map(|(_, ttl)| *ttl).min().unwrap_or_default();
        let next_in = refresh_in(least_ttl.max(settings.min_ttl));
        let side = self.side(family);
        for (address, ttl) in &found.addresses {
            side.addresses.learn(*address, *ttl, now, settings);
        }
        for (alias, ttl) in &found.aliases {
            side.aliases.learn(alias.clone(), *ttl, now, settings);
        }
        let dropped = side.addresses.prune(settings.max_addresses, now);
        side.aliases.prune(settings.max_addresses, now);
        side.last = Some(Last::Found);
        side.last_answer = Some((found.resolver, now));
        side.last_error = None;
        side.failures = 0;
        side.absences = 0;

        let answer = Answer {
            name: name.clone(),
            addresses: found
                .addresses
                .iter()
                .filter_map(|(key, _)| Some((*key, self.address_left(key, now)?)))
                .collect(),
            aliases: found
                .aliases
                .iter()
                .filter_map(|(key, _)| Some((key.clone(), self.alias_left(key, now)?)))
                .collect(),
            resolver: found.resolver,
            at: now,
        };
        let mut events = vec![Event::Learned(answer)];
        let too_many = (dropped > 0).then_some(Reason::TooMany { limit: settings.max_addresses, dropped });
        for reason in [rebinding, too_many].into_iter().flatten() {
            self.side(family).last_error = Some((reason.clone(), now));
            events.push(self.failure(name, family, reason, Some(found.resolver), next_in, now));
        }
        Taken { events, queue: Queue::Fresh, next_in }
    }

    fn missed(&mut self, name: &Arc<str>, family: Family, miss: Miss, settings: &Settings, now: Instant) -> Taken {
        let Miss { reason, resolver, negative_ttl } = miss;
        let negative = negative_ttl.unwrap_or_default().clamp(settings.negative_min, settings.negative_max);
        if reason == Reason::Empty && self.other(family).last != Some(Last::Empty) {
            // Names with one family alone are the rule. When the other query was not answered yet, its own outcome
            // will tell: it finds `Empty` here then.
            let side = self.side(family);
            side.last = Some(Last::Empty);
            side.last_error = None;
            side.failures = 0;
            side.addresses.prune(usize::MAX, now);
            // Half of all questions would be for what most names do not have. Whoever asks for a record that came
            // meanwhile is served at once: the kernel learns from that answer. While one lives, its loss may be a resolver's mistake.
            let known = settings.negative_min.saturating_mul(1 << side.absences.min(20)).min(settings.negative_max);
            if side.addresses.left(now).is_empty() {
                side.absences = side.absences.saturating_add(1);
            }
            return Taken { events: vec![], queue: Queue::Fresh, next_in: jittered(negative.max(known), 0.9..1.1) };
        }
        let side = self.side(family);
        side.last = Some(if reason == Reason::Empty { Last::Empty } else { Last::Failed });
        side.last_error = Some((reason.clone(), now));
        side.failures = side.failures.saturating_add(1);
        let next_in = match reason {
            Reason::NxDomain => {
                side.addresses.end(now);
                side.aliases.end(now);
                jittered(negative, 0.9..1.1)
            }
            _ => {
                let next_in = backoff(side.failures, settings);
                side.addresses.hold(now + next_in + HOLD_MARGIN, now);
                side.aliases.hold(now + next_in + HOLD_MARGIN, now);
                next_in
            }
        };
        side.addresses.prune(usize::MAX, now);
        side.aliases.prune(usize::MAX, now);
        // An answer came quickly; only those that did not get one stand apart.
        let queue = if matches!(reason, Reason::NxDomain | Reason::Empty) { Queue::Fresh } else { Queue::Retry };
        Taken { events: vec![self.failure(name, family, reason, resolver, next_in, now)], queue, next_in }
    }

    /// The question should have been asked by now and was not, because too many others hang: keeps what would end before `until`,
    /// as a failure would. Gives what is kept, if that changed anything.
    pub fn overdue(&mut self, family: Family, until: Instant, now: Instant) -> Option<Vec<(IpAddr, Duration)>> {
        let side = self.side(family);
        let before = side.addresses.first_end(now).filter(|end| *end < until)?;
        side.addresses.hold(until + HOLD_MARGIN, now);
        side.aliases.hold(until + HOLD_MARGIN, now);
        (side.addresses.first_end(now) != Some(before)).then(|| self.kept(family, now))
    }

    /// The family's living addresses, with the life they have left.
    fn kept(&self, family: Family, now: Instant) -> Vec<(IpAddr, Duration)> {
        let kept = self.other(family.other()).addresses.left(now).into_iter();
        kept.filter_map(|(key, _)| Some((key, self.address_left(&key, now)?))).collect()
    }

    fn failure(
        &self,
        name: &Arc<str>,
        family: Family,
        reason: Reason,
        resolver: Option<SocketAddr>,
        retry_in: Duration,
        at: Instant,
    ) -> Event {
        let kept_aliases = self.other(family.other()).aliases.left(at).into_iter();
        Event::Failed(Failure {
            name: name.clone(),
            family,
            reason,
            resolver,
            at,
            kept: self.kept(family, at),
            kept_aliases: kept_aliases.filter_map(|(key, _)| Some((key.clone(), self.alias_left(&key, at)?))).collect(),
            retry_in,
        })
    }

    /// The longer life of the two families: both can give one alias, and an AAAA record a mapped address.
    fn address_left(&self, address: &IpAddr, now: Instant) -> Option<Duration> {
        let expires = self.v4.addresses.expires(address).max(self.v6.addresses.expires(address))?;
        expires.checked_duration_since(now)
    }

    fn alias_left(&self, alias: &Arc<str>, now: Instant) -> Option<Duration> {
        self.v4.aliases.expires(alias).max(self.v6.aliases.expires(alias))?.checked_duration_since(now)
    }

    pub fn addresses(&self, now: Instant) -> Vec<IpAddr> {
        let mut addresses: Vec<_> =
            [&self.v4, &self.v6].iter().flat_map(|side| side.addresses.left(now)).map(|(address, _)| address).collect();
        addresses.sort_unstable();
        addresses.dedup();
        addresses
    }

    /// As `status` shows it; `due` is the next query's time.
    pub fn status(&self, name: &Arc<str>, due: Option<Instant>, now: Instant) -> NameStatus {
        let sides = [&self.v4, &self.v6];
        let ago = |at: Instant| (now - at).as_secs();
        let mut aliases: Vec<_> =
            sides.iter().flat_map(|side| side.aliases.left(now)).map(|(alias, _)| alias).collect();
        aliases.sort();
        aliases.dedup();
        let addresses = self.addresses(now).into_iter();
        let last_answer = sides.iter().filter_map(|side| side.last_answer).max_by_key(|(_, at)| *at);
        let last_error = sides.iter().filter_map(|side| side.last_error.clone()).max_by_key(|(_, at)| *at);
        NameStatus {
            name: name.to_string(),
            addresses: addresses.filter_map(|key| Some((key, self.address_left(&key, now)?.as_secs()))).collect(),
            aliases: aliases
                .into_iter()
                .filter_map(|key| Some((key.to_string(), self.alias_left(&key, now)?.as_secs())))
                .collect(),
            last_answer: last_answer.map(|(resolver, at)| (resolver, ago(at))),
            last_error: last_error.map(|(reason, at)| (reason, ago(at))),
            failures: self.v4.failures.max(self.v6.failures),
            next_refresh: due.map(|due| due.saturating_duration_since(now).as_secs()),
        }
    }

    fn side(&mut self, family: Family) -> &mut Side {
        match family {
            Family::V4 => &mut self.v4,
            Family::V6 => &mut self.v6,
        }
    }

    fn other(&self, family: Family) -> &Side {
        match family {
            Family::V4 => &self.v6,
            Family::V6 => &self.v4,
        }
    }
}

impl Family {
    fn other(self) -> Self {
        match self {
            Self::V4 => Self::V6,
            Self::V6 => Self::V4,
        }
    }
}

/// Takes out what no public name has, and says so.
fn refuse_private(found: &mut Found) -> Option<Reason> {
    let mut refused = vec![];
    found.addresses.retain(|(address, _)| match is_private(*address) {
        Some(kind) => {
            refused.push((*address, kind));
            false
        }
        None => true,
    });
    let (address, range) = *refused.first()?;
    Some(Reason::Rebinding { address, range, count: refused.len() })
}

/// Ahead of the TTL's end, with jitter, and early enough that a failure is known by then.
fn refresh_in(ttl: Duration) -> Duration {
    let latest = ttl.saturating_sub(LOOKUP_MAX).max(ttl / 2);
    jittered(ttl, 0.75..0.9).min(jittered(latest, 0.9..1.0)).max(SHORTEST_REFRESH)
}

/// Doubles from `backoff_min` up to `backoff_max`; the jitter only shortens, so that the maximum holds.
fn backoff(failures: u32, settings: &Settings) -> Duration {
    let doubled = settings.backoff_min.saturating_mul(1 << failures.saturating_sub(1).min(20));
    jittered(doubled.min(settings.backoff_max), 0.7..1.0)
}

fn jittered(duration: Duration, factor: std::ops::Range<f64>) -> Duration {
    duration.mul_f64(rand::rng().random_range(factor))
}
