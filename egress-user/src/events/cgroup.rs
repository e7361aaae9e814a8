//! Cgroup ids to paths.

use std::{
    collections::HashMap,
    fs,
    os::unix::{ffi::OsStrExt, fs::DirEntryExt},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use super::escape;

/// The whole tree is walked at most this often: a flood of ids that are gone costs no more.
const PAUSE: Duration = Duration::from_millis(500);
/// Paths that are kept; beyond it the cache starts anew.
const CAPACITY: usize = 65_536;
/// Directories that one walk visits.
const VISITS: usize = 200_000;

/// Finds the path of a cgroup by its id, which is its directory's inode number. Ids are never used twice and
/// directories of cgroup v2 are not renamed, so that what was found once stays true, also when the cgroup is gone.
#[derive(Debug)]
pub struct CgroupPaths {
    root: PathBuf,
    known: HashMap<u64, String>,
    walked: Option<Instant>,
    pause: Duration,
}

impl CgroupPaths {
    /// `root` is where cgroup v2 is mounted.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), known: HashMap::new(), walked: None, pause: PAUSE }
    }

    /// With another pause between walks.
    #[must_use]
    pub fn with_pause(mut self, pause: Duration) -> Self {
        self.pause = pause;
        self
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
        if let Some(id) = inode(&self.root) {
            self.insert(id, &self.root.clone());
        }
        let mut directories = vec![self.root.clone()];
        let mut visits = 0;
        while let Some(directory) = directories.pop() {
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
