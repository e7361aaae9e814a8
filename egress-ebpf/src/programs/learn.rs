//! Learning, with the kernel's maps; and `control`, by which userspace learns.

use core::{mem::MaybeUninit, ptr};

use aya_ebpf::{
    EbpfContext,
    bindings::{__sk_buff, BPF_NOEXIST},
    helpers::generated::{bpf_skb_load_bytes, bpf_skb_store_bytes},
    macros::classifier,
    programs::TcContext,
};
use egress_ebpf::{
    abi::{
        Address, AddressEntry, AddressKey4, AddressKey6, CONTROL_END, CONTROL_FLIP, CONTROL_LEARN, CONTROL_RECLAIM,
        CONTROL_RECORDS, Config, ControlHeader, ControlRecord, LearnCount, Live, NameValue, REMOVALS_BEGUN,
        REMOVALS_ENDED, Slot, Ticks,
    },
    atomic,
    dns::{
        self,
        bytes::{apart, opaque},
    },
    learn::{self, Addresses, Inserted, Outcome},
    repeat::{Step, repeat},
};

use super::{clock::now, dns::scratch, log, maps, maps_names};

const EEXIST: i32 = -17;
const EINVAL: i32 = 22;
const EBUSY: i32 = 16;

/// Turns to try again where other processors change the same entry.
const AGAIN: u32 = 64;

/// The kernel's address maps.
pub struct Kernel;

#[inline(always)]
fn v4(address: &Address) -> Option<[u8; 4]> {
    if address.is_v4() { Some(address.v4_bytes()) } else { None }
}

impl Addresses for Kernel {
    #[inline(always)]
    fn entry(&self, address: &Address, epoch: u32) -> Option<&AddressEntry> {
        // SAFETY: the entry is read and written by atomic operations only. An entry that is deleted meanwhile was marked
        // before, see `learn::DELETING`.
        unsafe {
            match v4(address) {
                Some(address) => apart(maps::ADDRESSES_4.get(&AddressKey4 { address, epoch })),
                None => apart(maps::ADDRESSES_6.get(&AddressKey6 { address: *address, epoch, pad: 0 })),
            }
        }
    }

    #[inline(always)]
    fn insert(&self, address: &Address, epoch: u32, entry: &AddressEntry) -> Inserted {
        let flags = u64::from(BPF_NOEXIST);
        let result = match v4(address) {
            Some(address) => maps::ADDRESSES_4.insert(&AddressKey4 { address, epoch }, entry, flags),
            None => maps::ADDRESSES_6.insert(&AddressKey6 { address: *address, epoch, pad: 0 }, entry, flags),
        };
        match result {
            Ok(()) => Inserted::Yes,
            Err(EEXIST) => Inserted::Exists,
            Err(_) => Inserted::Full,
        }
    }

    #[inline(always)]
    fn replaces(&self, class: u32, other: u32) -> bool {
        let (Some(class), Some(other)) = (maps::CLASSES.get(class), maps::CLASSES.get(other)) else { return false };
        class.replaces(other)
    }
}

/// Counts one.
#[inline(always)]
pub fn count(what: LearnCount) {
    log::counted(what);
    add(what, 1);
}

/// Counts so many of one kind, perhaps none.
#[inline(always)]
pub fn count_all(what: LearnCount, number: u64) {
    if number != 0 {
        log::counted(what);
        add(what, number);
    }
}

#[inline(always)]
fn add(what: LearnCount, number: u64) {
    if let Some(count) = maps_names::LEARN_COUNTERS.get_ptr_mut(what as u32) {
        // SAFETY: a per-CPU entry. A preemption between the read and the write can lose a count, nothing else.
        unsafe { *count += number };
    }
}

/// [`learn::learn`] into the kernel's maps, verified once. `index` is of the buffer that holds the state of learning.
#[inline(always)]
fn learn_one(address: &Address, epoch: u32, slot: Slot, now: Ticks, index: u32) -> Outcome {
    match egress_learn(address, epoch, slot.pack(), now, index) {
        0 => Outcome::Unchanged,
        1 => Outcome::Extended,
        2 => Outcome::Added,
        3 => Outcome::SlotsFull,
        4 => Outcome::MapFull,
        _ => Outcome::Again,
    }
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn egress_learn(address: *const Address, epoch: u32, slot: u64, now: Ticks, index: u32) -> u32 {
    // SAFETY: null or valid, as the verifier makes sure.
    let Some(address) = (unsafe { address.as_ref() }) else { return 4 };
    // SAFETY: the caller's own buffer, of which it lends the address alone; `learning` is another part.
    let Some(state) = (unsafe { scratch::claimed(index).map(|work| &mut (*work).learning) }) else { return 4 };
    match learn::learn(&Kernel, address, epoch, Slot::unpack(slot), now, state) {
        Outcome::Unchanged => 0,
        Outcome::Extended => 1,
        Outcome::Added => 2,
        Outcome::SlotsFull => 3,
        Outcome::MapFull => 4,
        Outcome::Again => 5,
    }
}

#[inline(always)]
fn tell(outcome: Outcome) {
    let what = match outcome {
        Outcome::Unchanged => LearnCount::Unchanged,
        Outcome::Extended => LearnCount::Extended,
        Outcome::Added => LearnCount::Added,
        Outcome::SlotsFull => LearnCount::SlotsFull,
        Outcome::MapFull => LearnCount::MapFull,
        Outcome::Again => LearnCount::Contended,
    };
    add(what, 1);
}

/// Learns every address of an answer for every class of its name: `work.answer`, `work.event.addresses`, `work.matching`.
/// `work.event.addresses` get their expiries.
#[inline(always)]
pub fn addresses(work: &mut dns::Work, config: &Config, now: Ticks) {
    work.learning.address = 0;
    work.learning.class = 0;
    work.learning.news = 0;
    let turns = (egress_ebpf::abi::ANSWER_MAX * egress_ebpf::abi::NAME_CLASSES) as u32 + AGAIN;
    let (epoch, min_ttl, grace) = (config.epoch, config.min_ttl, config.grace);
    repeat(turns, &mut Each { work, epoch, min_ttl, grace, now });
}

struct Each<'a> {
    work: &'a mut dns::Work,
    epoch: u32,
    min_ttl: Ticks,
    grace: Ticks,
    now: Ticks,
}

impl Step for Each<'_> {
    #[inline(always)]
    fn step(&mut self, _index: u32) -> bool {
        let at = opaque(self.work.learning.address);
        if at >= self.work.answer.count || at >= egress_ebpf::abi::ANSWER_MAX as u64 {
            return false;
        }
        // SAFETY: checked right above.
        let found = unsafe { self.work.event.addresses.get_unchecked_mut(at as usize) };
        let number = self.work.learning.class;
        let class = learn::class_at(&self.work.matching.classes, number);
        let private = self.work.matching.flags & NameValue::PRIVATE != 0;
        if class == 0 || (!private && dns::is_private(&found.address)) {
            self.work.learning.address = at + 1;
            self.work.learning.class = 0;
            return true;
        }
        let expiry = learn::expiry(self.now, found.ttl, self.min_ttl, self.grace);
        let expiry = learn::earlier(expiry, learn::class_at(&self.work.matching.untils, number));
        found.expiry = learn::later(found.expiry, expiry);
        let slot = Slot { class, expiry };
        let outcome = learn_one(&found.address, self.epoch, slot, self.now, self.work.index as u32);
        if let Outcome::Again = outcome {
            return true;
        }
        tell(outcome);
        self.work.learning.news |= u64::from(matches!(outcome, Outcome::Extended | Outcome::Added));
        if learn::class_at(&self.work.matching.classes, number + 1) == 0 {
            self.work.learning.address = at + 1;
            self.work.learning.class = 0;
        } else {
            self.work.learning.class = number + 1;
        }
        true
    }
}

/// Userspace's way to the address maps: see [`egress_ebpf::abi::ControlHeader`].
#[classifier]
pub fn control(ctx: TcContext) -> i32 {
    run(ctx.as_ptr().cast())
}

#[inline(always)]
fn run(skb: *mut __sk_buff) -> i32 {
    let Some(header) = load::<ControlHeader>(skb, 0) else { return EINVAL };
    let size = size_of::<ControlHeader>() as u64 + u64::from(header.count) * size_of::<ControlRecord>() as u64;
    // SAFETY: the context is valid.
    if header.count > CONTROL_RECORDS as u32 || u64::from(unsafe { (*skb).len }) != size {
        return EINVAL;
    }
    match header.command {
        CONTROL_FLIP if header.count == 0 && header.of != 0 => {
            let Some(live) = maps::LIVE.get_ptr_mut(0) else { return EINVAL };
            // SAFETY: an array's entry; an aligned word is written whole.
            unsafe { live.write_volatile(Live { generation: header.of, deadline: 0 }.pack()) };
        }
        CONTROL_LEARN | CONTROL_RECLAIM | CONTROL_END => {
            let Some(work) = scratch::claim() else { return EBUSY };
            work.cursor = 0;
            work.end = u64::from(header.count);
            work.results = [0; 6];
            let (command, epoch) = (header.command, header.of);
            repeat(CONTROL_RECORDS as u32 + AGAIN, &mut Records { skb, work: &mut *work, now: now(), command, epoch });
            work.results[5] = (work.end - work.cursor) as u32;
            let results = &work.results;
            // SAFETY: helper 9 copies the results into the buffer.
            unsafe {
                let offset = core::mem::offset_of!(ControlHeader, results) as u32;
                bpf_skb_store_bytes(skb.cast(), offset, ptr::from_ref(results).cast(), size_of_val(results) as u32, 0);
            }
            scratch::release(work);
        }
        _ => return EINVAL,
    }
    0
}

struct Records<'a> {
    skb: *mut __sk_buff,
    work: &'a mut dns::Work,
    now: Ticks,
    command: u32,
    epoch: u32,
}

impl Step for Records<'_> {
    #[inline(always)]
    fn step(&mut self, _index: u32) -> bool {
        let work = &mut *self.work;
        let at = work.cursor;
        if at >= work.end {
            return false;
        }
        let offset = size_of::<ControlHeader>() as u64 + at * size_of::<ControlRecord>() as u64;
        let record = &mut work.record;
        // SAFETY: helper 26 writes the whole record, or an error.
        let error = unsafe {
            let size = size_of::<ControlRecord>() as u32;
            bpf_skb_load_bytes(self.skb.cast(), offset as u32, ptr::from_mut(record).cast(), size)
        };
        if error != 0 {
            return false;
        }
        let result = if self.command == CONTROL_RECLAIM {
            reclaim(&record.address, self.epoch, self.now)
        } else if self.command == CONTROL_END {
            end(&record.address, self.epoch, record.class, self.now)
        } else {
            let slot = Slot { class: record.class, expiry: record.expiry };
            match learn_one(&record.address, self.epoch, slot, self.now, work.index as u32) {
                Outcome::Unchanged => 0,
                Outcome::Extended => 1,
                Outcome::Added => 2,
                Outcome::SlotsFull => 3,
                Outcome::MapFull => 4,
                Outcome::Again => return true,
            }
        };
        work.cursor = at + 1;
        let result = opaque(result);
        if result < 6 {
            // SAFETY: checked right above.
            unsafe { *work.results.get_unchecked_mut(result as usize) += 1 };
        }
        true
    }
}

#[inline(always)]
fn end(address: &Address, epoch: u32, class: u32, now: Ticks) -> u64 {
    let Some(entry) = Kernel.entry(address, epoch) else { return 1 };
    u64::from(!learn::end(entry, class, now))
}

#[inline(always)]
fn reclaim(address: &Address, epoch: u32, now: Ticks) -> u64 {
    let Some(entry) = Kernel.entry(address, epoch) else { return 1 };
    if !learn::bury(entry, now) {
        return 1;
    }
    let (Some(begun), Some(ended)) =
        (maps::RECLAIMS.get_ptr_mut(REMOVALS_BEGUN), maps::RECLAIMS.get_ptr_mut(REMOVALS_ENDED))
    else {
        return 1;
    };
    // SAFETY: an array's entry, which programs only read otherwise. A full barrier: who still finds the entry, and has read the
    // slots before as many removals had begun, has read them before the entry's memory is another's.
    unsafe { atomic::fetch_add(begun, 1) };
    let gone = match v4(address) {
        Some(address) => maps::ADDRESSES_4.remove(&AddressKey4 { address, epoch }),
        None => maps::ADDRESSES_6.remove(&AddressKey6 { address: *address, epoch, pad: 0 }),
    };
    // SAFETY: as above.
    unsafe { atomic::fetch_add(ended, 1) };
    u64::from(gone.is_err())
}

#[inline(always)]
fn load<T>(skb: *mut __sk_buff, offset: u32) -> Option<T> {
    let mut value = MaybeUninit::<T>::uninit();
    // SAFETY: helper 26 writes the whole value, or none of it and an error; both types are plain bytes.
    unsafe {
        let error = bpf_skb_load_bytes(skb.cast(), offset, value.as_mut_ptr().cast(), size_of::<T>() as u32);
        (error == 0).then(|| value.assume_init())
    }
}
