//! A run as one page of HTML that needs nothing else: no script, no outside asset.
//!
//! `events → [Run] → [page]`. Text comes from events, which may come from a file that anyone wrote: all of it goes
//! through [`page::text`].

mod page;
mod picture;

use std::collections::{BTreeMap, BTreeSet};

use crate::events::{Event, Kind, Refusal};

/// Pairs of source and destination that are told apart.
const PAIRS: usize = 5_000;
/// Names that are listed.
const NAMES: usize = 1_000;

/// What happened between one source and one destination.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Pair {
    /// Packets and system calls that were dropped.
    blocked: u64,
    /// Those that passed in audit mode.
    passed: u64,
    /// By reason.
    reasons: BTreeSet<String>,
    /// By second.
    seconds: BTreeMap<u64, u64>,
}

/// A run's events, folded.
#[derive(Clone, Debug, Default)]
pub struct Run {
    pairs: BTreeMap<(String, String), Pair>,
    /// Each name with its addresses, and how often it was answered.
    names: BTreeMap<String, (BTreeSet<String>, u64)>,
    policies: Vec<(u64, String)>,
    /// Seconds since the epoch of the first event and of the last.
    span: Option<(u64, u64)>,
    /// Packets and system calls beyond [`PAIRS`].
    more: u64,
    lost: u64,
    unreadable: u64,
}

impl Run {
    /// A run without events.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes an event.
    pub fn add(&mut self, event: &Event) {
        let time = event.time.seconds();
        self.span = Some(self.span.map_or((time, time), |(first, last)| (first.min(time), last.max(time))));
        match &event.kind {
            Kind::Dropped(refusal) => self.refused(refusal, time, true),
            Kind::WouldDrop(refusal) => self.refused(refusal, time, false),
            Kind::Learned(learned) => {
                if self.names.len() < NAMES || self.names.contains_key(&learned.name) {
                    let entry = self.names.entry(learned.name.clone()).or_default();
                    entry.1 += u64::from(learned.count);
                    entry.0.extend(learned.addresses.iter().take(8).map(|found| found.address.to_string()));
                }
            }
            Kind::Policy(change) => self.policies.push((time, change.message.clone())),
            Kind::Lost(lost) => self.lost += lost.count,
            Kind::Resolver(_) => {}
        }
    }

    /// Notes a line that is no event.
    pub fn unreadable(&mut self) {
        self.unreadable += 1;
    }

    /// Whether there is nothing to show.
    pub fn is_empty(&self) -> bool {
        self.span.is_none()
    }

    /// The page. `title` is any text.
    pub fn html(&self, title: &str) -> String {
        page::html(self, title)
    }

    fn refused(&mut self, refusal: &Refusal, time: u64, blocked: bool) {
        let key = (source(refusal), destination(refusal));
        if self.pairs.len() >= PAIRS && !self.pairs.contains_key(&key) {
            self.more += u64::from(refusal.count);
            return;
        }
        let pair = self.pairs.entry(key).or_default();
        let count = u64::from(refusal.count);
        if blocked {
            pair.blocked += count;
        } else {
            pair.passed += count;
        }
        pair.reasons.insert(refusal.reason.clone());
        *pair.seconds.entry(time).or_default() += count;
    }
}

fn source(refusal: &Refusal) -> String {
    let process = refusal.process.as_ref().map(|process| process.comm.clone());
    match (process, refusal.place()) {
        (Some(process), Some(place)) => format!("{process} in {place}"),
        (None, None) => "forwarded, or without a process".to_owned(),
        (process, place) => process.or(place).unwrap_or_default(),
    }
}

fn destination(refusal: &Refusal) -> String {
    if let Some(query) = &refusal.query {
        return format!("{query} (DNS)");
    }
    let host = refusal.names.first().cloned().or_else(|| match refusal.destination? {
        std::net::IpAddr::V6(address) if refusal.destination_port.is_some() => Some(format!("[{address}]")),
        address => Some(address.to_string()),
    });
    let host = host.unwrap_or_else(|| "unknown".to_owned());
    match refusal.destination_port {
        Some(port) => format!("{host}:{port}/{}", refusal.protocol),
        None => format!("{host} {}", refusal.protocol),
    }
}

#[cfg(test)]
mod tests;
