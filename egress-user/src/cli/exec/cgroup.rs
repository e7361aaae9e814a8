//! The cgroup of one `exec`, and the process that removes it.

use std::{
    fs, io,
    io::{Read as _, Write as _},
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    time::Duration,
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::signal::{SigHandler, Signal, signal},
    unistd::{ForkResult, Pid, fork, setsid},
};

use crate::datapath::{Cgroup, Error, cgroup_root};

const PREFIX: &str = "egress-exec-";

/// A cgroup below the one that `exec` itself runs in, so that whatever limits that one has go on to hold.
#[derive(Debug)]
pub struct ExecCgroup {
    path: PathBuf,
}

impl ExecCgroup {
    /// Makes it.
    pub fn make() -> Result<Self, Error> {
        let root = cgroup_root()?;
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let parent =
            own.lines().find_map(|line| line.strip_prefix("0::/")).map_or(root.clone(), |path| root.join(path));
        remove_in(&parent);
        let path = parent.join(format!("{PREFIX}{}", Pid::this()));
        fs::create_dir(&path).map_err(|source| Error::Path {
            action: "make the cgroup",
            path: path.clone(),
            source,
        })?;
        Ok(Self { path })
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens it to attach to.
    pub fn open(&self) -> Result<Cgroup, Error> {
        Cgroup::open(Some(&self.path))
    }

    /// Forks the process that ends what is left when this one is gone, and removes the cgroup when it is empty.
    ///
    /// To be called before any thread is started.
    pub fn start_janitor(&self) -> io::Result<Janitor> {
        let (mut theirs, ours) = io::pipe()?;
        // SAFETY: this process has one thread, so that the child may use the whole of libc.
        match unsafe { fork() }? {
            ForkResult::Parent { child: _ } => Ok(Janitor { pipe: ours }),
            ForkResult::Child => {
                drop(ours);
                // Not the terminal's business: what a person types is for the command.
                let _ = setsid();
                for ignored in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGPIPE] {
                    // SAFETY: ignoring a signal installs no handler.
                    let _ = unsafe { signal(ignored, SigHandler::SigIgn) };
                }
                let mut word = [0];
                // A byte says that the command ended in order; the pipe's end says that its parent is gone.
                let orderly = matches!(theirs.read(&mut word), Ok(1));
                if !orderly {
                    let _ = fs::write(self.path.join("cgroup.kill"), "1");
                }
                self.remove_when_empty();
                // SAFETY: ends this process without running the parent's destructors twice.
                unsafe { libc::_exit(0) }
            }
        }
    }

    fn remove_when_empty(&self) {
        // Standard streams are given back, so that whoever reads them sees their end.
        for fd in 0..=2 {
            // SAFETY: the janitor uses none of them.
            unsafe { libc::close(fd) };
        }
        while fs::remove_dir(&self.path).is_err_and(|error| error.kind() != io::ErrorKind::NotFound) {
            let Ok(events) = fs::File::open(self.path.join("cgroup.events")) else { return };
            // cgroup.events announces with POLLPRI that the last process has gone (cgroup-v2.rst, "populated").
            let mut fds = [PollFd::new(events.as_fd(), PollFlags::POLLPRI)];
            let text = fs::read_to_string(self.path.join("cgroup.events")).unwrap_or_default();
            if text.contains("populated 1") {
                let _ = poll(&mut fds, PollTimeout::try_from(Duration::from_secs(1)).unwrap_or(PollTimeout::MAX));
            } else {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }
}

impl Drop for ExecCgroup {
    /// Removes a cgroup that nothing was run in; of one that has processes the janitor takes care.
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.path);
    }
}

/// The janitor, seen from the process that forked it.
#[derive(Debug)]
pub struct Janitor {
    pipe: io::PipeWriter,
}

impl Janitor {
    /// The command ended. What it left running goes on under the policy; the janitor waits for it.
    pub fn finish(mut self, cgroup: &ExecCgroup) {
        let _ = self.pipe.write_all(b"x");
        // The usual case, in which nothing is left: the cgroup is gone when `exec` ends.
        for _ in 0..20 {
            if fs::remove_dir(&cgroup.path).is_ok() || !cgroup.path.exists() {
                return;
            }
            let events = fs::read_to_string(cgroup.path.join("cgroup.events")).unwrap_or_default();
            if events.contains("populated 1") {
                return;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// Removes the empty cgroups of `exec`s that are gone, anywhere below `root`; gives their paths.
pub fn remove_leftovers(root: &Path) -> Vec<String> {
    let mut removed = remove_in(root);
    for entry in fs::read_dir(root).into_iter().flatten().filter_map(Result::ok) {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            removed.extend(remove_leftovers(&entry.path()));
        }
    }
    removed
}

fn remove_in(dir: &Path) -> Vec<String> {
    let mut removed = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok) {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.strip_prefix(PREFIX)) else { continue };
        let gone = !Path::new("/proc").join(pid).exists();
        if gone && fs::remove_dir(entry.path()).is_ok() {
            removed.push(format!("cgroup {}", entry.path().display()));
        }
    }
    removed
}
