//! The end of what is pinned: of other versions, or of all.

use std::{
    fs, io,
    os::fd::{AsFd as _, BorrowedFd},
    path::Path,
};

use super::{Pins, is_bpffs, links_in};
use crate::datapath::{Error, sys};

impl Pins {
    /// Detaches and removes what other versions of egress pinned: to be called when this one's programs are in force. Gives
    /// the versions.
    pub fn retire_versions(&self) -> Result<Vec<String>, Error> {
        let mut retired = Vec::new();
        for entry in self.versions()? {
            let links = entry.path().join("links");
            for (name, link) in links_in(&links)? {
                if let Err(error) = detach_link(link.as_fd()) {
                    let path = links.join(name);
                    tracing::warn!(path = %path.display(), %error, "cannot detach this link: it goes when nobody holds it");
                }
            }
            let mut failed = Vec::new();
            remove_tree(&entry.path(), &mut Vec::new(), &mut failed);
            all_removed(failed)?;
            retired.push(entry.file_name().to_string_lossy().into_owned());
        }
        Ok(retired)
    }

    /// Detaches every pinned link, of any version, and removes every pin and directory. What was removed is added to `removed`.
    ///
    /// # Errors
    /// All that could not be removed; the rest is tried all the same.
    pub fn detach_all(&self, removed: &mut Vec<String>) -> Result<(), Error> {
        match fs::symlink_metadata(&self.root) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Ok(root) if root.is_dir() && is_bpffs(&self.root) => {}
            // Whatever it is, egress has not made it.
            _ => {
                let source = io::Error::other("it is in no bpffs, so that it is not egress'; see EGRESS_BPFFS");
                return Err(Error::path("detach", &self.root, source));
            }
        }
        self.remove_all(removed)
    }

    fn remove_all(&self, removed: &mut Vec<String>) -> Result<(), Error> {
        let mut failed = Vec::new();
        let versions = fs::read_dir(&self.root).map_err(|error| Error::path("read", &self.root, error))?;
        for version in versions.filter_map(Result::ok) {
            for entry in fs::read_dir(version.path().join("links")).into_iter().flatten().filter_map(Result::ok) {
                // What is not ours to open (a directory) must not keep our links in force.
                let Ok(link) = sys::open_pin(&entry.path()) else { continue };
                match detach_link(link.as_fd()) {
                    Ok(true) => removed.push(format!("link {}", entry.file_name().to_string_lossy())),
                    Ok(false) => {}
                    Err(error) => failed.push(Error::path("detach the link", entry.path(), error)),
                }
            }
        }
        remove_tree(&self.root, removed, &mut failed);
        all_removed(failed)
    }
}

/// Detaches a link, whoever else holds it; `false` for what is no link, as somebody's map.
fn detach_link(link: BorrowedFd<'_>) -> io::Result<bool> {
    match sys::link_detach(link) {
        // It is of a kind that only goes when nobody holds it (LSM).
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(false),
        // One whose cgroup or interface is gone is detached already, which is no error.
        detached => detached.map(|()| true),
    }
}

/// Removes a directory with all that is in it. What was removed of maps, and what could not be, is added to the two.
fn remove_tree(dir: &Path, removed: &mut Vec<String>, failed: &mut Vec<Error>) {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) => return failed.push(Error::path("read", dir, error)),
    };
    let before = failed.len();
    for entry in entries.filter_map(Result::ok) {
        let path = entry.path();
        // Not what a symbolic link points to.
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&path, removed, failed);
        } else if let Err(error) = fs::remove_file(&path) {
            failed.push(Error::path("remove the pin", &path, error));
        } else if dir.ends_with("maps") {
            removed.push(format!("map {}", entry.file_name().to_string_lossy()));
        }
    }
    // With something in it, it is in nobody's way.
    if failed.len() == before
        && let Err(error) = fs::remove_dir(dir)
    {
        failed.push(Error::path("remove", dir, error));
    }
}

fn all_removed(mut failed: Vec<Error>) -> Result<(), Error> {
    match failed.len() {
        0 => Ok(()),
        1 => Err(failed.remove(0)),
        _ => Err(Error::Several(failed)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_goes_but_what_is_elsewhere() {
        let (bpffs, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let pins = Pins::new(bpffs.path());
        for dir in ["v1/links/a-directory", "v1/maps", "of-nobody"] {
            fs::create_dir_all(pins.root.join(dir)).unwrap();
        }
        for file in ["v1/links/no-pin", "v1/maps/LIVE", "of-nobody/file"] {
            fs::write(pins.root.join(file), "").unwrap();
        }
        fs::write(elsewhere.path().join("file"), "").unwrap();
        std::os::unix::fs::symlink(elsewhere.path(), pins.root.join("of-nobody/link")).unwrap();
        let mut removed = Vec::new();
        assert!(pins.hold());
        // It is in no bpffs: not egress' own.
        assert!(pins.detach_all(&mut removed).is_err() && pins.hold());
        pins.remove_all(&mut removed).unwrap();
        assert!(!pins.hold());
        assert_eq!(removed, ["map LIVE"]);
        assert!(!pins.root.exists() && elsewhere.path().join("file").exists());
        pins.detach_all(&mut removed).unwrap();
    }

    #[test]
    fn what_cannot_be_removed_is_told_and_keeps_nothing_else() {
        // Nobody can remove anything there.
        let dir = Path::new("/proc/self/ns");
        let mut failed = Vec::new();
        remove_tree(dir, &mut Vec::new(), &mut failed);
        assert!(failed.len() > 1 && failed.len() == fs::read_dir(dir).unwrap().count(), "{failed:?}");
        let told = all_removed(failed).unwrap_err().to_string();
        assert!(told.contains("/proc/self/ns/net: ") && told.contains("/proc/self/ns/mnt: "), "{told}");
    }
}
