//! The compiler's library source: from rustup, else from Debian's package of exactly the compiler's version.
//!
//! The second way touches nothing of the system: see [`Private`].

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::{Outcome, Private, begin};
use crate::ebpf::{self, Compiler};
use crate::place::Place;
use crate::run;

/// The suite whose `rust-src` follows stable Rust.
const SUITE: &str = "trixie-backports";

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
    let apt = Private::new(&folder, SUITE, log)?;
    let package = apt.download(&format!("rust-src={}*", compiler.release), log)?;
    run::logged(Command::new("dpkg").arg("-x").arg(&package).arg(&folder), log)?;
    fs::remove_file(&package).with_context(|| format!("remove {}", package.display()))?;
    if !unpacked.join("library/core/src/lib.rs").exists() {
        bail!("{} has no library source for {}", package.display(), compiler.release);
    }
    Ok(unpacked)
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
