//! What userspace asks of the `control` program, by BPF_PROG_TEST_RUN: the program is never attached. It writes through
//! the same code as the programs that learn, so the two never overwrite one another.
//!
//! `data_in` is a [`ControlHeader`] and `count` [`ControlRecord`]s; `data_out` is the same with `results` filled in. The
//! program returns 0, or a positive errno: EINVAL for data of another shape or an unknown command, EBUSY where every
//! scratch buffer of the processor is in use (try again).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{Address, Ticks};

/// Write addresses down. Results, counted by record: unchanged, extended, added, slots full, map full, contended.
pub const CONTROL_LEARN: u32 = 1;
/// Make the generation in `of` the live one, without a deadline, by one atomic write. No records.
pub const CONTROL_FLIP: u32 = 2;
/// Delete those of the addresses whose every slot is dead. `results[0]` is how many were, `results[1]` how many are in
/// use or not there.
pub const CONTROL_RECLAIM: u32 = 3;
/// End the life that each address has by the class beside it. `results[0]` is how many had it, `results[1]` how many had not.
pub const CONTROL_END: u32 = 4;

/// Records that one run takes: BPF_PROG_TEST_RUN takes less than a page for a socket buffer.
pub const CONTROL_RECORDS: usize = 128;

/// What stands before the records.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ControlHeader {
    /// Zero: the kernel takes the first 14 bytes for an Ethernet header.
    pub ethernet: [u8; 16],
    /// One of the `CONTROL_*` commands.
    pub command: u32,
    /// The epoch whose addresses are meant; of [`CONTROL_FLIP`] the generation.
    pub of: u32,
    /// Records that follow, at most [`CONTROL_RECORDS`].
    pub count: u32,
    /// Zero on the way in.
    pub results: [u32; 6],
    /// Zero.
    pub pad: u32,
}

/// An address.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ControlRecord {
    /// The address, IPv4 as IPv4-mapped.
    pub address: Address,
    /// Its class; 0 to [`CONTROL_RECLAIM`].
    pub class: u32,
    /// The first tick at which it no longer counts, or [`super::NEVER`]; 0 to [`CONTROL_RECLAIM`] and [`CONTROL_END`].
    pub expiry: Ticks,
}
