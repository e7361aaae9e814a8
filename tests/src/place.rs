//! Where a process runs: a network namespace, a mount namespace and a cgroup, entered between fork and exec.
//!
//! Not `ip netns exec`: it remounts /sys, which hides the cgroup and bpffs mounts.

use std::ffi::CString;
use std::io::{self, BufRead as _, BufReader};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use nix::fcntl::OFlag;
use nix::sched::CloneFlags;
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, fork, pipe2};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::cgroup::{Cgroup, mount_point};
use crate::mntns::MountNs;
use crate::netns::{NetNs, raw, setns_raw};

#[derive(Debug, Clone, Default)]
pub struct Place {
    net: Option<Arc<OwnedFd>>,
    mnt: Option<Arc<OwnedFd>>,
    procs: Option<Arc<OwnedFd>>,
    cgroup_mount: Option<Arc<CString>>,
}

/// How a command went. `status` is `None` when the time limit killed it.
#[derive(Debug)]
pub struct Run {
    pub status: Option<ExitStatus>,
    pub stdout: String,
    pub stderr: String,
    pub took: Duration,
}

impl Run {
    #[must_use]
    pub fn ok(&self) -> bool {
        self.status.is_some_and(|status| status.success())
    }

    /// The exit code; `None` after a signal or the time limit.
    #[must_use]
    pub fn code(&self) -> Option<i32> {
        self.status.and_then(|status| status.code())
    }
}

impl Place {
    #[must_use]
    pub fn new(net: &NetNs) -> Self {
        Self { net: Some(net.fd()), ..Self::default() }
    }

    #[must_use]
    pub fn with_mounts(mut self, mounts: &MountNs) -> Self {
        self.mnt = Some(mounts.fd());
        self
    }

    #[must_use]
    pub fn in_cgroup(mut self, cgroup: &Cgroup) -> Self {
        self.procs = Some(cgroup.procs());
        self
    }

    /// Whether it sees a cgroup tree of its own, so that a daemon there governs nobody else.
    pub(crate) const fn has_cgroup_namespace(&self) -> bool {
        self.cgroup_mount.is_some()
    }

    /// In a cgroup namespace whose root is the cgroup of this place, and a mount namespace that shows it, as a container has it.
    pub fn in_cgroup_namespace(mut self) -> Result<Self> {
        let point = mount_point()?;
        self.cgroup_mount = Some(Arc::new(CString::new(point.into_os_string().into_encoded_bytes())?));
        Ok(self)
    }

    /// A command that will run in this place, and die with the thread that spawns it.
    /// Its working directory is `/` when the place has mounts of its own.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let place = self.clone();
        let parent = std::process::id();
        // SAFETY: `enter` makes plain system calls on descriptors that the closure keeps open; it allocates nothing.
        unsafe { command.pre_exec(move || place.enter(parent)) };
        command
    }

    /// Runs a command to its end, or kills it at `limit`.
    pub fn run(&self, program: &str, args: &[&str], limit: Duration) -> Result<Run> {
        let mut command = self.command(program);
        command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().with_context(|| format!("start `{program}`"))?;
        wait_limited(child, limit)
    }

    /// Runs `f` in a forked child in this place, and gives back what it returned. For what no client does: raw sockets,
    /// odd socket options, a process that must be in the cgroup itself.
    ///
    /// The child has one thread: `f` must not print, and must not touch a lock that another thread of the test may hold.
    /// Dies at `limit`, which is an error. A panic in `f` is an error with its message.
    pub fn fork<T: Serialize + DeserializeOwned>(&self, limit: Duration, f: impl FnOnce() -> Result<T>) -> Result<T> {
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC)?;
        let parent = std::process::id();
        // SAFETY: the child runs `f` under the documented limits (glibc keeps malloc usable after fork) and ends in _exit.
        match unsafe { fork() }.context("fork")? {
            ForkResult::Child => {
                drop(reader);
                let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                    self.enter(parent).context("enter the place")?;
                    f()
                }));
                let text: Result<T, String> = match outcome {
                    Ok(result) => result.map_err(|e| format!("{e:#}")),
                    Err(panic) => Err(format!("panic: {}", panic_text(&*panic))),
                };
                let mut bytes = serde_json::to_vec(&text).unwrap_or_default();
                bytes.push(b'\n');
                let _ = io::Write::write_all(&mut std::fs::File::from(writer), &bytes);
                // SAFETY: ends the child without running the parent's destructors, which would remove its namespaces.
                unsafe { libc::_exit(0) }
            }
            ForkResult::Parent { child } => {
                drop(writer);
                read_outcome(child, reader, limit)
            }
        }
    }

    /// Joins the cgroup and namespaces. Called between fork and exec: async-signal-safe.
    fn enter(&self, parent: u32) -> io::Result<()> {
        // SAFETY: prctl with integers; the child is killed when the test's thread ends, so nothing survives a test.
        if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: getppid has no preconditions. The parent may have died before prctl was called.
        if unsafe { libc::getppid() }.cast_unsigned() != parent {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
        if let Some(procs) = raw(self.procs.as_ref()) {
            // SAFETY: writes one byte of a static string; "0" means the writing process (cgroup-v2.rst).
            if unsafe { libc::write(procs, c"0".as_ptr().cast(), 1) } != 1 {
                return Err(io::Error::last_os_error());
            }
        }
        if let Some(mnt) = raw(self.mnt.as_ref()) {
            setns_raw(mnt, CloneFlags::CLONE_NEWNS)?;
        }
        if let Some(net) = raw(self.net.as_ref()) {
            setns_raw(net, CloneFlags::CLONE_NEWNET)?;
        }
        if let Some(point) = &self.cgroup_mount {
            let (none, null, data) = (c"none".as_ptr(), std::ptr::null(), std::ptr::null());
            let private = libc::MS_REC | libc::MS_PRIVATE;
            // SAFETY: system calls on static strings and one that the place keeps; the mount namespace is this process's own.
            let failed = unsafe {
                libc::unshare(libc::CLONE_NEWCGROUP | libc::CLONE_NEWNS) != 0
                    || libc::mount(none, c"/".as_ptr(), null, private, data) != 0
                    // Over itself the kernel mounts no file system (EBUSY).
                    || libc::umount2(point.as_ptr(), libc::MNT_DETACH) != 0
                    || libc::mount(none, point.as_ptr(), c"cgroup2".as_ptr(), 0, data) != 0
            };
            if failed {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    }
}

/// Waits for `child`, whose output is piped; kills it at `limit`.
pub fn wait_limited(mut child: Child, limit: Duration) -> Result<Run> {
    let start = Instant::now();
    let (mut out, mut err) = (child.stdout.take(), child.stderr.take());
    std::thread::scope(|scope| {
        let out = scope.spawn(move || read_all(out.as_mut()));
        let err = scope.spawn(move || read_all(err.as_mut()));
        let mut pause = Duration::from_micros(500);
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break Some(status);
            }
            if start.elapsed() > limit {
                child.kill()?;
                child.wait()?;
                break None;
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(20));
        };
        let took = start.elapsed();
        let text =
            |thread: std::thread::ScopedJoinHandle<'_, String>| thread.join().map_err(|_| anyhow!("reader died"));
        Ok(Run { status, stdout: text(out)?, stderr: text(err)?, took })
    })
}

fn read_all(pipe: Option<&mut impl io::Read>) -> String {
    let mut bytes = Vec::new();
    if let Some(pipe) = pipe {
        let _ = pipe.read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn read_outcome<T: DeserializeOwned>(child: Pid, reader: OwnedFd, limit: Duration) -> Result<T> {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use std::os::fd::AsFd as _;
    let timeout = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
    let ready = poll(&mut [PollFd::new(reader.as_fd(), PollFlags::POLLIN)], timeout)?;
    let mut bytes = Vec::new();
    if ready == 0 {
        nix::sys::signal::kill(child, nix::sys::signal::Signal::SIGKILL)?;
        waitpid(child, None)?;
        bail!("the forked child ran longer than {limit:?}");
    }
    // One line, not to the end: a child that another thread forked meanwhile may hold the pipe open.
    BufReader::new(std::fs::File::from(reader)).read_until(b'\n', &mut bytes)?;
    let status = waitpid(child, None)?;
    if bytes.len() < 2 {
        bail!("the forked child ended without an answer: {status:?}");
    }
    serde_json::from_slice::<Result<T, String>>(&bytes)?.map_err(|e| anyhow!(e))
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(ToString::to_string);
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "of another type".into())
}
