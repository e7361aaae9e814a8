//! The kernel's maps as the decision's tables.

use core::ptr;

use aya_ebpf::{btf_maps::LpmTrie, helpers::generated::bpf_map_lookup_elem};
use egress_ebpf::{
    abi::{
        Address, AddressEntry, AddressKey4, AddressKey6, ClassChunk, Config, Flow, FlowKey, FragmentKey, GrantEntry,
        Live, PeerKey, REMOVALS_BEGUN, REMOVALS_ENDED, ResolverKey, ResolverTrust, Ticks,
    },
    decision::{Destination, Tables, Verdict},
    dns::bytes::apart,
    packet::Packet,
};

use super::{clock::now, global, maps};

/// The kernel's maps.
pub struct Kernel;

/// The live policy's scalars, or `None` before the first policy is in: fail closed. A policy that was not confirmed in time
/// gives way to the one before it, which is the other entry.
#[inline(always)]
pub fn live() -> Option<&'static Config> {
    live_by(now)
}

/// [`live`], by a clock that the program may read: [`now`] or [`super::clock::exact`].
#[inline(always)]
pub fn live_by(now: impl FnOnce() -> Ticks) -> Option<&'static Config> {
    // SAFETY: an aligned word of an array's entry. Volatile, so that both halves are of one read.
    let live = Live::unpack(unsafe { ptr::from_ref(maps::LIVE.get(0)?).read_volatile() });
    if live.generation == 0 {
        return None;
    }
    let expired = live.deadline != 0 && live.expired(now());
    let config = maps::CONFIG.get((live.generation ^ u32::from(expired)) & 1)?;
    let whole = if expired { config.generation != 0 } else { config.generation == live.generation };
    whole.then_some(config)
}

/// Key of a trie of IPv4 prefixes: [`aya_ebpf::btf_maps::lpm_trie::Key`] by whole words, which that one, packed as it is, writes byte
/// by byte.
#[repr(C)]
struct PrefixKey4 {
    bits: u32,
    epoch: u32,
    address: [u8; 4],
}

/// The same of IPv6 prefixes.
#[repr(C)]
struct PrefixKey6 {
    bits: u32,
    epoch: u32,
    address: Address,
}

const _: () = assert!(size_of::<PrefixKey4>() == 4 + size_of::<maps::PrefixData4>());
const _: () = assert!(size_of::<PrefixKey6>() == 4 + size_of::<maps::PrefixData6>());

/// The class of the longest prefix that covers an address.
#[inline(always)]
fn longest(
    four: &LpmTrie<maps::PrefixData4, u32, 65536>,
    six: &LpmTrie<maps::PrefixData6, u32, 65536>,
    address: &Address,
    epoch: u32,
) -> Option<u32> {
    // SAFETY: each key is as long as its trie's. The value is a plain word, copied at once.
    unsafe {
        let found = if address.is_v4() {
            let key = PrefixKey4 { bits: 64, epoch, address: address.v4_bytes() };
            let map = ptr::from_ref(four).cast_mut().cast();
            apart(bpf_map_lookup_elem(map, (&raw const key).cast()).cast::<u32>().as_ref())
        } else {
            let key = PrefixKey6 { bits: 160, epoch, address: *address };
            let map = ptr::from_ref(six).cast_mut().cast();
            apart(bpf_map_lookup_elem(map, (&raw const key).cast()).cast::<u32>().as_ref())
        };
        found.copied()
    }
}

impl Tables for Kernel {
    #[inline(always)]
    fn address(&self, address: &Address, epoch: u32) -> Option<&AddressEntry> {
        // SAFETY: the map's memory stays an entry's while the program runs, perhaps another's after a reclaim, which
        // `decision::policy` looks for; slots are read one word at a time.
        unsafe {
            if address.is_v4() {
                apart(maps::ADDRESSES_4.get(&AddressKey4 { address: address.v4_bytes(), epoch }))
            } else {
                apart(maps::ADDRESSES_6.get(&AddressKey6 { address: *address, epoch, pad: 0 }))
            }
        }
    }

    #[inline(always)]
    fn removals_begun(&self) -> u64 {
        removals(REMOVALS_BEGUN)
    }

    #[inline(always)]
    fn removals_ended(&self) -> u64 {
        removals(REMOVALS_ENDED)
    }

    #[inline(always)]
    fn prefix(&self, address: &Address, epoch: u32) -> Option<u32> {
        longest(&maps::PREFIXES_4, &maps::PREFIXES_6, address, epoch)
    }

    #[inline(always)]
    fn deny(&self, address: &Address, epoch: u32) -> Option<u32> {
        longest(&maps::DENIES_4, &maps::DENIES_6, address, epoch)
    }

    #[inline(always)]
    fn class(&self, index: u32) -> Option<&ClassChunk> {
        maps::CLASSES.get(index)
    }

    #[inline(always)]
    fn grant(&self, index: u32) -> Option<GrantEntry> {
        maps::GRANTS.get(index).copied()
    }

    #[inline(always)]
    fn resolver(&self, key: &ResolverKey) -> Option<ResolverTrust> {
        // SAFETY: the value is a plain word, copied at once.
        unsafe { maps::RESOLVERS.get(key) }.copied()
    }

    #[inline(always)]
    fn flow(&self, key: &FlowKey) -> Option<&Flow> {
        // SAFETY: a torn read can only mix two states of the same flow, each of which was a verdict for it.
        unsafe { maps::FLOWS.get(key) }
    }

    #[inline(always)]
    fn peer(&self, key: &PeerKey) -> Option<&Flow> {
        // SAFETY: as for `flow`.
        unsafe { maps::PEERS.get(key) }
    }

    #[inline(always)]
    fn fragment(&self, key: &FragmentKey) -> Option<Ticks> {
        // SAFETY: the value is a plain word, copied at once.
        unsafe { maps::FRAGMENTS.get(key) }.copied()
    }

    #[inline(always)]
    fn opens(&self, class: u32, key: u32, generation: u32) -> u32 {
        global::egress_opens(class, key, generation)
    }

    #[inline(always)]
    fn builtin(&self, config: &Config, packet: &Packet, own: bool) -> bool {
        global::egress_builtin(config, packet, u32::from(own)) != 0
    }

    #[inline(always)]
    fn policy(&self, config: &Config, destination: &Destination, now: Ticks) -> Verdict {
        Verdict::unpack(global::egress_policy(config, destination, now))
    }
}

#[inline(always)]
fn removals(which: u32) -> u64 {
    // SAFETY: an aligned word of an array's entry, read whole. Volatile, so that it is read where it is asked for.
    maps::RECLAIMS.get(which).map_or(0, |count| unsafe { ptr::from_ref(count).read_volatile() })
}
