//! Hears of changes to files by inotify, whatever way they come: written in place, renamed over, or by another target of a
//! symbolic link on the way to them, of a folder too.
//!
//! Used raw, since the `notify` crate (8) always asks for opens too: every process that starts opens files in `/etc`,
//! and each would wake the daemon.

use std::{
    collections::VecDeque,
    ffi::OsString,
    io,
    os::fd::OwnedFd,
    path::{Component, Path, PathBuf},
};

pub use nix::sys::inotify::AddWatchFlags;
use nix::{
    errno::Errno,
    sys::inotify::{InitFlags, Inotify},
};
use tokio::net::unix::pipe::Receiver;

/// As many as the kernel follows (`MAXSYMLINKS`, include/linux/namei.h).
const MAX_SYMLINKS: usize = 40;
/// In a folder: names that come and go, by rename or by link.
const FOLDER: AddWatchFlags = AddWatchFlags::IN_CREATE
    .union(AddWatchFlags::IN_MOVED_TO)
    .union(AddWatchFlags::IN_MOVED_FROM)
    .union(AddWatchFlags::IN_DELETE)
    .union(AddWatchFlags::IN_DELETE_SELF)
    .union(AddWatchFlags::IN_MOVE_SELF)
    .union(AddWatchFlags::IN_ONLYDIR);

/// A descriptor that becomes readable when one of `paths`, or what leads to it, changes; of files what `file` says, which must
/// not name `IN_OPEN` or `IN_ACCESS`. Made anew after each change, since another set of folders may lead there by then.
///
/// (A bind-mounted file, as containers have it, tells its own folder and not the one it is mounted in.)
///
/// # Errors
/// `fs.inotify.max_user_instances` or `max_user_watches` may be used up. Must be called within a Tokio runtime.
pub fn watch<P: AsRef<Path>>(paths: impl IntoIterator<Item = P>, file: AddWatchFlags) -> io::Result<Receiver> {
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
    for path in paths {
        for name in names(path.as_ref()) {
            let mut parent = name.parent().unwrap_or(Path::new("/"));
            // A folder that is not there yet: the nearest one above it tells of its coming.
            while let Err(error) = inotify.add_watch(parent, FOLDER) {
                match parent.parent() {
                    Some(above) if is_absent(error) => parent = above,
                    _ => return Err(error.into()),
                }
            }
            match inotify.add_watch(&name, if name.is_dir() { FOLDER } else { file }) {
                Err(error) if !is_absent(error) => return Err(error.into()),
                _ => {}
            }
        }
    }
    // Tokio's readiness for an inotify descriptor: like a pipe's end it is polled and read, and `AsyncFd` would need `unsafe`.
    Receiver::from_owned_fd_unchecked(OwnedFd::from(inotify))
}

/// Drops queued events: that something changed is all that counts.
pub fn drain(inotify: &Receiver) {
    let mut events = [0; 4096];
    while inotify.try_read(&mut events).is_ok_and(|length| length > 0) {}
}

fn is_absent(error: Errno) -> bool {
    matches!(error, Errno::ENOENT | Errno::EACCES | Errno::ENOTDIR | Errno::ELOOP)
}

/// `path`, every symbolic link that is met on the way to it, and where it ends: what may be replaced by another.
fn names(path: &Path) -> Vec<PathBuf> {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let mut names = vec![path.clone()];
    let mut rest: VecDeque<OsString> = components(&path);
    let (mut at, mut links) = (PathBuf::from("/"), 0);
    while let Some(next) = rest.pop_front() {
        if next == ".." {
            at.pop();
            continue;
        }
        at.push(next);
        let Ok(target) = std::fs::read_link(&at) else { continue };
        names.push(at.clone());
        links += 1;
        if links > MAX_SYMLINKS {
            return names;
        }
        if target.is_absolute() {
            at = PathBuf::from("/");
        } else {
            at.pop();
        }
        let mut through = components(&target);
        through.append(&mut rest);
        rest = through;
    }
    names.push(at);
    names.dedup();
    names
}

fn components(path: &Path) -> VecDeque<OsString> {
    let named = |component: &Component<'_>| matches!(component, Component::Normal(_) | Component::ParentDir);
    path.components().filter(named).map(|component| component.as_os_str().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn every_link_on_the_way_counts() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        std::fs::create_dir(root.join("one")).unwrap();
        std::fs::write(root.join("one/p.yaml"), "").unwrap();
        symlink("one", root.join("..data")).unwrap();
        symlink("..data/p.yaml", root.join("p.yaml")).unwrap();
        let found = names(&root.join("p.yaml"));
        assert_eq!(found, ["p.yaml", "..data", "one/p.yaml"].map(|name| root.join(name)));
    }

    #[test]
    fn a_ring_of_links_ends() {
        let dir = tempfile::tempdir().unwrap();
        symlink("b", dir.path().join("a")).unwrap();
        symlink("a", dir.path().join("b")).unwrap();
        assert!(names(&dir.path().join("a")).len() <= MAX_SYMLINKS + 2);
    }
}
