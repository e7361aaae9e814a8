//! DNS on its way out and in: what the hooks call.

mod answer;
pub mod denial;
mod query;
pub mod scratch;
mod stream;

use aya_ebpf::{
    bindings::__sk_buff,
    helpers::generated::{bpf_map_lookup_elem, bpf_skb_load_bytes},
};
use core::{mem::offset_of, ptr};
use egress_ebpf::{
    abi::{Alias, Config, InnerWildcard, KeyBuffer, LearnedEvent, NameEntry, NameValue, Pending, Ticks},
    dns::{self, MESSAGE_MAX, Message, NameTable, Work, bytes::opaque},
};

pub use answer::answer;
#[allow(unused_imports, reason = "the hooks name it where they keep it")]
pub use query::{Asked, query};

use super::{maps, maps_names};

/// The kernel's name maps.
struct Names;

impl NameTable for Names {
    #[inline(always)]
    fn name(&self, key: &KeyBuffer, generation: u32) -> Option<NameValue> {
        // SAFETY: a `KeyBuffer` starts as the trie's key. The trie replaces an entry by another, it does not change it.
        unsafe {
            let map = ptr::from_ref(&maps_names::NAMES).cast_mut().cast();
            let entry = bpf_map_lookup_elem(map, ptr::from_ref(key).cast()).cast::<NameEntry>().as_ref();
            entry.map(|entry| entry.value(generation))
        }
    }

    #[inline(always)]
    fn stands(&self, class: u32, generation: u32) -> bool {
        maps::CLASSES.get(class).is_some_and(|chunk| chunk.count != 0 && chunk.stands(generation))
    }

    #[inline(always)]
    fn inner(&self, index: u32) -> Option<&InnerWildcard> {
        maps_names::INNER_WILDCARDS.get(index)
    }

    #[inline(always)]
    fn alias(&self, key: &KeyBuffer) -> Option<&Alias> {
        let mark = maps_names::ALIAS_MARKS.get(key.hash as u32 % maps_names::ALIAS_MARKS_MAX)?;
        // SAFETY: an aligned word of an array's entry, read whole.
        if unsafe { ptr::from_ref(mark).read_volatile() } == 0 {
            return None;
        }
        // SAFETY: from its epoch on a `KeyBuffer` is an alias's key. Slots are read and written atomically.
        unsafe {
            let map = ptr::from_ref(&maps_names::ALIASES).cast_mut().cast();
            bpf_map_lookup_elem(map, (&raw const key.epoch).cast()).cast::<Alias>().as_ref()
        }
    }
}

/// Which name of a buffer is looked up.
#[derive(Clone, Copy)]
enum Wanted {
    /// That of a query, `pending.key`.
    Asked,
    /// That of an answer, `event.key`.
    Answered,
}

/// [`dns::find`] for a name of the caller's buffer, whose `matching` has the outcome then; verified once. How many classes did not fit.
#[inline(always)]
fn find(index: u32, wanted: Wanted, config: &Config, now: Ticks) -> u32 {
    egress_find(index, u32::from(matches!(wanted, Wanted::Answered)), config.epoch, config.generation, now)
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn egress_find(index: u32, answered: u32, epoch: u32, generation: u32, now: Ticks) -> u32 {
    let Some(work) = scratch::claimed(index) else { return 0 };
    // SAFETY: the caller's own buffer, whose references to it wait meanwhile.
    let work = unsafe { &mut *work };
    // SAFETY: one of both keys. By its place, not by a choice of two pointers, for each of which all that follows would be walked.
    let key = unsafe { &mut *ptr::from_mut(work).byte_add(key_at(answered)).cast::<KeyBuffer>() };
    key.set_epoch(epoch);
    dns::find(&Names, key, generation, now, &mut work.matching, &mut work.differ);
    work.matching.lost
}

/// Where the buffer has the name of a query (0) or of an answer (1).
#[inline(always)]
fn key_at(answered: u32) -> usize {
    const ASKED: usize = offset_of!(Work, pending) + offset_of!(Pending, key);
    const ANSWERED: usize = offset_of!(Work, event) + offset_of!(LearnedEvent, key);
    ASKED + opaque(u64::from(answered) & 1) as usize * (ANSWERED - ASKED)
}

/// The policy beside the live one, which learns too: one that is being staged, or the one to go back to while the live one is
/// not confirmed. When it becomes the live one, nothing that was resolved before is missing.
#[inline(always)]
fn staged(config: &Config) -> Option<&'static Config> {
    maps::CONFIG.get(!config.generation & 1).filter(|staged| staged.generation != 0)
}

/// Loads `len` bytes of the packet from `at` on as the message that is to be read.
#[inline(always)]
fn load(skb: *mut __sk_buff, at: u64, len: u64, message: &mut Message) -> bool {
    // Older kernels (6.1) learn no lower bound from a comparison with zero, and the helper takes no length of zero.
    let below = opaque(len.wrapping_sub(1));
    if below >= MESSAGE_MAX as u64 {
        return false;
    }
    let len = below + 1;
    message.len = len;
    // SAFETY: helper 26 writes `len` bytes, which the buffer has.
    unsafe { bpf_skb_load_bytes(skb.cast(), at as u32, message.bytes.as_mut_ptr().cast(), len as u32) == 0 }
}

/// A big-endian number of 16 bits in the packet.
#[inline(always)]
fn be16(skb: *mut __sk_buff, at: u64) -> Option<u64> {
    let mut bytes = [0_u8; 2];
    // SAFETY: helper 26 writes both bytes.
    let error = unsafe { bpf_skb_load_bytes(skb.cast(), at as u32, bytes.as_mut_ptr().cast(), 2) };
    (error == 0).then(|| u64::from(u16::from_be_bytes(bytes)))
}
