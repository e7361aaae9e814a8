//! Follows changes of the system's resolvers by inotify.
//!
//! Used raw, since the `notify` crate (8) always asks for opens too: every process that starts opens files in `/etc`,
//! and each would wake the daemon.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::net::unix::pipe::Receiver;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tracing::{info, warn};

use super::system::{Paths, ReadError, SystemResolvers, read};

/// Editors and network managers write in several steps; what counts is the last.
const DEBOUNCE: Duration = Duration::from_millis(200);
/// As many as the kernel follows (`MAXSYMLINKS`, include/linux/namei.h).
const MAX_SYMLINKS: usize = 40;

#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error("cannot watch {path} for changes (inotify); fs.inotify.max_user_instances may be used up")]
    Inotify { path: PathBuf, source: io::Error },
}

/// Ends the watching when dropped; `resolvers` then stays as it is.
#[derive(Debug)]
pub struct Watcher {
    pub resolvers: watch::Receiver<SystemResolvers>,
    task: AbortHandle,
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Reads the configuration, and again whenever one of its files, or a symbolic link or folder on the way to one,
/// changes. The receiver is marked as changed only when the result differs. A file that cannot be read for a while
/// leaves the last result standing. Must be called within a Tokio runtime.
///
/// # Errors
/// When the first reading fails, or inotify is not to be had.
pub fn watch(paths: Paths) -> Result<Watcher, WatchError> {
    let failed = |source: Errno| WatchError::Inotify { path: paths.resolv_conf.clone(), source: source.into() };
    // Watched before it is read: a change in between is seen.
    let inotify = watched(&paths).map_err(failed)?;
    let inotify =
        readable(inotify).map_err(|source| WatchError::Inotify { path: paths.resolv_conf.clone(), source })?;
    let (sender, resolvers) = watch::channel(read(&paths)?);
    let task = tokio::spawn(follow(paths, inotify, sender)).abort_handle();
    Ok(Watcher { resolvers, task })
}

async fn follow(paths: Paths, mut inotify: Receiver, sender: watch::Sender<SystemResolvers>) {
    loop {
        match inotify.readable().await {
            Ok(()) => drain(&inotify),
            Err(error) => {
                warn!(%error, "changes of the system's resolvers are not seen any more; restart to take them up");
                return;
            }
        }
        tokio::time::sleep(DEBOUNCE).await;
        // A new instance instead of reading the events: which folders there are to watch may have changed as well.
        match watched(&paths).map_err(io::Error::from).and_then(readable) {
            Ok(fresh) => inotify = fresh,
            Err(error) => {
                warn!(%error, "cannot renew the watch on the system's resolvers");
                drain(&inotify);
            }
        }
        match read(&paths) {
            Ok(read) => {
                sender.send_if_modified(|known| {
                    let changed = *known != read;
                    if changed {
                        info!(asked = ?read.asked, upstreams = ?read.upstreams, "the system's resolvers changed");
                        *known = read;
                    }
                    changed
                });
            }
            Err(error) => warn!(error = %error.source, path = %error.path.display(), "kept the resolvers known so far"),
        }
    }
}

/// Tokio's readiness for an inotify descriptor: like a pipe's end it is polled and read, and `AsyncFd` would need `unsafe`.
fn readable(inotify: OwnedFd) -> io::Result<Receiver> {
    Receiver::from_owned_fd_unchecked(inotify)
}

/// Drops queued events: that something changed is all that counts.
fn drain(inotify: &Receiver) {
    let mut events = [0; 4096];
    while inotify.try_read(&mut events).is_ok_and(|length| length > 0) {}
}

/// An instance that watches every file, link and folder that the two paths lead through.
fn watched(paths: &Paths) -> Result<OwnedFd, Errno> {
    // In a folder: names that come and go, by rename or by link. In a file: writes (a bind-mounted file, as containers
    // have it, tells its own folder and not the one it is mounted in).
    let folder = AddWatchFlags::IN_CREATE
        | AddWatchFlags::IN_MOVED_TO
        | AddWatchFlags::IN_MOVED_FROM
        | AddWatchFlags::IN_DELETE
        | AddWatchFlags::IN_DELETE_SELF
        | AddWatchFlags::IN_MOVE_SELF
        | AddWatchFlags::IN_ONLYDIR;
    let file = AddWatchFlags::IN_CLOSE_WRITE | AddWatchFlags::IN_MODIFY;
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
    for path in [&paths.resolv_conf, &paths.resolved] {
        for hop in hops(path) {
            let mut parent = hop.parent().unwrap_or(Path::new("/"));
            // A folder that is not there yet: the nearest one above it tells of its coming.
            while inotify.add_watch(parent, folder).is_err() {
                match parent.parent() {
                    Some(above) => parent = above,
                    None => break,
                }
            }
            match inotify.add_watch(&hop, file) {
                Ok(_) | Err(Errno::ENOENT | Errno::EACCES | Errno::ENOTDIR | Errno::ELOOP) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(inotify.into())
}

/// `path` and what it leads to, link by link.
fn hops(path: &Path) -> Vec<PathBuf> {
    let mut hops = vec![path.to_owned()];
    while hops.len() <= MAX_SYMLINKS {
        let last = &hops[hops.len() - 1];
        let Ok(target) = std::fs::read_link(last) else { break };
        let next = last.parent().unwrap_or(Path::new("/")).join(target);
        hops.push(next);
    }
    hops
}
