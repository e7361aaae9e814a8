//! The kernel gives each kind of program helpers of its own. LSM programs cannot be loaded on every machine, so what they call
//! is looked up in the object; this needs no kernel, and no root.

use std::collections::{BTreeSet, HashSet};

use aya_obj::{Object, ProgramSection};

/// BPF_FUNC_ktime_get_coarse_ns: refused to LSM programs since kernel 5.16, and 5.15.5 (`bpf_tracing_func_proto` of
/// kernel/trace/bpf_trace.c has it not).
const KTIME_GET_COARSE_NS: i32 = 160;
/// BPF_JMP | BPF_CALL; the source register is 0 for a helper.
const CALL: u8 = 0x85;

#[test]
fn lsm_programs_read_no_coarse_clock() {
    let mut object = Object::parse(egress_user::datapath::Object::elf()).expect("the object is read");
    let sections: HashSet<usize> = object.functions.keys().map(|(section, _)| *section).collect();
    object.relocate_calls(&sections).expect("calls are linked");
    let mut lsm = 0;
    for (name, program) in &object.programs {
        let code = &object.functions[&program.function_key()].instructions;
        let helpers: BTreeSet<i32> =
            code.iter().filter(|insn| insn.code == CALL && insn.src_reg() == 0).map(|insn| insn.imm).collect();
        if matches!(program.section, ProgramSection::Lsm { .. }) {
            lsm += 1;
            assert!(!helpers.contains(&KTIME_GET_COARSE_NS), "{name} calls helpers {helpers:?}");
        } else if name == "socket_egress" {
            // What is looked for is found where it is.
            assert!(helpers.contains(&KTIME_GET_COARSE_NS), "{name} calls helpers {helpers:?}");
        }
    }
    assert_eq!(lsm, 2, "LSM programs in {:?}", object.programs.keys());
}
