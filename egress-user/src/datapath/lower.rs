//! From a compiled policy to the elements of the kernel's maps: pure data, nothing is written here.

use std::net::{IpAddr, SocketAddr};

use egress_ebpf::abi::{
    self, BUILTIN_ARP, BUILTIN_DHCPV4, BUILTIN_DHCPV6, BUILTIN_EAPOL, BUILTIN_IGMP, BUILTIN_LLDP, BUILTIN_LOOPBACK,
    BUILTIN_MLD, BUILTIN_NEIGHBOUR_DISCOVERY, Config, InnerWildcard, NameEntry, NameValue, PrefixKey4, PrefixKey6,
    ResolverKey, ResolverTrust, Ticks,
};
use ipnet::IpNet;

use crate::policy::{self, Builtins, Compiled, Mode, NameKey, PrefixEntry, Queries};

/// A resolver that is trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resolver {
    /// Where it listens.
    pub address: SocketAddr,
    /// Where its answers are believed: `LEARN_*` bits.
    pub trust: ResolverTrust,
}

/// What a generation needs besides its policy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// The trusted resolvers.
    pub resolvers: Vec<Resolver>,
    /// The governed cgroup's depth below the machine's root, where it is known.
    pub cgroup_level: Option<u32>,
    /// The governed cgroup's id, 0 for none.
    pub cgroup_id: u64,
    /// The network namespace whose sockets may teach names, 0 for any.
    pub teaching_netns: u64,
}

/// Where a generation's elements go.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// Its number.
    pub generation: u32,
    /// The epoch that its elements are of.
    pub epoch: u32,
    /// The index in map `CLASSES` of each class of the policy; 0 for one that opens nothing.
    pub classes: &'a [u32],
    /// The first index in map `INNER_WILDCARDS`.
    pub inner: u32,
}

/// The elements of one generation.
#[derive(Debug, Default)]
pub struct Elements {
    pub config: Config,
    /// From index `Place::inner` on.
    pub inner: Vec<InnerWildcard>,
    pub names: Vec<(abi::NameKey, NameEntry)>,
    pub prefixes_4: Vec<(PrefixKey4, u32)>,
    pub prefixes_6: Vec<(PrefixKey6, u32)>,
    pub denies_4: Vec<(PrefixKey4, u32)>,
    pub denies_6: Vec<(PrefixKey6, u32)>,
    /// Single addresses, which the hash tables answer without a trie.
    pub addresses: Vec<(IpAddr, u32)>,
    pub resolvers: Vec<(ResolverKey, ResolverTrust)>,
}

/// Lowers `policy` to its elements.
pub fn lower(policy: &Compiled, settings: &Settings, place: Place<'_>) -> Elements {
    let mut elements = Elements::default();
    for (entry, value) in policy.names.iter().zip(name_values(policy, place)) {
        elements.inner.extend(entry.inner.iter().map(|inner| inner_wildcard(inner, place)));
        elements.names.push((name_key(place.epoch, &entry.key), NameEntry::new(value)));
    }
    let class = |entry: &PrefixEntry| place.classes[entry.class as usize];
    for entry in &policy.addresses {
        match (entry.net, class(entry)) {
            (net, class) if is_address(&net) => elements.addresses.push((net.addr(), class)),
            (IpNet::V4(net), class) => elements.prefixes_4.push((key4(place.epoch, net), class)),
            (IpNet::V6(net), class) => elements.prefixes_6.push((key6(place.epoch, net), class)),
        }
    }
    for entry in &policy.denies {
        match (entry.net, class(entry)) {
            (IpNet::V4(net), class) => elements.denies_4.push((key4(place.epoch, net), class)),
            (IpNet::V6(net), class) => elements.denies_6.push((key6(place.epoch, net), class)),
        }
    }
    elements.resolvers = resolvers(settings, place.generation);
    elements.config = config(policy, settings, place);
    elements
}

/// Whether an allowed prefix is a single address, which the hash tables answer without a trie.
pub(super) fn is_address(net: &IpNet) -> bool {
    net.prefix_len() == net.max_prefix_len()
}

/// The trusted resolvers as a generation has them.
pub(super) fn resolvers(settings: &Settings, generation: u32) -> Vec<(ResolverKey, ResolverTrust)> {
    let key =
        |address: SocketAddr| ResolverKey { address: address.ip().into(), generation, port: address.port(), pad: 0 };
    settings.resolvers.iter().map(|resolver| (key(resolver.address), resolver.trust)).collect()
}

/// What map `NAMES` says of each of the policy's entries, in their order.
pub(super) fn name_values<'a>(policy: &'a Compiled, place: Place<'a>) -> impl Iterator<Item = NameValue> + 'a {
    let mut inner = place.inner;
    policy.names.iter().map(move |entry| {
        let mut flags = 0;
        if entry.ask {
            flags |= NameValue::ASK;
        }
        if entry.private {
            flags |= NameValue::PRIVATE;
        }
        let inner_count = entry.inner.len() as u16;
        let inner_first = if inner_count == 0 { 0 } else { inner };
        inner += u32::from(inner_count);
        NameValue {
            class: place.classes[entry.class as usize],
            flags,
            inner_first,
            inner_count,
            // With the 0 byte or the dot that ends the key.
            len: entry.key.name().as_str().len() as u16 + 1,
        }
    })
}

/// A wildcard inside a label as map `INNER_WILDCARDS` has it.
pub(super) fn inner_wildcard(inner: &policy::InnerWildcard, place: Place<'_>) -> InnerWildcard {
    InnerWildcard {
        class: place.classes[inner.class as usize],
        prefix_len: inner.prefix.len() as u8,
        suffix_len: inner.suffix.len() as u8,
        flags: if inner.private { NameValue::PRIVATE as u16 } else { 0 },
        prefix: reversed(&inner.prefix),
        suffix: reversed(&inner.suffix),
    }
}

/// The key of a name in map `NAMES`: an exact name ends in a 0 byte, the suffix of a wildcard in a dot.
pub(super) fn name_key(epoch: u32, key: &NameKey) -> abi::NameKey {
    let (name, exact) = match key {
        NameKey::Exact(name) => (name.as_str(), true),
        NameKey::Suffix(name) => (name.as_str(), false),
    };
    let mut key =
        abi::NameKey { bits: 16 + 8 * (name.len() as u32 + 1), epoch: epoch as u16, name: [0; abi::NAME_KEY] };
    for (slot, byte) in key.name.iter_mut().zip(name.bytes().rev().chain((!exact).then_some(b'.'))) {
        *slot = byte;
    }
    key
}

fn reversed(text: &str) -> [u8; 64] {
    let mut bytes = [0; 64];
    for (slot, byte) in bytes.iter_mut().zip(text.bytes().rev()) {
        *slot = byte;
    }
    bytes
}

pub(super) fn key4(epoch: u32, net: ipnet::Ipv4Net) -> PrefixKey4 {
    PrefixKey4 { bits: 32 + u32::from(net.prefix_len()), epoch, address: net.network().octets() }
}

pub(super) fn key6(epoch: u32, net: ipnet::Ipv6Net) -> PrefixKey6 {
    PrefixKey6 { bits: 32 + u32::from(net.prefix_len()), epoch, address: net.network().octets() }
}

pub(super) fn config(policy: &Compiled, settings: &Settings, place: Place<'_>) -> Config {
    let any = |entries: &[PrefixEntry], v4: bool, addresses: bool| {
        entries.iter().any(|entry| entry.net.addr().is_ipv4() == v4 && (addresses || !is_address(&entry.net)))
    };
    let flag = |on: bool, bit: u32| if on { bit } else { 0 };
    // Rounded up: a life in ticks is never shorter than the one written down.
    let ticks = |duration: std::time::Duration| -> Ticks {
        u32::try_from(duration.as_nanos().div_ceil(1 << abi::TICK_SHIFT)).unwrap_or(u32::MAX / 4)
    };
    Config {
        generation: place.generation,
        epoch: place.epoch,
        flags: flag(policy.mode == Mode::Enforce, Config::ENFORCE)
            | flag(policy.mode == Mode::Audit, Config::TELL_ANSWERS)
            | flag(policy.dns.queries == Queries::Allowlisted, Config::QUERIES_ALLOWLISTED)
            | flag(any(&policy.denies, true, true), Config::DENIES_4)
            | flag(any(&policy.denies, false, true), Config::DENIES_6)
            | flag(any(&policy.addresses, true, false), Config::PREFIXES_4)
            | flag(any(&policy.addresses, false, false), Config::PREFIXES_6)
            | flag(settings.resolvers.iter().any(|resolver| resolver.address.port() != 53), Config::RESOLVER_PORTS),
        builtins: builtins(&policy.builtins),
        min_ttl: ticks(policy.dns.min_ttl),
        grace: ticks(policy.dns.grace),
        cgroup_level: settings.cgroup_level.unwrap_or(Config::LEVEL_UNKNOWN),
        allow_private: policy.dns.allow_private_hash(),
        cgroup_id: settings.cgroup_id,
        teaching_netns: settings.teaching_netns,
        policy: policy.hash,
    }
}

fn builtins(builtins: &Builtins) -> u32 {
    // Destructured, so that a new builtin cannot be forgotten here.
    let Builtins { loopback, arp, eapol, lldp, neighbour_discovery, mld, igmp, dhcpv4, dhcpv6 } = *builtins;
    [
        (loopback, BUILTIN_LOOPBACK),
        (arp, BUILTIN_ARP),
        (eapol, BUILTIN_EAPOL),
        (lldp, BUILTIN_LLDP),
        (neighbour_discovery, BUILTIN_NEIGHBOUR_DISCOVERY),
        (mld, BUILTIN_MLD),
        (igmp, BUILTIN_IGMP),
        (dhcpv4, BUILTIN_DHCPV4),
        (dhcpv6, BUILTIN_DHCPV6),
    ]
    .into_iter()
    .filter(|(on, _)| *on)
    .fold(0, |bits, (_, bit)| bits | bit)
}
