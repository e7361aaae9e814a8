//! Cargo's tools, compiled into `target/tools`: nothing of the user's own is touched.

use std::fs;

use anyhow::Result;

use super::{Options, Outcome, begin, step};
use crate::ebpf;
use crate::place::Place;
use crate::run;

const NEXTEST_VERSION: &str = "0.9.143";
const DENY_VERSION: &str = "0.20.2";

/// Says whether anything was installed.
pub fn ensure(place: &Place, options: &Options) -> Result<bool> {
    let mut changed = step("bpf-linker", || linker(place))?;
    if !options.build_only {
        changed |= step("nextest", || subcommand(place, "nextest", "cargo-nextest", NEXTEST_VERSION))?;
    }
    if options.ci {
        changed |= step("cargo-deny", || subcommand(place, "deny", "cargo-deny", DENY_VERSION))?;
    }
    Ok(changed)
}

fn linker(place: &Place) -> Result<Outcome> {
    match ebpf::linker(&place.target) {
        Ok(path) => Ok(Outcome::There(path.display().to_string())),
        Err(_) => install(place, "bpf-linker", ebpf::BPF_LINKER_VERSION, "about a minute"),
    }
}

/// A cargo subcommand: any version that answers will do.
fn subcommand(place: &Place, name: &str, package: &str, version: &str) -> Result<Outcome> {
    if let Some(answer) = version_of(place, name) {
        return Ok(Outcome::There(answer));
    }
    install(place, package, version, "some minutes")
}

fn version_of(place: &Place, name: &str) -> Option<String> {
    let answer = run::output(run::cargo(place).args([name, "--version"]))?;
    answer.lines().next().map(str::to_owned)
}

/// Whether `cargo nextest` answers.
pub fn has_nextest(place: &Place) -> bool {
    version_of(place, "nextest").is_some()
}

fn install(place: &Place, package: &str, version: &str, how_long: &str) -> Result<Outcome> {
    begin(package, &format!("compiling {version}, {how_long}"));
    let log = place.target.join("setup").join(format!("{package}.log"));
    // The log is of this run; the one before is of no more use.
    let _ = fs::remove_file(&log);
    let mut command = run::cargo(place);
    command
        .args(["install", package, "--version", version, "--locked", "--force", "--root"])
        .arg(place.target.join("tools"))
        // A target directory of its own, so that the outer cargo's lock is not waited for.
        .env("CARGO_TARGET_DIR", place.target.join("tools/build"));
    run::logged(&mut command, &log)?;
    // Half a gigabyte that nothing reads again.
    let _ = fs::remove_dir_all(place.target.join("tools/build"));
    Ok(Outcome::Done(format!("{version} in {}", ebpf::tools_bin(&place.target).display())))
}
