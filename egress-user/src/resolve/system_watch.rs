//! Follows changes of the system's resolvers.

use std::io;
use std::time::Duration;

use tokio::net::unix::pipe::Receiver;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tracing::{info, warn};

use super::system::{Paths, SystemResolvers, read};
use crate::inotify::{self, AddWatchFlags, drain};

/// Editors and network managers write in several steps; what counts is the last.
const DEBOUNCE: Duration = Duration::from_millis(200);

/// A pause before inotify is asked again for what it refused; the configuration is read as often meanwhile.
const AGAIN: Duration = Duration::from_secs(60);

/// Ends the watching when dropped; `resolvers` then stays as it is.
#[derive(Debug)]
pub struct Watcher {
    /// Nothing until the configuration could be read.
    pub resolvers: watch::Receiver<Option<SystemResolvers>>,
    task: AbortHandle,
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Reads the configuration, and again whenever one of its files, or a symbolic link or folder on the way to one, changes or comes.
/// The receiver is marked as changed only when the result differs from what was known. A file that is not there, or cannot be
/// read for a while, leaves the last result standing. `note` is told what does not work, and when it works (again).
///
/// Must be called within a Tokio runtime.
pub fn watch(
    paths: Paths,
    known: Option<SystemResolvers>,
    note: impl Fn(Option<String>) + Send + Sync + 'static,
) -> Watcher {
    let (sender, resolvers) = watch::channel(known);
    let task = tokio::spawn(follow(paths, sender, note)).abort_handle();
    Watcher { resolvers, task }
}

async fn follow(
    paths: Paths,
    sender: watch::Sender<Option<SystemResolvers>>,
    note: impl Fn(Option<String>) + Send + Sync + 'static,
) {
    let mut heard: Option<Receiver> = None;
    loop {
        // Before it is read: a change in between is seen. A new instance instead of reading the events: which folders there are to
        // watch may have changed as well.
        let deaf = match watched(&paths) {
            Ok(fresh) => {
                heard = Some(fresh);
                None
            }
            Err(error) => {
                heard.iter().for_each(drain);
                Some(format!(
                    "changes of {} are seen {} s late, or by SIGHUP (inotify: {error}): \
                     fs.inotify.max_user_instances or max_user_watches may be used up",
                    paths.resolv_conf.display(),
                    AGAIN.as_secs(),
                ))
            }
        };
        let unread = look(&paths, &sender);
        let asks_again = deaf.is_some();
        note(deaf.or(unread));
        let changed = async {
            match &heard {
                Some(inotify) => inotify.readable().await.is_ok(),
                None => std::future::pending().await,
            }
        };
        if asks_again {
            let _ = tokio::time::timeout(AGAIN, changed).await;
        } else if !changed.await {
            tokio::time::sleep(AGAIN).await;
        }
        heard.iter().for_each(drain);
        tokio::time::sleep(DEBOUNCE).await;
    }
}

/// Reads the configuration and tells of a change; gives why it could not be read.
fn look(paths: &Paths, sender: &watch::Sender<Option<SystemResolvers>>) -> Option<String> {
    match read(paths) {
        Ok(read) => {
            sender.send_if_modified(|known| {
                let changed = known.as_ref() != Some(&read);
                if changed {
                    info!(asked = ?read.asked, upstreams = ?read.upstreams, "the system's resolvers changed");
                    *known = Some(read);
                }
                changed
            });
            None
        }
        // It may come yet.
        Err(error) if error.source.kind() == io::ErrorKind::NotFound => {
            if sender.borrow().is_some() {
                warn!(path = %error.path.display(), "it is gone: kept the resolvers known so far");
            }
            None
        }
        Err(error) => Some(format!("{error} ({}); the resolvers known so far count", error.source)),
    }
}

fn watched(paths: &Paths) -> io::Result<Receiver> {
    let written = AddWatchFlags::IN_CLOSE_WRITE | AddWatchFlags::IN_MODIFY;
    inotify::watch([&paths.resolv_conf, &paths.resolved], written)
}
