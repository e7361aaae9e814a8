//! Answers of a trusted resolver: what is learned of them.

use core::ptr;

use aya_ebpf::{
    bindings::{__sk_buff, BPF_NOEXIST},
    helpers::{
        bpf_ktime_get_ns,
        generated::{bpf_map_update_elem, bpf_ringbuf_output},
    },
};
use egress_ebpf::{
    abi::{
        ANSWER_MAX, AddressEntry, Alias, AnswerKey, CHAIN_MAX, Config, EVENT_LEARNED, FOLD_NAME, KeyBuffer, LearnCount,
        LearnedAddress, LearnedEvent, NAME_CLASSES, NameValue, PENDING_LIFE, PROTO_TCP, Pending, SLOTS, Slot, Ticks,
    },
    dns::{
        self, MESSAGE_MAX, Work,
        bytes::{copy_words, opaque, same_words},
    },
    learn::{self, Outcome},
    packet::{Fragment, Packet, TCP_SYN},
    repeat::{Step, repeat},
};

use super::{Wanted, find, load, query, scratch, staged, stream};
use crate::programs::{
    clock::now,
    learn::{Kernel, addresses, count, count_all},
    maps,
    maps_names::{ALIAS_MARKS, ALIAS_MARKS_MAX, ALIASES, ANSWER_FOLDS, PENDING},
    report::fold_into,
};

/// Messages that are learned from of one TCP segment, or of what was put together of several.
const MESSAGES: u32 = 2;
/// Further ones that are passed over, so that the stream can be followed.
const PASSED_OVER: u32 = 64;

/// Learns from what a trusted resolver sends, UDP or TCP: `cookie` is the receiving socket's, or 0 at an uplink. The
/// caller has checked that the sender is a resolver which is believed here, and the way that the packet came.
///
/// Over TCP messages are learned whose first byte is known to be one: see [`stream`].
///
/// It goes by global functions one after the other, not one within the other: each gives its frame back before the next.
#[inline(always)]
pub fn answer(skb: *mut __sk_buff, config: &Config, packet: &Packet, network_offset: u32, cookie: u64) {
    let begun = egress_answer_begin(skb, packet, network_offset, cookie);
    if begun == NOTHING {
        return;
    }
    let mut more = begun;
    for _ in 0..MESSAGES {
        if more != END {
            more = egress_answer(skb, config, begun);
        }
    }
    egress_answer_end(skb, begun);
}

/// What [`egress_answer_begin`] gives where there is nothing to read; else the scratch buffer's number.
const NOTHING: u32 = u32::MAX;
/// What [`egress_answer`] gives after the last message.
const END: u32 = u32::MAX;

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn egress_answer_begin(skb: *mut __sk_buff, packet: *const Packet, network_offset: u32, cookie: u64) -> u32 {
    // SAFETY: null or valid, as the verifier makes sure.
    let Some(packet) = (unsafe { packet.as_ref() }) else { return NOTHING };
    let at = u64::from(network_offset) + u64::from(packet.payload);
    let end = u64::from(network_offset) + u64::from(packet.end);
    let tcp = packet.proto == PROTO_TCP;
    if tcp && at >= end && packet.tcp_flags & TCP_SYN == 0 {
        return NOTHING;
    }
    // SAFETY: the context is valid. Of UDP, `gso_size` is set where several datagrams were put together.
    let merged = !tcp && unsafe { (*skb).gso_size } != 0;
    if merged || !matches!(packet.fragment, Fragment::Whole) || (!tcp && (at >= end || end - at > MESSAGE_MAX as u64)) {
        count(LearnCount::TooLong);
        return NOTHING;
    }
    let Some(work) = scratch::claim() else {
        count(LearnCount::Busy);
        return NOTHING;
    };
    work.key.cookie = cookie;
    work.key.local = packet.destination;
    work.key.resolver = packet.source;
    work.key.local_port = packet.destination_port;
    work.key.resolver_port = packet.source_port;
    work.key.id = 0;
    work.key.proto = packet.proto;
    work.key.pad = 0;
    work.cursor = at;
    work.end = end;
    if tcp && packet.tcp_flags & TCP_SYN != 0 {
        stream::open(skb, packet, network_offset, work);
        work.cursor = end;
    } else if tcp && !stream::locate(skb, packet, network_offset, work) {
        work.cursor = end;
    }
    work.index as u32
}

/// Learns from the next message of the packet, if there is one.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn egress_answer(skb: *mut __sk_buff, config: *const Config, index: u32) -> u32 {
    // SAFETY: null or valid, as the verifier makes sure; the buffer is the caller's.
    let (Some(config), Some(work)) = (unsafe { config.as_ref() }, scratch::claimed(index)) else { return END };
    // SAFETY: as above.
    let work = unsafe { &mut *work };
    if work.cursor >= work.end {
        return END;
    }
    let found = if work.key.proto == PROTO_TCP {
        stream::next(skb, work)
    } else {
        let (at, end) = (work.cursor, work.end);
        work.cursor = end;
        u32::from(load(skb, at, end - at, &mut work.message))
    };
    if found == stream::MESSAGE {
        learn(config, work);
    }
    if found == stream::END { END } else { index }
}

/// Passes over what is left of the packet, and gives the buffer back.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn egress_answer_end(skb: *mut __sk_buff, index: u32) -> u32 {
    let Some(work) = scratch::claimed(index) else { return 0 };
    // SAFETY: the caller's own buffer.
    let work = unsafe { &mut *work };
    if work.cursor < work.end {
        repeat(PASSED_OVER, &mut PassOver { skb, work: &mut *work });
    }
    scratch::release(work);
    0
}

struct PassOver<'a> {
    skb: *mut __sk_buff,
    work: &'a mut Work,
}

impl Step for PassOver<'_> {
    #[inline(always)]
    fn step(&mut self, _index: u32) -> bool {
        let found = stream::next(self.skb, self.work);
        if found == stream::MESSAGE {
            count(LearnCount::TooLong);
        }
        found != stream::END
    }
}

/// The steps of reading an answer, each verified once.
#[derive(Clone, Copy)]
struct Verified;

impl dns::Steps for Verified {
    #[inline(always)]
    fn expand(self, work: &mut Work, at: u64) -> bool {
        egress_expand(work, at) != 0
    }

    #[inline(always)]
    fn key(self, work: &mut Work, place: u64) {
        egress_key(work, place);
    }
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn egress_expand(work: *mut Work, at: u64) -> u32 {
    // SAFETY: null or valid, as the verifier makes sure.
    let Some(work) = (unsafe { work.as_mut() }) else { return 0 };
    u32::from(dns::expand(work, at))
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn egress_key(work: *mut Work, place: u64) -> u32 {
    // SAFETY: null or valid, as the verifier makes sure.
    if let Some(work) = unsafe { work.as_mut() } {
        dns::key(work, place);
    }
    0
}

#[inline(always)]
fn learn(config: &Config, work: &mut Work) {
    let Some(id) = dns::answer_id(&work.message) else {
        count(LearnCount::Malformed);
        return;
    };
    work.key.id = id;
    let now = now();
    let Some(pending) = PENDING.get_ptr(&work.key) else {
        count(LearnCount::Unasked);
        return;
    };
    // SAFETY: the map's memory stays mapped while the program runs, whatever it holds by then: see `take`.
    if !take(unsafe { &*pending }, work, now) {
        return;
    }
    let wire_len = u64::from(work.pending.wire_len);
    let flags = work.pending.flags;
    if !dns::parse_answer(Verified, work, wire_len, flags) {
        count(LearnCount::Malformed);
        return;
    }
    let rcode = work.message.bytes[3] & 0xf;
    if rcode != 0 {
        work.answer.count = 0;
        work.answer.chain = 0;
    }
    count_all(LearnCount::Private, work.answer.private);
    let event = &mut work.event;
    event.kind = EVENT_LEARNED;
    event.generation = config.generation;
    // SAFETY: helper 5 reads a clock.
    event.time = unsafe { bpf_ktime_get_ns() };
    event.resolver = work.key.resolver;
    event.resolver_port = work.key.resolver_port;
    event.rcode = rcode;
    event.count = work.answer.count as u8;
    event.refused = (work.answer.refused + work.answer.private) as u8;
    event.aliases = work.answer.chain as u8;
    event.pad = [0; 6];
    count(LearnCount::Answers);
    let index = work.index as u32;
    egress_learn_into(index, config, now, 1);
    if let Some(staged) = staged(config) {
        egress_learn_into(index, staged, now, 0);
    }
}

/// Takes a query that was remembered, if the answer repeats its question. It is gone then: a second answer to it finds
/// nothing.
///
/// The map may give the entry's memory to another query at any time, once it was deleted by another processor. So what it
/// holds is copied, and counts only if the ticket was the same before and after, and if this program was who deleted it.
#[inline(always)]
fn take(pending: &Pending, work: &mut Work, now: Ticks) -> bool {
    let ticket = ticket(pending);
    if now.wrapping_sub(pending.sent) > PENDING_LIFE {
        count(LearnCount::Unasked);
        return false;
    }
    if !dns::same_question(&work.message, pending, &mut work.differ) {
        count(LearnCount::OtherQuestion);
        return false;
    }
    work.pending.generation = pending.generation;
    work.pending.classes = pending.classes;
    work.pending.flags = pending.flags;
    work.pending.untils = pending.untils;
    work.pending.wire_len = pending.wire_len;
    copy(&pending.key, &mut work.event.key);
    if self::ticket(pending) != ticket || PENDING.remove(&work.key).is_err() {
        count(LearnCount::Unasked);
        return false;
    }
    query::answered(ticket);
    true
}

#[inline(always)]
fn ticket(pending: &Pending) -> u64 {
    // SAFETY: a valid reference; volatile, so that it is read again.
    unsafe { (&raw const pending.ticket).read_volatile() }
}

#[inline(always)]
fn copy(from: &KeyBuffer, to: &mut KeyBuffer) {
    let (from, to) = (ptr::from_ref(from).cast::<u64>(), ptr::from_mut(to).cast::<u64>());
    let mut index = 0;
    while index < size_of::<KeyBuffer>() / 8 {
        // SAFETY: both are whole words on multiples of 8. Volatile, or it becomes a call of `memcpy`.
        unsafe { to.add(index).write_volatile(from.add(index).read_volatile()) };
        index += 1;
    }
}

/// Learns an answer into a generation: the live one (`live` is 1), of which the daemon is told, or the one that is being staged.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn egress_learn_into(index: u32, config: *const Config, now: Ticks, live: u32) -> u32 {
    // SAFETY: null or valid, as the verifier makes sure; the buffer is the caller's.
    let (Some(config), Some(work)) = (unsafe { config.as_ref() }, scratch::claimed(index)) else { return 0 };
    // SAFETY: as above.
    let work = unsafe { &mut *work };
    if config.generation == work.pending.generation {
        work.matching.classes = work.pending.classes;
        work.matching.flags = work.pending.flags;
        work.matching.untils = work.pending.untils;
    } else {
        // The policy was changed since the query left, or is being changed now.
        find(index, Wanted::Answered, config, now);
    }
    addresses(work, config, now);
    work.learning.address = 0;
    work.learning.class = 0;
    if work.answer.chain != 0 {
        let expiry = learn::expiry(now, work.answer.ttl as u32, config.min_ttl, config.grace);
        work.learning.expiry = u64::from(expiry);
        let flags = work.matching.flags & NameValue::PRIVATE;
        let turns = (CHAIN_MAX * NAME_CLASSES) as u32 + 8;
        repeat(turns, &mut Aliases { work: &mut *work, epoch: config.epoch, flags, now });
    }
    if live != 0 {
        work.event.classes = work.matching.classes;
        egress_tell(index, now);
    }
    0
}

/// Writes the targets of an answer's CNAMEs down.
struct Aliases<'a> {
    work: &'a mut Work,
    epoch: u32,
    flags: u32,
    now: Ticks,
}

impl Step for Aliases<'_> {
    #[inline(always)]
    fn step(&mut self, _index: u32) -> bool {
        let at = opaque(self.work.learning.address);
        if at >= self.work.answer.chain || at >= CHAIN_MAX as u64 {
            return false;
        }
        let number = self.work.learning.class;
        let class = learn::class_at(&self.work.matching.classes, number);
        // SAFETY: checked right above.
        let key = unsafe { self.work.chain.get_unchecked_mut(at as usize) };
        if class == 0 || key.plain == 0 {
            self.work.learning.address = at + 1;
            self.work.learning.class = 0;
            return true;
        }
        key.set_epoch(self.epoch);
        let until = learn::class_at(&self.work.matching.untils, number);
        let slot = Slot { class, expiry: learn::earlier(self.work.learning.expiry as Ticks, until) };
        let outcome = alias(key, slot, self.flags, self.now, &mut self.work.learning);
        match outcome {
            Outcome::Again => return true,
            Outcome::SlotsFull | Outcome::MapFull => count(LearnCount::AliasLost),
            Outcome::Unchanged | Outcome::Extended | Outcome::Added => {}
        }
        self.work.learning.class = number + 1;
        true
    }
}

#[inline(always)]
fn alias(key: &KeyBuffer, slot: Slot, flags: u32, now: Ticks, state: &mut learn::Learning) -> Outcome {
    // From its epoch on a `KeyBuffer` is an alias's key.
    let alias_key = (&raw const key.epoch).cast();
    let map = ptr::from_ref(&ALIASES).cast_mut().cast();
    // SAFETY: helper 1 gives null or an entry, whose slots are only used atomically.
    let known = unsafe { aya_ebpf::helpers::generated::bpf_map_lookup_elem(map, alias_key).cast::<Alias>().as_mut() };
    if let Some(alias) = known {
        // Private addresses may come by this name only if every name that leads here may have them.
        if flags == 0 && alias.flags != 0 {
            alias.flags = 0;
        }
        return learn::merge(&Kernel, &alias.entry, slot, now, state, || true);
    }
    let Some(mark) = ALIAS_MARKS.get_ptr_mut(key.hash as u32 % ALIAS_MARKS_MAX) else { return Outcome::MapFull };
    // SAFETY: an array's entry; an aligned word is written whole, and never anything else. Before the alias: whoever
    // finds no mark asked before it was there.
    unsafe { mark.write_volatile(1) };
    state.fresh = Alias { entry: AddressEntry { slots: [0; SLOTS] }, flags, pad: 0 };
    state.fresh.entry.slots[0] = slot.pack();
    // SAFETY: helper 2 copies a key and a value of the map's sizes.
    match unsafe { bpf_map_update_elem(map, alias_key, ptr::from_ref(&state.fresh).cast(), u64::from(BPF_NOEXIST)) } {
        0 => Outcome::Added,
        -17 => Outcome::Again,
        _ => Outcome::MapFull,
    }
}

/// Sends the event, as long as its addresses, unless one that says the same was sent in this tick. A function of its own, which
/// is verified once.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn egress_tell(index: u32, now: Ticks) -> u32 {
    let Some(work) = scratch::claimed(index) else { return 0 };
    // SAFETY: the caller's own buffer.
    let work = unsafe { &mut *work };
    let Some(answers) = fold(work, now) else { return 0 };
    work.event.answers = answers;
    let used = opaque(work.answer.count);
    let used = if used > ANSWER_MAX as u64 { ANSWER_MAX as u64 } else { used };
    let size = LearnedEvent::HEAD as u64 + used * size_of::<LearnedAddress>() as u64;
    let events = ptr::from_ref(&maps::EVENTS).cast_mut().cast();
    // SAFETY: helper 130 copies `size` bytes, which the event has.
    let told = unsafe { bpf_ringbuf_output(events, ptr::from_mut(&mut work.event).cast(), size, 0) } == 0;
    if !told && let Some(lost) = maps::EVENTS_LOST.get_ptr_mut(1) {
        // SAFETY: a per-CPU entry. A preemption between the read and the write can lose a count, nothing else.
        unsafe { *lost += 1 };
    }
    0
}

/// How many answers the next event stands for, this one included; `None` where one was told in this tick that says the same,
/// and this one opened nothing, nor for longer.
#[inline(always)]
fn fold(work: &Work, now: Ticks) -> Option<u32> {
    let event = &work.event;
    if event.key.len >= FOLD_NAME as u64 {
        return Some(1);
    }
    let name = (&raw const event.key.name).cast::<u8>();
    let key = AnswerKey {
        hash: event.key.hash,
        addresses: work.answer.sum,
        resolver: event.resolver,
        generation: event.generation,
        resolver_port: event.resolver_port,
        rcode: event.rcode,
        refused: event.refused,
    };
    let Some(fold) = ANSWER_FOLDS.get_ptr_mut(key.place()) else { return Some(1) };
    // SAFETY: an array's element. Processors that fold other answers into the same place at once may make one of both be told twice,
    // or a tick late. The name's buffer is longer than what is read of it.
    unsafe {
        let known = (&raw const (*fold).key).cast();
        let same = same_words(ptr::from_ref(&key).cast(), known, size_of::<AnswerKey>() / 8)
            && same_words(name, (&raw const (*fold).name).cast(), FOLD_NAME / 8);
        if !same {
            fold.cast::<u64>().write_volatile(u64::from(now));
            (*fold).key = key;
            copy_words(name, (&raw mut (*fold).name).cast(), FOLD_NAME / 8);
            return Some(1);
        }
        fold_into(fold.cast(), now, work.learning.news != 0)
    }
}
