//! The object with a policy in its maps, written directly.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::AsRawFd as _,
};

use anyhow::{Context as _, Result};
use egress_ebpf::abi::*;
use egress_user::datapath::{Object, Plain, Sizes, Table, sys};

pub const RESOLVER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 53)), 53);
pub const CLIENT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 1, 1, 1)), 40_053);
/// A stub of the node, and who asks it.
pub const STUB: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(127, 0, 0, 53)), 53);
pub const NEAR: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 40_053);
pub const NAME: &str = "mcr.microsoft.com";

const GENERATION: u32 = 4;
const CLASS: u32 = 1;
const DENY_CLASS: u32 = 2;

/// Kernel memory of the maps.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Memory {
    pub addresses: u32,
    pub names: u32,
    pub prefixes: u32,
    /// Bytes, by map, the largest first.
    pub maps: Vec<(&'static str, u64)>,
    pub total: u64,
}

pub struct Place {
    pub object: Object,
    pub ifindex: u32,
    addresses: u32,
    names: u32,
    prefixes: u32,
    rules: u32,
}

/// An object with room for so many addresses, and rules that open ports for some of them.
pub fn object(addresses: u32, rules: u32) -> Result<Object> {
    let part = (addresses / 10).clamp(1024, 100_000).next_power_of_two() * 2;
    let sizes = Sizes {
        addresses: (addresses * 2).next_power_of_two().max(1024),
        prefixes: part,
        classes: rules + 64,
        grants: rules + 64,
        names: part,
        inner: 64,
        flows: 1 << 17,
    };
    Ok(Object::load(&sizes, None)?)
}

/// A learned address by its number.
pub fn address(four: bool, number: u32) -> IpAddr {
    if four {
        Ipv4Addr::from(0x2000_0000 + number).into()
    } else {
        Ipv6Addr::from(0x2001_0db8_0002_0000_u128 << 64 | u128::from(number)).into()
    }
}

/// An address in an allowed prefix by its number.
pub fn prefix(four: bool, number: u32) -> IpAddr {
    if four {
        Ipv4Addr::from(0x6000_0000 + (number << 8) + 9).into()
    } else {
        Ipv6Addr::from((0x2001_0db8_0003_0000_u128 + u128::from(number)) << 64 | 9).into()
    }
}

impl Place {
    /// Tables with so many addresses, which are shared out among so many rules.
    pub fn new(addresses: u32, rules: u32, ifindex: u32) -> Result<Self> {
        let object = object(addresses, rules)?;
        let part = (addresses / 10).clamp(10, 100_000);
        let place = Self { object, ifindex, addresses, names: part, prefixes: part, rules };
        place.fill()?;
        Ok(place)
    }

    /// Addresses in the table.
    pub fn addresses(&self) -> u32 {
        self.addresses
    }

    /// Rules that the addresses are shared out among.
    pub fn rules(&self) -> u32 {
        self.rules
    }

    /// Prefixes in the table.
    pub fn prefixes(&self) -> u32 {
        self.prefixes
    }

    fn table<K: Plain, V: Plain>(&self, name: &'static str) -> Result<Table<K, V>> {
        Ok(self.object.table(name)?)
    }

    fn set<K: Plain, V: Plain>(&self, name: &'static str, elements: &[(K, V)]) -> Result<()> {
        self.table(name)?.set_all(elements).with_context(|| format!("fill {name}"))
    }

    fn fill(&self) -> Result<()> {
        let (generation, epoch) = (GENERATION, GENERATION);
        let table: Table<ResolverKey, ResolverTrust> = self.table("RESOLVERS")?;
        let resolvers = [(RESOLVER, LEARN_AT_CGROUP | LEARN_AT_UPLINK), (STUB, LEARN_AT_CGROUP | LEARN_BY_LOOPBACK)];
        for (resolver, trust) in resolvers {
            let key = ResolverKey { generation, address: resolver.ip().into(), port: 53, pad: 0 };
            table.set(&key, &trust, sys::ANY)?;
        }
        let mut open = ClassChunk { ports_id: 1, count: 2, ..ClassChunk::default() };
        open.ports[0] = PortRange::new(PROTO_TCP, 443, 443, 1);
        open.ports[1] = PortRange::new(PROTO_UDP, 443, 443, 2);
        let mut deny = ClassChunk { ports_id: 2, count: 1, ..ClassChunk::default() };
        deny.ports[0] = PortRange::new(PROTO_ANY, 0, 0, 3);
        // The first rule has the first two grants, deny rules the third, each further rule one of its own.
        let mut classes = vec![(CLASS, open), (DENY_CLASS, deny)];
        for number in 1..self.rules {
            let mut class = ClassChunk { ports_id: 2 + number, count: 1, ..ClassChunk::default() };
            class.ports[0] = PortRange::new(PROTO_TCP, 443, 443, 3 + number);
            classes.push((DENY_CLASS + number, class));
        }
        self.set("CLASSES", &classes)?;
        let grant = GrantEntry { key: 1, from: 1, until: u32::MAX };
        self.set("GRANTS", &(1..3 + self.rules).map(|number| (number, grant)).collect::<Vec<_>>())?;
        // Learned, and far from its end.
        let entry = |number: u32| {
            let rule = number % self.rules;
            let class = if rule == 0 { CLASS } else { DENY_CLASS + rule };
            let mut entry = AddressEntry::default();
            entry.slots[0] = Slot { class, expiry: NEVER - 1 }.pack();
            entry
        };
        let each = |four| (0..self.addresses).map(move |number| (address(four, number), entry(number)));
        let key = |address| match address {
            IpAddr::V4(address) => AddressKey4 { address: Ipv4Addr::octets(&address), epoch },
            IpAddr::V6(_) => AddressKey4 { address: [0; 4], epoch },
        };
        self.set("ADDRESSES_4", &each(true).map(|(address, entry)| (key(address), entry)).collect::<Vec<_>>())?;
        let key = |address: IpAddr| AddressKey6 { address: address.into(), epoch, pad: 0 };
        // A tenth of both families' addresses is IPv6.
        let six: Vec<_> =
            each(false).take((self.addresses / 10).max(100) as usize).map(|(a, entry)| (key(a), entry)).collect();
        self.set("ADDRESSES_6", &six)?;
        let key4 = |address, bits: u32| match address {
            IpAddr::V4(address) => PrefixKey4 { bits: 32 + bits, epoch, address: Ipv4Addr::octets(&address) },
            IpAddr::V6(_) => PrefixKey4 { bits: 32, epoch, address: [0; 4] },
        };
        let key6 = |address, bits: u32| match address {
            IpAddr::V6(address) => PrefixKey6 { bits: 32 + bits, epoch, address: Ipv6Addr::octets(&address) },
            IpAddr::V4(_) => PrefixKey6 { bits: 32, epoch, address: [0; 16] },
        };
        let mask = |address: IpAddr| {
            ipnet::IpNet::new(address, if address.is_ipv4() { 24 } else { 64 }).map(|net| net.network())
        };
        let prefixes = |four| (0..self.prefixes).filter_map(move |number| mask(prefix(four, number)).ok());
        self.set("PREFIXES_4", &prefixes(true).map(|net| (key4(net, 24), CLASS)).collect::<Vec<_>>())?;
        self.set("PREFIXES_6", &prefixes(false).map(|net| (key6(net, 64), CLASS)).collect::<Vec<_>>())?;
        self.set("DENIES_4", &[(key4("203.0.113.0".parse()?, 24), DENY_CLASS)])?;
        self.set("DENIES_6", &[(key6("2001:db8:dead::".parse()?, 64), DENY_CLASS)])?;
        let mut names: Vec<_> = (1..self.names).map(|number| format!("host-{number}.zone.example.com")).collect();
        names.push(NAME.to_owned());
        let names: Vec<_> = names
            .iter()
            .map(|name| {
                let bits = 16 + 8 * (name.len() as u32 + 1);
                let mut key = NameKey { bits, epoch: epoch as u16, name: [0; NAME_KEY] };
                key.name.iter_mut().zip(name.bytes().rev()).for_each(|(slot, byte)| *slot = byte);
                let value = NameValue { class: CLASS, len: name.len() as u16 + 1, ..NameValue::default() };
                (key, NameEntry::new(value))
            })
            .collect();
        self.set("NAMES", &names)?;
        self.configure(0)?;
        self.table::<u32, u64>("LIVE")?.set(&0, &Live { generation, deadline: 0 }.pack(), sys::ANY)?;
        Ok(())
    }

    /// Gives the live policy these flags, beside those that every policy here has.
    pub fn configure(&self, flags: u32) -> Result<()> {
        let (generation, builtins) = (GENERATION, u32::MAX);
        let flags = flags | Config::ENFORCE | Config::QUERIES_ALLOWLISTED;
        let config =
            Config { generation, epoch: generation, flags, builtins, min_ttl: 56, grace: 838, ..Config::default() };
        Ok(self.table::<u32, Config>("CONFIG")?.set(&(generation & 1), &config, sys::ANY)?)
    }

    /// What the maps take (`memlock` of their descriptors' `fdinfo`).
    pub fn memory(&self) -> Result<Memory> {
        let mut maps = Vec::new();
        for name in MAPS {
            let fd = self.object.map_fd(name)?;
            let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd()))?;
            let line = text.lines().find_map(|line| line.strip_prefix("memlock:")).context("no memlock in fdinfo")?;
            maps.push((name, line.trim().parse::<u64>()?));
        }
        maps.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
        let total = maps.iter().map(|(_, bytes)| bytes).sum();
        let Self { addresses, names, prefixes, .. } = *self;
        Ok(Memory { addresses, names, prefixes, maps, total })
    }
}

const MAPS: [&str; 21] = [
    "ADDRESSES_4",
    "ADDRESSES_6",
    "ALIASES",
    "ANSWER_FOLDS",
    "CLASSES",
    "COUNTERS",
    "DENIES_4",
    "DENIES_6",
    "DROP_FOLDS",
    "EVENTS",
    "FLOWS",
    "FRAGMENTS",
    "GRANT_HITS",
    "GRANTS",
    "NAMES",
    "PEERS",
    "PENDING",
    "PENDING_RINGS",
    "PREFIXES_4",
    "PREFIXES_6",
    "WORK",
];
