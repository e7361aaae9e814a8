//! What this machine is: its cgroup v2 root, its clock, its namespace, and the connections it has accepted.

use std::{
    collections::HashSet,
    fs, io,
    net::SocketAddr,
    os::{fd::AsRawFd as _, unix::fs::MetadataExt as _},
    path::{Path, PathBuf},
};

use egress_ebpf::abi::{TICK_SHIFT, Ticks};
use procfs::net::{TcpNetEntry, TcpState};

use super::Error;

/// Where cgroup v2 is mounted, from the mount table, in its order: hybrid hosts have it below `/sys/fs/cgroup/unified`, and a
/// container can have its own beside the host's.
fn cgroup_mounts() -> Result<Vec<PathBuf>, Error> {
    let mounts = procfs::process::Process::myself()
        .and_then(|process| process.mountinfo())
        .map_err(|error| Error::path("read", "/proc/self/mountinfo", io::Error::other(error)))?;
    let points = mounts.0.into_iter().filter(|mount| mount.fs_type == "cgroup2" && mount.mount_point.is_dir());
    Ok(points.map(|mount| mount.mount_point).collect())
}

/// Where cgroup v2 is mounted: the machine's whole tree, where that can be seen.
pub fn cgroup_root() -> Result<PathBuf, Error> {
    let mounts = cgroup_mounts()?;
    let whole = mounts.iter().find(|point| is_machine_root(point));
    whole.or(mounts.first()).cloned().ok_or(Error::NoCgroup)
}

/// The mount that a directory of cgroup v2 is in.
pub fn cgroup_root_of(path: &Path) -> Result<PathBuf, Error> {
    let mounts = cgroup_mounts()?;
    let longest =
        mounts.into_iter().filter(|point| path.starts_with(point)).max_by_key(|point| point.as_os_str().len());
    longest.map_or_else(cgroup_root, Ok)
}

/// Whether a directory is the machine's root cgroup, and not that of a cgroup namespace: its inode is 1
/// (`cgroup_setup_root` in kernel/cgroup/cgroup.c).
pub fn is_machine_root(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.ino() == 1)
}

/// Now, in the ticks of the kernel's tables.
pub fn boot_ticks() -> Ticks {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)
        .map_or(0, |now| now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64);
    (now >> TICK_SHIFT) as Ticks
}

/// The cookie of this process's network namespace (SO_NETNS_COOKIE, kernel 5.14), or 0 where the kernel has none.
pub fn netns_cookie() -> u64 {
    const SO_NETNS_COOKIE: i32 = 71;
    let Ok(socket) = std::net::UdpSocket::bind("127.0.0.1:0").or_else(|_| std::net::UdpSocket::bind("[::1]:0")) else {
        return 0;
    };
    let mut cookie = 0_u64;
    let mut len = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the option writes 8 bytes at most into `cookie`, whose size it is told.
    let result = unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, SO_NETNS_COOKIE, (&raw mut cookie).cast(), &raw mut len)
    };
    if result == 0 { cookie } else { 0 }
}

/// The TCP connections that were accepted, in every network namespace that a process has: (near end, far end).
///
/// A connection counts as accepted when someone in its namespace listens on its near port. Connections that were opened
/// outwards are judged by the policy like new ones.
pub fn accepted_connections() -> Vec<(SocketAddr, SocketAddr)> {
    let mut seen = HashSet::new();
    let mut accepted = Vec::new();
    let Ok(processes) = fs::read_dir("/proc") else { return accepted };
    for process in processes.filter_map(Result::ok) {
        let dir = process.path();
        if !process.file_name().to_string_lossy().bytes().all(|byte| byte.is_ascii_digit()) {
            continue;
        }
        let Ok(namespace) = fs::read_link(dir.join("ns/net")) else { continue };
        if seen.insert(namespace) {
            accepted_in(&dir, &mut accepted);
        }
    }
    accepted
}

fn accepted_in(process: &Path, accepted: &mut Vec<(SocketAddr, SocketAddr)>) {
    let entries = connections_of(process);
    let listening = listening(&entries);
    accepted.extend(
        entries
            .iter()
            .filter(|entry| entry.state != TcpState::Listen && entry.state != TcpState::SynSent)
            .filter(|entry| listening.contains(&entry.local_address.port()))
            .map(|entry| (entry.local_address, entry.remote_address)),
    );
}

/// The TCP connections of this process's network namespace that stand, and that nobody listens for on their near port: (near
/// end, far end).
pub fn opened_connections() -> Vec<(SocketAddr, SocketAddr)> {
    let entries = connections_of(Path::new("/proc/self"));
    let listening = listening(&entries);
    entries
        .iter()
        .filter(|entry| matches!(entry.state, TcpState::Established | TcpState::CloseWait))
        .filter(|entry| !listening.contains(&entry.local_address.port()))
        .map(|entry| (entry.local_address, entry.remote_address))
        .collect()
}

fn connections_of(process: &Path) -> Vec<TcpNetEntry> {
    use procfs::FromBufReadSI as _;
    let mut entries: Vec<TcpNetEntry> = Vec::new();
    for (table, sums, sum) in [("net/tcp", "net/sockstat", "TCP:"), ("net/tcp6", "net/sockstat6", "TCP6:")] {
        let read = |path| fs::read_to_string(process.join(path)).unwrap_or_default();
        if has_none(sum, &read(sums), &read("net/sockstat")) {
            continue;
        }
        if let Ok(file) = fs::File::open(process.join(table))
            && let Ok(table) =
                procfs::net::TcpNetEntries::from_buf_read(io::BufReader::new(file), procfs::current_system_info())
        {
            entries.extend(table.0);
        }
    }
    entries
}

/// Whether a network namespace has no TCP socket of a family, and none of either whose connection has ended lately: by its sums, which
/// take microseconds. To read a table of connections the kernel walks over those of all namespaces, which takes milliseconds.
fn has_none(sum: &str, sums: &str, with_ended: &str) -> bool {
    let number = |text: &str, line: &str, field: &str| {
        let fields = text.lines().find_map(|text| text.strip_prefix(line))?;
        let mut fields = fields.split_whitespace().skip_while(|word| *word != field);
        fields.nth(1)?.parse::<u64>().ok()
    };
    number(sums, sum, "inuse") == Some(0) && number(with_ended, "TCP:", "tw") == Some(0)
}

fn listening(entries: &[TcpNetEntry]) -> HashSet<u16> {
    let listening = entries.iter().filter(|entry| entry.state == TcpState::Listen);
    listening.map(|entry| entry.local_address.port()).collect()
}

/// Whether the kernel calls BPF LSM programs; `None` where securityfs is not mounted and so nobody says.
pub fn bpf_lsm() -> Option<bool> {
    let active = fs::read_to_string("/sys/kernel/security/lsm").ok()?;
    Some(active.split(',').any(|name| name.trim() == "bpf"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_read_unless_its_sums_say_that_nothing_is_in_it() {
        let four = |inuse, ended| {
            format!("sockets: used 20\nTCP: inuse {inuse} orphan 0 tw {ended} alloc 9 mem 0\nUDP: inuse 0\n")
        };
        assert!(has_none("TCP:", &four(0, 0), &four(0, 0)));
        assert!(!has_none("TCP:", &four(1, 0), &four(1, 0)));
        assert!(!has_none("TCP:", &four(0, 1), &four(0, 1)), "one that has ended");
        assert!(has_none("TCP6:", "TCP6: inuse 0\n", &four(3, 0)));
        assert!(!has_none("TCP6:", "TCP6: inuse 2\n", &four(0, 0)));
        assert!(!has_none("TCP6:", "", &four(0, 0)), "a kernel that does not say");
    }

    #[test]
    fn a_connection_that_was_accepted_is_found() {
        for near in ["127.0.0.1:0", "[::1]:0"] {
            let listener = std::net::TcpListener::bind(near).unwrap();
            let near = listener.local_addr().unwrap();
            let far = std::net::TcpStream::connect(near).unwrap().local_addr().unwrap();
            let _accepted = listener.accept().unwrap();
            assert!(accepted_connections().contains(&(near, far)), "{near}");
        }
    }
}
