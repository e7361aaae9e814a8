//! What the ELF object has, read and linked, with nothing of it in the kernel yet.

use std::{
    collections::{HashMap, HashSet},
    error,
    ffi::CString,
};

use aya_obj::{
    Function, Map, Object, Program, ProgramSection,
    btf::BtfFeatures,
    generated::{
        BPF_PSEUDO_MAP_FD, BPF_PSEUDO_MAP_IDX, BPF_PSEUDO_MAP_IDX_VALUE, BPF_PSEUDO_MAP_VALUE, bpf_attach_type,
        bpf_insn, bpf_prog_type,
    },
};
use zerocopy::IntoBytes as _;

use super::{OBJECT, TELL, TELL_NOTHING};
use crate::datapath::{Error, clock::Jiffies};

/// Every map and program, in a fixed order.
#[derive(Debug)]
pub struct Parts {
    pub maps: Vec<MapPart>,
    pub programs: Vec<ProgramPart>,
    /// Whether the programs write their debug lines.
    pub tells: bool,
    /// The object's own types, for a kernel that knows them all.
    pub types: Vec<u8>,
}

/// A map, not made yet.
#[derive(Debug)]
pub struct MapPart {
    pub name: String,
    pub map: Map,
}

/// A program with all functions that it calls; its instructions name a map by its place in [`Parts::maps`].
#[derive(Debug)]
pub struct ProgramPart {
    pub name: String,
    pub program_type: u32,
    pub attach_type: u32,
    pub license: CString,
    pub function: Function,
}

impl Parts {
    /// Reads the object; takes some milliseconds, and needs no policy. How jiffies run it learns with privileges alone.
    pub fn read(tells: bool) -> Result<Self, Error> {
        // Every kernel that has what the programs need (5.17) has all of these but the last (6.0).
        Self::try_read(tells, &BtfFeatures::new(true, true, true, true, true, true, true, true)).map_err(Error::Object)
    }

    /// The object's types for a kernel that does not know them all.
    pub fn older_types(&self) -> Option<Vec<u8>> {
        Self::try_read(self.tells, aya::features().btf()?).ok().map(|parts| parts.types)
    }

    fn try_read(tells: bool, features: &BtfFeatures) -> Result<Self, Box<dyn error::Error + Send + Sync>> {
        let mut object = Object::parse(OBJECT)?;
        // The verifier knows these as constants, and takes out what is behind those that are zero.
        let level: &[u8] = if tells { &TELL } else { &TELL_NOTHING };
        let jiffies = Jiffies::read();
        object.patch_map_data(HashMap::from([
            (aya_log::LEVEL, (level, true)),
            ("JIFFY_LENGTH", (jiffies.length.as_bytes(), true)),
            ("JIFFIES_BEGAN", (jiffies.began.as_bytes(), true)),
        ]))?;
        let types = object.fixup_and_sanitize_btf(features)?.ok_or("it has no types")?.to_bytes();
        let mut maps: Vec<_> = object.maps.drain().map(|(name, map)| MapPart { name, map }).collect();
        maps.sort_by(|a, b| a.name.cmp(&b.name));
        let text: HashSet<_> = object.functions.keys().map(|(section, _)| *section).collect();
        object.relocate_maps((0..).zip(&maps).map(|(place, part)| (part.name.as_str(), place, &part.map)), &text)?;
        object.relocate_calls(&text)?;
        let programs = std::mem::take(&mut object.programs);
        let mut programs: Vec<_> = programs
            .into_iter()
            .filter_map(|(name, program)| part(name, &program, object.functions.get(&program.function_key())?))
            .collect();
        programs.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(Self { maps, programs, tells, types })
    }
}

/// `None` for a program of a type that egress has none of.
fn part(name: String, program: &Program, function: &Function) -> Option<ProgramPart> {
    use bpf_prog_type::*;
    let (program_type, attach_type) = match program.section {
        ProgramSection::SchedClassifier => (BPF_PROG_TYPE_SCHED_CLS, 0),
        ProgramSection::CgroupSkb { attach_type } => {
            (BPF_PROG_TYPE_CGROUP_SKB, attach_type.map_or(0, |at| bpf_attach_type::from(at) as u32))
        }
        ProgramSection::CgroupSock { attach_type } => {
            (BPF_PROG_TYPE_CGROUP_SOCK, bpf_attach_type::from(attach_type) as u32)
        }
        ProgramSection::CgroupSockAddr { attach_type } => {
            (BPF_PROG_TYPE_CGROUP_SOCK_ADDR, bpf_attach_type::from(attach_type) as u32)
        }
        ProgramSection::Lsm { sleepable: false } => (BPF_PROG_TYPE_LSM, bpf_attach_type::BPF_LSM_MAC as u32),
        _ => return None,
    };
    let mut function = function.clone();
    name_by_place(&mut function.instructions);
    let license = program.license.clone();
    Some(ProgramPart { name, program_type: program_type as u32, attach_type, license, function })
}

/// aya-obj writes a map's descriptor into an instruction. There is none yet, so it was given the map's place, which the kernel
/// looks up in the list that is loaded with the program.
fn name_by_place(instructions: &mut [bpf_insn]) {
    /// `BPF_LD | BPF_IMM | BPF_DW`, the only instruction of two words.
    const LOAD_64: u8 = 0x18;
    let mut rest = instructions;
    while let [first, after @ ..] = rest {
        if first.code != LOAD_64 {
            rest = after;
            continue;
        }
        match u32::from(first.src_reg()) {
            BPF_PSEUDO_MAP_FD => first.set_src_reg(BPF_PSEUDO_MAP_IDX as u8),
            BPF_PSEUDO_MAP_VALUE => first.set_src_reg(BPF_PSEUDO_MAP_IDX_VALUE as u8),
            _ => {}
        }
        rest = after.get_mut(1..).unwrap_or_default();
    }
}
