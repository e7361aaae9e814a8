//! The compiled tables, asked the way the data plane asks them.

mod explain;

use std::{cmp::Ordering, net::IpAddr};

use ipnet::IpNet;

pub use self::explain::{Context, Destination, Explanation, Host, Near, Nearest, Reason, Via};
use super::{
    compiled::{Compiled, NameEntry, NameKey, PortRange, PrefixEntry, Proto, Queries},
    name::{DomainName, NamePattern, label_matches},
};

/// What the rules say of a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opens {
    /// A deny rule closes it.
    Denied,
    /// An allow rule opens it.
    Rule,
    /// No rule speaks of it.
    Nothing,
}

/// What the name table says about one name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NameMatch {
    /// The classes that count, without 0; more than one where inner wildcards fit.
    pub classes: Vec<u32>,
    /// The name may be asked for: a rule allows it, or it is internal, or `dns.queries` is `any`.
    pub ask: bool,
    /// Its answers may hold private addresses (`dns.allowPrivate`).
    pub private: bool,
}

impl Compiled {
    /// Looks a name up: any case, with or without a trailing dot. Text that is no name matches nothing.
    pub fn match_name(&self, name: &str) -> NameMatch {
        let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        let any = self.dns.queries == Queries::Any;
        let Some(entry) = self.name_entry(&name) else {
            return NameMatch { ask: any, ..NameMatch::default() };
        };
        let (mut classes, mut private) = (vec![entry.class], entry.private);
        if let NameKey::Suffix(base) = &entry.key
            && let Some((label, rest)) = name.split_once('.')
            && rest == base.as_str()
        {
            for inner in entry.inner.iter().filter(|inner| label_matches(label, &inner.prefix, &inner.suffix)) {
                classes.push(inner.class);
                private |= inner.private;
            }
        }
        classes.retain(|class| *class != 0);
        classes.sort_unstable();
        classes.dedup();
        NameMatch { ask: any || entry.ask || !classes.is_empty(), classes, private }
    }

    /// The longest match: the exact key, else the longest suffix that is shorter than the name.
    fn name_entry(&self, name: &str) -> Option<&NameEntry> {
        if let Some(entry) = self.find(name, false) {
            return Some(entry);
        }
        let mut rest = name;
        while let Some((_, parent)) = rest.split_once('.') {
            if let Some(entry) = self.find(parent, true) {
                return Some(entry);
            }
            rest = parent;
        }
        None
    }

    pub(super) fn find(&self, name: &str, suffix: bool) -> Option<&NameEntry> {
        self.place_of(name, suffix).map(|index| &self.names[index])
    }

    /// Where an entry stands in [`Compiled::names`].
    pub(crate) fn place_of(&self, name: &str, suffix: bool) -> Option<usize> {
        let order = |entry: &NameEntry| {
            let is_suffix = matches!(entry.key, NameKey::Suffix(_));
            compare_reversed(entry.key.name().as_str(), name).then(is_suffix.cmp(&suffix))
        };
        self.names.binary_search_by(order).ok()
    }

    /// The class of the longest suffix that covers everything below `base`; 0 where none does.
    pub(super) fn below_class(&self, base: &DomainName) -> u32 {
        let mut rest = Some(base.as_str());
        while let Some(name) = rest {
            if let Some(entry) = self.find(name, true) {
                return entry.class;
            }
            rest = name.split_once('.').map(|(_, parent)| parent);
        }
        0
    }

    /// The class of the longest allow prefix that holds this address; 0 where none does.
    pub fn match_address(&self, address: IpAddr) -> u32 {
        longest(&self.addresses, address).map_or(0, |entry| entry.class)
    }

    /// The class of the longest deny prefix that holds this address; 0 where none does.
    pub fn match_deny(&self, address: IpAddr) -> u32 {
        longest(&self.denies, address).map_or(0, |entry| entry.class)
    }

    /// What the rules say of an address, which these names have, and a port.
    pub fn opens(&self, address: IpAddr, proto: Proto, port: u16, names: &[&str]) -> Opens {
        let opened = |class: u32| self.class_opens(class, proto, port).is_some();
        if opened(self.match_deny(address)) {
            return Opens::Denied;
        }
        let by_name = |name: &&str| self.match_name(name).classes.into_iter().any(opened);
        if opened(self.match_address(address)) || names.iter().any(by_name) { Opens::Rule } else { Opens::Nothing }
    }

    /// The class of the longest allow prefix that covers the whole of `net`; 0 where none does.
    pub(super) fn allows_covering(&self, net: IpNet) -> u32 {
        longest_net(&self.addresses, net).map_or(0, |entry| entry.class)
    }

    pub(super) fn denies_covering(&self, net: IpNet) -> u32 {
        longest_net(&self.denies, net).map_or(0, |entry| entry.class)
    }

    /// A class whose grants all cover the pattern, among them every one of its own.
    pub(super) fn pattern_class(&self, pattern: &NamePattern) -> u32 {
        let entry = match pattern {
            NamePattern::Exact(name) => self.find(name.as_str(), false),
            NamePattern::Below(base) | NamePattern::InLabel { base, .. } => self.find(base.as_str(), true),
        };
        entry.map_or(0, |entry| entry.class)
    }

    /// The first range of the class that holds this protocol and port. `port` is not looked at for other protocols
    /// than TCP and UDP; [`Proto::Any`] asks for a protocol that is neither TCP, UDP nor ICMP.
    pub fn class_opens(&self, class: u32, proto: Proto, port: u16) -> Option<&PortRange> {
        self.classes.of(class).ports.iter().find(|range| range_matches(range, proto, port))
    }
}

fn range_matches(range: &PortRange, proto: Proto, port: u16) -> bool {
    range.proto == Proto::Any
        || (range.proto == proto && (proto == Proto::Icmp || (range.from..=range.to).contains(&port)))
}

impl NameKey {
    /// The order of [`Compiled::names`].
    pub(crate) fn order(&self, other: &Self) -> Ordering {
        let is_suffix = |key: &Self| matches!(key, Self::Suffix(_));
        compare_reversed(self.name().as_str(), other.name().as_str()).then(is_suffix(self).cmp(&is_suffix(other)))
    }
}

fn compare_reversed(a: &str, b: &str) -> Ordering {
    // As `a.rsplit('.').cmp(b.rsplit('.'))`, which looks for every dot: names of one policy mostly end alike.
    let alike = a.bytes().rev().zip(b.bytes().rev()).take_while(|(a, b)| a == b).count();
    // Up to a dot the labels are the same ones.
    let same = a.as_bytes()[a.len() - alike..].iter().position(|byte| *byte == b'.').map_or(0, |dot| alike - dot);
    a[..a.len() - same].rsplit('.').cmp(b[..b.len() - same].rsplit('.'))
}

/// Asks for each length from the longest: slow beside a trie, but the tables need no other form than their own.
fn longest(entries: &[PrefixEntry], address: IpAddr) -> Option<&PrefixEntry> {
    longest_net(entries, IpNet::from(address.to_canonical()))
}

fn longest_net(entries: &[PrefixEntry], net: IpNet) -> Option<&PrefixEntry> {
    // Most policies have no deny rules.
    let mut net = (!entries.is_empty()).then_some(net);
    while let Some(wanted) = net {
        if let Ok(index) = entries.binary_search_by(|entry| entry.net.cmp(&wanted)) {
            return Some(&entries[index]);
        }
        net = wanted.supernet();
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::compare_reversed;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn names_are_compared_label_by_label_from_the_end(a in "[ab.é]{0,8}", b in "[ab.é]{0,8}", end in "[ab.é]{0,4}") {
            for (a, b) in [(a.clone(), b.clone()), (format!("{a}{end}"), format!("{b}{end}"))] {
                prop_assert_eq!(compare_reversed(&a, &b), a.rsplit('.').cmp(b.rsplit('.')), "{} {}", a, b);
            }
        }
    }
}
