//! A mount namespace for the processes of one node: its own resolv.conf, hosts file, `/run`, interfaces in
//! `/sys/class/net`, and bpffs.
//!
//! The bpffs is a fresh instance, so everything pinned in it goes when the last process and descriptor of the namespace
//! are gone: two tests never see each other's pins, and a killed test leaves none.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

use crate::netns::{NetNs, on_thread};

/// Where the private bpffs is mounted, inside the namespace.
pub const BPFFS: &str = "/sys/fs/bpf";

#[derive(Debug)]
pub struct MountNs {
    fd: Arc<OwnedFd>,
    resolv_conf: PathBuf,
}

impl MountNs {
    /// `dir` holds the files that are mounted over the system's; it must outlive the namespace's processes.
    /// `/sys/class/net` shows the interfaces of `net`; the rest of `/sys` stays, with what is mounted in it.
    pub fn new(dir: &Path, net: &NetNs) -> Result<Self> {
        let resolv_conf = dir.join("resolv.conf");
        let hosts = dir.join("hosts");
        fs::write(&resolv_conf, "")?;
        fs::write(&hosts, "127.0.0.1 localhost\n::1 localhost\n")?;
        let fd = on_thread(|| -> Result<OwnedFd> {
            unshare(CloneFlags::CLONE_NEWNS).context("unshare a mount namespace: kernel tests need root")?;
            mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
            mount(Some("none"), "/run", Some("tmpfs"), MsFlags::empty(), Some("mode=755")).context("tmpfs on /run")?;
            mount(Some("none"), BPFFS, Some("bpf"), MsFlags::empty(), None::<&str>).context("a private bpffs")?;
            bind(&resolv_conf, Path::new("/etc/resolv.conf"))?;
            show_interfaces(dir, net)?;
            bind(&hosts, Path::new("/etc/hosts"))?;
            Ok(File::open("/proc/thread-self/ns/mnt")?.into())
        })?;
        Ok(Self { fd: Arc::new(fd), resolv_conf })
    }

    /// Writes `/etc/resolv.conf` as the namespace sees it, in place.
    pub fn set_resolv_conf(&self, text: &str) -> Result<()> {
        fs::write(&self.resolv_conf, text).context("write resolv.conf")
    }

    pub(crate) fn fd(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.fd)
    }

    /// Runs `f` on a thread inside this mount namespace (its bpffs at [`BPFFS`]). Working directory: `/`.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        on_thread(|| {
            // setns to a mount namespace refuses a thread that shares its root and working directory with others.
            unshare(CloneFlags::CLONE_FS).expect("unshare the thread's working directory");
            setns(self.fd.as_ref(), CloneFlags::CLONE_NEWNS).expect("enter a mount namespace (needs root)");
            f()
        })
    }
}

/// A sysfs shows the network namespace of the thread that mounted it: of a fresh one, only the parts about interfaces
/// are taken over.
fn show_interfaces(dir: &Path, net: &NetNs) -> Result<()> {
    let fresh = dir.join("sysfs");
    fs::create_dir(&fresh)?;
    setns(net.fd().as_ref(), CloneFlags::CLONE_NEWNET).context("enter the node's network namespace")?;
    mount(Some("none"), &fresh, Some("sysfs"), MsFlags::empty(), None::<&str>).context("mount a sysfs")?;
    for part in ["class/net", "devices/virtual/net"] {
        bind(&fresh.join(part), &Path::new("/sys").join(part))?;
    }
    umount2(&fresh, MntFlags::MNT_DETACH).context("unmount the sysfs")
}

/// Binds `from` over `to`, which may be a symbolic link into `/run` (systemd-resolved), just emptied.
fn bind(from: &Path, to: &Path) -> Result<()> {
    if let Ok(link) = fs::read_link(to) {
        let target = to.parent().expect("a file has a parent").join(link);
        if !target.exists() {
            target.parent().map(fs::create_dir_all).transpose()?;
            File::create(&target)?;
        }
    }
    mount(Some(from), to, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .with_context(|| format!("bind {} over {}", from.display(), to.display()))
}
