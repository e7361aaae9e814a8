//! Which rule almost allows a destination, and how near it comes.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::Serialize;

use super::{
    super::super::{
        compiled::{Compiled, NameKey},
        name::DomainName,
    },
    Context, Destination, Host,
};

/// Names and prefixes are compared one by one for likeness; beyond this many that takes too long to be worth it.
const COMPARED: usize = 20_000;
/// Leading bits that an address shares with an allowed prefix, at least, to be called near: a /8 of IPv4, a /32 of IPv6.
const SHARED_4: u32 = 8;
const SHARED_6: u32 = 32;

/// A rule that almost allows a destination.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Nearest {
    /// Index into [`Compiled::grants`].
    pub grant: u32,
    pub near: Near,
    /// The whole as a sentence.
    pub text: String,
}

/// How near a rule comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Near {
    /// The same name, address or prefix, on other ports.
    OtherPort,
    /// A wildcard of just this name, which a wildcard never matches.
    Apex,
    /// A name that differs in a letter or two.
    Spelling,
    /// A name or wildcard below the same domain.
    Sibling,
    /// A prefix or address with the same leading bits.
    Prefix,
}

impl Near {
    /// Its stable name, as JSON has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::OtherPort => "other-port",
            Self::Apex => "apex",
            Self::Spelling => "spelling",
            Self::Sibling => "sibling",
            Self::Prefix => "prefix",
        }
    }
}

impl Compiled {
    pub(super) fn nearest(&self, destination: &Destination, context: &Context<'_>) -> Option<Nearest> {
        match &destination.host {
            Host::Name(name) => {
                let found = self.match_name(name.as_str());
                (self.other_port(&found.classes))
                    .or_else(|| self.apex(name))
                    .or_else(|| self.alike(name))
                    .or_else(|| self.sibling(name))
            }
            Host::Address(address) => {
                let by_name =
                    context.names.iter().find_map(|name| self.other_port(&self.match_name(name.as_str()).classes));
                by_name.or_else(|| self.other_port(&[self.match_address(*address)])).or_else(|| self.prefix(*address))
            }
        }
    }

    pub(super) fn rule_name(&self, grant: u32) -> &str {
        &self.rules[self.grants[grant as usize].rule as usize].name
    }

    fn first_grant(&self, class: u32) -> Option<u32> {
        let grants = self.classes.of(class).grants;
        // That `any` is open on some other port says nothing about this destination.
        grants.iter().copied().find(|grant| self.grants[*grant as usize].item.as_ref() != "any")
    }

    fn other_port(&self, classes: &[u32]) -> Option<Nearest> {
        let grant = classes.iter().find_map(|class| self.first_grant(*class))?;
        let mut ranges: Vec<String> = classes
            .iter()
            .flat_map(|class| self.classes.of(*class).ports)
            .filter(|range| range.grant == grant)
            .map(ToString::to_string)
            .collect();
        ranges.dedup();
        let text = format!("rule `{}` allows it, but on {} only", self.rule_name(grant), ranges.join(", "));
        Some(Nearest { grant, near: Near::OtherPort, text })
    }

    fn apex(&self, name: &DomainName) -> Option<Nearest> {
        let grant = self.first_grant(self.find(name.as_str(), true)?.class)?;
        let item = &self.grants[grant as usize].item;
        let rule = self.rule_name(grant);
        let text = format!("rule `{rule}` has `{item}`, which never matches `{name}` itself: add `{name}` to its `to`");
        Some(Nearest { grant, near: Near::Apex, text })
    }

    fn alike(&self, name: &DomainName) -> Option<Nearest> {
        let limit = (name.as_str().len() / 8).max(1);
        let (_, entry) = self
            .names
            .iter()
            .take(COMPARED)
            .filter(|entry| matches!(entry.key, NameKey::Exact(_)) && entry.class != 0)
            .filter(|entry| entry.key.name().as_str().len().abs_diff(name.as_str().len()) <= limit)
            .map(|entry| (strsim::osa_distance(entry.key.name().as_str(), name.as_str()), entry))
            .filter(|(distance, _)| *distance <= limit)
            .min_by_key(|(distance, _)| *distance)?;
        let grant = self.first_grant(entry.class)?;
        let text = format!("rule `{}` allows `{}`: is that the name meant?", self.rule_name(grant), entry.key.name());
        Some(Nearest { grant, near: Near::Spelling, text })
    }

    /// What shares the most labels from the end, two at least: `com` alone says nothing.
    fn sibling(&self, name: &DomainName) -> Option<Nearest> {
        let shared = |other: &str| {
            let ends = name.as_str().rsplit('.').zip(other.rsplit('.'));
            ends.take_while(|(one, two)| one == two).count()
        };
        // Of equally near ones the first in the table, so that the answer stays the same.
        let (labels, entry) = self
            .names
            .iter()
            .take(COMPARED)
            .filter(|entry| entry.class != 0)
            .map(|entry| (shared(entry.key.name().as_str()), entry))
            .filter(|(labels, _)| *labels >= 2)
            .rev()
            .max_by_key(|(labels, _)| *labels)?;
        let grant = self.first_grant(entry.class)?;
        let item = &self.grants[grant as usize].item;
        let skipped = name.as_str().split('.').count().saturating_sub(labels);
        let domain = name.as_str().splitn(skipped + 1, '.').last().unwrap_or_default();
        let text = format!("rule `{}` allows `{item}`, which is in `{domain}` too", self.rule_name(grant));
        Some(Nearest { grant, near: Near::Sibling, text })
    }

    fn prefix(&self, address: IpAddr) -> Option<Nearest> {
        let address = address.to_canonical();
        let least = if address.is_ipv4() { SHARED_4 } else { SHARED_6 };
        let (bits, entry) = self
            .addresses
            .iter()
            .take(COMPARED)
            .filter(|entry| u32::from(entry.net.prefix_len()) >= least && entry.class != 0)
            .filter_map(|entry| Some((shared_bits(address, entry.net)?, entry)))
            .filter(|(bits, _)| *bits >= least)
            .rev()
            .max_by_key(|(bits, _)| *bits)?;
        let grant = self.first_grant(entry.class)?;
        let (rule, item) = (self.rule_name(grant), &self.grants[grant as usize].item);
        let text = format!("rule `{rule}` allows `{item}`, whose first {bits} bits are the same");
        Some(Nearest { grant, near: Near::Prefix, text })
    }
}

/// Leading bits that an address has in common with a prefix, at most its length; `None` for the other family.
fn shared_bits(address: IpAddr, net: IpNet) -> Option<u32> {
    let same = match (address, net.addr()) {
        (IpAddr::V4(one), IpAddr::V4(two)) => (one.to_bits() ^ two.to_bits()).leading_zeros(),
        (IpAddr::V6(one), IpAddr::V6(two)) => (one.to_bits() ^ two.to_bits()).leading_zeros(),
        _ => return None,
    };
    Some(same.min(u32::from(net.prefix_len())))
}
