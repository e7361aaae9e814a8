//! What was seen: destinations with their users, names that were asked, and what no rule could allow.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
};

use crate::{
    events::{Event, Kind, LearnedName, Refusal},
    policy::{DomainName, Ports, Proto},
    resolve::is_private,
};

/// Destinations that are told apart. A scan of the internet is no policy: past it they are counted alone.
pub const DESTINATIONS: usize = 20_000;
/// Names that are remembered as asked.
const NAMES: usize = 100_000;
/// Users of one destination that are named.
const USERS: usize = 4;
/// Addresses of one name, and examples of what is left out, that are kept.
const EXAMPLES: usize = 3;

/// A destination: a name wherever an answer was seen.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Host {
    /// A name, in lower case.
    Name(String),
    /// An address of which no answer was seen.
    Address(IpAddr),
}

/// How a destination was used on one port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Use {
    /// Packets and system calls.
    pub count: u64,
    /// Who, such as `curl` or `curl in containerd 0123456789ab`; at most [`USERS`].
    pub users: BTreeSet<String>,
    /// There were more users.
    pub more_users: bool,
    /// Some of the addresses behind a name.
    pub addresses: BTreeSet<IpAddr>,
}

/// Something that was seen and is in no rule.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeftOut {
    /// Packets and system calls.
    pub count: u64,
    /// Some of what it was.
    pub examples: BTreeSet<String>,
}

/// Takes events. Its memory is bounded whatever it is given.
#[derive(Clone, Debug, Default)]
pub struct Learner {
    pub(super) uses: BTreeMap<(Host, Ports), Use>,
    /// The names that were asked, and whether an answer had a private address.
    names: HashMap<String, bool>,
    used_names: BTreeSet<String>,
    pub(super) left: BTreeMap<&'static str, LeftOut>,
    events: u64,
    lost: u64,
}

impl Learner {
    /// Nothing seen yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes an event.
    pub fn add(&mut self, event: &Event) {
        self.events += 1;
        match &event.kind {
            Kind::WouldDrop(refusal) | Kind::Dropped(refusal) => self.refused(refusal),
            Kind::Learned(learned) => self.asked(learned),
            Kind::Lost(lost) => self.lost += lost.count,
            Kind::Policy(_) | Kind::Resolver(_) => {}
        }
    }

    /// Notes events that were lost on the way: what they would have told is missing.
    pub fn lose(&mut self, count: u64) {
        self.lost += count;
    }

    /// Events that were lost.
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// Destinations (with their ports) so far.
    pub fn destinations(&self) -> usize {
        self.uses.len()
    }

    /// Events so far.
    pub fn events(&self) -> u64 {
        self.events
    }

    /// What is in no rule: why, and how often it was seen.
    pub fn left_out(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.left.iter().map(|(what, left)| (*what, left.count))
    }

    /// Names that were asked and then not used: not part of the policy.
    pub fn unused_names(&self) -> Vec<&str> {
        let mut names: Vec<&str> =
            self.names.keys().map(String::as_str).filter(|name| !self.used_names.contains(*name)).collect();
        names.sort_unstable();
        names
    }

    /// Whether answers for the name had private addresses.
    pub(super) fn is_private(&self, name: &str) -> bool {
        self.names.get(name).copied().unwrap_or_default()
    }

    fn asked(&mut self, learned: &LearnedName) {
        if DomainName::parse(&learned.name).is_err() || learned.addresses.is_empty() {
            return;
        }
        let private = learned.addresses.iter().any(|entry| is_private(entry.address).is_some());
        if let Some(known) = self.names.get_mut(&learned.name) {
            *known |= private;
        } else if self.names.len() < NAMES {
            self.names.insert(learned.name.clone(), private);
        }
    }

    fn refused(&mut self, refusal: &Refusal) {
        let Some(ports) = ports(refusal) else { return self.leave_out(refusal) };
        let Some(destination) = refusal.destination else { return self.leave_out(refusal) };
        if !matches!(refusal.reason.as_str(), "no-rule" | "no-port" | "expired") || is_group(destination) {
            return self.leave_out(refusal);
        }
        let hosts = self.hosts(refusal, destination);
        for host in hosts {
            self.used(host, ports, destination, refusal);
        }
    }

    /// Every name that was asked meanwhile and has this address: whoever comes again asks for its own one first. Without
    /// any, the name learned last before.
    fn hosts(&self, refusal: &Refusal, destination: IpAddr) -> Vec<Host> {
        let written: Vec<&String> = refusal.names.iter().filter(|name| DomainName::parse(name).is_ok()).collect();
        let mut asked: Vec<Host> = written
            .iter()
            .filter(|name| self.names.contains_key(**name))
            .map(|name| Host::Name((*name).clone()))
            .collect();
        if asked.is_empty() {
            asked.push(written.first().map_or(Host::Address(destination), |name| Host::Name((*name).clone())));
        }
        asked
    }

    fn used(&mut self, host: Host, ports: Ports, destination: IpAddr, refusal: &Refusal) {
        let key = (host, ports);
        if self.uses.len() >= DESTINATIONS && !self.uses.contains_key(&key) {
            let what = "more destinations than a policy of names should have: look for a scan, or learn in parts";
            return self.leave(what, u64::from(refusal.count), format!("{destination}"));
        }
        if let (Host::Name(name), _) = &key {
            if !self.used_names.contains(name) {
                self.used_names.insert(name.clone());
            }
            if is_private(destination).is_some() {
                self.names.insert(name.clone(), true);
            }
        }
        let seen = self.uses.entry(key).or_default();
        seen.count += u64::from(refusal.count);
        if seen.addresses.len() < EXAMPLES {
            seen.addresses.insert(destination);
        }
        if let Some(user) = user(refusal) {
            if seen.users.len() < USERS {
                seen.users.insert(user);
            } else if !seen.users.contains(&user) {
                seen.more_users = true;
            }
        }
    }

    fn leave_out(&mut self, refusal: &Refusal) {
        let what = match refusal.reason.as_str() {
            "untrusted-resolver" => "DNS to a resolver that is not trusted: name it in `dns.resolvers` if it is meant",
            "bad-query" => "DNS messages that Egress does not let pass",
            // The name is asked for again, and told of, when its answer comes.
            "name-not-allowed" => return,
            "denied" => "closed by a deny rule of the running policy",
            "bypass-socket" => "sockets that skip every hook (AF_XDP, PACKET_QDISC_BYPASS)",
            "forged-resolver" => "packets with a resolver's address as their source",
            "forged-source" => "packets of containers with an address outside as their source",
            "no-rule" | "no-port" | "expired" => {
                "multicast and broadcast: add the group's address if something needs it"
            }
            _ => "packets that no rule can allow (other IP protocols, malformed headers, fragments)",
        };
        let port = refusal.destination_port.map(|port| format!(" port {port}")).unwrap_or_default();
        let to =
            refusal.destination.map_or_else(|| refusal.protocol.clone(), |to| format!("{to} {}", refusal.protocol));
        let by = user(refusal).map(|user| format!(" by {user}")).unwrap_or_default();
        self.leave(what, u64::from(refusal.count), format!("{to}{port}{by}"));
    }

    fn leave(&mut self, what: &'static str, count: u64, example: String) {
        let left = self.left.entry(what).or_default();
        left.count += count;
        if left.examples.len() < EXAMPLES {
            left.examples.insert(example);
        }
    }
}

/// Multicast, and the limited broadcast address.
fn is_group(address: IpAddr) -> bool {
    address.is_multicast() || matches!(address, IpAddr::V4(v4) if v4.is_broadcast())
}

fn ports(refusal: &Refusal) -> Option<Ports> {
    let (proto, port) = match refusal.protocol.as_str() {
        "tcp" => (Proto::Tcp, refusal.destination_port?),
        "udp" => (Proto::Udp, refusal.destination_port?),
        "icmp" | "icmpv6" => (Proto::Icmp, 0),
        _ => return None,
    };
    Some(Ports { proto, from: port, to: port })
}

/// Who sent it. Everything in it was escaped when the event was made.
fn user(refusal: &Refusal) -> Option<String> {
    let process = refusal.process.as_ref().map(|process| process.comm.clone());
    match (process, refusal.place()) {
        (Some(process), Some(place)) => Some(format!("{process} in {place}")),
        (process, place) => process.or(place),
    }
}
