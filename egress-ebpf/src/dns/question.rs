//! A query: one question for one name, and nothing to hide in.

use super::{
    HEADER, Message, Work,
    bytes::{again, be16, be16_at, byte, set_word, word},
    name,
};
use crate::{
    abi::{Pending, QUESTION_MAX},
    repeat::{Step, repeat},
};

/// The longest query: what every resolver takes over UDP without EDNS (RFC 1035, 4.2.1). The longest question with its
/// header is 271 bytes; the rest is for EDNS options.
pub const QUERY_MAX: u64 = 512;

const CLASS_IN: u64 = 1;
const TYPE_OPT: u64 = 41;

/// Parses the query in `work.message`: fills in `question`, `wire_len` and `key` of `work.pending`. Returns whether it
/// is well-formed; the caller looks at `work.pending.key.plain`, without which no rule can allow the name.
///
/// A query has QR and opcode 0, one question of class IN without pointers, no other section but at most one OPT record
/// (RFC 6891), and ends right there. What is left to an attacker who may ask for the name: the header's other flags, the
/// type, upper and lower case, and what fits an OPT record within [`QUERY_MAX`], which resolvers do not pass on (but
/// for the client subnet of RFC 7871, where one is set up to).
#[inline(always)]
pub fn question(work: &mut Work) -> bool {
    let message = &mut work.message;
    let len = message.len;
    if len < HEADER + 5 || len > QUERY_MAX {
        return false;
    }
    let additional = be16_at::<10, _>(&message.bytes);
    if message.bytes[2] & 0xf8 != 0
        || be16_at::<4, _>(&message.bytes) != 1
        || be16_at::<6, _>(&message.bytes) != 0
        || be16_at::<8, _>(&message.bytes) != 0
        || additional > 1
    {
        return false;
    }
    keep(message, &mut work.pending);
    let labels = &mut work.labels;
    if !name::dot(&mut message.bytes, HEADER, len, labels) {
        return false;
    }
    let end = labels.at + 5;
    if end > len || be16(&message.bytes, labels.at + 3) != CLASS_IN {
        return false;
    }
    work.pending.wire_len = (end - HEADER) as u32;
    if additional == 0 {
        if end != len {
            return false;
        }
    } else if end + 11 > len
        || byte(&message.bytes, end) != 0
        || be16(&message.bytes, end + 1) != TYPE_OPT
        || end + 11 + be16(&message.bytes, end + 9) != len
    {
        return false;
    }
    let text_len = again(&labels.at).wrapping_sub(HEADER + 1);
    let text_len = text_len.wrapping_add(text_len >> 63);
    name::reverse(&message.bytes, HEADER + 1, text_len, labels, &mut work.pending.key, &mut work.reversal);
    true
}

/// Bytes that are copied of every question; the rest only of a message that is longer. Nearly all are shorter.
const SHORT: usize = 64;

/// Copies the question as it is on the wire, before its length bytes become dots. What follows it in the message is
/// copied too, and never looked at.
#[inline(always)]
fn keep(message: &Message, pending: &mut Pending) {
    let from = message.bytes.as_ptr().wrapping_add(HEADER as usize).cast::<u64>();
    let to = pending.question.as_mut_ptr().cast::<u64>();
    let mut index = 0;
    while index < SHORT / 8 {
        // SAFETY: both are 264 bytes long, and on multiples of 8: `Message::pad` and the fields before `question` see
        // to it. Volatile, or it becomes a call of `memcpy`, which goes by single bytes on this target.
        unsafe { to.add(index).write_volatile(from.add(index).read_volatile()) };
        index += 1;
    }
    if again(&message.len) > HEADER + SHORT as u64 {
        repeat((QUESTION_MAX - SHORT) as u32 / 8, &mut Keep { message, pending });
    }
}

/// Copies the rest, in a loop that the verifier walks once.
struct Keep<'a> {
    message: &'a Message,
    pending: &'a mut Pending,
}

impl Step for Keep<'_> {
    #[inline(always)]
    fn step(&mut self, index: u32) -> bool {
        let at = SHORT as u64 + u64::from(index) * 8;
        set_word(&mut self.pending.question, at, word(&self.message.bytes, HEADER + at));
        true
    }
}

const _: () = {
    assert!((core::mem::offset_of!(Message, bytes) + HEADER as usize).is_multiple_of(8));
    assert!(core::mem::offset_of!(Pending, question).is_multiple_of(8));
    assert!(core::mem::align_of::<Message>() == 8 && core::mem::align_of::<Pending>() == 8);
};

/// Whether the answer in `message` repeats the question of `pending` to the letter.
#[inline(always)]
pub fn same_question(message: &Message, pending: &Pending, differ: &mut u64) -> bool {
    let wire_len = u64::from(pending.wire_len);
    if wire_len < 5 || HEADER + wire_len > message.len {
        return false;
    }
    *differ = 1;
    repeat(
        QUESTION_MAX as u32 / 8,
        &mut Same { message: &message.bytes, question: &pending.question, wire_len, differ },
    );
    *differ == 0
}

struct Same<'a, const N: usize> {
    message: &'a [u8; N],
    question: &'a [u8; QUESTION_MAX],
    wire_len: u64,
    differ: &'a mut u64,
}

impl<const N: usize> Step for Same<'_, N> {
    #[inline(always)]
    fn step(&mut self, index: u32) -> bool {
        let done = u64::from(index) * 8;
        if done >= self.wire_len {
            return false;
        }
        let mask = super::bytes::low_bytes(self.wire_len - done);
        *self.differ =
            (super::bytes::word(self.message, HEADER + done) ^ super::bytes::word(self.question, done)) & mask;
        *self.differ == 0
    }
}
