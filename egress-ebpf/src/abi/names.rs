//! The name table and what is remembered between a DNS query and its answer.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{Address, Ticks};

/// The longest domain name as text without the trailing dot (RFC 1035, 3.1: 255 octets on the wire).
pub const NAME_MAX: usize = 253;

/// Bytes of a reversed name in a trie key: the name, and one byte for the terminator.
pub const NAME_KEY: usize = 254;

/// Key of map `NAMES`, a longest-prefix trie: 256 bytes of data, the most that the kernel's trie takes.
///
/// A name is its text in lower case, dots between labels, byte by byte reversed: `a.example.com` is `moc.elpmaxe.a`.
/// An exact name ends in a 0 byte; a wildcard `*.example.com` is the prefix `moc.elpmaxe.`, so that neither the apex
/// nor `badexample.com` matches. The longest match answers for all patterns: the compiler merges them.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct NameKey {
    /// Significant bits: 16 for the generation, then 8 for each byte of `name` that counts.
    pub bits: u32,
    /// The low 16 bits of the generation that the entry belongs to.
    pub generation: u16,
    /// The reversed name.
    pub name: [u8; NAME_KEY],
}

/// Value of map `NAMES`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct NameValue {
    /// The class of every name that this entry answers for; 0 for none.
    pub class: u32,
    /// [`NameValue::ASK`], [`NameValue::PRIVATE`].
    pub flags: u32,
    /// Index into map `INNER_WILDCARDS` of the first wildcard inside the label right below this entry.
    pub inner_first: u32,
    /// How many there are, at most [`INNER_MAX`].
    pub inner_count: u32,
}

impl NameValue {
    /// The name may be asked though no rule allows it (`dns.internal`).
    pub const ASK: u32 = 1 << 0;
    /// Answers may hold private addresses (`dns.allowPrivate`).
    pub const PRIVATE: u32 = 1 << 1;
}

/// Wildcards inside a label that can share one suffix.
pub const INNER_MAX: u32 = 16;

/// The classes that one name can have: that of its table entry, and those of wildcards inside its first label.
pub const NAME_CLASSES: usize = 4;

/// Entry of map `INNER_WILDCARDS` (an array): `prefix*suffix` as a whole label, one character or more for the `*`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct InnerWildcard {
    /// What a name that matches gets.
    pub class: u32,
    /// Bytes of `prefix` in use.
    pub prefix_len: u8,
    /// Bytes of `suffix` in use.
    pub suffix_len: u8,
    /// Zero.
    pub pad: u16,
    /// The start of the label, reversed and in lower case: `md-*` has `-dm`.
    pub prefix: [u8; 64],
    /// The end of the label, reversed and in lower case.
    pub suffix: [u8; 64],
}

/// Key of map `PENDING`: a query on its way.
///
/// At the cgroup hook `cookie` is the socket's, so that no other socket's packet can use or push out the entry; at an
/// uplink, where answers have no socket yet, it is 0 and the local address and port tell queries apart.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct PendingKey {
    /// The socket's cookie, or 0 at an uplink.
    pub cookie: u64,
    /// Who asked.
    pub local: Address,
    /// The resolver that was asked.
    pub resolver: Address,
    /// Who asked, the port.
    pub local_port: u16,
    /// The resolver's port.
    pub resolver_port: u16,
    /// The transaction id, in the host's order.
    pub id: u16,
    /// An IP protocol number: UDP or TCP.
    pub proto: u8,
    /// Zero.
    pub pad: u8,
}

/// Value of map `PENDING`: what was asked.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Pending {
    /// When the query left.
    pub sent: Ticks,
    /// The generation whose classes these are.
    pub generation: u32,
    /// The classes of the name, 0 where unused.
    pub classes: [u32; NAME_CLASSES],
    /// The query type (RFC 1035, 3.2.2), in the host's order.
    pub qtype: u16,
    /// Bytes of `name` in use, without the terminator.
    pub len: u16,
    /// [`NameValue::PRIVATE`] or 0.
    pub flags: u32,
    /// The question as it was on the wire, upper and lower case kept (0x20): dotted text, reversed. The answer must
    /// repeat it to the letter.
    pub name: [u8; NAME_KEY],
    /// Zero.
    pub pad: u16,
}

/// Key of map `ALIASES`: the target of an allowed name's CNAME, which may be asked for while the answer lives.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct AliasKey {
    /// The low 16 bits of the generation.
    pub generation: u16,
    /// The name: reversed, lower case, ended by a 0 byte.
    pub name: [u8; NAME_KEY],
}

/// Value of map `ALIASES`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Alias {
    /// The classes of the names that lead here, 0 where unused.
    pub classes: [u32; NAME_CLASSES],
    /// The first tick at which it no longer counts.
    pub expiry: Ticks,
    /// [`NameValue::PRIVATE`] or 0.
    pub flags: u32,
}
