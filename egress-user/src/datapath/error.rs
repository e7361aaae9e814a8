//! What can go wrong between a policy and the kernel.

use std::{io, path::PathBuf};

/// An error of the data path. Each says which object it is about and what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot load the eBPF object: {0}")]
    Object(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("the kernel refuses the eBPF program `{program}`{}", refusal(source, log))]
    Program { program: &'static str, source: io::Error, log: Box<str> },
    #[error("the eBPF object has no {kind} `{name}`: this binary was not built right; build it again")]
    Missing { kind: &'static str, name: &'static str },
    #[error("cannot {action} the map {name}: {source}")]
    Map { action: &'static str, name: &'static str, source: io::Error },
    #[error(
        "the map {name} has keys of {key} and values of {value} bytes, which another version of egress made; run `egress detach` first"
    )]
    Shape { name: &'static str, key: u32, value: u32 },
    #[error(
        "the policy needs {needed} {what}, and {capacity} fit; restart the daemon with it, so that its tables are sized for it (`egress run --max-addresses N` where learned addresses fill them)"
    )]
    Full { what: &'static str, needed: usize, capacity: usize },
    #[error(
        "a rule opens {ranges} port ranges together with the others of its names, and {most} fit; write ranges instead of single ports"
    )]
    Ports { ranges: usize, most: usize },
    #[error("cannot attach to {what}: {source}")]
    Attach { what: String, source: io::Error },
    #[error("another egress daemon holds {0}; stop it first, or ask it: `egress status --socket ITS-SOCKET`")]
    Taken(PathBuf),
    #[error("cannot read the kernel's types: {0}; the kernel needs CONFIG_DEBUG_INFO_BTF")]
    KernelTypes(#[source] io::Error),
    #[error("cannot {action} {path}: {source}")]
    Path { action: &'static str, path: PathBuf, source: io::Error },
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Several(Vec<Self>),
    #[error("no cgroup v2 is mounted; mount one: `mount -t cgroup2 none /sys/fs/cgroup`")]
    NoCgroup,
    #[error("{path} is not a directory of cgroup v2; `egress run --cgroup` takes one below {root}")]
    NotACgroup { path: PathBuf, root: PathBuf },
    #[error("there is no interface {0}; `ip link` lists them")]
    NoInterface(String),
    #[error("cannot look for the interface {name}: {source}")]
    Interface { name: String, source: io::Error },
    #[error("cannot read the number of CPUs ({what}): {source}")]
    Cpus { what: &'static str, source: io::Error },
    #[error("what was written to the map {0} reads back differently; the old policy stays in force")]
    ReadBack(&'static str),
    #[error("a policy is in force that is not confirmed yet; `egress confirm` keeps it, `egress rollback` ends it")]
    Unconfirmed,
    #[error("the program `{0}` did not tell its verdict; please report this")]
    Untold(&'static str),
    #[error("no policy waits for a confirmation")]
    NothingPending,
    #[error("missing privilege: {0}; run as root, or with CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON")]
    Privilege(&'static str),
}

impl Error {
    /// Whether something is short (descriptors, memory) or a privilege is missing: it says nothing of what was asked about.
    pub fn is_want(&self) -> bool {
        let first: &(dyn std::error::Error + 'static) = self;
        let mut causes = std::iter::successors(Some(first), |error| error.source());
        causes.any(|error| error.downcast_ref::<io::Error>().is_some_and(super::sys::is_want))
    }

    pub(super) fn map(action: &'static str, name: &'static str, source: io::Error) -> Self {
        Self::Map { action, name, source }
    }

    pub(crate) fn path(action: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Self {
        Self::Path { action, path: path.into(), source }
    }
}

/// With what the verifier said.
fn refusal(error: &io::Error, log: &str) -> String {
    match error.raw_os_error() {
        Some(libc::EPERM) => ": missing privilege; run as root".to_owned(),
        _ if log.is_empty() => format!(": {error}"),
        _ => format!(": {error}. The verifier's log:\n{log}"),
    }
}
