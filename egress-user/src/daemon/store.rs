//! What a restart must know of policies that came by `egress apply`: their text, in one file.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::api::Texts;

/// The file's content.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stored {
    /// In force before the files of the command line, as long as these say what they said then.
    #[serde(default)]
    pub applied: Option<Applied>,
    /// What `rollback` goes back to.
    #[serde(default)]
    pub before: Option<Texts>,
    /// `before` came by `apply` too.
    #[serde(default)]
    pub before_applied: bool,
    /// About to be put in force, or on trial, when this was written. Whether it is, the kernel knows.
    #[serde(default)]
    pub trial: Option<Texts>,
}

/// A policy that was applied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    /// It.
    pub texts: Texts,
    /// What the files of the command line said then.
    pub over: Texts,
}

/// Where the file is.
#[derive(Clone, Debug)]
pub struct Store {
    path: PathBuf,
}

impl Store {
    /// In `dir`, which is made when something is written.
    pub fn new(dir: &Path) -> Self {
        Self { path: dir.join("policy.json") }
    }

    /// What was kept; nothing where the file is missing. One that cannot be read is told and passed over: the files of the
    /// command line are there.
    pub fn read(&self) -> Stored {
        let read = fs::read(&self.path).and_then(|text| serde_json::from_slice(&text).map_err(io::Error::other));
        match read {
            Ok(stored) => stored,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Stored::default(),
            Err(error) => {
                tracing::warn!(%error, path = %self.path.display(), "cannot read what was applied; the files count");
                Stored::default()
            }
        }
    }

    /// Replaces what was kept, whole or not at all.
    pub fn write(&self, stored: &Stored) -> io::Result<()> {
        serde_json::to_vec(stored)
            .map_err(io::Error::other)
            .and_then(|bytes| replace(&self.path, true, |file| file.write_all(&bytes)))
            .map_err(|error| io::Error::other(format!("{}: {error}", self.path.display())))
    }
}

/// Makes a directory, for its owner alone, where it is not there yet.
pub fn make_dir(dir: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

/// Replaces a file with what `write` writes, whole or not at all, readable for its owner alone; `durable`: over a loss of power
/// too. What could not be written leaves nothing behind.
pub(super) fn replace(
    path: &Path,
    durable: bool,
    write: impl FnOnce(&mut dyn io::Write) -> io::Result<()>,
) -> io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    make_dir(dir)?;
    let fresh = path.with_extension("new");
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
    let written = write(&mut file).and_then(|()| if durable { file.sync_all() } else { Ok(()) });
    let replaced = written.and_then(|()| fs::rename(&fresh, path));
    if replaced.is_err() {
        let _ = fs::remove_file(&fresh);
    } else if durable {
        // The file's new name is the directory's content.
        fs::File::open(dir)?.sync_all()?;
    }
    replaced
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn what_is_kept_is_its_owners_alone_and_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("egress/state");
        make_dir(&state).unwrap();
        make_dir(&state).unwrap();
        assert_eq!(mode(&state), 0o700);
        let store = Store::new(&state);
        assert_eq!(store.read(), Stored::default());
        let stored = Stored { trial: Some(Texts::default()), before_applied: true, ..Stored::default() };
        store.write(&stored).unwrap();
        assert_eq!(mode(&store.path), 0o600);
        assert_eq!(store.read(), stored);
        assert_eq!(fs::read_dir(&state).unwrap().count(), 1);
    }

    #[test]
    fn what_cannot_be_written_leaves_what_was_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        replace(&path, true, |file| file.write_all(b"first")).unwrap();
        let full = replace(&path, true, |file| {
            file.write_all(b"sec")?;
            Err(io::ErrorKind::StorageFull.into())
        });
        assert_eq!(full.unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!(fs::read(&path).unwrap(), b"first");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
