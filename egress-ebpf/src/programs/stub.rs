use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    btf_maps::{Array, HashMap, LpmTrie, LruHashMap},
    macros::{btf_map, classifier},
    programs::TcContext,
};
use egress_ebpf::abi::*;
#[btf_map]
pub static NAMES: LpmTrie<[u8; 256], NameValue, 65536> = LpmTrie::new();
#[btf_map]
pub static INNER_WILDCARDS: Array<InnerWildcard, 4096> = Array::new();
#[btf_map]
pub static ALIASES: LruHashMap<AliasKey, Alias, 16384> = LruHashMap::new();
#[btf_map]
pub static PENDING: HashMap<PendingKey, Pending, 1024, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();
#[classifier]
pub fn control(_ctx: TcContext) -> i32 {
    let _ = NAMES.get(&aya_ebpf::btf_maps::lpm_trie::Key::new(0, [0; 256]));
    let _ = INNER_WILDCARDS.get(0);
    0
}
