//! The maps of names and of queries on their way.

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray},
    macros::btf_map,
};
use egress_ebpf::{
    abi::{
        self, Alias, AliasKey, AnswerFold, InnerWildcard, LEARN_COUNTS, NameEntry, Pending, PendingKey, RING_SLOTS,
        RINGS, RingSlot, Stream,
    },
    dns::{MESSAGE_MAX, Work},
};

use super::report::Name;

/// Data of a name's key: the epoch, then the reversed name.
pub type NameData = [u8; 256];

#[btf_map]
pub static NAMES: LpmTrie<NameData, NameEntry, 65536> = LpmTrie::new();

#[btf_map]
pub static INNER_WILDCARDS: Array<InnerWildcard, 4096> = Array::new();

/// The names of aliases come from trusted resolvers alone; a full table evicts the one that was not used for longest.
#[btf_map]
pub static ALIASES: LruHashMap<AliasKey, Alias, 16384> = LruHashMap::new();

/// How many marks [`ALIAS_MARKS`] has.
pub const ALIAS_MARKS_MAX: u32 = 32_768;

/// Not 0 where a name with this hash ([`egress_ebpf::abi::KeyBuffer::hash`], its lowest bits) was ever an alias: a name of
/// 256 bytes takes long to look up in [`ALIASES`], and nearly none is there. Marked before the alias is written, and never
/// unmarked: a mark too many costs time, one too few would lose a name. Marks are of no epoch, so what userspace
/// carries over from one to the next has its mark.
#[btf_map]
pub static ALIAS_MARKS: Array<u64, { ALIAS_MARKS_MAX as usize }> = Array::new();

/// As many as all rings together can name, and never evicting: who floods it pushes out its own ring's queries alone.
#[btf_map]
pub static PENDING: HashMap<PendingKey, Pending, { RINGS * RING_SLOTS }, { BPF_F_NO_PREALLOC as usize }> =
    HashMap::new();

/// Ring by ring, the keys of [`PENDING`] in the order in which they came.
#[btf_map]
pub static PENDING_RINGS: Array<RingSlot, { RINGS * RING_SLOTS }> = Array::new();

/// How many queries each ring has had.
#[btf_map]
pub static RING_HEADS: Array<u64, RINGS> = Array::new();

/// TCP connections to resolvers, from their handshake on. Without its entry nothing is learned of a connection.
#[btf_map]
pub static STREAMS: LruHashMap<PendingKey, Stream, 4096> = LruHashMap::new();

/// Messages that came in part.
pub const PARTS_MAX: u32 = 128;

/// Taken in turn; the message that waits for longest gives its place up.
#[btf_map]
pub static PARTS: Array<Part, { PARTS_MAX as usize }> = Array::new();

/// How often an element of [`PARTS`] was taken.
#[btf_map]
pub static PARTS_TAKEN: Array<u64, 1> = Array::new();

/// A message that came in part.
#[repr(C)]
pub struct Part {
    /// Who has it: see [`Stream::ticket`].
    pub ticket: u64,
    /// Two unused bytes, the length, and the message, at 4 as in [`egress_ebpf::dns::Message`]. Twice as long as it need be, which
    /// spares the verifier a proof about sums.
    pub bytes: [u8; 2 * (MESSAGE_MAX + 8)],
}

/// Scratch buffers of one processor: a program that was preempted keeps its own, and softirqs come on top.
pub const WORKS: u32 = 8;

#[btf_map]
pub static WORK: PerCpuArray<Work, { WORKS as usize }> = PerCpuArray::new();

/// Answers that were told of, by [`egress_ebpf::abi::AnswerKey::place`].
#[btf_map]
pub static ANSWER_FOLDS: Array<AnswerFold, { abi::ANSWER_FOLDS as usize }> = Array::new();

#[btf_map]
pub static LEARN_COUNTERS: PerCpuArray<u64, { LEARN_COUNTS as usize }> = PerCpuArray::new();

/// Names that were refused, for the event that tells of it. Taken in turn, so that a program which is preempted between
/// the refusal and its event still finds its own.
pub const REFUSED: u32 = 8;

#[btf_map]
pub static REFUSED_NAMES: PerCpuArray<Name, { REFUSED as usize }> = PerCpuArray::new();

#[btf_map]
pub static REFUSED_NEXT: PerCpuArray<u32, 1> = PerCpuArray::new();
