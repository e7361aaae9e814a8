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
/// How long the janitor lets an empty cgroup be that cannot be removed: first, and at most.
const PAUSE: Duration = Duration::from_millis(5);
const PAUSE_MAX: Duration = Duration::from_secs(1);

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
        let mut pause = PAUSE;
        while remove(&self.path).is_err_and(|error| error.kind() != io::ErrorKind::NotFound) {
            let Ok(events) = fs::File::open(self.path.join("cgroup.events")) else { return };
            // cgroup.events announces with POLLPRI that the last process has gone (cgroup-v2.rst, "populated").
            let mut fds = [PollFd::new(events.as_fd(), PollFlags::POLLPRI)];
            if is_populated(&self.path) {
                let _ = poll(&mut fds, PollTimeout::try_from(PAUSE_MAX).unwrap_or(PollTimeout::MAX));
                pause = PAUSE;
            } else {
                std::thread::sleep(pause);
                pause = (pause * 2).min(PAUSE_MAX);
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
            if remove(&cgroup.path).is_ok() || !cgroup.path.exists() || is_populated(&cgroup.path) {
                return;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// Whether there are processes in a cgroup, or in one below it.
fn is_populated(path: &Path) -> bool {
    fs::read_to_string(path.join("cgroup.events")).is_ok_and(|events| events.contains("populated 1"))
}

/// Removes a cgroup that no process is left in, and those below it that the command made, the lowest first.
fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound && !is_populated(path) => {}
        removed => return removed,
    }
    for entry in fs::read_dir(path)?.filter_map(Result::ok) {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path())?;
        }
    }
    fs::remove_dir(path)
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
        if gone && remove(&entry.path()).is_ok() {
            removed.push(format!("cgroup {}", entry.path().display()));
        }
    }
    removed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leftovers_go_with_what_is_below_them() {
        let root = tempfile::tempdir().unwrap();
        // 0 is nobody's number.
        let left = root.path().join("slice").join(format!("{PREFIX}0"));
        let running = root.path().join(format!("{PREFIX}{}", Pid::this()));
        for dir in [left.join("a/b"), left.join("c"), running.join("a")] {
            fs::create_dir_all(dir).unwrap();
        }
        assert_eq!(remove_leftovers(root.path()), [format!("cgroup {}", left.display())]);
        assert!(!left.exists() && running.join("a").exists());
    }

    #[test]
    fn what_has_processes_keeps_what_is_below_it() {
        let root = tempfile::tempdir().unwrap();
        let left = root.path().join(format!("{PREFIX}0"));
        fs::create_dir_all(left.join("empty")).unwrap();
        fs::write(left.join("cgroup.events"), "populated 1\nfrozen 0\n").unwrap();
        assert!(remove_leftovers(root.path()).is_empty());
        assert!(left.join("empty").exists());
    }
}
