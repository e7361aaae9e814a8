//! The socket itself: made so that nobody but those it is for can ever connect, and taken over only from the dead.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{
            fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt, PermissionsExt, chown},
            net::UnixListener,
        },
    },
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    sys::socket::{self, AddressFamily, Backlog, SockFlag, SockType, UnixAddr},
};

use super::SocketOptions;

/// Why the control socket cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Another daemon is there.
    #[error(
        "another egress daemon answers at {}: stop it first, or give this one a socket of its own with --socket",
        .0.display()
    )]
    InUse(PathBuf),
    /// Something else is there.
    #[error("{} is there and is no socket: remove it, or choose another path with --socket", .0.display())]
    NotASocket(PathBuf),
    /// The path does not fit a socket address.
    #[error("{}: a socket's path has at most 107 bytes: choose a shorter one with --socket", .0.display())]
    TooLong(PathBuf),
    /// A step failed.
    #[error("{step} {}: {source}{}", path.display(), hint(source))]
    Failed {
        /// What was tried.
        step: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
}

fn hint(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::PermissionDenied => " (run as root, or choose another path with --socket)",
        _ => "",
    }
}

/// A listening socket, removed when it is dropped.
#[derive(Debug)]
pub(super) struct Listening {
    path: PathBuf,
    /// Held as long as the daemon lives; the kernel lets go of it when the daemon dies, however that happens.
    _lock: Flock<File>,
}

impl Drop for Listening {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Connections that wait to be accepted.
const BACKLOG: i32 = 64;

/// Opens the socket: mode 0600, or 0660 for a group.
pub(super) fn listen(options: &SocketOptions) -> Result<(UnixListener, Listening), ListenError> {
    let path = &options.path;
    let address = UnixAddr::new(path).map_err(|_| ListenError::TooLong(path.clone()))?;
    make_parent(path)?;
    let lock = lock(path)?;
    remove_stale(path, &address)?;
    let fail = |step| move |source: Errno| ListenError::Failed { step, path: path.clone(), source: source.into() };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket::socket(AddressFamily::Unix, SockType::Stream, flags, None).map_err(fail("cannot open"))?;
    socket::bind(socket.as_raw_fd(), &address).map_err(fail("cannot bind"))?;
    let listening = Listening { path: path.clone(), _lock: lock };
    // Until `listen` is called nobody can connect: the permissions are in place before anyone could.
    let mode = if options.group.is_some() { 0o660 } else { 0o600 };
    let fail_io = |step| move |source| ListenError::Failed { step, path: path.clone(), source };
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(fail_io("cannot set the mode of"))?;
    if options.group.is_some() {
        chown(path, None, options.group).map_err(fail_io("cannot set the group of"))?;
    }
    // 64 is below every limit of the kernel.
    let backlog = Backlog::new(BACKLOG).unwrap_or(Backlog::MAXCONN);
    socket::listen(&socket, backlog).map_err(fail("cannot listen at"))?;
    Ok((UnixListener::from(socket), listening))
}

fn make_parent(path: &Path) -> Result<(), ListenError> {
    let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty() && !parent.exists()) else {
        return Ok(());
    };
    let fail = |source| ListenError::Failed { step: "cannot make the directory", path: parent.into(), source };
    DirBuilder::new().recursive(true).mode(0o755).create(parent).map_err(fail)?;
    // The umask may have taken bits away that the socket's group needs to get there.
    fs::set_permissions(parent, fs::Permissions::from_mode(0o755)).map_err(fail)
}

/// Two daemons that start at once must not both find the socket stale. The lock file is root's alone, else any user
/// could hold it and keep the daemon from starting.
fn lock(path: &Path) -> Result<Flock<File>, ListenError> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let lock_path = PathBuf::from(name);
    let fail = |source| ListenError::Failed { step: "cannot lock", path: lock_path.clone(), source };
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(&lock_path)
        .map_err(fail)?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        Errno::EWOULDBLOCK => ListenError::InUse(path.into()),
        errno => fail(errno.into()),
    })
}

/// Removes the socket that a daemon left which was killed, and waits for nobody. Gives whether there was one.
///
/// # Errors
/// A daemon is there, be it one that hangs; or something else than a socket is.
pub fn remove_left(path: &Path) -> Result<bool, ListenError> {
    if !path.exists() {
        return Ok(false);
    }
    let address = UnixAddr::new(path).map_err(|_| ListenError::TooLong(path.into()))?;
    is_socket(path)?;
    let _lock = lock(path)?;
    remove_stale(path, &address)
}

/// Whether something is there, which must be a socket then.
fn is_socket(path: &Path) -> Result<bool, ListenError> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.file_type().is_socket() => Ok(true),
        Ok(_) => Err(ListenError::NotASocket(path.into())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(source) => Err(ListenError::Failed { step: "cannot take over", path: path.into(), source }),
    }
}

/// Removes the socket of a daemon that is dead: nobody accepts connections there any more. Gives whether there was one.
fn remove_stale(path: &Path, address: &UnixAddr) -> Result<bool, ListenError> {
    let fail = |source| ListenError::Failed { step: "cannot take over", path: path.into(), source };
    if !is_socket(path)? {
        return Ok(false);
    }
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let probe: OwnedFd =
        socket::socket(AddressFamily::Unix, SockType::Stream, flags, None).map_err(|errno| fail(errno.into()))?;
    match socket::connect(probe.as_raw_fd(), address) {
        // EAGAIN: its backlog is full, so it is hung perhaps, but not dead.
        Ok(()) | Err(Errno::EAGAIN) => Err(ListenError::InUse(path.into())),
        Err(Errno::ECONNREFUSED) => fs::remove_file(path).map(|()| true).map_err(fail),
        Err(Errno::ENOENT) => Ok(false),
        Err(errno) => Err(fail(errno.into())),
    }
}
