//! cgroup v2 directories that kill what runs in them and remove themselves.

use std::fs::{self, OpenOptions};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};

use crate::netns::{is_leftover, unique_name};

/// Where cgroup v2 is mounted, by the mount table: on a hybrid host it is not `/sys/fs/cgroup` itself.
pub fn mount_point() -> Result<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").context("read the mount table")?;
    table
        .lines()
        .find_map(|line| {
            // proc_pid_mountinfo(5): the mount point is the fifth field; the type is the first one after " - ".
            let (mount, fs) = line.split_once(" - ")?;
            (fs.split(' ').next() == Some("cgroup2")).then(|| mount.split(' ').nth(4).map(PathBuf::from))?
        })
        .ok_or_else(|| anyhow!("cgroup v2 is not mounted: mount -t cgroup2 none /sys/fs/cgroup"))
}

/// A cgroup of a test's own.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
    procs: Arc<OwnedFd>,
    owned: bool,
}

impl Cgroup {
    /// Makes a cgroup with a unique name right below the mount point, never the root itself.
    pub fn new(role: &str) -> Result<Self> {
        Self::make(mount_point()?.join(unique_name(role)), true)
    }

    /// Makes a cgroup below this one; it goes with its parent.
    pub fn child(&self, name: &str) -> Result<Self> {
        Self::make(self.path.join(name), false)
    }

    fn make(path: PathBuf, owned: bool) -> Result<Self> {
        fs::create_dir(&path).with_context(|| format!("create cgroup {}: kernel tests need root", path.display()))?;
        let procs = OpenOptions::new().write(true).open(path.join("cgroup.procs"))?.into();
        Ok(Self { path, procs: Arc::new(procs), owned })
    }

    /// Its absolute path, as `egress run --cgroup` takes it.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its id: the inode of the directory, as `bpf_get_current_cgroup_id` gives it.
    pub fn id(&self) -> Result<u64> {
        use std::os::unix::fs::MetadataExt as _;
        Ok(fs::metadata(&self.path)?.ino())
    }

    /// Moves a running process in. Its sockets stay in the cgroup where they were made.
    pub fn add(&self, pid: u32) -> Result<()> {
        fs::write(self.path.join("cgroup.procs"), pid.to_string()).with_context(|| format!("move process {pid}"))
    }

    pub(crate) fn procs(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.procs)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if self.owned {
            kill_and_remove(&self.path);
        }
    }
}

fn kill_and_remove(path: &Path) {
    let _ = fs::write(path.join("cgroup.kill"), "1");
    let until = Instant::now() + Duration::from_secs(3);
    // A killed process leaves its cgroup when it is torn down, a moment after the kill.
    while !remove_tree(path) && path.exists() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn remove_tree(path: &Path) -> bool {
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path());
        }
    }
    fs::remove_dir(path).is_ok()
}

pub(crate) fn sweep_dead() {
    let Ok(entries) = mount_point().and_then(|root| Ok(fs::read_dir(root)?)) else {
        return;
    };
    for entry in entries.flatten() {
        if is_leftover(&entry.file_name().to_string_lossy()) {
            kill_and_remove(&entry.path());
        }
    }
}
