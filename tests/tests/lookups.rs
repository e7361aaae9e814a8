//! Every lookup knows its map. Where compiled code makes one call of lookups in two maps, the kernel goes by a pointer of the map's
//! instead of calling its function (decision 0060). The object needs no kernel, and no root, for this.

use std::collections::{BTreeSet, HashSet};

use aya_obj::{Object, generated::bpf_insn};

/// BPF_LD_IMM64: how a map comes into a register.
const LOAD_64: u8 = 0x18;
/// BPF_CALL.
const CALL: u8 = 0x85;
/// BPF_EXIT.
const EXIT: u8 = 0x95;
/// BPF_JA of class BPF_JMP32, whose way is in `imm`.
const LONG_JUMP: u8 = 0x06;
/// BPF_FUNC_map_lookup_elem.
const LOOKUP: i32 = 1;

/// The instructions that jumps go to.
fn targets(code: &[bpf_insn]) -> BTreeSet<usize> {
    let jumps = code.iter().enumerate().filter(|(_, insn)| matches!(insn.code & 7, 5 | 6));
    let ways = jumps.filter_map(|(at, insn)| match insn.code {
        CALL | EXIT => None,
        LONG_JUMP => Some(at as i64 + 1 + i64::from(insn.imm)),
        _ => Some(at as i64 + 1 + i64::from(insn.off)),
    });
    ways.map(|target| target as usize).collect()
}

/// How many lookups a program has, and those among them which another way leads to behind the load of the map.
fn lookups(code: &[bpf_insn]) -> (usize, Vec<usize>) {
    let targets = targets(code);
    let is_lookup = |insn: &bpf_insn| insn.code == CALL && insn.src_reg() == 0 && insn.imm == LOOKUP;
    let all: Vec<usize> = (0..code.len()).filter(|&at| is_lookup(&code[at])).collect();
    let merged = |call: usize| {
        let load = (0..call).rev().find(|&at| code[at].code == LOAD_64 && code[at].dst_reg() == 1);
        load.is_none_or(|load| targets.range(load + 1..=call).next().is_some())
    };
    (all.len(), all.into_iter().filter(|&call| merged(call)).collect())
}

#[test]
fn every_lookup_knows_its_map() {
    let mut object = Object::parse(egress_user::datapath::Object::elf()).expect("the object is read");
    let sections: HashSet<usize> = object.functions.keys().map(|(section, _)| *section).collect();
    object.relocate_calls(&sections).expect("calls are linked");
    let (mut judged, mut wrong) = (0, Vec::new());
    for (name, program) in &object.programs {
        let (count, merged) = lookups(&object.functions[&program.function_key()].instructions);
        if !merged.is_empty() {
            wrong.push(format!("{name}: of {count} lookups those at {merged:?} are of more than one map"));
        }
        judged += usize::from(count > 10);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(judged >= 6, "few programs look anything up: {judged}");
}
