//! Follows changes of the system's resolvers.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use tokio::net::unix::pipe::Receiver;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tracing::{info, warn};

use super::system::{Paths, ReadError, SystemResolvers, read};
use crate::inotify::{self, AddWatchFlags, drain};

/// Editors and network managers write in several steps; what counts is the last.
const DEBOUNCE: Duration = Duration::from_millis(200);

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
    // Watched before it is read: a change in between is seen.
    let inotify = watched(&paths).map_err(|source| WatchError::Inotify { path: paths.resolv_conf.clone(), source })?;
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
        match watched(&paths) {
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

fn watched(paths: &Paths) -> io::Result<Receiver> {
    let written = AddWatchFlags::IN_CLOSE_WRITE | AddWatchFlags::IN_MODIFY;
    inotify::watch([&paths.resolv_conf, &paths.resolved], written)
}
