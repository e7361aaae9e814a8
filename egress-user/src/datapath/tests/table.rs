//! The kernel takes as many bytes as a map's shape says. Needs root.

use std::os::fd::AsFd as _;

use aya_obj::generated::bpf_map_type;
use egress_ebpf::abi::Hits;

use super::*;

fn map(kind: bpf_map_type, key_size: u32, value_size: u32) -> std::os::fd::OwnedFd {
    let (map_type, max_entries) = (kind as u32, 8);
    // BPF_F_NO_PREALLOC, which a trie wants.
    let flags = if kind == bpf_map_type::BPF_MAP_TYPE_LPM_TRIE { 1 } else { 0 };
    sys::map_create(&sys::NewMap { name: "test", map_type, key_size, value_size, max_entries, flags, types: None })
        .expect("a map is made: needs root")
}

fn refused(result: Result<impl Sized, Error>) -> bool {
    matches!(result, Err(Error::Map { source, .. }) if source.kind() == std::io::ErrorKind::InvalidInput)
}

#[test]
fn what_is_too_short_for_a_map_is_not_written() {
    let array = map(bpf_map_type::BPF_MAP_TYPE_ARRAY, 4, 16);
    let write = |key: &[u8], value: &[u8]| sys::map_update(array.as_fd(), key, value, sys::ANY).map_err(|e| e.kind());
    assert_eq!(write(&[0; 4], &[1; 16]), Ok(()));
    assert_eq!(write(&[0; 3], &[1; 16]), Err(std::io::ErrorKind::InvalidInput));
    assert_eq!(write(&[0; 4], &[1; 15]), Err(std::io::ErrorKind::InvalidInput));
}

#[test]
fn a_map_with_a_value_for_each_cpu_is_read_as_a_sum_alone() {
    let shared = map(bpf_map_type::BPF_MAP_TYPE_PERCPU_ARRAY, 4, size_of::<Hits>() as u32);
    let table: Table<u32, Hits> = Table::new("test", shared).unwrap();
    assert!(refused(table.get(&0)) && refused(table.set(&0, &Hits::default(), sys::ANY)));
    assert!(refused(table.set_all(&[(0, Hits::default())])) && refused(table.each(|_, _| true)));
    table.clear(0).unwrap();
    assert_eq!(table.sum(0).unwrap().packets, 0);
}

#[test]
fn only_hash_tables_and_arrays_are_read_in_batches() {
    let trie: Table<[u8; 20], u64> = Table::new("test", map(bpf_map_type::BPF_MAP_TYPE_LPM_TRIE, 20, 8)).unwrap();
    trie.set(&[0; 20], &1, sys::ANY).unwrap();
    assert!(refused(trie.batch(None, 8)));
    let hash: Table<u32, u64> = Table::new("test", map(bpf_map_type::BPF_MAP_TYPE_HASH, 4, 8)).unwrap();
    hash.set_all(&[(1, 2), (3, 4)]).unwrap();
    let (next, mut elements) = hash.batch(None, 8).unwrap();
    elements.sort_unstable();
    assert_eq!((next, elements), (None, vec![(1, 2), (3, 4)]));
    assert_eq!(hash.take(&3).unwrap(), Some(4));
}
