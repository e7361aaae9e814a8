//! DNS as the packet path reads it: a query's question, an answer's addresses (RFC 1035).
//!
//! All state is in one [`Work`], which is map memory in the programs: the verifier then forgets what a loop wrote, so it
//! looks at the loop once. Loops get small structs of pointers on the stack, see [`crate::repeat`].

mod answer;
pub mod bytes;
mod matching;
mod name;
mod private;
mod question;
#[cfg(test)]
mod tests;

pub use answer::{Answer, Steps, answer_id, expand, key, parse_answer};
pub use matching::{Matching, NameTable, find};
pub use name::{Labels, Reversal, TEXT_BYTES};
pub use private::is_private;
pub use question::{QUERY_MAX, question, same_question};

use crate::abi::{CHAIN_MAX, KeyBuffer, LearnedEvent, Pending, PendingKey, RINGS};

/// The longest message that is read.
pub const MESSAGE_MAX: usize = 4096;
/// Bytes of a header (RFC 1035, 4.1.1).
pub const HEADER: u64 = 12;

/// A DNS message.
#[repr(C)]
pub struct Message {
    /// Puts the question, at offset 12, on a multiple of 8.
    pub pad: u32,
    /// The message, and room for words that reach past its end.
    pub bytes: [u8; MESSAGE_MAX + 12],
    /// Its length.
    pub len: u64,
}

/// All that reading one message takes. It is too large for the stack of a program, so it lives in a map.
#[repr(C)]
pub struct Work {
    /// 1 while a program uses it.
    pub busy: u64,
    /// Which of its processor's buffers it is.
    pub index: u64,
    /// Where the program that loads messages stands in its packet.
    pub cursor: u64,
    /// The messages' end in the packet.
    pub end: u64,
    /// TCP: the sequence number that the byte at offset 0 of the packet would have.
    pub sequence: u64,
    /// Messages of a query's packet that may still be read.
    pub left: u64,
    /// Whether the answer will be believed where the query is seen.
    pub trust: u64,
    /// What is to be done with the query, in the program's own numbers.
    pub result: u64,
    /// The key of the query, as it is remembered or looked for.
    pub key: PendingKey,
    /// The message that is being read.
    pub message: Message,
    /// A name that was decompressed.
    pub text: [u8; TEXT_BYTES],
    /// State of a walk over labels.
    pub labels: Labels,
    /// State of a reversal.
    pub reversal: Reversal,
    /// Whether a comparison found a difference.
    pub differ: u64,
    /// What the name table said.
    pub matching: Matching,
    /// The query that is being made, as `PENDING` will have it.
    pub pending: Pending,
    /// State of the walk over an answer's records.
    pub answer: Answer,
    /// The owner of a record, where it is not a pointer to the name that is looked for.
    pub owner: KeyBuffer,
    /// The names of the CNAME chain, without the one that was asked.
    pub chain: [KeyBuffer; CHAIN_MAX],
    /// What is learned. Its `key` is the name that was asked, its `addresses` are filled in by [`parse_answer`].
    pub event: LearnedEvent,
    /// State of the learning loop: see [`crate::learn`].
    pub learning: crate::learn::Learning,
    /// What the `control` program counts: see [`crate::abi::ControlHeader`].
    pub results: [u32; 6],
    /// The record that it is at.
    pub record: crate::abi::ControlRecord,
}

/// Which ring of [`crate::abi::RINGS`] an asker's queries go to. `asker` is its cgroup's id, or what else tells it from
/// others and is not of its choosing.
#[inline(always)]
pub const fn ring_of(asker: u64) -> u32 {
    (asker.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u32 % RINGS as u32
}
