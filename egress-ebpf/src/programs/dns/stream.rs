//! TCP: where in a resolver's stream its messages begin, and those that come in several segments (decision 0019).

use core::ptr;

use aya_ebpf::{bindings::__sk_buff, helpers::generated::bpf_skb_load_bytes};
use egress_ebpf::{
    abi::{LearnCount, Stream},
    atomic,
    dns::{MESSAGE_MAX, Message, Work, bytes::opaque},
    packet::{Packet, TCP_ACK},
    repeat::{Step, repeat},
};

use super::{be16, load};
use crate::programs::{
    learn::count,
    maps_names::{PARTS, PARTS_MAX, PARTS_TAKEN, Part, STREAMS},
};

/// Nothing more is to be had of this segment.
pub const END: u32 = 0;
/// There is a message in `work.message`.
pub const MESSAGE: u32 = 1;
/// A message was passed over; the next may follow.
pub const PASSED: u32 = 2;

/// The bytes of a message's length.
const LENGTH: u64 = 2;

/// Looks at the handshake, where the stream's first byte is told by the resolver itself. What a client sends does not tell
/// it: that may acknowledge half a message.
#[inline(never)]
pub fn open(skb: *mut __sk_buff, packet: &Packet, network_offset: u32, work: &mut Work) {
    if packet.tcp_flags & TCP_ACK != 0
        && let Some(sequence) = sequence(skb, packet, network_offset)
    {
        let _ = STREAMS.insert(&work.key, &Stream { base: sequence.wrapping_add(1), ..Stream::default() }, 0);
    }
}

/// Finds the sequence number that the byte at offset 0 of the packet would have, for [`next`]: it stays in `work.sequence`.
#[inline(never)]
pub fn locate(skb: *mut __sk_buff, packet: &Packet, network_offset: u32, work: &mut Work) -> bool {
    let Some(sequence) = sequence(skb, packet, network_offset) else { return false };
    work.sequence = u64::from(sequence.wrapping_sub(work.cursor as u32));
    true
}

#[inline(always)]
fn sequence(skb: *mut __sk_buff, packet: &Packet, network_offset: u32) -> Option<u32> {
    let header = u64::from(network_offset) + u64::from(packet.transport);
    Some((be16(skb, header + 4)? as u32) << 16 | be16(skb, header + 6)? as u32)
}

/// Reads on from `work.cursor` to the end of a message, or of the segment.
///
/// What was sent before is passed over. After a gap nothing is learned of the connection: what fills it would have to be
/// kept beside what came early.
#[inline(never)]
pub fn next(skb: *mut __sk_buff, work: &mut Work) -> u32 {
    work.key.id = 0;
    let Some(stream) = STREAMS.get_ptr_mut(&work.key) else {
        count(LearnCount::TooLong);
        return END;
    };
    // SAFETY: the map's memory stays mapped while the program runs. Segments of one connection come one after the other.
    let stream = unsafe { &mut *stream };
    let ahead = (work.sequence as u32)
        .wrapping_add(work.cursor as u32)
        .wrapping_sub(stream.base.wrapping_add(stream.have)) as i32;
    let again = u64::from(ahead.unsigned_abs());
    if ahead <= 0 && work.cursor + again >= work.end {
        return END;
    }
    work.cursor += again;
    let at = work.cursor;
    let mut left = work.end.wrapping_sub(at);
    if ahead > 0 || (stream.have == 0 && left < LENGTH) {
        count(LearnCount::TooLong);
        let _ = STREAMS.remove(&work.key);
        return END;
    }
    if stream.have == 0 {
        let Some(len) = be16(skb, at) else { return END };
        let want = len + LENGTH;
        stream.want = want as u32;
        if want <= left {
            stream.base = stream.base.wrapping_add(want as u32);
            work.cursor = at + want;
            return if load(skb, at + LENGTH, len, &mut work.message) { MESSAGE } else { passed() };
        }
        stream.ticket = if len <= MESSAGE_MAX as u64 { claim() } else { 0 };
    }
    let rest = u64::from(stream.want.wrapping_sub(stream.have));
    if left > rest {
        left = rest;
    }
    if !keep(skb, stream, at, left) {
        stream.ticket = 0;
    }
    work.cursor = at + left;
    stream.have += left as u32;
    if stream.have < stream.want {
        return END;
    }
    stream.base = stream.base.wrapping_add(stream.want);
    stream.have = 0;
    if take(stream, work) { MESSAGE } else { passed() }
}

#[inline(always)]
fn passed() -> u32 {
    count(LearnCount::TooLong);
    PASSED
}

/// Takes an element of [`PARTS`]; gives the ticket, or 0.
#[inline(always)]
fn claim() -> u64 {
    let Some(taken) = PARTS_TAKEN.get_ptr_mut(0) else { return 0 };
    // SAFETY: an entry of an array lives as long as the program, and this one is only used atomically.
    let ticket = unsafe { atomic::fetch_add(taken, 1) } + 1;
    let Some(part) = part(ticket) else { return 0 };
    // SAFETY: as above; volatile, since others look at it.
    unsafe { (&raw mut (*part).ticket).write_volatile(ticket) };
    ticket
}

#[inline(always)]
fn part(ticket: u64) -> Option<*mut Part> {
    PARTS.get_ptr_mut(opaque(ticket % u64::from(PARTS_MAX)) as u32)
}

/// Whether this element is this ticket's still.
#[inline(always)]
fn holds(part: *mut Part, ticket: u64) -> bool {
    // SAFETY: an element of an array; volatile, since others write it.
    unsafe { (&raw const (*part).ticket).read_volatile() == ticket }
}

/// Keeps `len` bytes of the message, from `at` in the packet on.
#[inline(always)]
fn keep(skb: *mut __sk_buff, stream: &Stream, at: u64, len: u64) -> bool {
    let Some(part) = part(stream.ticket) else { return false };
    let (have, below) = (opaque(u64::from(stream.have)), opaque(len.wrapping_sub(1)));
    if !holds(part, stream.ticket) || have > MESSAGE_MAX as u64 + LENGTH || below > MESSAGE_MAX as u64 {
        return false;
    }
    // SAFETY: helper 26 writes `below + 1` bytes, which the buffer has: both numbers were checked right above.
    unsafe {
        let to = (&raw mut (*part).bytes).cast::<u8>().add(2).add(have as usize);
        bpf_skb_load_bytes(skb.cast(), at as u32, to.cast(), below as u32 + 1) == 0
    }
}

/// Makes what was kept the message that is to be read.
#[inline(always)]
fn take(stream: &Stream, work: &mut Work) -> bool {
    let Some(part) = part(stream.ticket) else { return false };
    work.message.len = u64::from(stream.want) - LENGTH;
    if !holds(part, stream.ticket) || work.message.len > MESSAGE_MAX as u64 {
        return false;
    }
    // SAFETY: an element of an array, whose message begins on a multiple of 8.
    let from = unsafe { (&raw const (*part).bytes).cast::<u64>() };
    repeat(PIECES, &mut Piece { from, to: ptr::from_mut(&mut work.message).cast() });
    // Another message may have taken its place meanwhile.
    holds(part, stream.ticket)
}

/// The words of the longest message, and of what stands before it.
const WORDS: usize = MESSAGE_MAX / 8 + 1;
/// Words that one turn of [`Piece`] copies.
const PIECE: usize = 19;
/// Turns that copy all of them.
const PIECES: u32 = (WORDS / PIECE) as u32;
const _: () = assert!(PIECES as usize * PIECE == WORDS && WORDS * 8 <= core::mem::offset_of!(Message, len));

/// Copies a message by pieces.
struct Piece {
    from: *const u64,
    to: *mut u64,
}

impl Step for Piece {
    #[inline(always)]
    fn step(&mut self, index: u32) -> bool {
        let at = opaque(u64::from(index) * PIECE as u64) as usize;
        if at > WORDS - PIECE {
            return false;
        }
        let mut word = 0;
        while word < PIECE {
            // SAFETY: within both, as was checked right above. Volatile, or it becomes a call of `memcpy`.
            unsafe { self.to.add(at + word).write_volatile(self.from.add(at + word).read_volatile()) };
            word += 1;
        }
        true
    }
}
