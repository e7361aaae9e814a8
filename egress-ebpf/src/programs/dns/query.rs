//! Queries to a resolver: which of them may leave, and what is remembered of them.

use aya_ebpf::{
    bindings::__sk_buff,
    helpers::generated::{bpf_skb_ancestor_cgroup_id, bpf_skb_cgroup_id},
};
use egress_ebpf::{
    abi::{Config, LearnCount, NameValue, PENDING_LIFE, PROTO_TCP, PendingKey, RING_SLOTS, RINGS, RingSlot, Ticks},
    atomic,
    dns::{
        self, QUERY_MAX, Work,
        bytes::{again, be16_at, copy_words, opaque},
    },
    packet::{Fragment, Headers, Packet, TCP_URG},
    reason::Reason,
};

use super::{Wanted, be16, load, scratch, staged};
use crate::programs::{
    clock::now,
    learn::count,
    maps_names::{PENDING, PENDING_RINGS, REFUSED, REFUSED_NAMES, REFUSED_NEXT, RING_HEADS},
    report::Refused,
    skb::Direct,
};

/// Queries that one TCP segment may hold. The kernel joins what a client writes while earlier segments are under way.
const MESSAGES: u32 = 16;

/// The level of the cgroup that an asker is told by: below it users and containers make cgroups as they like
/// (`user.slice/user-1000.slice/user@1000.service`, `kubepods.slice/kubepods-burstable.slice/kubepods-pod….slice`).
const ASKER_LEVEL: i32 = 3;

/// Where a query is asked.
#[derive(Clone, Copy)]
pub struct Asked {
    /// Where the packet's network header starts.
    pub network_offset: u32,
    /// The socket's cookie, or 0 at an uplink.
    pub cookie: u64,
    /// Whether the answer will be believed where this hook is, so that the query is to be remembered.
    pub trust_here: bool,
}

const BAD_QUERY: Refused = Refused::plain(Reason::BadQuery);

/// Judges what leaves for a resolver, UDP or TCP.
///
/// A datagram is one query. It must be in the buffer's linear part: pages that the sender shares (MSG_ZEROCOPY, splice)
/// can change after they were judged. A TCP segment is whole queries from its first byte on, or has no payload. One that
/// holds a message's length alone is refused: two bytes at a time, a stream could say anything. So is one with urgent data.
///
/// # Errors
/// [`Refused`]; with [`Config::QUERIES_ALLOWLISTED`] off, only what is malformed.
///
/// It goes by global functions one after the other, not one within the other: each gives its frame back before the next.
#[inline(always)]
pub fn query(skb: *mut __sk_buff, config: &Config, packet: &Packet, asked: &Asked) -> Result<(), Refused> {
    let found = egress_queries(skb, config, packet, asked);
    match found & 0xff {
        GOOD => Ok(()),
        NOT_ALLOWED => Err(Refused { reason: Reason::NameNotAllowed, name: (found >> 8) as u32 + 1 }),
        _ => Err(BAD_QUERY),
    }
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn egress_queries(
    skb: *mut __sk_buff,
    config: *const Config,
    packet: *const Packet,
    asked: *const Asked,
) -> u64 {
    let begun = egress_query_begin(skb, packet, asked);
    if begun & 0xff != READ {
        return begun;
    }
    let mut found = begun;
    for _ in 0..MESSAGES {
        found = egress_query(skb, config, (begun >> 8) as u32);
        if found & 0xff != READ {
            break;
        }
    }
    found
}

/// It may leave.
const GOOD: u64 = 0;
/// It is malformed, or cannot be read.
const BAD: u64 = 1;
/// The name must not be asked; above this its place in [`REFUSED_NAMES`].
const NOT_ALLOWED: u64 = 2;
/// There is a message to read; above this the scratch buffer's number.
const READ: u64 = 3;

/// Finds where the packet's messages are: [`READ`], or what is to be done with a packet that has none.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn egress_query_begin(skb: *mut __sk_buff, packet: *const Packet, asked: *const Asked) -> u64 {
    // SAFETY: null or valid, as the verifier makes sure.
    let (Some(packet), Some(asked)) = (unsafe { packet.as_ref() }, unsafe { asked.as_ref() }) else {
        return BAD;
    };
    let network_offset = asked.network_offset;
    let at = u64::from(network_offset) + u64::from(packet.payload);
    let end = u64::from(network_offset) + u64::from(packet.end);
    let tcp = packet.proto == PROTO_TCP;
    // Urgent data is taken out of the stream where it is received (RFC 9293, 3.8.5): what is behind it would be read there from another
    // byte on than here. A segment without data may point at some too.
    let urgent = tcp && packet.tcp_flags & TCP_URG != 0;
    if !matches!(packet.fragment, Fragment::Whole) || at > end || urgent {
        return BAD;
    }
    if at == end {
        // A segment without payload belongs to its connection; an empty datagram asks nothing.
        return if tcp { GOOD } else { BAD };
    }
    if !tcp {
        // SAFETY: the context is valid.
        let (gso, linear) = unsafe { ((*skb).gso_size, u64::from((*skb).data_end) - u64::from((*skb).data)) };
        let udp = u64::from(network_offset) + u64::from(packet.transport);
        if gso != 0 || linear < end || udp_length(skb, udp) != Some(end - udp) {
            return BAD;
        }
    }
    let Some(work) = scratch::claim() else {
        count(LearnCount::Busy);
        return BAD;
    };
    work.cursor = at;
    work.end = end;
    work.left = if tcp { u64::from(MESSAGES) } else { 1 };
    work.trust = u64::from(asked.trust_here);
    work.key = PendingKey {
        cookie: asked.cookie,
        local: packet.source,
        resolver: packet.destination,
        local_port: packet.source_port,
        resolver_port: packet.destination_port,
        id: 0,
        proto: packet.proto,
        pad: 0,
    };
    READ | work.index << 8
}

/// The length that a UDP header in the linear part says. Test runs of kernel 6.1 do not tell a cgroup's program where that part ends.
#[inline(always)]
fn udp_length(skb: *mut __sk_buff, udp: u64) -> Option<u64> {
    match Direct(skb).read::<2>(udp as usize + 4) {
        Some(bytes) => Some(u64::from(u16::from_be_bytes(bytes))),
        None => be16(skb, udp + 4),
    }
}

/// Judges the next message: [`READ`] where another one follows. Else the buffer was given back.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn egress_query(skb: *mut __sk_buff, config: *const Config, index: u32) -> u64 {
    // SAFETY: null or valid, as the verifier makes sure; the buffer is the caller's.
    let (Some(config), Some(work)) = (unsafe { config.as_ref() }, scratch::claimed(index)) else { return BAD };
    judge(skb, config, work);
    // SAFETY: the caller's own buffer.
    let work = unsafe { &mut *work };
    let mut result = again(&work.result);
    if result == GOOD && work.cursor != work.end {
        work.left = work.left.wrapping_sub(1);
        if work.left != 0 {
            return READ;
        }
        result = BAD;
    }
    if result == NOT_ALLOWED {
        result |= refused_name(work) << 8;
    }
    scratch::release(work);
    result
}

/// Leaves [`GOOD`], [`BAD`] or [`NOT_ALLOWED`] in the buffer: a known number that is returned later would part all that is in between.
// A pointer, not a reference: what this calls writes to the buffer by one of its own.
#[inline(always)]
fn judge(skb: *mut __sk_buff, config: &Config, work: *mut Work) {
    // SAFETY: the caller's own buffer.
    let work = unsafe { &mut *work };
    work.result = BAD;
    if !read(skb, work) {
        return;
    }
    let now = now();
    work.matching = dns::Matching::default();
    let plain = again(&work.pending.key.plain) != 0;
    if plain {
        find(config, work.index as u32, now);
    }
    work.result = GOOD;
    if config.has(Config::QUERIES_ALLOWLISTED) && !work.matching.may_ask() {
        work.result = NOT_ALLOWED;
        if !config.has(Config::TELL_ANSWERS) {
            return;
        }
    }
    if work.trust == 0 || !plain {
        return;
    }
    work.pending.generation = config.generation;
    if work.matching.count == 0 {
        // The next policy may allow what this one only lets ask; the answer will find the flip done.
        if let Some(staged) = staged(config) {
            find(staged, work.index as u32, now);
            work.pending.generation = staged.generation;
        }
        if work.matching.count == 0 {
            if !config.has(Config::TELL_ANSWERS) {
                return;
            }
            // It has no class and opens nothing, so a private address may be told of, too.
            work.matching.flags |= NameValue::PRIVATE;
        }
    }
    remember(skb, work, now);
}

/// Reads the next message, and moves the cursor past it.
#[inline(always)]
fn read(skb: *mut __sk_buff, work: &mut Work) -> bool {
    let mut at = work.cursor;
    let end = work.end;
    let len = if work.key.proto == PROTO_TCP {
        core::hint::cold_path();
        if at + 2 > end {
            return false;
        }
        let Some(len) = be16(skb, at) else { return false };
        at += 2;
        len
    } else {
        end - at
    };
    if len > QUERY_MAX || at + len > end || !load(skb, at, len, &mut work.message) {
        return false;
    }
    work.cursor = at + len;
    dns::question(work)
}

#[inline(always)]
fn find(config: &Config, index: u32, now: Ticks) {
    if super::find(index, Wanted::Asked, config, now) != 0 {
        count(LearnCount::ClassesFull);
    }
}

/// Writes a query down, until its answer comes.
#[inline(always)]
fn remember(skb: *mut __sk_buff, work: &mut Work, now: Ticks) {
    work.key.id = be16_at::<0, _>(&work.message.bytes) as u16;
    let ring = dns::ring_of(asker(skb, &work.key));
    let Some(ticket) = displace(ring, &work.key, now) else { return };
    let pending = &mut work.pending;
    pending.ticket = ticket;
    pending.sent = now;
    pending.classes = work.matching.classes;
    pending.flags = work.matching.flags & NameValue::PRIVATE;
    pending.untils = work.matching.untils;
    count(match PENDING.insert(&work.key, &work.pending, 0) {
        Ok(()) => LearnCount::Asked,
        Err(_) => LearnCount::PendingFull,
    });
}

/// Makes the slot of a query that was answered free again, which spares the query that takes it next a look at [`PENDING`].
#[inline(always)]
pub fn answered(ticket: u64) {
    let (turn, ring) = ((ticket / RINGS as u64).wrapping_sub(1), ticket % RINGS as u64);
    let slot = ring * RING_SLOTS as u64 + turn % RING_SLOTS as u64;
    if let Some(slot) = PENDING_RINGS.get_ptr_mut(opaque(slot) as u32) {
        // SAFETY: an entry of an array. Where another query has the slot by now, its ticket is another.
        unsafe { atomic::replace(&raw mut (*slot).ticket, ticket, 0) };
    }
}

/// How many slots are looked at for a free one before a query is pushed out.
const TRIES: u32 = 4;

/// Takes the next free slot of a ring; where none of a few is free the first of these, and what waits in it out of [`PENDING`]. So an asker
/// that floods has room for [`RING_SLOTS`] queries and pushes out none but its own; and where several share a ring (behind a translated
/// address), one whose queries are answered pushes out no slower one's.
#[inline(always)]
fn displace(ring: u32, key: &PendingKey, now: Ticks) -> Option<u64> {
    // SAFETY: entries of arrays live as long as the program. The head is only used atomically. Of a slot, two programs
    // write at once only if a thousand others came between them; then a query is forgotten too late, or too early.
    unsafe {
        let mut turn = atomic::fetch_add(RING_HEADS.get_ptr_mut(ring)?, 1);
        let mut slot = slot(ring, turn)?;
        // An entry with the same key is replaced anyway.
        if (*slot).ticket != 0 && (*slot).key != *key {
            let free = egress_free_turn(ring);
            if free != 0 {
                turn = free - 1;
                slot = self::slot(ring, turn)?;
            } else if let Some(old) = PENDING.get_ptr(&(*slot).key)
                && (*old).ticket == (*slot).ticket
            {
                if now.wrapping_sub((*old).sent) <= PENDING_LIFE {
                    count(LearnCount::Displaced);
                }
                let _ = PENDING.remove(&(*slot).key);
            }
        }
        let ticket = (turn + 1) * RINGS as u64 + u64::from(ring);
        (*slot).key = *key;
        (*slot).ticket = ticket;
        Some(ticket)
    }
}

/// A ring's slot of this turn.
#[inline(always)]
fn slot(ring: u32, turn: u64) -> Option<*mut RingSlot> {
    PENDING_RINGS.get_ptr_mut(ring * RING_SLOTS as u32 + opaque(turn % RING_SLOTS as u64) as u32)
}

/// The next turn of a ring whose slot no query waits in, plus 1; 0 where none of [`TRIES`] is one.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn egress_free_turn(ring: u32) -> u64 {
    let Some(head) = RING_HEADS.get_ptr_mut(ring) else { return 0 };
    for _ in 0..TRIES {
        // SAFETY: entries of arrays live as long as the program; the head is only used atomically.
        unsafe {
            let turn = atomic::fetch_add(head, 1);
            if slot(ring, turn).is_some_and(|slot| (*slot).ticket == 0) {
                return turn + 1;
            }
        }
    }
    0
}

/// Who asks: its cgroup, or where that is not known (forwarded packets) its address.
#[inline(always)]
fn asker(skb: *mut __sk_buff, key: &PendingKey) -> u64 {
    // SAFETY: the context is valid, and helpers 83 and 79 take it.
    let above = unsafe { bpf_skb_ancestor_cgroup_id(skb, ASKER_LEVEL) };
    if above != 0 {
        return above;
    }
    // SAFETY: as above.
    let own = unsafe { bpf_skb_cgroup_id(skb) };
    if own != 0 { own } else { key.local.low }
}

/// Copies the name that was refused to where it outlives the scratch buffer; its place there.
#[inline(always)]
fn refused_name(work: &Work) -> u64 {
    let key = &work.pending.key;
    // SAFETY: entries of per-CPU arrays live as long as the program. Should eight other refusals come between this and
    // the event that tells of it, the event tells another name.
    unsafe {
        let Some(next) = REFUSED_NEXT.get_ptr_mut(0) else { return 0 };
        let place = (*next).wrapping_add(1) % REFUSED;
        *next = place;
        let Some(name) = REFUSED_NAMES.get_ptr_mut(place) else { return 0 };
        // Two bytes more than the name, where its length comes next.
        // From where the compiler does not know of: else it keeps the address of each word since it was written.
        let from = opaque(key.name.as_ptr() as u64) as *const u8;
        copy_words(from, (&raw mut (*name).bytes).cast(), 32);
        (*name).len = key.len as u16;
        (*name).hash = key.hash as u32;
        u64::from(place)
    }
}
