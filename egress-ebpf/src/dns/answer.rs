//! An answer: the addresses at the end of the asked name's CNAME chain.

use super::{
    HEADER, MESSAGE_MAX, Message, Work,
    bytes::{be16, be16_at, opaque, word},
    is_private,
    name::{self, TEXT_AT},
};
use crate::{
    abi::{ANSWER_MAX, Address, CHAIN_MAX, NameValue, address_sum},
    repeat::{Step, repeat},
};

const TYPE_A: u64 = 1;
const TYPE_CNAME: u64 = 5;
const TYPE_AAAA: u64 = 28;
const CLASS_IN: u64 = 1;

/// Where the walk over an answer's records stands.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Answer {
    /// The next record.
    pub at: u64,
    /// Records that are read: those that the header promises, at most [`ANSWER_MAX`].
    pub records: u64,
    /// Records read in this walk over them.
    pub read: u64,
    /// CNAMEs followed before this walk.
    pub followed: u64,
    /// 1 where a record of this walk is off the chain.
    pub astray: u64,
    /// Where in the message the name stands whose records count: the question's, then each CNAME's target.
    pub target: u64,
    /// CNAMEs followed.
    pub chain: u64,
    /// The least TTL of the chain, in seconds.
    pub ttl: u64,
    /// Addresses found.
    pub count: u64,
    /// [`address_sum`] of each of these, added up.
    pub sum: u64,
    /// Addresses off the chain.
    pub refused: u64,
    /// Addresses refused as private.
    pub private: u64,
    /// 1 where a record is malformed.
    pub bad: u64,
}

/// Parses the answer in `work.message`, whose question is the pending one's, `wire_len` bytes long; `flags` has
/// [`NameValue::PRIVATE`] where private addresses may be learned, and `work.event.key` the name that was asked. Returns
/// whether the answer section is well-formed; if so, `work.event.addresses[..work.answer.count]` has the addresses and
/// TTLs, and `work.chain[..work.answer.chain]` the CNAMEs' targets.
///
/// It is all or nothing: of a section with a malformed record nothing is learned, so that no trick with lengths or
/// pointers decides what the records after it are. Only the first [`ANSWER_MAX`] records are read, and judged. A truncated
/// answer (TC) is learned from like any other: what stands in it is the resolver's word, and some stub resolvers use it.
/// The authority and additional sections are never read.
///
/// Records may come in any order (RFC 2181, 5): where some are off the chain, and the chain has become longer, they are read once more from
/// the first on, for the name at its end.
#[inline(always)]
pub fn parse_answer<S: Steps>(steps: S, work: &mut Work, wire_len: u64, flags: u32) -> bool {
    let records = be16_at::<6, _>(&work.message.bytes);
    work.answer = Answer {
        at: HEADER + wire_len,
        records: if records > ANSWER_MAX as u64 { ANSWER_MAX as u64 } else { records },
        target: HEADER,
        ttl: u64::MAX,
        ..Answer::default()
    };
    repeat(TURNS, &mut Records { steps, work: &mut *work, start: HEADER + wire_len, flags });
    work.answer.bad == 0
}

/// Turns for all walks: four over the longest answer, which nobody is to make cost more; over a short one as many as its chain has links.
const TURNS: u32 = 4 * (ANSWER_MAX as u32 + 1);

/// What is done with several names of an answer. The kernel's programs put a function of their own round each, which the
/// verifier looks at once instead of at every call; `()` has them as they are.
pub trait Steps: Copy {
    /// See [`expand`].
    #[inline(always)]
    fn expand(self, work: &mut Work, at: u64) -> bool {
        expand(work, at)
    }

    /// See [`key`].
    #[inline(always)]
    fn key(self, work: &mut Work, place: u64) {
        key(work, place);
    }
}

impl Steps for () {}

/// Copies the name at `at` in the message to `work.text`, with `work.labels` as its labels. Returns whether it is well-formed.
#[inline(always)]
pub fn expand(work: &mut Work, at: u64) -> bool {
    let Work { message, text, labels, .. } = work;
    name::expand(&message.bytes, at, message.len, text, labels)
}

/// Makes the key of the name in `work.text`, in `work.chain[place]`, or in `work.owner` where `place` is [`CHAIN_MAX`] or more.
#[inline(always)]
pub fn key(work: &mut Work, place: u64) {
    let text_len = if work.labels.count == 0 { 0 } else { work.labels.out - TEXT_AT };
    let Work { text, labels, reversal, owner, chain, .. } = work;
    let place = opaque(place);
    let key = if place >= CHAIN_MAX as u64 {
        owner
    } else {
        // Masked too: of an index that was on the stack since its check, older kernels (6.1) no longer know the bounds.
        const { assert!(CHAIN_MAX.is_power_of_two()) };
        // SAFETY: checked above.
        unsafe { chain.get_unchecked_mut(opaque(place) as usize & (CHAIN_MAX - 1)) }
    };
    name::reverse(text, TEXT_AT, text_len, labels, key, reversal);
}

struct Records<'a, S> {
    steps: S,
    work: &'a mut Work,
    /// Where the first record is.
    start: u64,
    flags: u32,
}

impl<S: Steps> Step for Records<'_, S> {
    #[inline(always)]
    fn step(&mut self, _index: u32) -> bool {
        if self.work.answer.read >= self.work.answer.records {
            return self.again();
        }
        self.work.answer.read += 1;
        // Until the record is read to its end, it is malformed.
        self.work.answer.bad = 1;
        let good = self.record();
        self.work.answer.bad = u64::from(!good);
        good
    }
}

impl<S: Steps> Records<'_, S> {
    /// Goes back to the first record, if what is off the chain may be on it by now.
    #[inline(always)]
    fn again(&mut self) -> bool {
        let answer = &mut self.work.answer;
        if answer.astray == 0 || answer.followed == answer.chain {
            return false;
        }
        answer.followed = answer.chain;
        answer.at = self.start;
        answer.read = 0;
        answer.astray = 0;
        answer.count = 0;
        answer.sum = 0;
        answer.refused = 0;
        answer.private = 0;
        true
    }

    /// Reads one record (RFC 1035, 4.1.3). Returns whether it is well-formed.
    #[inline(always)]
    fn record(&mut self) -> bool {
        let at = self.work.answer.at;
        let len = self.work.message.len;
        if len > MESSAGE_MAX as u64 || at + 2 > len {
            return false;
        }
        let head = be16(&self.work.message.bytes, at);
        let (data, pointed) = if head >= 0xc000 {
            (at + 2, true)
        } else {
            if !self.steps.expand(self.work, at) {
                return false;
            }
            (self.work.labels.end, false)
        };
        if data + 10 > len {
            return false;
        }
        let fixed = word(&self.work.message.bytes, data).swap_bytes();
        let (kind, class, ttl) = (fixed >> 48, fixed >> 32 & 0xffff, fixed & 0xffff_ffff);
        let data_len = be16(&self.work.message.bytes, data + 8);
        let data = data + 10;
        if data + data_len > len {
            return false;
        }
        self.work.answer.at = data + data_len;
        if class != CLASS_IN || (kind != TYPE_A && kind != TYPE_AAAA && kind != TYPE_CNAME) {
            return true;
        }
        if (kind == TYPE_A && data_len != 4) || (kind == TYPE_AAAA && data_len != 16) {
            return false;
        }
        let on_chain = if pointed && head & 0x3fff == self.work.answer.target {
            true
        } else {
            if pointed && !self.steps.expand(self.work, at) {
                return false;
            }
            self.owner_is_target()
        };
        self.work.answer.astray |= u64::from(!on_chain);
        // RFC 2181, 8: a TTL with its top bit set is 0.
        let ttl = if ttl > 0x7fff_ffff { 0 } else { ttl };
        if kind == TYPE_CNAME {
            return self.follow(data, data_len, ttl, on_chain);
        }
        if !on_chain {
            self.work.answer.refused += 1;
            return true;
        }
        self.address(data, kind == TYPE_A, ttl);
        true
    }

    /// Compares the name in `text` with the one that is looked for.
    #[inline(always)]
    fn owner_is_target(&mut self) -> bool {
        self.steps.key(self.work, CHAIN_MAX as u64);
        let Work { owner, answer, event, chain, differ, .. } = &mut *self.work;
        let followed = opaque(answer.chain);
        let target = if followed == 0 || followed > CHAIN_MAX as u64 {
            &event.key
        } else {
            // SAFETY: checked right above.
            unsafe { chain.get_unchecked((followed - 1) as usize) }
        };
        name::same(owner, target, differ)
    }

    /// Takes a CNAME's target as the name to look for.
    #[inline(always)]
    fn follow(&mut self, data: u64, data_len: u64, ttl: u64, on_chain: bool) -> bool {
        if !self.steps.expand(self.work, data) || self.work.labels.end != data + data_len {
            return false;
        }
        if !on_chain {
            return true;
        }
        let followed = opaque(self.work.answer.chain);
        if followed >= CHAIN_MAX as u64 {
            // A longer chain: nothing after this record is at its end.
            return false;
        }
        self.steps.key(self.work, followed);
        self.work.answer.chain = followed + 1;
        self.work.answer.target = data;
        if ttl < self.work.answer.ttl {
            self.work.answer.ttl = ttl;
        }
        true
    }

    /// Writes an address down.
    #[inline(always)]
    fn address(&mut self, data: u64, v4: bool, ttl: u64) {
        let bytes = &self.work.message.bytes;
        let first = word(bytes, data).to_le_bytes();
        let address = if v4 {
            Address::v4([first[0], first[1], first[2], first[3]])
        } else {
            let second = word(bytes, data + 8).to_le_bytes();
            Address { high: u64::from_ne_bytes(first), low: u64::from_ne_bytes(second) }
        };
        // An IPv4-mapped address in an AAAA record would open the IPv4 address that it holds.
        let unfit = is_private(&address) || (!v4 && address.is_v4());
        if unfit && self.flags & NameValue::PRIVATE == 0 {
            self.work.answer.private += 1;
            return;
        }
        let count = opaque(self.work.answer.count);
        if count >= ANSWER_MAX as u64 {
            return;
        }
        // SAFETY: checked right above.
        let found = unsafe { self.work.event.addresses.get_unchecked_mut(count as usize) };
        found.address = address;
        found.expiry = 0;
        found.ttl = if ttl < self.work.answer.ttl { ttl } else { self.work.answer.ttl } as u32;
        self.work.answer.count = count + 1;
        self.work.answer.sum = self.work.answer.sum.wrapping_add(address_sum(&address));
    }
}

/// Whether the message in `message` is an answer to an ordinary query with one question. Returns its transaction id.
#[inline(always)]
pub fn answer_id(message: &Message) -> Option<u16> {
    let bytes = &message.bytes;
    if message.len < HEADER + 5 || bytes[2] & 0xf8 != 0x80 || be16_at::<4, _>(bytes) != 1 {
        return None;
    }
    Some(be16_at::<0, _>(bytes) as u16)
}
