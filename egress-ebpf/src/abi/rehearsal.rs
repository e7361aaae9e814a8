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
    /// What the test run's socket stands for: [`crate::decision::SocketKind::number`], never 0.
    pub kind: u32,
    /// Zero.
    pub pad: u32,
}
