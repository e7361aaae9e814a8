//! The name table and what is remembered between a DNS query and its answer.

use core::{mem::offset_of, ptr};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{Address, Ticks};
use crate::dns::bytes::opaque;

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
    /// Significant bits: 16 for the epoch, then 8 for each byte of `name` that counts, the 0 byte included.
    pub bits: u32,
    /// The low 16 bits of the epoch that the entry belongs to, in the host's order: every key has all 16, so their
    /// order in the trie does not matter.
    pub epoch: u16,
    /// The reversed name.
    pub name: [u8; NAME_KEY],
}

/// A name as the programs hold it. From its start it is a [`NameKey`], from `epoch` on an [`AliasKey`]; the rest
/// is what else was learned of the name while it was read.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct KeyBuffer {
    /// As in [`NameKey`].
    pub bits: u32,
    /// As in [`NameKey`].
    pub epoch: u16,
    /// The reversed name in lower case, 0 after its end. The last 4 bytes are always 0: they let whole words be written.
    pub name: [u8; NAME_KEY + 4],
    /// Bytes of `name` in use, without the terminator.
    pub len: u64,
    /// Bytes of the name's first label.
    pub first: u64,
    /// A hash of the name, for reports and filters. It has no secret: anybody can make two names of one hash.
    pub hash: u64,
    /// 1 if the labels hold nothing but letters, digits, `-` and `_`. Only then is it a key.
    pub plain: u64,
}

impl KeyBuffer {
    /// No name.
    pub const EMPTY: Self = Self { bits: 0, epoch: 0, name: [0; NAME_KEY + 4], len: 0, first: 0, hash: 0, plain: 0 };

    /// Makes it the key of an epoch.
    #[inline(always)]
    pub fn set_epoch(&mut self, epoch: u32) {
        self.bits = 16 + 8 * (self.len as u32 + 1);
        self.epoch = epoch as u16;
    }

    /// The reversed name.
    pub fn reversed(&self) -> &[u8] {
        self.name.get(..self.len as usize).unwrap_or_default()
    }
}

/// Value of map `NAMES`: what an entry says, and what the one before a change said of the same names. An entry is replaced
/// whole, so that a program sees either; under the live generation both say the same.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct NameEntry {
    /// The first generation for which `now` holds.
    pub since: u32,
    /// What it says from then on.
    pub now: NameValue,
    /// What earlier generations say of the names that have this entry for their longest match.
    pub before: NameValue,
}

impl NameEntry {
    /// An entry that every generation reads alike.
    pub const fn new(now: NameValue) -> Self {
        Self { since: 0, now, before: NameValue { class: 0, flags: 0, inner_first: 0, inner_count: 0, len: 0 } }
    }

    /// What it says to a generation.
    #[inline(always)]
    pub fn value(&self, generation: u32) -> NameValue {
        // 1 for a generation before `since`. Not by a comparison: LLVM makes one of it for each field, and the verifier walks every way
        // through them.
        let earlier = opaque(u64::from(generation).wrapping_sub(u64::from(self.since))) >> 63;
        // SAFETY: `before` comes right behind `now`, as asserted below.
        unsafe { *ptr::from_ref(self).byte_add(offset_of!(Self, now)).cast::<NameValue>().add(earlier as usize) }
    }
}

const _: () = assert!(offset_of!(NameEntry, before) == offset_of!(NameEntry, now) + size_of::<NameValue>());

/// What map `NAMES` says of a name.
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
    pub inner_count: u16,
    /// Bytes of this entry's name that count (what its key's `bits` say, which a lookup does not give back): with inner
    /// wildcards, the suffix and its dot.
    pub len: u16,
}

impl NameValue {
    /// The name may be asked though no rule allows it (`dns.internal`).
    pub const ASK: u32 = 1 << 0;
    /// Answers may hold private addresses (`dns.allowPrivate`).
    pub const PRIVATE: u32 = 1 << 1;
}

/// Wildcards inside a label that can share one suffix.
pub const INNER_MAX: u32 = 16;

/// The classes that one name can have: those of its table entry, of wildcards inside its first label, and of the names
/// whose CNAME it is.
pub const NAME_CLASSES: usize = 4;

/// Entry of map `INNER_WILDCARDS` (an array): `prefix*suffix` as a whole label, one character or more for the `*`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct InnerWildcard {
    /// What a name that matches gets; 0 for no class.
    pub class: u32,
    /// Bytes of `prefix` in use.
    pub prefix_len: u8,
    /// Bytes of `suffix` in use.
    pub suffix_len: u8,
    /// [`NameValue::PRIVATE`] if names that match may have private addresses, or 0.
    pub flags: u16,
    /// The start of the label, reversed and in lower case: `md-*` has `-dm`.
    pub prefix: [u8; 64],
    /// The end of the label, reversed and in lower case.
    pub suffix: [u8; 64],
}

/// Key of map `PENDING`: a query on its way.
///
/// At the cgroup hook `cookie` is the socket's, so that no other socket's packet can use the entry; at an uplink, where
/// answers have no socket yet, it is 0 and the local address and port tell queries apart.
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

/// Bytes of the longest question on the wire: 255 of the name, 4 of type and class, made a multiple of 8.
pub const QUESTION_MAX: usize = 264;

/// Value of map `PENDING`: what was asked.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Pending {
    /// Tells this query from every other, so that a reader sees when an entry was replaced under it.
    pub ticket: u64,
    /// When the query left.
    pub sent: Ticks,
    /// The generation whose classes these are.
    pub generation: u32,
    /// The classes of the name, 0 where unused.
    pub classes: [u32; NAME_CLASSES],
    /// [`NameValue::PRIVATE`] or 0.
    pub flags: u32,
    /// Bytes of `question` in use.
    pub wire_len: u32,
    /// When the name ends to have each of these classes: what is learned for it ends no later. [`NEVER`] where the policy says so.
    pub untils: [Ticks; NAME_CLASSES],
    /// The question section as it was on the wire. The answer must repeat it to the letter, upper and lower case too
    /// (draft-vixie-dnsext-dns0x20).
    pub question: [u8; QUESTION_MAX],
    /// The name asked.
    pub key: KeyBuffer,
}

/// Value of map `STREAMS`: where a resolver's messages begin in what it sends by a TCP connection. The key is a
/// [`PendingKey`] whose `id` is 0.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Stream {
    /// The ticket of the slot of map `PARTS` that holds what has come of the message; 0 where none does.
    pub ticket: u64,
    /// The sequence number of the message's first byte, that of its length.
    pub base: u32,
    /// How much of the message has come, its two bytes of length included; 0 or from 2 on.
    pub have: u32,
    /// How long it is, its two bytes of length included; nothing while `have` is 0.
    pub want: u32,
    /// Zero.
    pub pad: u32,
}

/// How long a query waits for its answer: 10 s, longer than stub resolvers do (glibc 5 s).
pub const PENDING_LIFE: Ticks = 10;

/// Rings that bound how many queries an asker can have pending, map `PENDING_RINGS`: askers are spread over them by
/// [`crate::dns::ring_of`].
pub const RINGS: usize = 128;

/// Queries that wait in one ring; one more takes the place of the oldest.
pub const RING_SLOTS: usize = 1024;

/// Entry of map `PENDING_RINGS`: which query a ring's slot holds.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct RingSlot {
    /// The query's key.
    pub key: PendingKey,
    /// The query's ticket; 0 where the slot was never used, or its query was answered.
    pub ticket: u64,
}

/// Key of map `ALIASES`: the target of an allowed name's CNAME, which may be asked for while the answer lives.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct AliasKey {
    /// The low 16 bits of the epoch.
    pub epoch: u16,
    /// The name: reversed, lower case, 0 after its end.
    pub name: [u8; NAME_KEY],
}

/// Value of map `ALIASES`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Alias {
    /// The classes of the names that lead here, each with its own expiry; see [`super::Slot`].
    pub entry: super::AddressEntry,
    /// [`NameValue::PRIVATE`] if it holds for every name that leads here, or 0.
    pub flags: u32,
    /// Zero.
    pub pad: u32,
}

macro_rules! learn_counts {
    ($($(#[$doc:meta])* $name:ident = $value:literal, $text:literal;)*) => {
        /// What map `LEARN_COUNTS` (per CPU, `u64` entries) counts.
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum LearnCount { $($(#[$doc])* $name = $value,)* }

        impl LearnCount {
            /// Every count, in the order of its index.
            pub const ALL: &'static [LearnCount] = &[$(LearnCount::$name,)*];

            /// The count's stable name, as metrics print it.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

learn_counts! {
    /// Queries remembered.
    Asked = 0, "asked";
    /// Answers learned from.
    Answers = 1, "answers";
    /// Address and class: it was there and lives at least as long.
    Unchanged = 2, "unchanged";
    /// Address and class: it was there, its life was made longer.
    Extended = 3, "extended";
    /// Address and class: new.
    Added = 4, "added";
    /// Address and class: not learned, every slot of the address is taken by other ports.
    SlotsFull = 5, "slots-full";
    /// Address and class: not learned, the address map is full.
    MapFull = 6, "map-full";
    /// Address and class: not learned, other processors changed the same entry all the time.
    Contended = 7, "contended";
    /// Answers that no query waited for: never asked, answered before, or past [`PENDING_LIFE`].
    Unasked = 8, "unasked";
    /// Answers with another question than the query's.
    OtherQuestion = 9, "other-question";
    /// Answers that cannot be parsed, and of which nothing was learned.
    Malformed = 10, "malformed";
    /// Answers longer than the programs read, in fragments, or over TCP where a part was not seen.
    TooLong = 11, "too-long";
    /// Addresses refused since they are private.
    Private = 12, "private";
    /// Queries refused and answers not read since every scratch buffer of the processor was in use.
    Busy = 13, "busy";
    /// Queries that took the place of one still waiting.
    Displaced = 14, "displaced";
    /// Classes that a name has past [`NAME_CLASSES`].
    ClassesFull = 15, "classes-full";
    /// CNAME targets not remembered.
    AliasLost = 16, "alias-lost";
    /// Queries not remembered since map `PENDING` was full.
    PendingFull = 17, "pending-full";
}

impl LearnCount {
    /// Whether it counts something that was not learned, or will not be.
    pub const fn loses(self) -> bool {
        !matches!(self, Self::Asked | Self::Answers | Self::Unchanged | Self::Extended | Self::Added)
    }
}

/// Entries of map `LEARN_COUNTS`.
pub const LEARN_COUNTS: u32 = 18;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_says_what_its_generation_knows() {
        let of = |class| NameValue { class, flags: class + 1, inner_first: class + 2, inner_count: 3, len: 4 };
        let entry = NameEntry { since: 7, now: of(10), before: of(20) };
        for (generation, class) in [(0, 20), (6, 20), (7, 10), (8, 10), (u32::MAX, 10)] {
            assert_eq!(entry.value(generation), of(class), "{generation}");
        }
        assert_eq!(NameEntry { since: u32::MAX, ..entry }.value(u32::MAX - 1), of(20));
        assert_eq!(NameEntry::new(of(5)).value(0), of(5));
    }
}
