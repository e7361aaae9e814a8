//! What userspace and the attached programs say to each other in a rehearsal: a run by BPF_PROG_TEST_RUN that tells a
//! packet's verdict and writes nothing down.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Element 0 of the array `REHEARSAL`, read while [`super::Config::REHEARSAL`] is set.
///
/// The run's packet carries `token`, its upper half as the mark and its lower half as the priority, and comes back with
/// the verdict in their place: the grant as the mark, the reason's number as the priority. A packet on a wire that guessed
/// the token would be judged as ever; only its count and event would be missing.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Rehearsal {
    /// Random, another one for each run; 0 is none.
    pub token: u64,
    /// What the test run's socket stands for: [`REHEARSED_STREAM`], [`REHEARSED_DATAGRAM`] or [`REHEARSED_RAW`].
    pub kind: u32,
    /// Zero.
    pub pad: u32,
}

/// A TCP socket.
pub const REHEARSED_STREAM: u32 = 1;
/// A UDP socket, or one for ping.
pub const REHEARSED_DATAGRAM: u32 = 2;
/// A raw socket.
pub const REHEARSED_RAW: u32 = 3;
