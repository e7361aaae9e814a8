//! The maps of the packet path. The loader sizes those whose size depends on the policy.

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    btf_maps::{Array, DevMapHash, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf, SkStorage},
    macros::btf_map,
};
use egress_ebpf::{
    abi::{
        AddressEntry, AddressKey4, AddressKey6, ClassChunk, Config, DropFold, DropKey, Flow, FlowKey, FragmentKey,
        GrantEntry, Hits, PeerKey, Rehearsal, ResolverKey, ResolverTrust, SocketState, Ticks,
    },
    decision::{Verdict, fragment_key},
    packet::{Fragment, Packet},
    reason::{REASONS, Reason},
};

const NO_PREALLOC: usize = BPF_F_NO_PREALLOC as usize;

/// Data of an IPv4 prefix key: the epoch, then the address.
pub type PrefixData4 = [u8; 8];
/// Data of an IPv6 prefix key.
pub type PrefixData6 = [u8; 20];

/// [`egress_ebpf::abi::Live`], and the last generation that was given out.
#[btf_map]
pub static LIVE: Array<u64, 2> = Array::new();

#[btf_map]
pub static CONFIG: Array<Config, 2> = Array::new();

#[btf_map]
pub static ADDRESSES_4: HashMap<AddressKey4, AddressEntry, 65536, NO_PREALLOC> = HashMap::new();

#[btf_map]
pub static ADDRESSES_6: HashMap<AddressKey6, AddressEntry, 65536, NO_PREALLOC> = HashMap::new();

/// How many removals from [`ADDRESSES_4`] and [`ADDRESSES_6`] have begun ([`egress_ebpf::abi::REMOVALS_BEGUN`]) and ended
/// ([`egress_ebpf::abi::REMOVALS_ENDED`]). One count would not do: a
/// packet that comes between the count and the removal would take the entry for one that stays.
#[btf_map]
pub static RECLAIMS: Array<u64, 2> = Array::new();

#[btf_map]
pub static PREFIXES_4: LpmTrie<PrefixData4, u32, 65536> = LpmTrie::new();

#[btf_map]
pub static PREFIXES_6: LpmTrie<PrefixData6, u32, 65536> = LpmTrie::new();

#[btf_map]
pub static DENIES_4: LpmTrie<PrefixData4, u32, 65536> = LpmTrie::new();

#[btf_map]
pub static DENIES_6: LpmTrie<PrefixData6, u32, 65536> = LpmTrie::new();

#[btf_map]
pub static CLASSES: Array<ClassChunk, 16384> = Array::new();

#[btf_map]
pub static GRANTS: Array<GrantEntry, 16384> = Array::new();

#[btf_map]
pub static GRANT_HITS: PerCpuArray<Hits, 16384> = PerCpuArray::new();

#[btf_map]
pub static RESOLVERS: HashMap<ResolverKey, ResolverTrust, 256, NO_PREALLOC> = HashMap::new();

/// The interfaces by their index whose programs answer refused queries: the governed uplinks and loopback, in the network
/// namespace of the daemon. Nothing is redirected to them: the kernel
/// itself takes an interface out of a map of devices when it is deleted or moved to another namespace, so that no other
/// interface is taken for it which gets its index later.
#[btf_map]
pub static UPLINKS: DevMapHash<256> = DevMapHash::new();

#[btf_map]
pub static FLOWS: LruHashMap<FlowKey, Flow, 131072> = LruHashMap::new();

#[btf_map]
pub static PEERS: LruHashMap<PeerKey, Flow, 65536> = LruHashMap::new();

#[btf_map]
pub static FRAGMENTS: LruHashMap<FragmentKey, Ticks, 8192> = LruHashMap::new();

#[btf_map]
pub static SOCKETS: SkStorage<SocketState> = SkStorage::new();

/// Not pinned: it is between one daemon and its own programs.
#[btf_map]
pub static REHEARSAL: Array<Rehearsal, 1> = Array::new();

#[btf_map]
pub static COUNTERS: PerCpuArray<Hits, { REASONS as usize }> = PerCpuArray::new();

#[btf_map]
pub static DROP_FOLDS: LruHashMap<DropKey, DropFold, 16384> = LruHashMap::new();

/// Events that did not fit the ring buffer, by kind: 0 drops, 1 answers.
#[btf_map]
pub static EVENTS_LOST: PerCpuArray<u64, 2> = PerCpuArray::new();

#[btf_map]
pub static EVENTS: RingBuf<[u8; 8], 1048576> = RingBuf::new();

/// Remembers that the first fragment of a datagram passes, if it is one. One to a resolver does not: no name can be read
/// of a query in fragments.
#[inline(always)]
pub fn remember_fragment(packet: &Packet, verdict: &Verdict, zone: u8, now: Ticks) {
    if matches!(packet.fragment, Fragment::First) && !matches!(verdict.reason, Reason::Dns) {
        remember_first(packet, zone, now);
    }
}

// Not inlined, for the stack's sake.
#[inline(never)]
fn remember_first(packet: &Packet, zone: u8, now: Ticks) {
    let _ = FRAGMENTS.insert(&fragment_key(packet, zone), &now, 0);
}
