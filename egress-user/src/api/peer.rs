//! Who is at the other end of the socket, as the kernel says.

use std::{io, os::fd::AsRawFd};

use tokio::net::UnixStream;

/// What a peer may do (P9).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Root: read and change.
    Root,
    /// A member of the socket's group: read.
    Reader,
}

/// The process that connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its effective user id when it connected, in the daemon's user namespace.
    pub uid: u32,
    /// Its process id, where it is in a PID namespace below the daemon's.
    pub pid: Option<i32>,
    /// What it may do.
    pub role: Role,
}

impl Peer {
    /// Checks SO_PEERCRED: root, or a member of `group`. `Ok(None)` is for everyone else.
    pub(super) fn of(stream: &UnixStream, group: Option<u32>) -> io::Result<Option<Self>> {
        let credentials = stream.peer_cred()?;
        let in_group = |group| credentials.gid() == group || peer_groups(stream).is_ok_and(|all| all.contains(&group));
        let role = match (credentials.uid(), group) {
            (0, _) => Role::Root,
            (_, Some(group)) if in_group(group) => Role::Reader,
            _ => return Ok(None),
        };
        Ok(Some(Self { uid: credentials.uid(), pid: credentials.pid(), role }))
    }
}

/// The kernel's NGROUPS_MAX.
const GROUPS_MAX: usize = 65_536;

/// The peer's supplementary groups when it connected (SO_PEERGROUPS, Linux 4.13).
fn peer_groups(stream: &UnixStream) -> io::Result<Vec<u32>> {
    let mut groups = vec![0_u32; GROUPS_MAX];
    let mut bytes = libc::socklen_t::try_from(size_of_val(groups.as_slice())).unwrap_or(libc::socklen_t::MAX);
    // SAFETY: the kernel writes at most `bytes` bytes of gid_t (u32) to the vector's memory, which is as long, and the
    // length that it used to `bytes`; both live through the call.
    let result = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERGROUPS,
            groups.as_mut_ptr().cast(),
            &raw mut bytes,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    groups.truncate(bytes as usize / size_of::<u32>());
    Ok(groups)
}
