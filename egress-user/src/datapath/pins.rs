//! What is pinned, and where: `<bpffs>/egress/v<ABI version>/{maps,links}`.
//!
//! The version is part of the path, so that maps of another version are never taken for this one's.

use std::{
    collections::BTreeMap,
    fs, io,
    os::{
        fd::{AsFd as _, BorrowedFd, OwnedFd},
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

use super::{Error, sys, workload::WORKLOAD_PIN};

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

/// What was pinned before a start.
#[derive(Debug)]
pub struct Before {
    links: BTreeMap<String, Option<Pinned>>,
    /// The programs of the links, by their ids.
    programs: BTreeMap<u32, OwnedFd>,
    /// Maps, or another version's pins.
    rest: bool,
}

/// What a pinned link was.
#[derive(Clone, Copy, Debug)]
struct Pinned {
    id: u32,
    program: u32,
}

impl Before {
    /// Nothing was.
    pub fn is_nothing(&self) -> bool {
        self.links.is_empty() && !self.rest
    }
}

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

    /// What is pinned now, for [`Pins::go_back`].
    ///
    /// # Errors
    /// That it could not be looked at, as where descriptors are short: nothing was changed yet.
    pub fn before(&self) -> Result<Before, Error> {
        let rest = self.versions()?.next().is_some() || MAPS.iter().any(|name| self.map(name).exists());
        let mut before = Before { links: BTreeMap::new(), programs: BTreeMap::new(), rest };
        for name in self.link_names()? {
            // A node has hundreds of workloads' links, which a start leaves alone until it has succeeded, as it does those of LSM.
            let changes = !name.starts_with(WORKLOAD_PIN) && !name.starts_with("lsm-");
            let pinned = if changes { self.pinned(&name)? } else { None };
            if let Some(Pinned { program, .. }) = pinned
                && !before.programs.contains_key(&program)
            {
                match sys::program_by_id(program) {
                    Ok(fd) => drop(before.programs.insert(program, fd)),
                    Err(error) if sys::is_want(&error) && error.raw_os_error() != Some(libc::EPERM) => {
                        return Err(Error::path("take note of the program of", self.link(&name), error));
                    }
                    // Without CAP_SYS_ADMIN, or no link at all: it cannot be given its program again.
                    Err(error) => tracing::debug!(name, %error, "the program of a pinned link cannot be kept"),
                }
            }
            before.links.insert(name, pinned);
        }
        Ok(before)
    }

    /// What a pinned link is; `None` of what is no link.
    fn pinned(&self, name: &str) -> Result<Option<Pinned>, Error> {
        match sys::open_pin(&self.link(name)).and_then(|link| sys::link_info(link.as_fd())) {
            Ok(info) => Ok(Some(Pinned { id: info.id, program: info.program })),
            Err(error) if sys::is_want(&error) => Err(Error::path("open the pin", self.link(name), error)),
            Err(_) => Ok(None),
        }
    }

    /// Gives the links the programs again that they had before, detaches those that were not there, and removes the maps that do not
    /// count yet; where nothing was, all.
    ///
    /// # Errors
    /// The first thing that could not be put back; the rest is tried all the same.
    pub fn go_back(&self, before: &Before) -> Result<(), Error> {
        let links = self.link_names()?;
        let back = links.iter().map(|name| self.link_back(name, before)).fold(Ok(()), Result::and);
        let forgotten = if before.is_nothing() { self.forget_maps() } else { Ok(()) };
        back.and(forgotten).and(self.forget_fresh())
    }

    fn link_back(&self, name: &str, before: &Before) -> Result<(), Error> {
        let Some(was) = before.links.get(name) else { return self.detach(name) };
        let (Some(was), Some(is)) = (was, self.pinned(name)?) else { return Ok(()) };
        if is.id != was.id {
            // Where it was, only one was pinned whose target is gone.
            return self.detach(name);
        }
        let program = before.programs.get(&was.program).filter(|_| is.program != was.program);
        let Some(program) = program else { return Ok(()) };
        let link = sys::open_pin(&self.link(name));
        let updated = link.and_then(|link| sys::link_update(link.as_fd(), program.as_fd()));
        updated.map_err(|error| Error::path("give its program back to", self.link(name), error))
    }

    /// These pins, with maps beside those that count: for new ones, until [`Pins::count_fresh`].
    pub fn fresh(&self) -> Self {
        Self { maps: FRESH, ..self.clone() }
    }

    /// Makes the directory of [`Pins::fresh`], with nothing in it.
    pub fn make_fresh(&self) -> Result<(), Error> {
        self.forget_fresh()?;
        let dir = self.version().join(FRESH);
        fs::create_dir(&dir).map_err(|error| Error::path("make", &dir, error))?;
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o700))
            .map_err(|error| Error::path("restrict", &dir, error))
    }

    /// From here on the fresh maps are the pinned ones, by one call, and those before are forgotten.
    pub fn count_fresh(&self) -> Result<(), Error> {
        let (fresh, counts) = (self.version().join(FRESH), self.version().join(COUNTS));
        sys::exchange(&fresh, &counts).map_err(|error| Error::path("put fresh maps in the place of", counts, error))?;
        self.forget_fresh()
    }

    /// Removes what a start left that was killed: maps that did not count yet, or no more.
    pub fn forget_fresh(&self) -> Result<(), Error> {
        remove_pin(&self.version().join(FRESH))
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

    /// Whether a link is pinned, of any version: enforcement is on, be there a daemon or not. In doubt, no.
    pub fn hold(&self) -> bool {
        let versions = fs::read_dir(&self.root).into_iter().flatten().filter_map(Result::ok);
        versions.flat_map(|version| fs::read_dir(version.path().join("links"))).flatten().any(|link| link.is_ok())
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
