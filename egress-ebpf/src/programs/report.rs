//! Counters and events.

use core::{mem::offset_of, ptr};

use aya_ebpf::helpers::{bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_get_current_uid_gid, bpf_ktime_get_ns};
use egress_ebpf::{
    abi::{Config, DropEvent, DropFold, DropKey, EVENT_DROP, Hits, NAME_KEY, Process, Ticks},
    atomic,
    decision::Verdict,
    dns::bytes::copy_words,
    packet::Packet,
    reason::Reason,
};

use super::{clock::exact, log, maps, maps_names};

/// How often a refusal or an answer tries to be counted with others like it before it is told by itself.
const FOLD_TRIES: u32 = 4;

/// Where something was refused, and by whom it was sent.
pub struct Sender {
    /// One of the `HOOK_*` values.
    pub hook: u8,
    /// Bytes, from the network header on; 0 for a system call.
    pub bytes: u32,
    /// The interface, or 0.
    pub ifindex: u32,
    /// The cgroup's id, or 0.
    pub cgroup: u64,
    /// The network namespace's cookie, or 0.
    pub netns: u64,
    /// The process, or all 0.
    pub process: Process,
}

/// A refusal, and what is known of it.
pub struct Refused {
    /// Why.
    pub reason: Reason,
    /// Of a DNS query the place in [`maps_names::REFUSED_NAMES`] of the name that was asked, plus 1; 0 for none.
    pub name: u32,
}

impl Refused {
    /// A refusal without a name.
    pub const fn plain(reason: Reason) -> Self {
        Self { reason, name: 0 }
    }

    /// As one number, for a global function: the reason, and above it the name's place.
    #[inline(always)]
    pub const fn pack(&self) -> u32 {
        self.reason as u32 | self.name << 8
    }
}

/// The reason of a packed refusal, as [`count`] takes it.
#[inline(always)]
pub fn count_refused(what: u32, bytes: u32) {
    add(maps::COUNTERS.get_ptr_mut(what & 0xff), bytes);
}

/// Counts a packet that was decided.
#[inline(always)]
pub fn count(verdict: &Verdict, bytes: u32) {
    add(maps::COUNTERS.get_ptr_mut(verdict.reason as u32), bytes);
    if verdict.grant != 0 {
        add(maps::GRANT_HITS.get_ptr_mut(verdict.grant), bytes);
    }
}

#[inline(always)]
fn add(hits: Option<*mut Hits>, bytes: u32) {
    if let Some(hits) = hits {
        // SAFETY: a per-CPU entry. A preemption between the read and the write can lose a count, nothing else.
        unsafe {
            (*hits).packets += 1;
            (*hits).bytes += u64::from(bytes);
        }
    }
}

/// The process that is running: the one whose system call this is.
#[inline(always)]
pub fn current_process() -> Process {
    Process {
        pid: (bpf_get_current_pid_tgid() >> 32) as u32,
        uid: bpf_get_current_uid_gid() as u32,
        comm: bpf_get_current_comm().unwrap_or_default(),
    }
}

/// How many refusals the next event stands for, this one included; 0 where one like it was told in this tick.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn egress_fold(packet: *const Packet, reason: u32, sender: *const Sender, name: u32) -> u32 {
    // SAFETY: null or valid, as the verifier makes sure.
    let (Some(packet), Some(sender)) = (unsafe { packet.as_ref() }, unsafe { sender.as_ref() }) else { return 1 };
    let key = DropKey {
        cgroup: sender.cgroup,
        destination: packet.destination,
        destination_port: packet.destination_port,
        proto: packet.proto,
        reason: reason as u8,
        name,
        pid: sender.process.pid,
        pad: 0,
    };
    // The exact clock: LSM programs share this, and the kernel gives them no coarse one. Refusals are rare.
    let tick = exact();
    let Some(fold) = maps::DROP_FOLDS.get_ptr_mut(&key) else {
        let _ = maps::DROP_FOLDS.insert(&key, &DropFold { told: tick, untold: 0 }, 0);
        return 1;
    };
    // SAFETY: an entry of an LRU map is not freed while the program runs, and the kernel aligns values to 8 bytes.
    unsafe { fold_into(fold.cast(), tick, false) }.unwrap_or(0)
}

/// Adds one to a fold, which is one word so that no CPU's is lost to another's: when one was told last below, how many were not
/// told since above. How many the next event stands for, this one included; `None` where one was told in this tick, but for
/// `anew`.
///
/// # Safety
/// As for [`atomic::replace`].
#[inline(always)]
pub unsafe fn fold_into(word: *mut u64, tick: Ticks, anew: bool) -> Option<u32> {
    for _ in 0..FOLD_TRIES {
        // SAFETY: the caller's word.
        unsafe {
            let old = atomic::load(word);
            if old as Ticks == tick && !anew {
                if atomic::replace(word, old, old.wrapping_add(1 << 32)) {
                    return None;
                }
            } else if atomic::replace(word, old, u64::from(tick)) {
                return Some((old >> 32) as u32 + 1);
            }
        }
    }
    // Others were faster each time: told by itself, and nothing is lost.
    Some(1)
}

/// Tells the daemon of a refusal, packed: the first one like it at once, then one per tick with how many there were.
#[inline(always)]
pub fn refused(config: &Config, packet: &Packet, what: u32, sender: &Sender) {
    egress_refused(config, packet, what, sender);
}

/// A packet of which nothing is known, on the stack: a global function takes no constant, which it might write to.
#[inline(always)]
pub fn unknown() -> Packet {
    let mut packet = Packet::UNKNOWN;
    // SAFETY: a valid reference; volatile, or the compiler hands out the constant after all.
    unsafe { (&raw mut packet.version).write_volatile(0) };
    packet
}

/// [`refused`], verified once: the reason, and above it the name's place.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn egress_refused(config: *const Config, packet: *const Packet, what: u32, sender: *const Sender) -> u32 {
    // SAFETY: null or valid, as the verifier makes sure.
    let (Some(config), Some(packet), Some(sender)) =
        (unsafe { config.as_ref() }, unsafe { packet.as_ref() }, unsafe { sender.as_ref() })
    else {
        return 0;
    };
    let reason = what as u8;
    log::judged(sender.hook, packet, u32::from(reason), 0);
    let place = (what >> 8).wrapping_sub(1);
    let hash = maps_names::REFUSED_NAMES.get(place).map_or(0, |name| name.hash);
    let count = egress_fold(packet, u32::from(reason), sender, hash);
    if count == 0 {
        return 0;
    }
    let Some(mut entry) = maps::EVENTS.reserve_untyped::<DropEvent>(0) else {
        if let Some(lost) = maps::EVENTS_LOST.get_ptr_mut(0) {
            // SAFETY: a per-CPU entry, as in `add`.
            unsafe { *lost += 1 };
        }
        return 0;
    };
    // SAFETY: the reservation is as large as the event, and every byte of it is written: the ring buffer hands out what
    // it held before, which must not leak to its readers.
    unsafe {
        let event = entry.as_mut_ptr();
        ptr::write_bytes(event, 0, 1);
        (*event).kind = EVENT_DROP;
        (*event).reason = reason;
        (*event).hook = sender.hook;
        (*event).enforced = u8::from(config.has(Config::ENFORCE));
        (*event).proto = packet.proto;
        (*event).time = bpf_ktime_get_ns();
        (*event).cgroup = sender.cgroup;
        (*event).netns = sender.netns;
        (*event).source = packet.source;
        (*event).destination = packet.destination;
        (*event).source_port = packet.source_port;
        if reason == Reason::EtherType as u8 {
            (*event).ethertype = packet.destination_port;
        } else {
            (*event).destination_port = packet.destination_port;
        }
        (*event).ifindex = sender.ifindex;
        (*event).len = sender.bytes;
        (*event).generation = config.generation;
        (*event).process = sender.process;
        (*event).count = count;
        // Looked up anew: with and without a name all that is above would be walked.
        if let Some(name) = maps_names::REFUSED_NAMES.get(place) {
            // With its length, which follows it in both.
            const { assert!(offset_of!(DropEvent, name_len) == offset_of!(DropEvent, name) + NAME_KEY) };
            const { assert!(offset_of!(Name, len) == offset_of!(Name, bytes) + NAME_KEY) };
            copy_words(ptr::from_ref(&name.bytes).cast(), (&raw mut (*event).name).cast(), (NAME_KEY + 2) / 8);
        }
    }
    entry.submit(0);
    0
}

/// A refused DNS question.
#[repr(C)]
pub struct Name {
    /// The name, reversed.
    pub bytes: [u8; NAME_KEY],
    /// Bytes in use.
    pub len: u16,
    /// A hash of the name.
    pub hash: u32,
}
