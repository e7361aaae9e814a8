//! What a change would cut, of the traffic of the last minutes: what was reached under the policy in force, by the flow
//! tables, the node's connections and the counters of rule items, held against the next policy.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use egress_ebpf::abi::{PROTO_ICMP, PROTO_ICMPV6, PROTO_TCP, PROTO_UDP, TICK_SHIFT, Ticks};

use super::{Active, Core, state::lock};
use crate::{
    api::{CUT_TOLD, Cut, CutDestination},
    datapath::{Passed, boot_ticks, opened_connections},
    events::{Kind, Refusal, Timestamp},
    policy::{Action, Compiled, Grant, Mode, Opens, Proto},
};

/// How far back is looked.
const WITHIN: Duration = Duration::from_secs(5 * 60);
/// How often the counters of rule items are noted.
const EVERY: Duration = Duration::from_secs(60);
/// Rule items whose counters are noted: of a longer policy all count as used.
const ITEMS: usize = 20_000;
/// Destinations that are held against the policies.
const DESTINATIONS: usize = 20_000;
/// How long is looked.
const LIMIT: Duration = Duration::from_secs(2);
/// Near ends that are told of a destination.
const NEAR: usize = 8;

/// The counters of rule items, every minute of the last five, oldest first.
#[derive(Debug, Default)]
pub(super) struct Recent(Mutex<VecDeque<(Instant, Counts)>>);

/// Packets by the grant's key.
type Counts = HashMap<u64, u64>;

impl Recent {
    /// What was counted before the last five minutes, as near as is known: since the daemon's start at the longest.
    fn before(&self) -> Counts {
        let now = Instant::now();
        let notes = lock(&self.0);
        let old = notes.iter().rev().find(|(at, _)| now.duration_since(*at) >= WITHIN).or(notes.front());
        old.map(|(_, counts)| counts.clone()).unwrap_or_default()
    }

    fn note(&self, counts: Counts) {
        let now = Instant::now();
        let mut notes = lock(&self.0);
        notes.push_back((now, counts));
        // One that is older than what is looked at stays, to count from.
        while notes.get(1).is_some_and(|(at, _)| now.duration_since(*at) >= WITHIN) {
            notes.pop_front();
        }
    }
}

/// A rule item that goes.
pub(super) struct Gone {
    pub rule: String,
    pub item: String,
    /// Packets that passed by it since it stands.
    pub packets: u64,
    /// Packets of the last minutes.
    pub lately: u64,
}

/// A destination, by which what is told is gathered.
type Key = (IpAddr, u16, u8);

impl Core {
    /// Notes the counters of rule items every minute, from now on.
    pub async fn note_hits(self: Arc<Self>) {
        let mut ticks = tokio::time::interval(EVERY);
        loop {
            ticks.tick().await;
            let core = Arc::clone(&self);
            // Maps are read, perhaps thousands of elements.
            let _ = tokio::task::spawn_blocking(move || core.recent.note(core.counts())).await;
        }
    }

    fn counts(&self) -> Counts {
        let active = self.active();
        if active.policy.grants.len() > ITEMS {
            return Counts::new();
        }
        let datapath = self.datapath();
        let grants = active.policy.grants.iter().zip(&active.installed.grants);
        let count = |(grant, index): (&Grant, &u32)| {
            let packets = datapath.grant_hits(*index).ok()?.packets;
            (packets != 0).then_some((grant.key, packets))
        };
        grants.filter_map(count).collect()
    }

    /// What passed by the rule items that `next` has not.
    pub(super) fn hits_of_gone(&self, next: &Compiled) -> Vec<Gone> {
        let active = self.active();
        let kept: HashSet<u64> = next.grants.iter().map(|grant| grant.key).collect();
        let before = self.recent.before();
        let datapath = self.datapath();
        let gone = active.policy.grants.iter().zip(&active.installed.grants).filter(|(grant, _)| {
            active.policy.rules[grant.rule as usize].action == Action::Allow && !kept.contains(&grant.key)
        });
        gone.filter_map(|(grant, index)| {
            let packets = datapath.grant_hits(*index).ok()?.packets;
            let lately = packets - before.get(&grant.key).copied().unwrap_or(0).min(packets);
            let rule = active.policy.rules[grant.rule as usize].name.clone();
            (packets != 0).then(|| Gone { rule, item: grant.item.to_string(), packets, lately })
        })
        .collect()
    }

    /// The destinations of the last minutes that the policy in force allows and `next` does not.
    pub(super) fn cut_by(&self, next: &Compiled) -> Cut {
        let mut cut = Cut { within_seconds: WITHIN.as_secs(), ..Cut::default() };
        if next.mode == Mode::Audit {
            return cut;
        }
        let active = self.active();
        let mut look = Look { core: self, active: &active, next, found: HashMap::new(), judged: HashMap::new() };
        if active.policy.mode == Mode::Audit {
            look.would_drop();
        }
        let complete = look.flows();
        if let Err(error) = &complete {
            tracing::warn!(%error, "what a change would cut is not known");
        }
        look.connections();
        cut.partial = !matches!(complete, Ok(true));
        let mut found: Vec<_> = look.found.into_values().collect();
        // Open ones first, then the latest; those without a time last.
        found.sort_by_key(|cut| (cut.open == 0, cut.seconds_ago.unwrap_or(u64::MAX), cut.address, cut.port));
        cut.more = found.len().saturating_sub(CUT_TOLD);
        found.truncate(CUT_TOLD);
        let book = self.book();
        for destination in &mut found {
            destination.names = book.names_of(destination.address);
            destination.names.truncate(NEAR);
        }
        cut.destinations = found;
        cut
    }

    /// The living names of an address.
    fn living_names(&self, address: IpAddr, now: Ticks) -> Vec<String> {
        let book = self.book();
        let mut names = book.names_of(address);
        names.retain(|name| book.entry(name, address).is_some_and(|entry| entry.expiry > now));
        names
    }
}

struct Look<'a> {
    core: &'a Core,
    active: &'a Active,
    next: &'a Compiled,
    found: HashMap<Key, CutDestination>,
    /// What both policies say of a destination.
    judged: HashMap<Key, (Opens, Opens)>,
}

impl Look<'_> {
    fn judge(&mut self, (address, port, proto): Key) -> (Opens, Opens) {
        if let Some(known) = self.judged.get(&(address, port, proto)) {
            return *known;
        }
        let names = self.core.living_names(address, boot_ticks());
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let said = match kind(proto) {
            Some(kind) => {
                (self.active.policy.opens(address, kind, port, &names), self.next.opens(address, kind, port, &names))
            }
            None => (Opens::Nothing, Opens::Nothing),
        };
        self.judged.insert((address, port, proto), said);
        said
    }

    fn add(&mut self, key: Key) -> &mut CutDestination {
        let (address, port, proto) = key;
        self.found.entry(key).or_insert_with(|| CutDestination {
            address,
            port: matches!(proto, PROTO_TCP | PROTO_UDP).then_some(port),
            protocol: kind(proto).map_or_else(|| proto.to_string(), |kind| kind.to_string()),
            names: Vec::new(),
            open: 0,
            near: Vec::new(),
            seconds_ago: None,
            processes: Vec::new(),
        })
    }

    /// Datagrams, and what was forwarded. Gives whether all were looked at.
    fn flows(&mut self) -> Result<bool, crate::datapath::Error> {
        let tables = self.core.datapath().flow_tables()?;
        let now = boot_ticks();
        let oldest = now.saturating_sub(ticks(WITHIN));
        let mut seen: HashMap<(Key, u32), Option<Ticks>> = HashMap::new();
        let all = tables.passed(Instant::now() + LIMIT, |Passed { remote, port, proto, seen: at, grant }| {
            if at.is_none_or(|at| at >= oldest) {
                let latest = seen.entry(((remote, port, proto), grant)).or_default();
                *latest = (*latest).max(at);
            }
            seen.len() < DESTINATIONS
        })?;
        let before = self.core.recent.before();
        let too_long = self.active.policy.grants.len() > ITEMS;
        let items: HashMap<u32, &Grant> =
            self.active.installed.grants.iter().copied().zip(&self.active.policy.grants).collect();
        let kept: HashSet<u64> = self.next.grants.iter().map(|grant| grant.key).collect();
        for ((key, grant), at) in seen {
            let (_, next) = self.judge(key);
            let item = items.get(&grant).copied();
            let stays = item.is_some_and(|item| kept.contains(&item.key));
            if next == Opens::Rule || (stays && next != Opens::Denied) {
                continue;
            }
            // A connection is not timed: it counts where its rule item had packets lately.
            if at.is_none() && !too_long {
                let hits = self.core.datapath().grant_hits(grant).unwrap_or_default().packets;
                if item.is_some_and(|item| hits <= before.get(&item.key).copied().unwrap_or(0)) {
                    continue;
                }
            }
            let cut = self.add(key);
            let ago = at.map(|at| u64::from(now.saturating_sub(at)) << TICK_SHIFT).map(|ago| ago / 1_000_000_000);
            cut.seconds_ago = cut.seconds_ago.into_iter().chain(ago).min();
        }
        Ok(all)
    }

    /// The connections of the node's own network namespace, where they are governed.
    fn connections(&mut self) {
        let all_governed = {
            let attached = lock(&self.core.attached);
            attached.iter().any(|point| point.hook.starts_with("uplink_egress"))
        } || self.active.settings.cgroup_level == Some(0);
        if !all_governed {
            return;
        }
        let Ok(tables) = self.core.datapath().flow_tables() else { return };
        for (local, remote) in opened_connections() {
            let far = remote.ip().to_canonical();
            if far.is_loopback() || far == local.ip().to_canonical() {
                continue;
            }
            let key = (far, remote.port(), PROTO_TCP);
            let (now, next) = self.judge(key);
            let passes = now == Opens::Rule || self.active.policy.mode == Mode::Audit;
            if !passes || next == Opens::Rule || tables.is_accepted(local, remote).unwrap_or(false) {
                continue;
            }
            let cut = self.add(key);
            cut.open += 1;
            if cut.near.len() < NEAR {
                cut.near.push(SocketAddr::new(local.ip().to_canonical(), local.port()).to_string());
            }
        }
    }

    /// What only passes because nothing is dropped yet: of the last events.
    fn would_drop(&mut self) {
        let now = Timestamp::now().seconds();
        for event in self.core.recent_events() {
            let ago = now.saturating_sub(event.time.seconds());
            let Kind::WouldDrop(refusal) = &event.kind else { continue };
            let Refusal { destination: Some(address), protocol, process, .. } = &**refusal else { continue };
            let proto = match protocol.as_str() {
                "tcp" => PROTO_TCP,
                "udp" => PROTO_UDP,
                "icmp" => PROTO_ICMP,
                "icmpv6" => PROTO_ICMPV6,
                _ => continue,
            };
            let key = (address.to_canonical(), refusal.destination_port.unwrap_or(0), proto);
            if ago > WITHIN.as_secs() || self.judge(key).1 == Opens::Rule {
                continue;
            }
            let by = process.as_ref().map(|process| format!("{} ({})", process.comm, process.pid));
            let cut = self.add(key);
            cut.seconds_ago = Some(cut.seconds_ago.map_or(ago, |known| known.min(ago)));
            if let Some(by) = by.filter(|by| cut.processes.len() < NEAR && !cut.processes.contains(by)) {
                cut.processes.push(by);
            }
        }
    }
}

fn ticks(time: Duration) -> Ticks {
    Ticks::try_from(time.as_nanos() >> TICK_SHIFT).unwrap_or(Ticks::MAX)
}

fn kind(proto: u8) -> Option<Proto> {
    match proto {
        PROTO_TCP => Some(Proto::Tcp),
        PROTO_UDP => Some(Proto::Udp),
        PROTO_ICMP | PROTO_ICMPV6 => Some(Proto::Icmp),
        _ => None,
    }
}
