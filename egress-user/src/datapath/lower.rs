//! From a compiled policy to the elements of the kernel's maps: pure data, nothing is written here.

use std::net::{IpAddr, SocketAddr};

use egress_ebpf::abi::{
    self, BUILTIN_ARP, BUILTIN_DHCPV4, BUILTIN_DHCPV6, BUILTIN_EAPOL, BUILTIN_IGMP, BUILTIN_LLDP, BUILTIN_LOOPBACK,
    BUILTIN_MLD, BUILTIN_NEIGHBOUR_DISCOVERY, CHUNK_PORTS, CHUNKS, ClassChunk, Config, InnerWildcard, NameValue,
    PROTO_ANY, PROTO_ICMP, PROTO_TCP, PROTO_UDP, PortRange, PrefixKey4, PrefixKey6, ResolverKey, ResolverTrust, Ticks,
};
use ipnet::IpNet;

use super::Error;
use crate::policy::{Builtins, Compiled, Mode, NameKey, PrefixEntry, Proto, Queries};

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

/// Where a generation's elements go in the arrays that two generations share.
#[derive(Clone, Copy, Debug)]
pub struct Bases {
    /// The first index in map `CLASSES`.
    pub class: u32,
    /// The first index in map `INNER_WILDCARDS`.
    pub inner: u32,
}

/// The elements of one generation.
#[derive(Debug, Default)]
pub struct Elements {
    pub config: Config,
    /// From index `Bases::class` on.
    pub classes: Vec<ClassChunk>,
    /// The index in map `CLASSES` of each class of the policy; 0 for the empty one.
    pub class_index: Vec<u32>,
    /// From index `Bases::inner` on.
    pub inner: Vec<InnerWildcard>,
    pub names: Vec<(abi::NameKey, NameValue)>,
    pub prefixes_4: Vec<(PrefixKey4, u32)>,
    pub prefixes_6: Vec<(PrefixKey6, u32)>,
    pub denies_4: Vec<(PrefixKey4, u32)>,
    pub denies_6: Vec<(PrefixKey6, u32)>,
    /// Single addresses, which the hash tables answer without a trie.
    pub addresses: Vec<(IpAddr, u32)>,
    pub resolvers: Vec<(ResolverKey, ResolverTrust)>,
}

/// Lowers `policy` to the elements of `generation`. `grants` is the index in map `GRANTS` of each of its grants.
pub fn lower(
    policy: &Compiled,
    settings: &Settings,
    generation: u32,
    grants: &[u32],
    bases: Bases,
) -> Result<Elements, Error> {
    let mut elements = Elements::default();
    classes(policy, grants, bases.class, &mut elements)?;
    names(policy, generation, bases.inner, &mut elements);
    let class = |entry: &PrefixEntry| elements.class_index[entry.class as usize];
    for entry in &policy.addresses {
        match (entry.net, class(entry)) {
            (net, class) if net.prefix_len() == net.max_prefix_len() => elements.addresses.push((net.addr(), class)),
            (IpNet::V4(net), class) => {
                elements.prefixes_4.push((key4(generation, net), class));
            }
            (IpNet::V6(net), class) => elements.prefixes_6.push((key6(generation, net), class)),
        }
    }
    for entry in &policy.denies {
        match (entry.net, class(entry)) {
            (IpNet::V4(net), class) => elements.denies_4.push((key4(generation, net), class)),
            (IpNet::V6(net), class) => elements.denies_6.push((key6(generation, net), class)),
        }
    }
    elements.resolvers = settings
        .resolvers
        .iter()
        .map(|resolver| {
            let key = ResolverKey {
                address: resolver.address.ip().into(),
                generation,
                port: resolver.address.port(),
                pad: 0,
            };
            (key, resolver.trust)
        })
        .collect();
    elements.config = config(policy, settings, generation, &elements);
    Ok(elements)
}

fn classes(policy: &Compiled, grants: &[u32], base: u32, elements: &mut Elements) -> Result<(), Error> {
    for class in &policy.classes {
        if class.ports.is_empty() {
            elements.class_index.push(0);
            continue;
        }
        let most = CHUNK_PORTS * CHUNKS as usize;
        if class.ports.len() > most {
            return Err(Error::Ports { ranges: class.ports.len(), most });
        }
        elements.class_index.push(base + elements.classes.len() as u32);
        let chunks = class.ports.chunks(CHUNK_PORTS);
        let last = chunks.len() - 1;
        for (number, ranges) in chunks.enumerate() {
            let mut chunk =
                ClassChunk { ports_id: class.ports_id, count: ranges.len() as u32, ..ClassChunk::default() };
            if number != last {
                chunk.next = base + elements.classes.len() as u32 + 1;
            }
            for (slot, range) in chunk.ports.iter_mut().zip(ranges) {
                let proto = match range.proto {
                    Proto::Tcp => PROTO_TCP,
                    Proto::Udp => PROTO_UDP,
                    Proto::Icmp => PROTO_ICMP,
                    Proto::Any => PROTO_ANY,
                };
                *slot = PortRange::new(proto, range.from, range.to, grants[range.grant as usize]);
            }
            elements.classes.push(chunk);
        }
    }
    Ok(())
}

fn names(policy: &Compiled, generation: u32, base: u32, elements: &mut Elements) {
    for entry in &policy.names {
        let (name, exact) = match &entry.key {
            NameKey::Exact(name) => (name.as_str(), true),
            NameKey::Suffix(name) => (name.as_str(), false),
        };
        let mut flags = 0;
        if entry.ask {
            flags |= NameValue::ASK;
        }
        if policy.dns.allow_private.iter().any(|pattern| covers(pattern, &entry.key)) {
            flags |= NameValue::PRIVATE;
        }
        let value = NameValue {
            class: elements.class_index[entry.class as usize],
            flags,
            inner_first: base + elements.inner.len() as u32,
            inner_count: entry.inner.len() as u16,
            // With the 0 byte or the dot that ends the key.
            len: name.len() as u16 + 1,
        };
        for inner in &entry.inner {
            elements.inner.push(InnerWildcard {
                class: elements.class_index[inner.class as usize],
                prefix_len: inner.prefix.len() as u8,
                suffix_len: inner.suffix.len() as u8,
                pad: 0,
                prefix: reversed(&inner.prefix),
                suffix: reversed(&inner.suffix),
            });
        }
        elements.names.push((name_key(generation, name, exact), value));
    }
}

/// Whether a `dns.allowPrivate` pattern covers every name that a table entry answers for.
fn covers(pattern: &crate::policy::NamePattern, key: &NameKey) -> bool {
    use crate::policy::{DomainName, NamePattern};
    match (pattern, key) {
        (pattern, NameKey::Exact(name)) => pattern.matches(name),
        (NamePattern::Below(base), NameKey::Suffix(name)) => {
            let below = |name: &DomainName, base: &DomainName| name == base || name.is_below(base);
            below(name, base)
        }
        _ => false,
    }
}

/// The key of a name in map `NAMES`: an exact name ends in a 0 byte, the suffix of a wildcard in a dot.
fn name_key(generation: u32, name: &str, exact: bool) -> abi::NameKey {
    let mut key = abi::NameKey {
        bits: 16 + 8 * (name.len() as u32 + 1),
        generation: generation as u16,
        name: [0; abi::NAME_KEY],
    };
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

fn key4(generation: u32, net: ipnet::Ipv4Net) -> PrefixKey4 {
    PrefixKey4 { bits: 32 + u32::from(net.prefix_len()), generation, address: net.network().octets() }
}

fn key6(generation: u32, net: ipnet::Ipv6Net) -> PrefixKey6 {
    PrefixKey6 { bits: 32 + u32::from(net.prefix_len()), generation, address: net.network().octets() }
}

fn config(policy: &Compiled, settings: &Settings, generation: u32, elements: &Elements) -> Config {
    let flag = |on: bool, bit: u32| if on { bit } else { 0 };
    // Rounded up: a life in ticks is never shorter than the one written down.
    let ticks = |duration: std::time::Duration| -> Ticks {
        u32::try_from(duration.as_nanos().div_ceil(1 << abi::TICK_SHIFT)).unwrap_or(u32::MAX / 4)
    };
    Config {
        generation,
        flags: flag(policy.mode == Mode::Enforce, Config::ENFORCE)
            | flag(policy.mode == Mode::Audit, Config::TELL_ANSWERS)
            | flag(policy.dns.queries == Queries::Allowlisted, Config::QUERIES_ALLOWLISTED)
            | flag(!elements.denies_4.is_empty(), Config::DENIES_4)
            | flag(!elements.denies_6.is_empty(), Config::DENIES_6)
            | flag(!elements.prefixes_4.is_empty(), Config::PREFIXES_4)
            | flag(!elements.prefixes_6.is_empty(), Config::PREFIXES_6)
            | flag(settings.resolvers.iter().any(|resolver| resolver.address.port() != 53), Config::RESOLVER_PORTS),
        builtins: builtins(&policy.builtins),
        min_ttl: ticks(policy.dns.min_ttl),
        grace: ticks(policy.dns.grace),
        cgroup_level: settings.cgroup_level.unwrap_or(Config::LEVEL_UNKNOWN),
        cgroup_id: settings.cgroup_id,
        teaching_netns: settings.teaching_netns,
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
