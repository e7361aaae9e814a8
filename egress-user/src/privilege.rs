//! What the daemon may still do once its programs are attached (P9): few capabilities, few system calls, few files.
//!
//! Capabilities, Landlock and seccomp belong to threads, and a new thread has its maker's. So the two threads that
//! there are when the start is over restrict themselves, and all later ones are made by the first.
//!
//! | thread | capabilities | Landlock | system calls |
//! | --- | --- | --- | --- |
//! | all but one: resolver, socket, reloads | [`Role::Control`]'s | reads, and writes what [`Writable`] says | [`seccomp`]'s list |
//! | `events`: looks processes up | [`Role::Events`]'s | none: it forbids reading `/proc/PID/exe` | the list without `bpf` and sending |

mod landlock;
mod seccomp;
#[cfg(test)]
mod tests;

use std::{io, path::PathBuf};

use caps::{CapSet, Capability, CapsHashSet};
use nix::sys::{
    prctl,
    resource::{Resource, setrlimit},
    signal::{SigSet, Signal},
};

/// Why a thread could not be restricted.
#[derive(Debug, thiserror::Error)]
pub enum PrivilegeError {
    #[error("cannot drop capabilities: {0}")]
    Capabilities(#[from] caps::errors::CapsError),
    #[error("cannot {0}: {1}")]
    Process(&'static str, #[source] io::Error),
    #[error("cannot restrict files by landlock: {0}")]
    Landlock(String),
    #[error("cannot install the seccomp filter: {0}")]
    Seccomp(String),
    #[error("after dropping capabilities there are still: {0}")]
    Left(String),
}

/// Which thread restricts itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The main thread, and all that it makes.
    Control,
    /// The thread that reads the kernel's events.
    Events,
}

impl Role {
    /// What is kept, where the process has it. `docs/security.md` says what for.
    pub fn capabilities(self) -> CapsHashSet {
        match self {
            Self::Control => [Capability::CAP_BPF, Capability::CAP_NET_ADMIN, Capability::CAP_PERFMON].into(),
            Self::Events => [Capability::CAP_SYS_PTRACE].into(),
        }
    }
}

/// Directories that may be written to; what is not there is left out.
pub type Writable = [PathBuf];

/// Signals that mean something to the daemon: to end, or to read its policy again.
const TOLD: [Signal; 3] = [Signal::SIGHUP, Signal::SIGINT, Signal::SIGTERM];

/// Restricts the calling thread, for good. No memory of the process is dumped from here on.
///
/// # Errors
/// That a step failed. A kernel without Landlock is no error: it is told in the log.
pub fn restrict(role: Role, writable: &Writable) -> Result<(), PrivilegeError> {
    no_core_dumps()?;
    prctl::set_no_new_privs().map_err(|errno| PrivilegeError::Process("set no_new_privs", errno.into()))?;
    drop_capabilities(&role.capabilities())?;
    match role {
        Role::Control => landlock::restrict(writable)?,
        // Their handler passes them on by sending, which this thread may not: the kernel is to give them to another.
        Role::Events => SigSet::from_iter(TOLD)
            .thread_block()
            .map_err(|errno| PrivilegeError::Process("block signals", errno.into()))?,
    }
    seccomp::install(role)
}

/// Names, addresses and policies are in the daemon's memory; a dump would put them on the disk.
fn no_core_dumps() -> Result<(), PrivilegeError> {
    setrlimit(Resource::RLIMIT_CORE, 0, 0)
        .map_err(|errno| PrivilegeError::Process("forbid core dumps", errno.into()))?;
    prctl::set_dumpable(false).map_err(|errno| PrivilegeError::Process("forbid core dumps", errno.into()))
}

fn drop_capabilities(keep: &CapsHashSet) -> Result<(), PrivilegeError> {
    let had = caps::read(None, CapSet::Permitted)?;
    let keep: CapsHashSet = keep.intersection(&had).copied().collect();
    if had.contains(&Capability::CAP_SETPCAP) {
        for capability in caps::runtime::thread_all_supported().difference(&keep) {
            caps::drop(None, CapSet::Bounding, *capability)?;
        }
        forget_root()?;
    }
    // An old kernel's container may have none; `Ambient` is empty there by itself.
    let _ = caps::clear(None, CapSet::Ambient);
    caps::clear(None, CapSet::Inheritable)?;
    caps::set(None, CapSet::Effective, &keep)?;
    caps::set(None, CapSet::Permitted, &keep)?;
    let left: Vec<_> = caps::read(None, CapSet::Permitted)?.difference(&keep).map(ToString::to_string).collect();
    if left.is_empty() { Ok(()) } else { Err(PrivilegeError::Left(left.join(", "))) }
}

/// User id 0 alone gives no capability any more, neither by `execve` nor by `setuid` (linux/securebits.h).
fn forget_root() -> Result<(), PrivilegeError> {
    const NOROOT: libc::c_ulong = 0b11;
    const NO_SETUID_FIXUP: libc::c_ulong = 0b11 << 2;
    const KEEP_CAPS_LOCKED: libc::c_ulong = 1 << 5;
    const NO_CAP_AMBIENT_RAISE: libc::c_ulong = 0b11 << 6;
    let bits = NOROOT | NO_SETUID_FIXUP | KEEP_CAPS_LOCKED | NO_CAP_AMBIENT_RAISE;
    // SAFETY: PR_SET_SECUREBITS takes one number and no pointer.
    if unsafe { libc::prctl(libc::PR_SET_SECUREBITS, bits, 0, 0, 0) } == 0 {
        Ok(())
    } else {
        Err(PrivilegeError::Process("set the securebits", io::Error::last_os_error()))
    }
}
