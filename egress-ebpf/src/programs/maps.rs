//! The maps that the lead's programs share with the names'.

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    btf_maps::{Array, HashMap, PerCpuArray, RingBuf},
    macros::btf_map,
};
use egress_ebpf::abi::{AddressEntry, AddressKey4, AddressKey6, ClassChunk, Config};

const NO_PREALLOC: usize = BPF_F_NO_PREALLOC as usize;

#[btf_map]
pub static LIVE: Array<u32, 1> = Array::new();

#[btf_map]
pub static CONFIG: Array<Config, 2> = Array::new();

#[btf_map]
pub static ADDRESSES_4: HashMap<AddressKey4, AddressEntry, 65536, NO_PREALLOC> = HashMap::new();

#[btf_map]
pub static ADDRESSES_6: HashMap<AddressKey6, AddressEntry, 65536, NO_PREALLOC> = HashMap::new();

#[btf_map]
pub static CLASSES: Array<ClassChunk, 16384> = Array::new();

#[btf_map]
pub static EVENTS_LOST: PerCpuArray<u64, 2> = PerCpuArray::new();

#[btf_map]
pub static EVENTS: RingBuf<[u8; 8], 1048576> = RingBuf::new();
