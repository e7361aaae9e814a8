//! What is pinned, and where: `<bpffs>/egress/v<ABI version>/{maps,links}`.
//!
//! The version is part of the path, so that maps of another version are never taken for this one's.

use std::{
    fs, io,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::fs::PermissionsExt as _,
    },
    path::{Path, PathBuf},
};

use egress_ebpf::abi;
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    mount::MsFlags,
    sys::statfs,
};

use super::{DENIAL_HOOK, Error, sys};

mod back;
mod remove;

pub use back::Before;

/// The maps that outlive the daemon: all of them but the ring buffer's reader side.
pub const MAPS: &[&str] = &[
    "LIVE",
    "CONFIG",
    "ADDRESSES_4",
    "ADDRESSES_6",
    "RECLAIMS",
    "PREFIXES_4",
    "PREFIXES_6",
    "DENIES_4",
    "DENIES_6",
    "CLASSES",
    "GRANTS",
    "GRANT_HITS",
    "RESOLVERS",
    "FLOWS",
    "PEERS",
    "FRAGMENTS",
    "SOCKETS",
    "COUNTERS",
    "DROP_FOLDS",
    "ANSWER_FOLDS",
    "EVENTS_LOST",
    "EVENTS",
    "NAMES",
    "INNER_WILDCARDS",
    "PENDING",
    "PENDING_RINGS",
    "RING_HEADS",
    "ALIASES",
    "ALIAS_MARKS",
    "LEARN_COUNTERS",
    "WORKLOADS",
    "UPLINKS",
    "VETHS",
    "PATHS",
    "INSIDES",
    "ASKING",
    "STREAMS",
    "PARTS",
    "PARTS_TAKEN",
];

/// A directory of pins in bpffs.
#[derive(Clone, Debug)]
pub struct Pins {
    root: PathBuf,
    /// The directory of maps.
    maps: &'static str,
}

/// The directories of maps: those that count, and those of a start that has not succeeded yet.
const COUNTS: &str = "maps";
const FRESH: &str = "maps-new";

impl Pins {
    /// Where the pins are when nothing else is said: `EGRESS_BPFFS` is the bpffs to use instead of `/sys/fs/bpf`.
    pub fn default_bpffs() -> PathBuf {
        std::env::var_os("EGRESS_BPFFS").map_or_else(|| PathBuf::from("/sys/fs/bpf"), PathBuf::from)
    }

    /// The pins of this version of egress below a bpffs mount.
    pub fn new(bpffs: &Path) -> Self {
        Self { root: bpffs.join("egress"), maps: COUNTS }
    }

    /// The bpffs that they are in.
    pub fn bpffs(&self) -> &Path {
        self.root.parent().unwrap_or(&self.root)
    }

    /// Makes the directories, and mounts bpffs where none is.
    pub fn prepare(&self) -> Result<(), Error> {
        let bpffs = self.bpffs();
        if !is_bpffs(bpffs) {
            nix::mount::mount(Some("bpf"), bpffs, Some("bpf"), MsFlags::empty(), Some("mode=0700"))
                .map_err(|errno| Error::path("mount bpffs at", bpffs, errno.into()))?;
        }
        for dir in [self.root.clone(), self.version(), self.version().join(COUNTS), self.version().join("links")] {
            match fs::create_dir(&dir) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(Error::path("make", dir, error));
                }
                _ => {}
            }
            fs::set_permissions(&dir, fs::Permissions::from_mode(0o700))
                .map_err(|error| Error::path("restrict", &dir, error))?;
        }
        Ok(())
    }

    /// Takes the pins for this process alone; they are free again when the file is closed.
    ///
    /// # Errors
    /// [`Error::Taken`] where another daemon has them.
    pub fn lock(&self) -> Result<Flock<fs::File>, Error> {
        let dir = fs::File::open(&self.root).map_err(|error| Error::path("open", &self.root, error))?;
        Flock::lock(dir, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
            Errno::EWOULDBLOCK => Error::Taken(self.root.clone()),
            errno => Error::path("lock", &self.root, errno.into()),
        })
    }

    fn version(&self) -> PathBuf {
        self.root.join(format!("v{}", abi::VERSION))
    }

    /// Whether what [`Pins::retire_versions`] calls a version is a later one than this.
    pub fn is_newer(version: &str) -> bool {
        version
            .strip_prefix('v')
            .and_then(|number| number.parse::<u32>().ok())
            .is_some_and(|number| number > abi::VERSION)
    }

    /// Where a map is pinned.
    pub fn map(&self, name: &str) -> PathBuf {
        self.version().join(self.maps).join(name)
    }

    /// Where a link is pinned. The name says what it is attached to.
    pub fn link(&self, name: &str) -> PathBuf {
        self.version().join("links").join(name)
    }

    /// The pinned links of this version, by name.
    pub fn links(&self) -> Result<Vec<(String, OwnedFd)>, Error> {
        links_in(&self.version().join("links"))
    }

    /// The names of the pinned links of this version; none is opened.
    pub fn link_names(&self) -> Result<Vec<String>, Error> {
        Ok(entries_of(&self.version().join("links"))?.map(|entry| name_of(&entry)).collect())
    }

    /// Detaches a pinned link of this version and removes its pin.
    pub fn detach(&self, name: &str) -> Result<(), Error> {
        let path = self.link(name);
        if let Ok(link) = sys::open_pin(&path) {
            let _ = sys::link_detach(link.as_fd());
        }
        remove_pin(&path)
    }

    /// The directories of other versions.
    fn versions(&self) -> Result<impl Iterator<Item = fs::DirEntry>, Error> {
        let entries = fs::read_dir(&self.root).map_err(|error| Error::path("read", &self.root, error))?;
        let own = self.version();
        Ok(entries.filter_map(Result::ok).filter(move |entry| entry.path() != own))
    }

    /// Whether maps of this version are pinned, all of them: some alone have lost what belongs together. A directory in a map's
    /// place is none.
    pub fn has_maps(&self) -> bool {
        MAPS.iter().all(|name| self.map(name).is_file())
    }

    /// Forgets the pinned maps, so that the next load makes new ones. The programs that use them keep them.
    pub fn forget_maps(&self) -> Result<(), Error> {
        for name in MAPS {
            remove_pin(&self.map(name))?;
        }
        Ok(())
    }

    /// Whether a link is pinned, of any version, that judges and whose cgroup or interface is still there: enforcement is on, be there a
    /// daemon or not. In doubt, no.
    pub fn hold(&self) -> bool {
        let versions = fs::read_dir(&self.root).into_iter().flatten().filter_map(Result::ok);
        let links = versions.flat_map(|version| fs::read_dir(version.path().join("links"))).flatten();
        links.filter_map(Result::ok).filter(|link| !name_of(link).ends_with(DENIAL_HOOK)).any(|link| {
            let info = sys::open_pin(&link.path()).and_then(|link| sys::link_info(link.as_fd()));
            info.map_or(true, |info| info.target != 0)
        })
    }
}

fn name_of(entry: &fs::DirEntry) -> String {
    entry.file_name().to_string_lossy().into_owned()
}

/// What is in a directory, but for directories, which are not ours; nothing where there is none.
fn entries_of(dir: &Path) -> Result<impl Iterator<Item = fs::DirEntry>, Error> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        entries => Some(entries.map_err(|error| Error::path("read", dir, error))?),
    };
    let is_dir = |entry: &fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_dir());
    Ok(entries.into_iter().flatten().filter_map(Result::ok).filter(move |entry| !is_dir(entry)))
}

fn links_in(dir: &Path) -> Result<Vec<(String, OwnedFd)>, Error> {
    let mut links = Vec::new();
    for entry in entries_of(dir)? {
        match sys::open_pin(&entry.path()) {
            Ok(fd) => links.push((name_of(&entry), fd)),
            // Not ours: a directory, or what somebody else made. It must not keep ours from being in force.
            Err(error) => tracing::warn!(path = %entry.path().display(), %error, "this is no pin, and is left alone"),
        }
    }
    Ok(links)
}

/// A directory in a pin's place goes too.
pub(super) fn remove_pin(path: &Path) -> Result<(), Error> {
    let removed = match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::IsADirectory => fs::remove_dir_all(path),
        removed => removed,
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::path("remove the pin", path, error)),
        _ => Ok(()),
    }
}

fn is_bpffs(path: &Path) -> bool {
    statfs::statfs(path).is_ok_and(|fs| fs.filesystem_type() == statfs::BPF_FS_MAGIC)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_no_map() {
        let bpffs = tempfile::tempdir().unwrap();
        let pins = Pins::new(bpffs.path());
        fs::create_dir_all(pins.version().join("maps")).unwrap();
        for name in MAPS {
            assert!(!pins.has_maps());
            fs::write(pins.map(name), "").unwrap();
        }
        assert!(pins.has_maps());
        fs::remove_file(pins.map("LIVE")).unwrap();
        fs::create_dir(pins.map("LIVE")).unwrap();
        assert!(!pins.has_maps());
    }
}
