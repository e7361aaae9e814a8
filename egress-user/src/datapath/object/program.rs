//! One program of the object, loaded once, by whoever needs it first.

use std::{
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd, RawFd},
    sync::{Mutex, OnceLock, PoisonError},
};

use super::parts::ProgramPart;
use crate::datapath::{Error, sys};

#[derive(Debug)]
pub struct Program {
    pub part: ProgramPart,
    turn: Mutex<()>,
    loaded: OnceLock<OwnedFd>,
}

/// What a program is loaded with.
#[derive(Clone, Copy, Debug)]
pub struct With<'a> {
    pub maps: &'a [RawFd],
    pub types: BorrowedFd<'a>,
    /// The kernel's function that it is called by, for an LSM program; else 0.
    pub hook: u32,
}

impl Program {
    pub fn new(part: ProgramPart) -> Self {
        Self { part, turn: Mutex::new(()), loaded: OnceLock::new() }
    }

    /// Its descriptor. Loads it, if it is not yet; if another thread is at that, waits for it.
    pub fn load(&self, name: &'static str, with: With<'_>) -> Result<BorrowedFd<'_>, Error> {
        let _mine = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(loaded) = self.loaded.get() {
            return Ok(loaded.as_fd());
        }
        let loaded =
            self.try_load(with).map_err(|(source, log)| Error::Program { program: name, source, log: log.into() })?;
        Ok(self.loaded.get_or_init(|| loaded).as_fd())
    }

    /// With an error comes what the verifier said.
    fn try_load(&self, with: With<'_>) -> Result<OwnedFd, (io::Error, String)> {
        let ProgramPart { name, program_type, attach_type, license, function } = &self.part;
        let functions = function.func_info.func_info_bytes();
        let lines = function.line_info.line_info_bytes();
        let program = sys::NewProgram {
            name,
            program_type: *program_type,
            attach_type: *attach_type,
            hook: with.hook,
            license,
            instructions: &function.instructions,
            maps: with.maps,
            types: with.types,
            functions: (&functions, function.func_info_rec_size as u32),
            lines: (&lines, function.line_info_rec_size as u32),
        };
        // A log takes time, and is of use where the program is refused.
        match patiently(|| sys::program_load(&program, &mut [])) {
            Ok(loaded) => Ok(loaded),
            Err(_) => loudly(&program),
        }
    }
}

/// The verifier gives up where a signal waits (`do_check` in kernel/bpf/verifier.c).
fn patiently(load: impl Fn() -> io::Result<OwnedFd>) -> io::Result<OwnedFd> {
    let mut loaded = load();
    for _ in 0..5 {
        match &loaded {
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => loaded = load(),
            _ => break,
        }
    }
    loaded
}

/// Again, with the verifier's log, in more and more room.
fn loudly(program: &sys::NewProgram<'_>) -> Result<OwnedFd, (io::Error, String)> {
    let mut log = vec![0; 10 << 10];
    loop {
        match sys::program_load(program, &mut log) {
            Ok(loaded) => return Ok(loaded),
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && log.len() < 10 << 20 => {
                log = vec![0; log.len() * 10];
            }
            Err(error) => {
                let said = log.split(|byte| *byte == 0).next().unwrap_or_default();
                return Err((error, String::from_utf8_lossy(said).into_owned()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd as _;

    use super::{super::parts::Parts, *};

    #[test]
    fn a_refused_program_is_told_with_the_verifiers_log() {
        let parts = Parts::read(false).unwrap();
        let types = sys::types_load(&parts.types).expect("needs root");
        // A map whose values are shorter than any that the program reads, in the place of each.
        let short = sys::NewMap {
            name: "short",
            map_type: 2,
            key_size: 4,
            value_size: 1,
            max_entries: 1,
            flags: 0,
            types: None,
        };
        let short = sys::map_create(&short).unwrap();
        let maps = vec![short.as_raw_fd(); parts.maps.len()];
        let control = parts.programs.into_iter().find(|part| part.name == "control").unwrap();
        let with = With { maps: &maps, types: types.as_fd(), hook: 0 };
        let said = Program::new(control).load("control", with).unwrap_err().to_string();
        assert!(said.starts_with("the kernel refuses the eBPF program `control`: "), "{said}");
        let (_, log) = said.split_once("The verifier's log:\n").unwrap();
        assert!(log.contains("value_size=1"), "{log}");
    }
}
