//! A start that may fail: what was pinned before it, how that comes back, and maps that do not count yet.

use std::{
    collections::BTreeMap,
    fs,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::fs::PermissionsExt as _,
    },
};

use super::{COUNTS, FRESH, MAPS, Pins, remove_pin};
use crate::datapath::{Error, sys, workload::WORKLOAD_PIN};

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
}
