//! What a running policy answers: `status`, and whether all is well.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
};

use egress_ebpf::abi::{NEVER, TICK_SHIFT, Ticks};

use super::{
    Active, Core,
    state::{lock, mode_name},
};
use crate::{
    api::{
        AddressStatus, AttachPoint, Counter, ExplainError, Explanation, Health, LearnCounter, MapFill, NameCounts,
        NameStatus, PacketExplanation, PacketQuestion, PolicyStatus, RuleStatus, SinkStatus, Source, Status,
    },
    datapath::{Datapath, Learned, boot_ticks},
    events::{Hub, Tally},
    policy::{Action, Mode},
};

/// Names that are looked up with one look at the book.
const AT_ONCE: u32 = 512;

/// A status with so many names takes memory that is worth giving back.
const MANY: usize = 1000;

impl Core {
    fn rules(active: &Active, datapath: &Datapath) -> Vec<RuleStatus> {
        let mut rules: Vec<RuleStatus> = active
            .policy
            .rules
            .iter()
            .map(|rule| RuleStatus {
                name: rule.name.clone(),
                why: rule.why.clone(),
                action: if rule.action == Action::Deny { "deny" } else { "allow" }.to_owned(),
                packets: 0,
                bytes: 0,
                source: if rule.source.line == 0 {
                    rule.source.file.clone()
                } else {
                    format!("{}:{}", rule.source.file, rule.source.line)
                },
            })
            .collect();
        for (grant, index) in active.policy.grants.iter().zip(&active.installed.grants) {
            let hits = datapath.grant_hits(*index).unwrap_or_default();
            rules[grant.rule as usize].packets += hits.packets;
            rules[grant.rule as usize].bytes += hits.bytes;
        }
        rules
    }

    fn names(&self, active: &Active, now: Ticks) -> Vec<NameStatus> {
        let errors: HashMap<String, String> = self
            .refresher
            .get()
            .map(|refresher| refresher.names())
            .unwrap_or_default()
            .into_iter()
            .filter_map(|name| name.last_error.map(|(error, _)| (name.name, error.to_string())))
            .collect();
        let status = |name: String, mut addresses: Vec<(IpAddr, Ticks)>| {
            addresses.sort_unstable();
            let address = |(address, expiry): (IpAddr, Ticks)| AddressStatus {
                address,
                seconds_left: (u64::from(expiry.saturating_sub(now)) << TICK_SHIFT) / 1_000_000_000,
                permanent: expiry == NEVER,
            };
            NameStatus {
                addresses: addresses.into_iter().map(address).collect(),
                rules: Self::rules_of(active, &active.policy.match_name(&name).classes),
                last_error: errors.get(&name).cloned(),
                name,
            }
        };
        let mut names = Vec::new();
        // A look for many names, not one for all: those who learn wait meanwhile.
        let (mut from, renumbered) = (0, self.book().renumbered());
        loop {
            let book = self.book();
            if book.renumbered() != renumbered {
                // Seldom, and then for all at once.
                names = book.living(now);
                break;
            }
            let to = book.names().min(from + AT_ONCE);
            names.extend((from..to).filter_map(|number| book.living_of(number, now)));
            from = to;
            if to == book.names() {
                break;
            }
        }
        let known: HashSet<&str> = names.iter().map(|learned| learned.name.as_str()).collect();
        let exact = active.policy.exact_names.iter().map(|name| name.as_str()).filter(|name| !known.contains(name));
        let unknown: Vec<String> = exact.map(str::to_owned).collect();
        drop(known);
        let known = names.into_iter().map(|Learned { name, addresses }| status(name, addresses));
        let mut names: Vec<NameStatus> =
            known.chain(unknown.into_iter().map(|name| status(name, Vec::new()))).collect();
        names.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        names
    }

    fn attach_points(&self) -> Vec<AttachPoint> {
        lock(&self.attached)
            .iter()
            .map(|point| AttachPoint {
                hook: point.hook.to_owned(),
                target: point.target.clone(),
                link_id: point.info().map(|info| info.id),
                present: point.present(),
            })
            .collect()
    }

    fn health_of(&self, attach_points: &[AttachPoint]) -> Health {
        let mut problems: Vec<String> = attach_points
            .iter()
            .filter(|point| !point.present)
            .map(|point| format!("{} is no longer attached to {}", point.hook, point.target))
            .collect();
        if self.pins.as_ref().is_some_and(|pins| !pins.has_maps()) {
            problems.push(
                "the pins in bpffs are gone: what this daemon holds stays in force, and ends with it; start it again"
                    .to_owned(),
            );
        }
        problems.extend(lock(&self.trouble).clone());
        problems.extend(self.changes.problems());
        problems.extend(lock(&self.missing).iter().map(|name| format!("there is no interface {name} to govern (yet)")));
        problems.extend(self.ungoverned());
        let names = self.refresher.get().map(|refresher| refresher.names()).unwrap_or_default();
        let failing = names.iter().filter(|name| name.last_error.is_some() && name.failures > 0).count();
        if failing != 0 && failing == names.len() {
            problems.push("no name of the policy can be resolved; `egress status` shows the errors".to_owned());
        }
        Health { healthy: problems.is_empty(), problems }
    }
}

fn sink_status(tally: &Tally) -> SinkStatus {
    SinkStatus { sink: tally.name().to_owned(), written: tally.written(), lost: tally.lost() }
}

impl Core {
    fn status_with(&self, names: impl FnOnce(&Self, &Active, Ticks) -> Vec<NameStatus>) -> Status {
        // Before the policy: where the trouble with one is over, it is the policy after it that is told of.
        let attach_points = self.attach_points();
        let mut health = self.health_of(&attach_points);
        let active = self.active();
        let now = boot_ticks();
        let names = names(self, &active, now);
        let datapath = self.datapath();
        let counters = datapath.counters().unwrap_or_default();
        let (drops_lost, answers_lost) = datapath.events_lost().unwrap_or_default();
        let maps: Vec<_> = datapath
            .fill()
            .unwrap_or_default()
            .into_iter()
            .map(|fill| MapFill {
                name: fill.name.to_owned(),
                entries: fill.entries,
                capacity: fill.capacity,
                bytes: fill.bytes,
                evicts: fill.evicts,
            })
            .collect();
        for map in maps.iter().filter(|map| map.name.starts_with("ADDRESSES") && map.entries >= map.capacity) {
            health.healthy = false;
            health
                .problems
                .push(format!("map {} is full: new addresses of names are not learned until some expire", map.name));
        }
        let learning = datapath.learn_counters().unwrap_or_default();
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            mode: mode_name(active.policy.mode).to_owned(),
            enforcing: active.policy.mode == Mode::Enforce && attach_points.iter().all(|point| point.present),
            started: self.started,
            generation: active.installed.generation,
            policy: PolicyStatus {
                files: active.files.clone(),
                hash: format!("{:016x}", active.policy.hash),
                rules: active.policy.rules.len(),
                applied: self.changes.applied(),
                confirm_seconds_left: self.changes.seconds_left(now),
            },
            attach_points,
            rules: Self::rules(&active, &datapath),
            names,
            counters: counters
                .into_iter()
                .map(|(reason, hits)| Counter {
                    reason: reason.name().to_owned(),
                    passes: reason.passes(),
                    packets: hits.packets,
                    bytes: hits.bytes,
                })
                .collect(),
            events_lost: drops_lost + answers_lost,
            sinks: self.measures.sinks().iter().map(|tally| sink_status(tally)).collect(),
            learning: learning
                .into_iter()
                .map(|(what, count)| LearnCounter { what: what.name().to_owned(), loses: what.loses(), count })
                .collect(),
            maps,
            warnings: self.warnings.iter().cloned().chain(self.changes.notes()).collect(),
            health,
        }
    }
}

impl Source for Core {
    fn status(&self) -> Status {
        let status = self.status_with(Self::names);
        if status.names.len() >= MANY {
            self.freed().tell();
        }
        status
    }

    fn summary(&self) -> (Status, NameCounts) {
        let failing = self.refresher.get().map(|refresher| refresher.names()).unwrap_or_default();
        let failing = failing.iter().filter(|name| name.last_error.is_some()).count();
        let (known, addresses) = self.book().count(boot_ticks());
        (self.status_with(|_, _, _| Vec::new()), NameCounts { known, failing, addresses })
    }

    fn explain(&self, to: &str) -> Result<Explanation, ExplainError> {
        super::explain::explain(self, to)
    }

    fn packet(&self, question: &PacketQuestion) -> Result<PacketExplanation, ExplainError> {
        super::explain_packet::explain_packet(self, question)
    }

    fn health(&self) -> Health {
        self.health_of(&self.attach_points())
    }

    fn hub(&self) -> &Hub {
        &self.hub
    }

    fn change(&self) -> Option<&dyn crate::api::Change> {
        self.changes.changer()
    }
}
