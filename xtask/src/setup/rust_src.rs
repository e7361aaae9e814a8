//! The compiler's library source: from rustup, else from Debian's package of exactly the compiler's version.
//!
//! The second way touches nothing of the system: apt works on a private state below the target directory, and the
//! package is unpacked there, not installed.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::{Outcome, begin};
use crate::ebpf::{self, Compiler};
use crate::place::Place;
use crate::run;

/// The suite whose `rust-src` follows stable Rust.
const SUITE: &str = "trixie-backports";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

pub fn ensure(place: &Place, compiler: &Compiler) -> Result<Outcome> {
    if compiler.has_rust_src() {
        return Ok(Outcome::There(format!("in {}", compiler.sysroot.display())));
    }
    if ebpf::has_shadow(&place.target, compiler) {
        return Ok(Outcome::There(format!("in {}", ebpf::shadow_sysroot(&place.target).display())));
    }
    let log = place.target.join("setup/rust-src.log");
    let _ = fs::remove_file(&log);
    begin("rust-src", "asking rustup");
    // A time limit: without a way out, rustup tries for minutes.
    let mut rustup = Command::new("timeout");
    let by_rustup = run::logged(rustup.args(["120", "rustup", "component", "add", "rust-src"]), &log);
    if by_rustup.is_ok() && compiler.has_rust_src() {
        return Ok(Outcome::Done("by rustup".to_owned()));
    }
    begin("rust-src", "rustup cannot; taking the distribution's package");
    let source = from_debian(place, compiler, &log).with_context(|| {
        format!(
            "neither rustup nor {SUITE} gave rust-src {}; run `rustup component add rust-src` where the network allows",
            compiler.release
        )
    })?;
    shadow(&place.target, compiler, &source)?;
    Ok(Outcome::Done(format!("Debian's rust-src {} ({SUITE}); rustup could not", compiler.release)))
}

/// Downloads and unpacks the package; the folder that holds `library/`.
fn from_debian(place: &Place, compiler: &Compiler, log: &Path) -> Result<PathBuf> {
    let folder = place.target.join("rust-src");
    let unpacked = folder.join(format!("usr/src/rustc-{}", compiler.release));
    if unpacked.join("library/core/src/lib.rs").exists() {
        return Ok(unpacked);
    }
    let (lists, archives, parts) = (folder.join("lists"), folder.join("archives"), folder.join("sources.d"));
    for path in [lists.join("partial"), archives.join("partial"), parts.clone()] {
        fs::create_dir_all(&path).with_context(|| format!("make {}", path.display()))?;
    }
    let sources = folder.join("sources.list");
    let line = format!("deb [signed-by={KEYRING}] {} {SUITE} main\n", mirror(log)?);
    fs::write(&sources, line).with_context(|| format!("write {}", sources.display()))?;

    let option = |key: &str, path: &Path| format!("{key}={}", path.display());
    let apt = || {
        let mut command = Command::new("apt-get");
        command.current_dir(&folder).arg("--quiet");
        for option in [
            option("Dir::Etc::sourcelist", &sources),
            option("Dir::Etc::sourceparts", &parts),
            option("Dir::State::lists", &lists),
            option("Dir::Cache::archives", &archives),
            "Dir::Cache::pkgcache=".to_owned(),
            "Dir::Cache::srcpkgcache=".to_owned(),
            // Downloads as this user, not as apt's own, who may not write here.
            "APT::Sandbox::User=root".to_owned(),
        ] {
            command.args(["-o", &option]);
        }
        command
    };
    run::logged(apt().arg("update"), log)?;
    run::logged(apt().args(["download", &format!("rust-src={}*", compiler.release)]), log)?;
    let package = fs::read_dir(&folder)?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .context("apt-get download left no package")?;
    run::logged(Command::new("dpkg").arg("-x").arg(&package).arg(&folder), log)?;
    fs::remove_file(&package).with_context(|| format!("remove {}", package.display()))?;
    if !unpacked.join("library/core/src/lib.rs").exists() {
        bail!("{} has no library source for {}", package.display(), compiler.release);
    }
    Ok(unpacked)
}

/// The address of the mirror that this machine uses for its own packages.
fn mirror(log: &Path) -> Result<String> {
    let release = fs::read_to_string("/etc/os-release").context("read /etc/os-release")?;
    let codename =
        release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME=")).map(|name| name.trim_matches('"'));
    let codename = codename.context("/etc/os-release names no VERSION_CODENAME; this way needs Debian")?;
    let find = || -> Option<String> {
        let format = "$(CREATED_BY) $(REPO_URI) $(CODENAME)";
        let targets = run::output(Command::new("apt-get").args(["indextargets", "--format", format]))?;
        targets.lines().find_map(|line| match line.split(' ').collect::<Vec<_>>()[..] {
            ["Packages", uri, name] if name == codename => Some(uri.to_owned()),
            _ => None,
        })
    };
    if let Some(uri) = find() {
        return Ok(uri);
    }
    // Before the first update apt knows of no index.
    run::logged(Command::new("apt-get").args(["--quiet", "update"]), log)?;
    find().with_context(|| format!("apt has no package index for {codename}"))
}

/// A sysroot that is the real one plus the source.
fn shadow(target: &Path, compiler: &Compiler, source: &Path) -> Result<()> {
    let root = ebpf::shadow_sysroot(target);
    if root.exists() {
        // Links and one script; what they point to stays.
        fs::remove_dir_all(&root).with_context(|| format!("remove {}", root.display()))?;
    }
    let rustlib = root.join("lib/rustlib");
    fs::create_dir_all(rustlib.join("src")).with_context(|| format!("make {}", rustlib.display()))?;
    fs::create_dir_all(root.join("bin"))?;
    let real = compiler.sysroot.join("lib");
    for entry in fs::read_dir(&real).with_context(|| format!("read {}", real.display()))? {
        let entry = entry?;
        if entry.file_name() != "rustlib" {
            symlink(entry.path(), root.join("lib").join(entry.file_name()))?;
        }
    }
    symlink(real.join("rustlib").join(&compiler.host), rustlib.join(&compiler.host))?;
    symlink(source, rustlib.join("src/rust"))?;
    let wrapper = root.join("bin/rustc");
    let quote = |path: &Path| format!("'{}'", path.display().to_string().replace('\'', r"'\''"));
    let script = format!("#!/bin/sh\nexec {} \"$@\" --sysroot {}\n", quote(&compiler.rustc), quote(&root));
    fs::write(&wrapper, script).with_context(|| format!("write {}", wrapper.display()))?;
    fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755))?;
    let identity = ebpf::shadow_identity(target);
    fs::write(&identity, &compiler.identity).with_context(|| format!("write {}", identity.display()))
}
