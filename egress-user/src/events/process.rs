//! What `/proc` knows of a process, while it is there.

use std::{
    collections::HashMap,
    fs,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use egress_ebpf::abi::Process;
use nix::unistd::{SysconfVar, sysconf};

use super::{Clock, ProcessInfo, escape};

/// How long what was read of a process serves for later events of it, in nanoseconds: a command's last packets are
/// often told after it ended.
const REMEMBERED: u64 = 10_000_000_000;
/// Processes that are remembered.
const CAPACITY: usize = 4096;

/// Looks processes up.
#[derive(Debug)]
pub(super) struct Processes {
    root: PathBuf,
    nanoseconds_per_tick: u64,
    seen: HashMap<(u32, [u8; 16]), Seen>,
}

#[derive(Clone, Debug)]
struct Seen {
    time: u64,
    exe: Option<String>,
    ppid: Option<u32>,
}

impl Processes {
    /// `root` is where procfs is mounted.
    pub(super) fn new(root: PathBuf) -> Self {
        let ticks = sysconf(SysconfVar::CLK_TCK).ok().flatten().and_then(|ticks| u64::try_from(ticks).ok());
        Self { root, nanoseconds_per_tick: 1_000_000_000 / ticks.unwrap_or(100).max(1), seen: HashMap::new() }
    }

    /// The process of an event at `time` (monotonic); absent where the kernel knew none.
    pub(super) fn find(&mut self, process: &Process, time: u64, clock: &Clock) -> Option<ProcessInfo> {
        if process.pid == 0 {
            return None;
        }
        let key = (process.pid, process.comm);
        let seen = match self.read(process.pid, clock.boot(time)) {
            Some((exe, ppid)) => {
                if self.seen.len() >= CAPACITY {
                    self.seen.clear();
                }
                let seen = Seen { time, exe, ppid };
                self.seen.insert(key, seen.clone());
                Some(seen)
            }
            None => self.seen.get(&key).filter(|seen| time.saturating_sub(seen.time) < REMEMBERED).cloned(),
        };
        let (exe, ppid) = seen.map_or((None, None), |seen| (seen.exe, seen.ppid));
        let comm = process.comm.split(|byte| *byte == 0).next().unwrap_or_default();
        Some(ProcessInfo { pid: process.pid, comm: escape(comm), exe, uid: process.uid, ppid })
    }

    /// The path of the process' cgroup below the cgroup v2 root, as this process sees it.
    pub(super) fn cgroup(&self, pid: u32) -> Option<Vec<u8>> {
        let text = fs::read(self.directory(pid).join("cgroup")).ok()?;
        text.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(b"0::")).map(<[u8]>::to_vec)
    }

    /// Executable and parent; nothing when the process is gone, or when its id belongs to a later one now.
    fn read(&self, pid: u32, boot: u64) -> Option<(Option<String>, Option<u32>)> {
        let directory = self.directory(pid);
        let (ppid, started) = self.stat(&directory)?;
        if started > boot.saturating_add(self.nanoseconds_per_tick) {
            return None;
        }
        let exe = fs::read_link(directory.join("exe")).ok().map(|path| escape(path.as_os_str().as_bytes()));
        Some((exe, ppid))
    }

    /// Parent, and start in nanoseconds of `CLOCK_BOOTTIME`: fields 4 and 22 of proc_pid_stat(5).
    fn stat(&self, directory: &Path) -> Option<(Option<u32>, u64)> {
        let stat = fs::read(directory.join("stat")).ok()?;
        // The command name is in parentheses and may hold any byte, parentheses too.
        let end = stat.iter().rposition(|byte| *byte == b')')?;
        let rest = std::str::from_utf8(&stat[end + 1..]).ok()?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        let started: u64 = fields.get(19)?.parse().ok()?;
        Some((fields.get(1)?.parse().ok(), started.saturating_mul(self.nanoseconds_per_tick)))
    }

    fn directory(&self, pid: u32) -> PathBuf {
        self.root.join(pid.to_string())
    }
}
