//! Cgroup ids to paths.

use std::{
    collections::HashMap,
    fs,
    os::{
        fd::{AsFd as _, BorrowedFd},
        unix::{ffi::OsStrExt, fs::DirEntryExt},
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};

use super::escape;

/// The whole tree is walked at most this often: a flood of ids that are gone costs no more.
const PAUSE: Duration = Duration::from_millis(500);
/// Paths that are kept; beyond it the cache starts anew.
const CAPACITY: usize = 65_536;
/// Directories that one walk visits.
const VISITS: usize = 200_000;

/// Finds the path of a cgroup by its id, which is its directory's inode number. Ids are never used twice and
/// directories of cgroup v2 are not renamed, so that what was found once stays true, also when the cgroup is gone.
///
/// A container that does one thing takes its cgroup along before anybody can look it up: with [`CgroupPaths::watch`] new
/// cgroups are heard of when they are made, while the runtime still prepares the container.
#[derive(Debug)]
pub struct CgroupPaths {
    root: PathBuf,
    known: HashMap<u64, String>,
    walked: Option<Instant>,
    pause: Duration,
    watch: Option<Watch>,
}

/// The directories of the tree, each with an inotify watch for new ones in it.
#[derive(Debug)]
struct Watch {
    inotify: Inotify,
    directories: HashMap<WatchDescriptor, PathBuf>,
}

/// Directories that are watched; the kernel takes about 1 KiB for each.
const WATCHED: usize = 16_384;

impl CgroupPaths {
    /// `root` is where cgroup v2 is mounted.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), known: HashMap::new(), walked: None, pause: PAUSE, watch: None }
    }

    /// With another pause between walks.
    #[must_use]
    pub fn with_pause(mut self, pause: Duration) -> Self {
        self.pause = pause;
        self
    }

    /// Hears of new cgroups from now on. Where inotify has no more room, cgroups are found by walks alone.
    pub fn watch(&mut self) {
        let Ok(inotify) = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK) else { return };
        self.watch = Some(Watch { inotify, directories: HashMap::new() });
        self.walk();
    }

    /// What becomes readable when there is something to [`hear`](Self::hear) of.
    pub fn watched(&self) -> Option<BorrowedFd<'_>> {
        self.watch.as_ref().map(|watch| watch.inotify.as_fd())
    }

    /// Notes the cgroups that were made since the last call; to be called at once when there are some.
    pub fn hear(&mut self) {
        loop {
            let Some(watch) = &mut self.watch else { return };
            let Ok(events) = watch.inotify.read_events() else { return };
            let mut new = Vec::new();
            for event in events {
                if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
                    new.push(self.root.clone());
                } else if event.mask.contains(AddWatchFlags::IN_IGNORED) {
                    watch.directories.remove(&event.wd);
                } else if let (Some(parent), Some(name)) = (watch.directories.get(&event.wd), &event.name)
                    && event.mask.contains(AddWatchFlags::IN_ISDIR)
                {
                    new.push(parent.join(name));
                }
            }
            for directory in new {
                self.walk_from(directory);
            }
        }
    }

    /// The path below the root, `/` for the root itself; absent where no such cgroup is seen.
    pub fn path(&mut self, id: u64) -> Option<String> {
        if id == 0 {
            return None;
        }
        if let Some(path) = self.known.get(&id) {
            return Some(path.clone());
        }
        if self.walked.is_none_or(|at| at.elapsed() >= self.pause) {
            self.walk();
            self.walked = Some(Instant::now());
        }
        self.known.get(&id).cloned()
    }

    /// Looks at `hint` first, a path that is likely to be the cgroup's: one `stat` instead of a walk.
    pub fn path_with_hint(&mut self, id: u64, hint: impl FnOnce() -> Option<Vec<u8>>) -> Option<String> {
        if id != 0 && !self.known.contains_key(&id) {
            let hint = hint().map(|path| self.root.join(relative(&path)));
            if let Some(path) = hint.filter(|path| inode(path) == Some(id)) {
                self.insert(id, &path);
            }
        }
        self.path(id)
    }

    fn walk(&mut self) {
        self.walk_from(self.root.clone());
    }

    fn walk_from(&mut self, top: PathBuf) {
        if let Some(id) = inode(&top) {
            self.insert(id, &top);
        }
        let mut directories = vec![top];
        let mut visits = 0;
        while let Some(directory) = directories.pop() {
            // Watched before it is read: what is made meanwhile is found by the one or the other.
            if let Some(watch) = &mut self.watch
                && watch.directories.len() < WATCHED
                && let Ok(wd) =
                    watch.inotify.add_watch(&directory, AddWatchFlags::IN_CREATE | AddWatchFlags::IN_ONLYDIR)
            {
                watch.directories.insert(wd, directory.clone());
            }
            // A cgroup that was removed meanwhile is no error.
            for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) && visits < VISITS {
                    visits += 1;
                    let path = entry.path();
                    self.insert(entry.ino(), &path);
                    directories.push(path);
                }
            }
        }
    }

    fn insert(&mut self, id: u64, path: &Path) {
        if self.known.len() >= CAPACITY && !self.known.contains_key(&id) {
            self.known.clear();
        }
        let below = path.strip_prefix(&self.root).unwrap_or(path);
        self.known.insert(id, format!("/{}", escape(below.as_os_str().as_bytes())));
    }
}

/// A path without its leading slashes and without steps upwards, which a process below another cgroup namespace has.
fn relative(path: &[u8]) -> PathBuf {
    let path = Path::new(std::ffi::OsStr::from_bytes(path));
    path.components().filter(|part| matches!(part, std::path::Component::Normal(_))).collect()
}

fn inode(path: &Path) -> Option<u64> {
    use std::os::unix::fs::MetadataExt;
    fs::metadata(path).ok().map(|metadata| metadata.ino())
}
