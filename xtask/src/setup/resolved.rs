//! systemd-resolved, unpacked below the target directory: installed, its package takes over the machine's resolv.conf and
//! starts a service.

use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::Outcome;
use crate::place::Place;
use crate::run;

const PACKAGE: &str = "systemd-resolved";

pub fn ensure(place: &Place) -> Result<Outcome> {
    let folder = place.target.join(PACKAGE);
    let binary = folder.join("lib/systemd/systemd-resolved");
    // Before Debian 12 it is a part of systemd.
    if binary.exists()
        || ["/lib", "/usr/lib"]
            .iter()
            .any(|lib| fs::exists(format!("{lib}/systemd/{PACKAGE}")).is_ok_and(|there| there))
    {
        return Ok(Outcome::There("systemd-resolved".to_owned()));
    }
    fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    let log = place.target.join("setup/resolved.log");
    let download = || {
        let mut apt = Command::new("apt-get");
        // As this user, not as apt's own, who may not write here.
        apt.current_dir(&folder).args(["--quiet", "-o", "APT::Sandbox::User=root", "download", PACKAGE]);
        run::logged(&mut apt, &log)
    };
    if download().is_err() {
        run::logged(Command::new("apt-get").args(["--quiet", "update"]), &log)?;
        download()?;
    }
    let files = fs::read_dir(&folder)?.filter_map(|entry| entry.ok().map(|entry| entry.path()));
    let package = files.into_iter().find(|path| path.extension().is_some_and(|extension| extension == "deb"));
    let package = package.context("apt-get download left no package")?;
    run::logged(Command::new("dpkg").arg("-x").arg(&package).arg(&folder), &log)?;
    fs::remove_file(&package)?;
    let merged = folder.join("usr/lib/systemd/systemd-resolved");
    if !binary.exists() && merged.exists() {
        // Where the distribution has no /lib of its own any more.
        fs::create_dir_all(folder.join("lib/systemd"))?;
        std::os::unix::fs::symlink(merged, &binary)?;
    }
    if !binary.exists() {
        bail!("{} holds no {PACKAGE}", package.display());
    }
    Ok(Outcome::Done(format!("{PACKAGE}, unpacked in {}", folder.display())))
}
