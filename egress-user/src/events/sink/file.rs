//! A file of JSON lines. Rotation is left to the system's tools: a file that was renamed or removed is made anew.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use super::Write;
use crate::events::Event;

/// A file that is appended to.
#[derive(Debug)]
pub(super) struct File {
    path: PathBuf,
    file: fs::File,
}

impl File {
    /// Opens the file, and makes it (mode 0640: events tell what runs on the node) where it is missing.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        // The daemon may be asked for a relative path and change its directory never: still, one name for one file.
        let path = std::path::absolute(path)?;
        Ok(Self { file: append(&path)?, path })
    }

    /// Whether the path still leads to the open file.
    fn is_current(&self) -> bool {
        let same = |one: &fs::Metadata, other: &fs::Metadata| (one.dev(), one.ino()) == (other.dev(), other.ino());
        matches!((fs::metadata(&self.path), self.file.metadata()), (Ok(one), Ok(other)) if same(&one, &other))
    }
}

fn append(path: &Path) -> io::Result<fs::File> {
    // Opening one waits for its reader, who could so hold the daemon's start up.
    if fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_fifo()) {
        let why = "it is a named pipe; name a file, or let what reads the pipe run `egress events --follow --json`";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    }
    OpenOptions::new().append(true).create(true).mode(0o640).open(path)
}

impl Write for File {
    fn write(&mut self, events: &[Arc<Event>]) -> io::Result<u64> {
        if !self.is_current() {
            self.file = append(&self.path)?;
        }
        let mut text = Vec::new();
        for event in events {
            serde_json::to_writer(&mut text, &**event)?;
            text.push(b'\n');
        }
        let before = self.file.metadata()?;
        self.file.write_all(&text).inspect_err(|_| {
            // Half a line would spoil the next one. What is no plain file cannot be shortened, and need not be.
            if before.is_file() {
                let _ = self.file.set_len(before.len());
            }
        })?;
        Ok(0)
    }
}
