//! What the programs tell the daemon, through the ring buffer `EVENTS`.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{Address, NAME_KEY, Process, Ticks};

/// `kind` of a [`DropEvent`].
pub const EVENT_DROP: u32 = 1;
/// `kind` of a [`LearnedEvent`].
pub const EVENT_LEARNED: u32 = 2;

/// A packet or a system call was refused, or in audit mode would have been.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct DropEvent {
    /// [`EVENT_DROP`].
    pub kind: u32,
    /// A [`crate::reason::Reason`].
    pub reason: u8,
    /// One of the `HOOK_*` values.
    pub hook: u8,
    /// 1 where it was dropped, 0 where the policy only audits.
    pub enforced: u8,
    /// The IP protocol number.
    pub proto: u8,
    /// `CLOCK_MONOTONIC`, in nanoseconds.
    pub time: u64,
    /// The governed socket's cgroup id, or 0.
    pub cgroup: u64,
    /// The socket's network namespace cookie, or 0.
    pub netns: u64,
    /// The source.
    pub source: Address,
    /// The destination.
    pub destination: Address,
    /// The source port; 0 where there is none.
    pub source_port: u16,
    /// The destination port; for ICMP its type and code.
    pub destination_port: u16,
    /// The interface index, or 0.
    pub ifindex: u32,
    /// Bytes, from the network header on.
    pub len: u32,
    /// The generation that judged.
    pub generation: u32,
    /// The process: of the system call, else the one that made the socket, else all 0.
    pub process: Process,
    /// Of a refused DNS query: the name, reversed as it was asked.
    pub name: [u8; NAME_KEY],
    /// Bytes of `name` in use.
    pub name_len: u16,
    /// How many like it there were since the last one that was told, this one included.
    pub count: u32,
    /// For an unknown EtherType its value in the host's order, else 0.
    pub ethertype: u16,
    /// Zero.
    pub pad: [u8; 2],
}

/// Key of map `DROP_FOLDS`: drops that differ in nothing that a person would act on are told as one.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct DropKey {
    /// The governed socket's cgroup id, or 0.
    pub cgroup: u64,
    /// The destination.
    pub destination: Address,
    /// The destination port; for ICMP its type and code.
    pub destination_port: u16,
    /// The IP protocol number.
    pub proto: u8,
    /// A [`crate::reason::Reason`].
    pub reason: u8,
    /// A hash of the refused name, or 0.
    pub name: u32,
    /// The process, or 0.
    pub pid: u32,
    /// Zero.
    pub pad: u32,
}

/// Value of map `DROP_FOLDS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct DropFold {
    /// When one was told last.
    pub told: Ticks,
    /// How many were not told since.
    pub untold: u32,
}

/// cgroup_skb/egress.
pub const HOOK_CGROUP_EGRESS: u8 = 1;
/// cgroup/connect4 and connect6.
pub const HOOK_CONNECT: u8 = 2;
/// cgroup/sendmsg4 and sendmsg6.
pub const HOOK_SENDMSG: u8 = 3;
/// The uplinks' egress.
pub const HOOK_UPLINK_EGRESS: u8 = 4;
/// cgroup_skb/ingress.
pub const HOOK_CGROUP_INGRESS: u8 = 5;
/// The uplinks' ingress.
pub const HOOK_UPLINK_INGRESS: u8 = 6;
/// The host side of a workload's veth.
pub const HOOK_WORKLOAD_INGRESS: u8 = 7;
/// The LSM's socket hooks.
pub const HOOK_LSM: u8 = 8;

/// Addresses that one [`LearnedEvent`] can hold, and records that the kernel reads of one answer.
pub const ANSWER_MAX: usize = 64;
/// CNAME targets that one [`LearnedEvent`] can hold.
pub const CHAIN_MAX: usize = 8;

/// A trusted resolver answered for an allowed name. Its first [`LearnedEvent::HEAD`] bytes are always there.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct LearnedEvent {
    /// [`EVENT_LEARNED`].
    pub kind: u32,
    /// The generation that the classes are of.
    pub generation: u32,
    /// `CLOCK_MONOTONIC`, in nanoseconds.
    pub time: u64,
    /// The resolver that answered.
    pub resolver: Address,
    /// The classes of the name, 0 where unused.
    pub classes: [u32; super::NAME_CLASSES],
    /// The name that was asked.
    pub key: super::KeyBuffer,
    /// How many like it there were since the last one that was told, this one included.
    pub answers: u32,
    /// The resolver's port.
    pub resolver_port: u16,
    /// The response code (RFC 1035, 4.1.1).
    pub rcode: u8,
    /// Addresses in use.
    pub count: u8,
    /// Addresses that were left out: off the chain or private.
    pub refused: u8,
    /// CNAME targets that were followed.
    pub aliases: u8,
    /// Zero.
    pub pad: [u8; 6],
    /// Addresses learned. The event ends after the last one in use: it is shorter than this type.
    pub addresses: [LearnedAddress; ANSWER_MAX],
}

impl LearnedEvent {
    /// Bytes before `addresses`.
    pub const HEAD: usize = core::mem::offset_of!(LearnedEvent, addresses);
}

/// Bytes of a name that map `ANSWER_FOLDS` holds, its end included: answers for longer names are told each by itself.
pub const FOLD_NAME: usize = 64;

/// What answers have in common that say the same, in whatever order: they are told as one.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct AnswerKey {
    /// A hash of the name, [`super::KeyBuffer::hash`].
    pub hash: u64,
    /// Of the addresses: [`address_sum`] of each, added up.
    pub addresses: u64,
    /// The resolver that answered.
    pub resolver: Address,
    /// The generation that the classes are of.
    pub generation: u32,
    /// The resolver's port.
    pub resolver_port: u16,
    /// The response code.
    pub rcode: u8,
    /// Addresses that were left out.
    pub refused: u8,
}

/// How many places map `ANSWER_FOLDS` has: a power of two.
pub const ANSWER_FOLDS: u32 = 4096;

impl AnswerKey {
    /// Where answers of this kind are folded. Two kinds that have one place are told each time that they alternate.
    #[inline(always)]
    pub const fn place(&self) -> u32 {
        (self.hash.wrapping_add(self.addresses).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u32 & (ANSWER_FOLDS - 1)
    }
}

/// Element of map `ANSWER_FOLDS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct AnswerFold {
    /// When one was told last.
    pub told: Ticks,
    /// How many were not told since.
    pub untold: u32,
    /// Which answers these are.
    pub key: AnswerKey,
    /// The first bytes of their name, reversed: two names may have one hash.
    pub name: [u64; FOLD_NAME / 8],
}

/// A number of an address, such that those of several addresses can be added up in any order, and addresses that differ a
/// little do not come to the same. Whoever wants to can make up others that do: what opens something is told whatever it comes to.
#[inline(always)]
pub const fn address_sum(address: &Address) -> u64 {
    let mixed = address.low.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(address.high);
    (mixed ^ mixed >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9)
}

/// An address of a [`LearnedEvent`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct LearnedAddress {
    /// The address.
    pub address: Address,
    /// The answer's TTL in seconds, as received: the least of the CNAME chain's and its own.
    pub ttl: u32,
    /// When it stops counting.
    pub expiry: Ticks,
}
