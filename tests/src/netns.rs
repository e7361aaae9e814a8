//! Network namespaces that remove themselves.
//!
//! A namespace is named `eg-<pid>-<counter>-<role>` below `/run/netns`, so `ip -n` and `nsenter` reach it while a test
//! is stopped in a debugger, tests run in parallel, and what a killed run left behind is known by its dead pid.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Once};

use anyhow::{Context as _, Result, bail};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

const NETNS_DIR: &str = "/run/netns";
pub(crate) const PREFIX: &str = "eg-";

static COUNTER: AtomicU32 = AtomicU32::new(0);
static SWEEP: Once = Once::new();

/// A name that no other live test uses: `eg-<pid>-<counter>-<role>`.
pub fn unique_name(role: &str) -> String {
    SWEEP.call_once(|| {
        sweep_dead();
        crate::cgroup::sweep_dead();
    });
    format!("{PREFIX}{}-{}-{role}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed))
}

/// Whether `name` is one of ours and the process that made it is gone.
pub(crate) fn is_leftover(name: &str) -> bool {
    let pid = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next()).and_then(|pid| pid.parse::<i32>().ok());
    pid.is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists())
}

fn sweep_dead() {
    let leftovers = |dir: &Path| -> Vec<PathBuf> {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        entries.filter(|e| is_leftover(&e.file_name().to_string_lossy())).map(|e| e.path()).collect()
    };
    for namespace in leftovers(Path::new(NETNS_DIR)) {
        remove(&namespace);
    }
    for files in leftovers(&std::env::temp_dir()) {
        let _ = fs::remove_dir_all(files);
    }
}

fn remove(path: &Path) {
    // The kernel tears the namespace down when its last process, socket and mount are gone.
    let _ = umount2(path, MntFlags::MNT_DETACH);
    let _ = fs::remove_file(path);
}

/// A network namespace; its name and mount go when this is dropped, on panic too.
#[derive(Debug)]
pub struct NetNs {
    name: String,
    path: PathBuf,
    fd: Arc<OwnedFd>,
}

impl NetNs {
    /// Makes an empty namespace with `lo` up, IPv6 duplicate address detection off (addresses are usable at once) and
    /// reverse path filters off. Needs root.
    pub fn new(role: &str) -> Result<Self> {
        let name = unique_name(role);
        fs::create_dir_all(NETNS_DIR).with_context(|| format!("create {NETNS_DIR}: kernel tests need root"))?;
        let path = Path::new(NETNS_DIR).join(&name);
        File::create_new(&path).with_context(|| format!("create {}: kernel tests need root", path.display()))?;
        let made = on_thread(|| -> Result<OwnedFd> {
            unshare(CloneFlags::CLONE_NEWNET).context("unshare a network namespace: kernel tests need root")?;
            let own = "/proc/thread-self/ns/net";
            mount(Some(own), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
                .with_context(|| format!("bind the namespace to {}", path.display()))?;
            for (key, value) in [
                ("ipv6/conf/all/accept_dad", "0"),
                ("ipv6/conf/default/accept_dad", "0"),
                ("ipv6/conf/all/dad_transmits", "0"),
                ("ipv6/conf/default/dad_transmits", "0"),
                ("ipv4/conf/all/rp_filter", "0"),
                ("ipv4/conf/default/rp_filter", "0"),
                ("ipv4/ping_group_range", "0 2147483647"),
            ] {
                write_sysctl(key, value)?;
            }
            Ok(File::open(own)?.into())
        });
        let fd = made.inspect_err(|_| remove(&path))?;
        let ns = Self { name, path, fd: Arc::new(fd) };
        ns.ip("link set lo up")?;
        Ok(ns)
    }

    /// The name that `ip -n` takes.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The bind mount that keeps the namespace, below `/run/netns`.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn fd(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.fd)
    }

    /// Runs `f` on a thread of its own inside the namespace. Sockets made there stay in the namespace wherever they are
    /// used later. A panic in `f` goes on here.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        let fd = &self.fd;
        on_thread(|| {
            setns(fd.as_ref(), CloneFlags::CLONE_NEWNET).expect("enter a network namespace (needs root)");
            f()
        })
    }

    /// Runs lines of `ip` commands (without the word `ip`) inside the namespace, in one process.
    pub fn ip(&self, lines: &str) -> Result<()> {
        let mut child = Command::new("ip")
            .args(["-n", &self.name, "-batch", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("start `ip` (Debian package iproute2)")?;
        child.stdin.take().expect("stdin is piped").write_all(format!("{lines}\n").as_bytes())?;
        let out = child.wait_with_output()?;
        if !out.status.success() {
            bail!("ip -n {}: {}\nin:\n{lines}", self.name, String::from_utf8_lossy(&out.stderr).trim());
        }
        Ok(())
    }

    /// Sets `/proc/sys/net/<key>` inside the namespace; `key` is with slashes.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        self.run(|| write_sysctl(key, value))
    }

    /// Makes a veth pair: `name` here, `peer_name` in `peer`, both up, with these addresses (`ADDR/LEN`, either family).
    pub fn veth(&self, name: &str, addrs: &[&str], peer: &NetNs, peer_name: &str, peer_addrs: &[&str]) -> Result<()> {
        let up = |dev: &str, addrs: &[&str]| {
            let mut lines = format!("link set {dev} up\n");
            for addr in addrs {
                let nodad = if addr.contains(':') { " nodad" } else { "" };
                lines += &format!("addr add {addr} dev {dev}{nodad}\n");
            }
            lines
        };
        let pair = format!("link add {name} type veth peer name {peer_name} netns {}\n", peer.name);
        self.ip(&(pair + &up(name, addrs)))?;
        peer.ip(&up(peer_name, peer_addrs))
    }

    /// Interface index of `name` in this namespace.
    pub fn ifindex(&self, name: &str) -> Result<u32> {
        self.run(|| nix::net::if_::if_nametoindex(name))
            .with_context(|| format!("no interface {name} in {}", self.name))
    }

    /// Ethernet address of `name` in this namespace.
    pub fn mac(&self, name: &str) -> Result<[u8; 6]> {
        let out = Command::new("ip").args(["-n", &self.name, "-o", "link", "show", "dev", name]).output()?;
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        let hex = text.split_whitespace().skip_while(|word| *word != "link/ether").nth(1).context("no link/ether")?;
        let bytes: Vec<u8> = hex.split(':').filter_map(|byte| u8::from_str_radix(byte, 16).ok()).collect();
        bytes.try_into().map_err(|_| anyhow::anyhow!("{hex} is not an Ethernet address"))
    }
}

impl Drop for NetNs {
    fn drop(&mut self) {
        remove(&self.path);
    }
}

pub(crate) fn on_thread<T: Send>(f: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| match scope.spawn(f).join() {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

fn write_sysctl(key: &str, value: &str) -> Result<()> {
    // /proc/sys/net shows the namespace of the thread that opens the file.
    let path = format!("/proc/sys/net/{key}");
    fs::write(&path, value).with_context(|| format!("write {value} to {path}"))
}

/// Enters the namespace behind `fd` from a forked child: async-signal-safe.
pub(crate) fn setns_raw(fd: RawFd, kind: CloneFlags) -> std::io::Result<()> {
    // SAFETY: setns takes two integers and touches no memory of ours.
    if unsafe { libc::setns(fd, kind.bits()) } == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

pub(crate) fn raw(fd: Option<&Arc<OwnedFd>>) -> Option<RawFd> {
    fd.map(AsRawFd::as_raw_fd)
}
