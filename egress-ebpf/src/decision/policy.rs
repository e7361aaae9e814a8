//! What the rules say of a destination.

use super::{Tables, Verdict};
use crate::{
    abi::{
        Address, AddressEntry, CHUNKS, Config, ORIGIN_OUT, PROTO_ICMP, PROTO_TCP, PROTO_UDP, ResolverKey, SLOTS, Slot,
        Ticks, port_key,
    },
    dns::bytes::opaque,
    packet::Packet,
    reason::Reason,
    repeat::{Step, repeat},
};

/// DNS (RFC 1035, 4.2).
pub(super) const PORT_DNS: u16 = 53;

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
    /// A destination; `port` is 0 where the protocol has none, of ICMP type and code.
    #[inline(always)]
    pub const fn new(address: Address, version: u8, proto: u8, port: u16) -> Self {
        Self { address, port, proto, version }
    }

    /// Where a packet is headed.
    #[inline(always)]
    pub const fn of(packet: &Packet) -> Self {
        Self::new(packet.destination, packet.version, packet.proto, packet.destination_port)
    }
}

/// The verdict of deny rules, trusted resolvers, addresses and prefixes, in this order.
///
/// [`Reason::Dns`] is provisional: whoever asks has the DNS message judged too.
#[inline(always)]
pub fn policy<T: Tables>(tables: &T, config: &Config, destination: &Destination, now: Ticks) -> Verdict {
    let key = port_key(destination.version, destination.proto, destination.port);
    if config.has(of_family(Config::DENIES_4, destination))
        && let Some(class) = tables.deny(&destination.address, config.epoch)
        && tables.opens(class, key, config.generation) != 0
    {
        return Verdict::plain(Reason::Denied);
    }
    if matches!(destination.proto, PROTO_UDP | PROTO_TCP) {
        let is_dns = destination.port == PORT_DNS;
        if is_dns || config.has(Config::RESOLVER_PORTS) {
            let generation = config.generation;
            let key = ResolverKey { generation, address: destination.address, port: destination.port, pad: 0 };
            if let Some(trust) = tables.resolver(&key) {
                return Verdict::dns(trust);
            }
            if is_dns {
                // Whatever the rules say: an address that a rule allows on every port is still no resolver to trust.
                return Verdict::plain(Reason::UntrustedResolver);
            }
        }
    } else if key >> 16 != PROTO_ICMP as u32 {
        return Verdict::plain(Reason::Protocol);
    }
    let mut refused = Reason::NoRule;
    let removed = tables.removals_ended();
    if let Some(entry) = tables.address(&destination.address, config.epoch) {
        // An entry whose every slot is dead may be reclaimed meanwhile, and its memory given to another address at once:
        // what was read there counts only if it is this address's still. Where no removal was under way, nor began, it is.
        let still =
            || tables.removals_begun() == removed || is_still(tables, &destination.address, config.epoch, entry);
        // Nearly every address has one class of a few ports: that is answered without a loop.
        let grant = first(tables, config, entry, key, now);
        if grant != 0 && still() {
            return by_name(grant);
        }
        let mut walk = Slots { tables, config, entry, key, now, grant: 0, refused };
        repeat(SLOTS as u32, &mut walk);
        if walk.grant != 0 && still() {
            return by_name(walk.grant);
        }
        refused = walk.refused;
    }
    if config.has(of_family(Config::PREFIXES_4, destination))
        && let Some(class) = tables.prefix(&destination.address, config.epoch)
    {
        let grant = tables.opens(class, key, config.generation);
        if grant != 0 {
            return Verdict::by(Reason::Rule, grant, ORIGIN_OUT);
        }
        if class != 0 && matches!(refused, Reason::NoRule) {
            refused = Reason::NoPort;
        }
    }
    Verdict::plain(refused)
}

/// The flag of the destination's family: that of IPv4, or the one above it. Reckoned, not compared: 4 is 0b100, and 6 is 0b110.
#[inline(always)]
const fn of_family(four: u32, destination: &Destination) -> u32 {
    four << (destination.version >> 1 & 1)
}

const _: () = assert!(Config::DENIES_6 == Config::DENIES_4 << 1 && Config::PREFIXES_6 == Config::PREFIXES_4 << 1);

#[inline(always)]
fn is_still<T: Tables>(tables: &T, address: &Address, epoch: u32, entry: &AddressEntry) -> bool {
    tables.address(address, epoch).is_some_and(|now| core::ptr::eq(now, entry))
}

/// Set in a grant by which an address of a name passes, when its TTL is over: it counts in the grace. No grant has it:
/// map `GRANTS` is smaller.
const IN_GRACE: u32 = 1 << 31;

/// [`IN_GRACE`], where a living slot's TTL is over, or 0: one whose expiry comes within the grace counts in it. Not by a comparison, which would be one more branch for
/// the verifier to walk. An address of the policy itself ([`crate::abi::NEVER`]) lives longer than any grace (365 days, 2^25 ticks).
#[inline(always)]
fn in_grace(slot: Slot, config: &Config, now: Ticks) -> u32 {
    let fresh = now as u64 + config.grace as u64 + 1;
    opaque((slot.expiry as u64).wrapping_sub(fresh) >> 32) as u32 & IN_GRACE
}

/// The verdict by a grant, perhaps [`IN_GRACE`].
#[inline(always)]
const fn by_name(grant: u32) -> Verdict {
    let reason = if grant & IN_GRACE == 0 { Reason::Rule } else { Reason::Grace };
    Verdict::by(reason, grant & !IN_GRACE, ORIGIN_OUT)
}

/// The grant by which the first chunk of an address's first slot opens a port key, perhaps [`IN_GRACE`], or 0.
#[inline(always)]
fn first<T: Tables>(tables: &T, config: &Config, entry: &AddressEntry, key: u32, now: Ticks) -> u32 {
    let slot = Slot::unpack(entry.slots[0]);
    if !slot.lives(now) {
        return 0;
    }
    let Some(chunk) = tables.class(slot.class).filter(|chunk| chunk.stands(config.generation)) else { return 0 };
    let [one, two, ..] = &chunk.ports;
    if one.grant != 0 && one.holds(key) {
        return one.grant | in_grace(slot, config, now);
    }
    if two.grant != 0 && two.holds(key) { two.grant | in_grace(slot, config, now) } else { 0 }
}

/// The walk over an address's slots: a loop that the verifier sees once.
struct Slots<'a, T> {
    tables: &'a T,
    config: &'a Config,
    entry: &'a AddressEntry,
    key: u32,
    now: Ticks,
    /// Perhaps [`IN_GRACE`].
    grant: u32,
    refused: Reason,
}

impl<T: Tables> Step for Slots<'_, T> {
    #[inline(always)]
    fn step(&mut self, index: u32) -> bool {
        let Some(packed) = self.entry.slots.get(index as usize) else { return false };
        let slot = Slot::unpack(*packed);
        if slot.class == 0 {
            // Slots are filled from the first on, and freed with their entry alone.
            return false;
        }
        let grant = self.tables.opens(slot.class, self.key, self.config.generation);
        let lives = slot.lives(self.now);
        if grant == 0 {
            if lives && matches!(self.refused, Reason::NoRule) {
                self.refused = Reason::NoPort;
            }
            return true;
        }
        if lives {
            self.grant = grant | in_grace(slot, self.config, self.now);
            return false;
        }
        self.refused = Reason::Expired;
        true
    }
}

/// The grant by which `class` opens a port key in a generation, or 0.
#[inline(always)]
pub fn opens<T: Tables>(tables: &T, class: u32, key: u32, generation: u32) -> u32 {
    let mut walk = Chain { tables, key, generation, next: class, grant: 0 };
    // Nearly every class fits one chunk: then this is one turn.
    repeat(CHUNKS, &mut walk);
    walk.grant
}

struct Chain<'a, T> {
    tables: &'a T,
    key: u32,
    generation: u32,
    next: u32,
    grant: u32,
}

impl<T: Tables> Step for Chain<'_, T> {
    #[inline(always)]
    fn step(&mut self, _index: u32) -> bool {
        let Some(chunk) = self.tables.class(self.next) else { return false };
        if chunk.stands(self.generation) {
            for range in &chunk.ports {
                if range.grant != 0 && range.holds(self.key) {
                    self.grant = range.grant;
                    return false;
                }
            }
        }
        self.next = chunk.next;
        self.next != 0
    }
}
