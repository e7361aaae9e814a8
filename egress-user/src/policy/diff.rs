//! Two policies compared by meaning: what may be reached under one and not under the other, whatever the rules are called
//! and in which files they stand.
//!
//! The compiled tables split names and addresses into regions, each with one set of ports. A policy means the same as
//! another where both open the same ports in each region of either.

use std::{collections::BTreeMap, fmt};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{
    compiled::{Builtins, Compiled, Mode, NameKey, PrefixEntry, Queries, Resolvers},
    name::DomainName,
    ports::Ports,
};

/// What changes from one policy to another.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Diff {
    /// `mode`, `dns.*` and `builtins.*` that are another.
    pub settings: Vec<Setting>,
    /// What may be reached now, and could not before.
    pub gained: Vec<Opening>,
    /// What could be reached, and may not any more.
    pub lost: Vec<Opening>,
    /// What deny rules close now.
    pub denied: Vec<Opening>,
    /// What deny rules no longer close.
    pub undenied: Vec<Opening>,
}

/// A setting that changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setting {
    /// Where it is written: `mode`, `dns.grace`, `builtins.arp`.
    pub key: String,
    pub before: String,
    pub after: String,
}

/// A destination and ports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opening {
    /// A name, a wildcard, an address or a prefix, as a rule's `to` has it.
    pub to: String,
    /// As a rule's `ports` has them.
    pub ports: Vec<String>,
    /// The rules that open (or did) these ports there.
    pub rules: Vec<String>,
}

/// The ports of one region as bits; index 0 is TCP, 1 UDP, 2 ICMP.
type Set = [Vec<(u32, u32)>; 3];

impl Diff {
    /// From `before` to `after`.
    pub fn new(before: &Compiled, after: &Compiled) -> Self {
        let mut diff = Self { settings: settings(before, after), ..Self::default() };
        let mut regions = Regions::default();
        for policy in [before, after] {
            for entry in &policy.names {
                let name = entry.key.name();
                match entry.key {
                    NameKey::Exact(_) => regions.exact(name, before, after),
                    NameKey::Suffix(_) => regions.suffix(name, before, after),
                }
                for inner in &entry.inner {
                    regions.inner(&inner.prefix, &inner.suffix, name, before, after);
                }
            }
        }
        regions.into_openings(&mut diff.gained, &mut diff.lost);
        let allowed = |policy: &Compiled, net| policy.allows_covering(net);
        prefixes(before, after, &before.addresses, &after.addresses, allowed)
            .into_openings(&mut diff.gained, &mut diff.lost);
        let denied = |policy: &Compiled, net| policy.denies_covering(net);
        prefixes(before, after, &before.denies, &after.denies, denied)
            .into_openings(&mut diff.denied, &mut diff.undenied);
        diff
    }

    /// Whether both mean the same.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// A region's ports before and after, each with the rules that open them.
#[derive(Debug, Default)]
struct Region {
    /// How the region is written.
    to: String,
    before: (Set, Vec<String>),
    after: (Set, Vec<String>),
}

/// Regions by their [`path`]s, so that each comes behind what covers it: the region whose path is the longest that its own begins with.
#[derive(Default)]
struct Regions(BTreeMap<Vec<u8>, Region>);

impl Regions {
    fn exact(&mut self, name: &DomainName, before: &Compiled, after: &Compiled) {
        let side = |policy: &Compiled| side(policy, &policy.match_name(name.as_str()).classes);
        self.add(path(name, Some("")), name.to_string(), side(before), side(after));
    }

    fn suffix(&mut self, name: &DomainName, before: &Compiled, after: &Compiled) {
        let side = |policy: &Compiled| side(policy, &[policy.below_class(name)]);
        self.add(path(name, None), format!("*.{name}"), side(before), side(after));
    }

    fn inner(&mut self, prefix: &str, suffix: &str, base: &DomainName, before: &Compiled, after: &Compiled) {
        let side = |policy: &Compiled| {
            let mut classes = vec![policy.below_class(base)];
            let inner = policy.find(base.as_str(), true).into_iter().flat_map(|entry| &entry.inner);
            classes.extend(
                inner.filter(|inner| inner.prefix == prefix && inner.suffix == suffix).map(|inner| inner.class),
            );
            side(policy, &classes)
        };
        let label = format!("{prefix}*{suffix}");
        self.add(path(base, Some(&label)), format!("{label}.{base}"), side(before), side(after));
    }

    fn add(&mut self, path: Vec<u8>, to: String, before: (Set, Vec<String>), after: (Set, Vec<String>)) {
        self.0.insert(path, Region { to, before, after });
    }

    /// What differs, without what the region above says already.
    fn into_openings(self, more: &mut Vec<Opening>, less: &mut Vec<Opening>) {
        for (path, region) in &self.0 {
            let changes =
                |region: &Region| (minus(&region.after.0, &region.before.0), minus(&region.before.0, &region.after.0));
            let (gained, lost) = changes(region);
            if is_empty(&gained) && is_empty(&lost) {
                continue;
            }
            let above = (0..path.len()).rev().find_map(|length| self.0.get(&path[..length]));
            let said = above.map(&changes).unwrap_or_default();
            let tell = |ports: &Set, said: &Set, rules: &[String], into: &mut Vec<Opening>| {
                if !is_empty(ports) && ports != said {
                    into.push(Opening { to: region.to.clone(), ports: written(ports), rules: rules.to_vec() });
                }
            };
            tell(&gained, &said.0, &region.after.1, more);
            tell(&lost, &said.1, &region.before.1, less);
        }
    }
}

/// The labels from the right, each ended by a 0 byte, which no label has; `last` tells a name (or a label's pattern) from the suffix
/// itself.
fn path(name: &DomainName, last: Option<&str>) -> Vec<u8> {
    name.as_str().rsplit('.').chain(last).flat_map(|label| label.bytes().chain([0])).collect()
}

fn prefixes(
    before: &Compiled,
    after: &Compiled,
    old: &[PrefixEntry],
    new: &[PrefixEntry],
    class: impl Fn(&Compiled, IpNet) -> u32,
) -> Regions {
    let mut regions = Regions::default();
    for net in old.iter().chain(new).map(|entry| entry.net) {
        let side = |policy: &Compiled| side(policy, &[class(policy, net)]);
        let (family, bits) = match net {
            IpNet::V4(net) => (b'4', u128::from(net.network().to_bits()) << 96),
            IpNet::V6(net) => (b'6', net.network().to_bits()),
        };
        let bit = |at: u8| if bits >> (127 - at) & 1 == 0 { b'0' } else { b'1' };
        let path = std::iter::once(family).chain((0..net.prefix_len()).map(bit)).collect();
        let single = net.prefix_len() == net.max_prefix_len();
        let to = match (single, net.prefix_len()) {
            (true, _) => net.addr().to_string(),
            (_, 0) => format!("any IPv{} address", char::from(family)),
            _ => net.to_string(),
        };
        regions.add(path, to, side(before), side(after));
    }
    regions
}

/// What these classes of a policy open, and by which rules.
fn side(policy: &Compiled, classes: &[u32]) -> (Set, Vec<String>) {
    let mut set = Set::default();
    let mut rules = Vec::new();
    for range in classes.iter().flat_map(|class| policy.classes.of(*class).ports) {
        let grant = &policy.grants[range.grant as usize];
        rules.push(policy.rules[grant.rule as usize].name.clone());
        use super::compiled::Proto;
        let whole = (0, u32::from(u16::MAX));
        let ports = if range.from <= 1 && range.to == u16::MAX { whole } else { (range.from.into(), range.to.into()) };
        match range.proto {
            Proto::Tcp => set[0].push(ports),
            Proto::Udp => set[1].push(ports),
            Proto::Icmp => set[2].push(whole),
            Proto::Any => set.iter_mut().for_each(|ports| ports.push(whole)),
        }
    }
    rules.sort_unstable();
    rules.dedup();
    for ports in &mut set {
        ports.sort_unstable();
        ports.dedup_by(|next, before| {
            let join = next.0 <= before.1 + 1;
            if join {
                before.1 = before.1.max(next.1);
            }
            join
        });
    }
    (set, rules)
}

/// The ports of `from` that are not in `less`; both sorted, nothing overlaps.
fn minus(from: &Set, less: &Set) -> Set {
    std::array::from_fn(|proto| {
        let mut left = Vec::new();
        for &(mut first, last) in &from[proto] {
            for &(begin, end) in &less[proto] {
                if end < first || begin > last {
                    continue;
                }
                if begin > first {
                    left.push((first, begin - 1));
                }
                first = end + 1;
            }
            if first <= last {
                left.push((first, last));
            }
        }
        left
    })
}

fn is_empty(set: &Set) -> bool {
    set.iter().all(Vec::is_empty)
}

fn written(set: &Set) -> Vec<String> {
    use super::compiled::Proto;
    let whole = [(0, u32::from(u16::MAX))];
    if set.iter().all(|ports| *ports == whole) {
        return vec![Ports::ANY.to_string()];
    }
    [Proto::Tcp, Proto::Udp, Proto::Icmp]
        .into_iter()
        .zip(set)
        .flat_map(|(proto, ports)| {
            ports.iter().map(move |&(from, to)| Ports { proto, from: from as u16, to: to as u16 }.to_string())
        })
        .collect()
}

fn settings(before: &Compiled, after: &Compiled) -> Vec<Setting> {
    let mut settings = Vec::new();
    let mut compare = |key: &str, of: &dyn Fn(&Compiled) -> String| {
        let (before, after) = (of(before), of(after));
        if before != after {
            settings.push(Setting { key: key.to_owned(), before, after });
        }
    };
    fn list<T: fmt::Display>(items: &[T]) -> String {
        let mut items: Vec<_> = items.iter().map(ToString::to_string).collect();
        items.sort_unstable();
        items.dedup();
        if items.is_empty() { "none".to_owned() } else { items.join(", ") }
    }
    compare("mode", &|policy| if policy.mode == Mode::Audit { "audit" } else { "enforce" }.to_owned());
    compare("dns.resolvers", &|policy| match &policy.dns.resolvers {
        Resolvers::System => "system".to_owned(),
        Resolvers::Addresses(addresses) => list(addresses),
    });
    compare("dns.queries", &|policy| if policy.dns.queries == Queries::Any { "any" } else { "allowlisted" }.to_owned());
    compare("dns.internal", &|policy| list(&policy.dns.internal));
    compare("dns.minTtl", &|policy| format!("{}s", policy.dns.min_ttl.as_secs()));
    compare("dns.grace", &|policy| format!("{}s", policy.dns.grace.as_secs()));
    compare("dns.maxStale", &|policy| format!("{}s", policy.dns.max_stale.as_secs()));
    compare("dns.allowPrivate", &|policy| list(&policy.dns.allow_private));
    for name in Builtins::NAMES {
        compare(&format!("builtins.{name}"), &|policy| {
            let mut builtins = policy.builtins;
            builtins.get_mut(name).is_some_and(|on| *on).to_string()
        });
    }
    settings
}

impl fmt::Display for Diff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Setting { key, before, after } in &self.settings {
            writeln!(f, "~ {key}: {before} -> {after}")?;
        }
        let sections =
            [("+ allow", &self.gained), ("- allow", &self.lost), ("+ deny", &self.denied), ("- deny", &self.undenied)];
        for (sign, openings) in sections {
            for Opening { to, ports, rules } in openings {
                writeln!(f, "{sign} {to}  {}  ({})", ports.join(", "), rules.join(", "))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
