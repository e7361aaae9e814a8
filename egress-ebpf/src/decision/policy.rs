//! What the rules say of a destination.

use super::{Tables, Verdict};
use crate::{
    abi::{
        Address, CHUNK_PORTS, CHUNKS, Config, ORIGIN_OUT, PROTO_ANY, PROTO_ICMP, PROTO_ICMPV6, PROTO_TCP, PROTO_UDP,
        ResolverKey, SLOTS, Slot, Ticks,
    },
    packet::Packet,
    reason::Reason,
};

/// DNS (RFC 1035, 4.2).
const PORT_DNS: u16 = 53;

/// Where something is headed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Destination {
    /// The address, IPv4 as IPv4-mapped.
    pub address: Address,
    /// The port; of ICMP the type in the upper and the code in the lower byte; 0 for other protocols.
    pub port: u16,
    /// The IP protocol number.
    pub proto: u8,
    /// 4 or 6.
    pub version: u8,
}

impl Destination {
    /// Where a packet is headed.
    #[inline(always)]
    pub const fn of(packet: &Packet) -> Self {
        Self {
            address: packet.destination,
            port: packet.destination_port,
            proto: packet.proto,
            version: packet.version,
        }
    }
}

/// The verdict of deny rules, trusted resolvers, addresses and prefixes, in this order.
///
/// [`Reason::Dns`] is provisional: whoever asks has the DNS message judged too.
// Not inlined: an established flow never comes here, and the stack of a program has 512 bytes.
#[inline(never)]
pub fn policy<T: Tables>(tables: &T, config: &Config, destination: &Destination, now: Ticks) -> Verdict {
    let generation = config.generation;
    let (denies, prefixes) = if destination.version == 4 {
        (Config::DENIES_4, Config::PREFIXES_4)
    } else {
        (Config::DENIES_6, Config::PREFIXES_6)
    };
    if config.has(denies)
        && let Some(class) = tables.deny(&destination.address, generation)
        && opens(tables, class, destination) != 0
    {
        return Verdict::plain(Reason::Denied);
    }
    let is_dns = destination.proto == PROTO_UDP || destination.proto == PROTO_TCP;
    if is_dns && (destination.port == PORT_DNS || config.has(Config::RESOLVER_PORTS)) {
        let key =
            ResolverKey { generation, address: destination.address, port: destination.port, pad: 0 };
        if tables.resolver(&key).is_some() {
            return Verdict::plain(Reason::Dns);
        }
    }
    let mut refused = Reason::NoRule;
    if let Some(entry) = tables.address(&destination.address, generation) {
        // By index: a copy of the entry would not fit the stack.
        let mut index = 0;
        while index < SLOTS {
            let slot = Slot::unpack(entry.slots[index]);
            index += 1;
            if slot.class == 0 {
                continue;
            }
            let grant = opens(tables, slot.class, destination);
            if grant != 0 && slot.lives(now) {
                return Verdict { reason: Reason::Rule, grant, remember: ORIGIN_OUT };
            }
            if grant != 0 {
                refused = Reason::Expired;
            } else if matches!(refused, Reason::NoRule) && slot.lives(now) {
                refused = Reason::NoPort;
            }
        }
    }
    if config.has(prefixes)
        && let Some(class) = tables.prefix(&destination.address, generation)
    {
        let grant = opens(tables, class, destination);
        if grant != 0 {
            return Verdict { reason: Reason::Rule, grant, remember: ORIGIN_OUT };
        }
        if class != 0 && matches!(refused, Reason::NoRule) {
            refused = Reason::NoPort;
        }
    }
    if is_dns && destination.port == PORT_DNS && !matches!(refused, Reason::Expired) {
        refused = Reason::UntrustedResolver;
    }
    Verdict::plain(refused)
}

/// The grant by which `class` opens the destination's protocol and port, or 0.
#[inline(always)]
pub fn opens<T: Tables>(tables: &T, class: u32, destination: &Destination) -> u32 {
    let Some(chunk) = tables.class(class) else { return 0 };
    let mut index = 0;
    // Nearly every class fits one chunk; the walk along the chain is apart, so that it costs the others nothing.
    while index < CHUNK_PORTS {
        let grant = range_grant(&chunk.ports[index], destination);
        if grant != 0 {
            return grant;
        }
        index += 1;
    }
    if chunk.next == 0 { 0 } else { opens_chain(tables, chunk.next, destination) }
}

#[inline(always)]
fn range_grant(range: &crate::abi::PortRange, destination: &Destination) -> u32 {
    let matches = range.grant != 0
        && match range.proto {
            PROTO_ANY => true,
            PROTO_ICMP => {
                (destination.proto == PROTO_ICMP && destination.version == 4)
                    || (destination.proto == PROTO_ICMPV6 && destination.version == 6)
            }
            proto => {
                proto == destination.proto && range.from <= destination.port && destination.port <= range.to
            }
        };
    if matches { range.grant } else { 0 }
}

#[inline(always)]
fn opens_chain<T: Tables>(tables: &T, first: u32, destination: &Destination) -> u32 {
    let mut walk = Chain { tables, destination, next: first, grant: 0 };
    crate::repeat::repeat(CHUNKS, &mut walk);
    walk.grant
}

struct Chain<'a, T> {
    tables: &'a T,
    destination: &'a Destination,
    next: u32,
    grant: u32,
}

impl<T: Tables> crate::repeat::Step for Chain<'_, T> {
    #[inline(always)]
    fn step(&mut self, _index: u32) -> bool {
        let Some(chunk) = self.tables.class(self.next) else { return false };
        for range in &chunk.ports {
            let grant = range_grant(range, self.destination);
            if grant != 0 {
                self.grant = grant;
                return false;
            }
        }
        self.next = chunk.next;
        self.next != 0
    }
}
