//! Addresses, prefixes and what they open.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{Address, Ticks};

/// Key of map `ADDRESSES_4`: 8 bytes, the cheapest key a kernel hash map has.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct AddressKey4 {
    /// The address, in network order.
    pub address: [u8; 4],
    /// The epoch that the entry belongs to.
    pub epoch: u32,
}

/// Key of map `ADDRESSES_6`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct AddressKey6 {
    /// The address, in network order.
    pub address: Address,
    /// The epoch that the entry belongs to.
    pub epoch: u32,
    /// Zero.
    pub pad: u32,
}

/// How many different sets of ports one address can have open through names at the same time.
pub const SLOTS: usize = 8;

/// Value of the address maps: the classes that an address has, each with its own expiry.
///
/// A slot is written by one atomic operation, so that two processors that learn at once lose nothing. Classes that open
/// the same ports share a slot, the later expiry counts: [`SLOTS`] bounds *different* port sets, not names.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct AddressEntry {
    /// See [`Slot`].
    pub slots: [u64; SLOTS],
}

/// One slot of an [`AddressEntry`], packed into a `u64`: the class below, the expiry above. Zero is a free slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Index into map `CLASSES`; 0 is no class.
    pub class: u32,
    /// The first tick at which the slot no longer counts, or [`NEVER`].
    pub expiry: Ticks,
}

impl Slot {
    /// The slot in its packed form.
    #[inline(always)]
    pub const fn pack(self) -> u64 {
        (self.expiry as u64) << 32 | self.class as u64
    }

    /// The slot of a packed form.
    #[inline(always)]
    pub const fn unpack(packed: u64) -> Self {
        Self { class: packed as u32, expiry: (packed >> 32) as u32 }
    }

    /// Whether the slot counts at `now`.
    #[inline(always)]
    pub const fn lives(self, now: Ticks) -> bool {
        self.class != 0 && self.expiry > now
    }
}

/// Data of the keys of `PREFIXES_4` and `DENIES_4` (longest-prefix tries): 32 bits of epoch, then the address.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct PrefixKey4 {
    /// Significant bits: 32 for the epoch and those of the prefix.
    pub bits: u32,
    /// The epoch that the entry belongs to.
    pub epoch: u32,
    /// The address, in network order.
    pub address: [u8; 4],
}

/// Data of the keys of `PREFIXES_6` and `DENIES_6`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct PrefixKey6 {
    /// Significant bits: 32 for the epoch and those of the prefix.
    pub bits: u32,
    /// The epoch that the entry belongs to.
    pub epoch: u32,
    /// The address, in network order.
    pub address: [u8; 16],
}

/// Port ranges in one [`ClassChunk`].
pub const CHUNK_PORTS: usize = 8;
/// Chunks that one class can chain: 256 port ranges.
pub const CHUNKS: u32 = 32;

/// Entry of map `CLASSES` (an array): the ports that a set of rules opens.
///
/// Index 0 is never used. A class keeps its index while a policy has it, so that what was learned stays as it is over a
/// reload; `from` and `gone` say in which generations it counts. The chunks of one chain may differ in that: so one class can
/// open what the old policy says until the flip, and from then on what the new one says.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ClassChunk {
    /// Equal for two classes that open the same ports; in the first chunk of a class only, and 0 in those that never have
    /// anything learned.
    pub ports_id: u32,
    /// The next chunk of this class, or 0.
    pub next: u32,
    /// Ranges in use, at most [`CHUNK_PORTS`]; 0 where the entry is free.
    pub count: u32,
    /// The first generation that has it; 0 for one that every generation up to the live one may take for its own.
    pub from: u32,
    /// The first generation that has it no more; 0 while it stays.
    pub gone: u32,
    /// Zero.
    pub pad: u32,
    /// The ranges.
    pub ports: [PortRange; CHUNK_PORTS],
}

impl ClassChunk {
    /// Whether it counts in a generation. (By one comparison: `gone` is 0 or comes after `from`.)
    #[inline(always)]
    pub const fn stands(&self, generation: u32) -> bool {
        generation.wrapping_sub(self.from) <= self.gone.wrapping_sub(1).wrapping_sub(self.from)
    }

    /// Whether an address that has `other`'s class may have this one's in its place: both open the same, and this one counts
    /// wherever the other does.
    #[inline(always)]
    pub const fn replaces(&self, other: &Self) -> bool {
        self.ports_id != 0 && self.ports_id == other.ports_id && self.gone | other.gone == 0 && self.from <= other.from
    }
}

/// Ports that one grant opens, as a range of port keys (see [`port_key`]), so that one comparison decides.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct PortRange {
    /// Index into map `GRANTS`; 0 where the range is unused.
    pub grant: u32,
    /// The first port key.
    pub first: u32,
    /// How many port keys follow the first.
    pub span: u32,
}

impl PortRange {
    /// The range of `proto` (an IP protocol number, [`PROTO_ICMP`] for both families' ICMP) from port to port, both
    /// included; of [`PROTO_ANY`] everything.
    pub const fn new(proto: u8, from: u16, to: u16, grant: u32) -> Self {
        if proto == PROTO_ANY {
            return Self { grant, first: 0, span: u32::MAX };
        }
        Self { grant, first: (proto as u32) << 16 | from as u32, span: to.saturating_sub(from) as u32 }
    }

    /// Whether a port key is in the range.
    #[inline(always)]
    pub const fn holds(&self, key: u32) -> bool {
        key.wrapping_sub(self.first) <= self.span
    }
}

/// A protocol and port as one number: the IP protocol above, the port in the lower 16 bits (of ICMP type and code; of
/// other protocols 0). ICMPv6 has ICMP's number, and ICMP in IPv6 or ICMPv6 in IPv4, which nobody sends, has none.
#[inline(always)]
pub const fn port_key(version: u8, proto: u8, port: u16) -> u32 {
    let proto = match (proto, version) {
        (PROTO_ICMPV6, 6) => PROTO_ICMP,
        (PROTO_ICMP, 6) | (PROTO_ICMPV6, 4) => PROTO_ANY,
        _ => proto,
    };
    (proto as u32) << 16 | port as u32
}

/// The index in map `RECLAIMS` of how many removals of addresses have begun.
pub const REMOVALS_BEGUN: u32 = 0;
/// The index in map `RECLAIMS` of how many removals of addresses have ended.
pub const REMOVALS_ENDED: u32 = 1;

/// TCP's IP protocol number.
pub const PROTO_TCP: u8 = 6;
/// UDP's IP protocol number.
pub const PROTO_UDP: u8 = 17;
/// ICMP's IP protocol number; in a [`PortRange`] it covers ICMPv6 too.
pub const PROTO_ICMP: u8 = 1;
/// ICMPv6's IP protocol number (in packets; a [`PortRange`] says [`PROTO_ICMP`]).
pub const PROTO_ICMPV6: u8 = 58;
/// Every protocol, in a [`PortRange`]. No packet carries it: 255 is reserved (IANA protocol numbers).
pub const PROTO_ANY: u8 = 255;

/// Entry of map `GRANTS` (an array): for which generations a grant stands. A grant is one item of one rule's `to`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct GrantEntry {
    /// A hash of what the grant is (rule, item, ports), by which the next generation finds it again.
    pub key: u64,
    /// The first generation that has it; 0 for a free entry.
    pub from: u32,
    /// The last generation that has it; `u32::MAX` while it stands.
    pub until: u32,
}

impl GrantEntry {
    /// Whether the grant by which a flow was judged in generation `judged` stands in `generation` too.
    ///
    /// An entry that was given to another grant since then begins later than the flow's verdict. After a rollback `generation`
    /// is the earlier one: what only the later one granted does not stand.
    #[inline(always)]
    pub const fn stands(&self, judged: u32, generation: u32) -> bool {
        self.from != 0 && self.from <= judged && self.from <= generation && generation <= self.until
    }
}

/// Value of the per-CPU map `GRANT_HITS`, by grant.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Hits {
    /// Packets (a GSO packet counts once).
    pub packets: u64,
    /// Bytes, from the network header on.
    pub bytes: u64,
}
