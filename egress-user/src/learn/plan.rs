//! Which rules: one for each purpose, with ports exact.

use std::collections::{BTreeMap, BTreeSet};

use super::{Host, Learner, Use};
use crate::policy::{Ports, Proto};

/// Names right below one parent that `--wildcards` makes one wildcard of.
const SIBLINGS: usize = 3;

/// Ports whose purpose is the same whatever the destination.
const SERVICES: [(Ports, &str, &str); 3] = [
    (one(Proto::Udp, 123), "time", "time (NTP)"),
    (one(Proto::Tcp, 22), "ssh", "SSH"),
    (one(Proto::Icmp, 0), "ping", "ping and other ICMP"),
];

const fn one(proto: Proto, port: u16) -> Ports {
    Ports { proto, from: port, to: port }
}

/// A rule to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Its name: letters, digits and `-`, unique.
    pub name: String,
    /// What for.
    pub why: String,
    /// Its ports.
    pub ports: Vec<Ports>,
    /// Its items, each with how it was used.
    pub items: Vec<(String, Use)>,
}

/// A policy, before it is text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The rules, by name.
    pub rules: Vec<Rule>,
    /// Names whose answers may be private addresses.
    pub private: Vec<String>,
}

impl Plan {
    /// Groups what was seen. With `wildcards`, three names or more right below one parent with the same ports become
    /// `*.parent`, unless the parent is a public suffix.
    pub fn of(learner: &Learner, wildcards: bool) -> Self {
        let mut hosts: BTreeMap<&Host, (BTreeSet<Ports>, Use)> = BTreeMap::new();
        let mut private = BTreeSet::new();
        for ((host, ports), seen) in &learner.uses {
            let entry = hosts.entry(host).or_default();
            entry.0.insert(*ports);
            entry.1.merge(seen);
            if let Host::Name(name) = host
                && learner.is_private(name)
            {
                private.insert(name.clone());
            }
        }
        // Hosts with one set of ports share a rule, so that no rule opens a pair that was not seen.
        let mut groups: BTreeMap<(Vec<Ports>, Purpose), BTreeMap<Host, Use>> = BTreeMap::new();
        for (host, (ports, seen)) in hosts {
            let ports: Vec<Ports> = ports.into_iter().collect();
            let purpose = Purpose::of(host, &ports);
            groups.entry((ports, purpose)).or_default().insert(host.clone(), seen);
        }
        if wildcards {
            fold(&mut groups);
        }
        let mut rules: Vec<Rule> = groups
            .into_iter()
            .filter(|(_, hosts)| !hosts.is_empty())
            .map(|((ports, purpose), hosts)| {
                let items = hosts.into_iter().map(|(host, seen)| (item(&host), seen)).collect();
                Rule { name: purpose.slug(), why: purpose.why(), ports, items }
            })
            .collect();
        name_apart(&mut rules);
        rules.sort_by(|a, b| a.name.cmp(&b.name));
        let private = private.into_iter().collect();
        Self { rules, private }
    }

    /// Items of all rules.
    pub fn items(&self) -> usize {
        self.rules.iter().map(|rule| rule.items.len()).sum()
    }
}

impl Use {
    fn merge(&mut self, other: &Self) {
        self.count += other.count;
        self.users.extend(other.users.iter().cloned());
        self.more_users |= other.more_users;
        self.addresses.extend(other.addresses.iter().copied());
    }
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Purpose {
    Service(&'static str, &'static str),
    /// A registrable domain.
    Domain(String),
    Addresses,
}

impl Purpose {
    fn of(host: &Host, ports: &[Ports]) -> Self {
        if let [port] = ports
            && let Some((_, name, why)) = SERVICES.iter().find(|(service, ..)| service == port)
        {
            return Self::Service(name, why);
        }
        match host {
            Host::Name(name) => Self::Domain(psl::domain_str(name).unwrap_or(name).to_owned()),
            Host::Address(_) => Self::Addresses,
        }
    }

    fn slug(&self) -> String {
        match self {
            Self::Service(name, _) => (*name).to_owned(),
            Self::Domain(domain) => domain.replace(['.', '_'], "-"),
            Self::Addresses => "addresses".to_owned(),
        }
    }

    fn why(&self) -> String {
        match self {
            Self::Service(_, why) => (*why).to_owned(),
            Self::Domain(domain) => format!("what was asked for of {domain}"),
            Self::Addresses => "addresses of which no DNS answer was seen".to_owned(),
        }
    }
}

/// Rules of one name get their ports added, and a number where that is not enough.
fn name_apart(rules: &mut [Rule]) {
    let mut count: BTreeMap<String, usize> = BTreeMap::new();
    for rule in rules.iter() {
        *count.entry(rule.name.clone()).or_default() += 1;
    }
    let mut taken: BTreeSet<String> = count.iter().filter(|(_, n)| **n == 1).map(|(name, _)| name.clone()).collect();
    for rule in rules {
        if count[&rule.name] == 1 {
            continue;
        }
        let ports: Vec<String> = rule.ports.iter().take(3).map(|ports| ports.to_string().replace('/', "-")).collect();
        let base = format!("{}-{}", rule.name, ports.join("-"));
        let mut name = base.clone();
        let mut number = 2;
        while !taken.insert(name.clone()) {
            name = format!("{base}-{number}");
            number += 1;
        }
        rule.name = name;
    }
}

/// Folds siblings. Names below a parent that its wildcard covers go into the wildcard, whose use is the sum of theirs.
fn fold(groups: &mut BTreeMap<(Vec<Ports>, Purpose), BTreeMap<Host, Use>>) {
    // The parents, each with the sets of ports on which `*.parent` stands.
    let mut folded: BTreeMap<String, Vec<Vec<Ports>>> = BTreeMap::new();
    for ((ports, _), hosts) in groups.iter_mut() {
        let mut below: BTreeMap<&str, usize> = BTreeMap::new();
        for parent in hosts.keys().filter_map(parent) {
            *below.entry(parent).or_default() += 1;
        }
        let parents: Vec<String> =
            below.into_iter().filter(|(_, count)| *count >= SIBLINGS).map(|(parent, _)| parent.to_owned()).collect();
        for parent in parents {
            folded.entry(parent.clone()).or_default().push(ports.clone());
            hosts.entry(Host::Name(wildcard(&parent))).or_default();
        }
    }
    for ((ports, _), hosts) in groups.iter_mut() {
        let covered: Vec<Host> = hosts
            .keys()
            .filter(|host| matches!(host, Host::Name(name) if covering(name, ports, &folded).is_some()))
            .cloned()
            .collect();
        for host in covered {
            let Some(seen) = hosts.remove(&host) else { continue };
            if let Host::Name(name) = &host
                && let Some(parent) = covering(name, ports, &folded)
                && let Some(sum) = hosts.get_mut(&Host::Name(wildcard(parent)))
            {
                sum.merge(&seen);
            }
        }
    }
}

fn wildcard(parent: &str) -> String {
    format!("*.{parent}")
}

/// The parent of a name, where `*.parent` may be written: not a public suffix.
fn parent(host: &Host) -> Option<&str> {
    let Host::Name(name) = host else { return None };
    let (_, parent) = name.split_once('.')?;
    psl::domain_str(parent).map(|_| parent)
}

/// The parent whose wildcard covers a name, or a wildcard below it, on all of `ports`.
fn covering<'a>(name: &str, ports: &[Ports], folded: &'a BTreeMap<String, Vec<Vec<Ports>>>) -> Option<&'a str> {
    let mut rest = name.strip_prefix("*.").unwrap_or(name);
    while let Some((_, parent)) = rest.split_once('.') {
        if let Some((known, sets)) = folded.get_key_value(parent)
            && sets.iter().any(|set| ports.iter().all(|port| set.contains(port)))
        {
            return Some(known);
        }
        rest = parent;
    }
    None
}

fn item(host: &Host) -> String {
    match host {
        Host::Name(name) => name.clone(),
        Host::Address(address) => address.to_string(),
    }
}
