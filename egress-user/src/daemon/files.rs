//! Follows the policy's files: a change of what they say is put in force as SIGHUP would, or refused whole.

use std::{
    hash::{BuildHasher as _, RandomState},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    net::unix::pipe::Receiver,
    sync::Notify,
    task::{JoinError, spawn_blocking},
    time::timeout,
};

use super::{Changer, Core};
use crate::{
    inotify::{self, AddWatchFlags, drain},
    policy::{NamedTexts, read_texts, render_all},
};

/// Several files of one change come one after the other: what counts is that it has been quiet for so long,
const QUIET: Duration = Duration::from_millis(300);
/// or that it never was for so long.
const PATIENCE: Duration = Duration::from_secs(3);
/// A pause before inotify is asked again for what it refused.
const AGAIN: Duration = Duration::from_secs(60);

/// A file system that takes longer does not answer, as one over the network may not; it is told.
const UNANSWERED: Duration = Duration::from_secs(10);

/// A hash of what was read, or why it could not be: to see that something changed.
type Said = Result<u64, String>;

/// The files, directories and embedded policies of the command line.
pub struct PolicyFiles {
    policies: Vec<PathBuf>,
    hasher: RandomState,
    /// Those that were on disk at the start: watched also while they are not there.
    named: Vec<PathBuf>,
    said: Said,
}

impl PolicyFiles {
    /// `read` is what the policy in force was made of, of the files that were on disk: `named`.
    pub fn new(policies: Vec<PathBuf>, named: Vec<PathBuf>, read: &NamedTexts) -> Self {
        let hasher = RandomState::new();
        let said = Ok(hasher.hash_one(read));
        Self { policies, hasher, named, said }
    }

    /// Follows them until the daemon ends; returns at once where nothing is on disk.
    pub async fn follow(mut self, changer: Arc<Changer>) {
        if self.named.is_empty() {
            return;
        }
        let mut heard: Option<Receiver> = None;
        loop {
            // Watched before it is read: a change in between is heard of.
            // Apart: a file system that does not answer holds up nobody else.
            let watched = match apart("policy-files-followed", changer.core(), move || (self.watch(), self)).await {
                Ok((watched, files)) => {
                    self = files;
                    watched
                }
                // The daemon is ending.
                Err(_) => return,
            };
            heard = match watched {
                Ok(fresh) => {
                    changer.core().set_note("policy-files", None);
                    Some(fresh)
                }
                Err(error) => {
                    let why = format!(
                        "changes of the policy files are not seen (inotify: {error}): send SIGHUP; \
                         fs.inotify.max_user_instances or max_user_watches may be used up"
                    );
                    changer.core().set_note("policy-files", Some(why));
                    heard.inspect(drain)
                }
            };
            let (changed, files) =
                match apart("policy-files-followed", changer.core(), move || (self.look(), self)).await {
                    Ok(looked) => looked,
                    Err(_) => return,
                };
            self = files;
            if changed {
                tracing::info!("the policy files changed");
                let changing = Arc::clone(&changer);
                if apart("policy-files-followed", changer.core(), move || changing.files_changed()).await.is_err() {
                    return;
                }
            }
            match &heard {
                Some(inotify) => quiet(inotify).await,
                None => tokio::time::sleep(AGAIN).await,
            }
        }
    }

    fn watch(&self) -> std::io::Result<Receiver> {
        let mut paths = self.named.clone();
        paths.extend(read_texts(&self.policies).1);
        // Not each write: what somebody has open for writing is half of what it will be.
        inotify::watch(paths, AddWatchFlags::IN_CLOSE_WRITE | AddWatchFlags::IN_ATTRIB)
    }

    /// Whether the files say something else than they did.
    fn look(&mut self) -> bool {
        let said = read_texts(&self.policies).0.map(|texts| self.hasher.hash_one(texts));
        let said = said.map_err(|error| render_all(&error.diagnostics, &error.files, false));
        let changed = said != self.said;
        self.said = said;
        changed
    }
}

/// Reads the policy files whenever it is told to (SIGHUP), until the daemon ends; once more where it is told so meanwhile.
pub async fn reload_when_told(changer: Arc<Changer>, told: Arc<Notify>) {
    loop {
        told.notified().await;
        let reloading = Arc::clone(&changer);
        match apart("policy-files-reloaded", changer.core(), move || reloading.reload()).await {
            Ok(true) => {}
            Ok(false) => tracing::error!("the policy was not changed: the old one stays in force"),
            Err(_) => return,
        }
    }
}

/// Reads files on a thread of its own: a file system that does not answer holds up nobody else, and is told.
async fn apart<T: Send + 'static>(
    subject: &'static str,
    core: &Core,
    read: impl FnOnce() -> T + Send + 'static,
) -> Result<T, JoinError> {
    let mut reading = spawn_blocking(read);
    if let Ok(read) = timeout(UNANSWERED, &mut reading).await {
        return read;
    }
    let seconds = UNANSWERED.as_secs();
    core.set_note(
        subject,
        Some(format!(
            "the policy files have been read for more than {seconds} s: their file system may not answer; \
             what is in force stays"
        )),
    );
    let read = reading.await;
    core.set_note(subject, None);
    read
}

/// Returns some time after the first thing was heard, when nothing more comes.
async fn quiet(inotify: &Receiver) {
    if inotify.readable().await.is_err() {
        return tokio::time::sleep(AGAIN).await;
    }
    let first = Instant::now();
    drain(inotify);
    while first.elapsed() < PATIENCE && timeout(QUIET, inotify.readable()).await.is_ok() {
        drain(inotify);
        tokio::time::sleep(QUIET / 10).await;
    }
}
