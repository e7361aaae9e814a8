//! Which interfaces inside workloads' network namespaces lead to a veth whose host side is governed.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::Address;

/// Key of map `PATHS`: an interface inside a workload's network namespace.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct PathKey {
    /// The cookie of the network namespace.
    pub netns: u64,
    /// The interface's index there.
    pub ifindex: u32,
    /// Zero.
    pub pad: u32,
}

/// Value of map `PATHS`: where that interface leads.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Path {
    /// How many refused queries were let go this way since one was last seen to arrive.
    pub unseen: u64,
    /// The index of the veth's host side.
    pub host: u32,
    /// Zero.
    pub pad: u32,
}

/// So many refused queries may be under way at once. Of more, something on the way lost them, or they went another way.
pub const UNSEEN_MAX: u64 = 16;
/// So many may go a way that nothing was seen to arrive by yet: a name's A and AAAA.
pub const UNSEEN_FIRST: u64 = 2;

/// Key of map `INSIDES`; the value is the index of the host side, a `u32`. The daemon writes what the kernel tells of the other
/// ends of governed veths.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct InsideKey {
    /// An address of the interface inside.
    pub address: Address,
    /// The interface's index inside.
    pub ifindex: u32,
    /// Zero.
    pub pad: u32,
}

/// How many elements `PATHS` can hold.
pub const PATHS_MAX: u32 = 4096;
/// How many elements `INSIDES` can hold.
pub const INSIDES_MAX: u32 = 16_384;
