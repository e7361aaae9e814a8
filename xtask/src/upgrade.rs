//! `cargo xtask upgrade`: earlier builds of the programs give way to this one's and back, under traffic.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::place::Place;
use crate::setup::{self, is_root};
use crate::{build, run};

/// What the eBPF programs are made of, and where the number of their ABI stands.
const PROGRAMS: &str = "egress-ebpf/src";
const ABI: &str = "egress-ebpf/src/abi/mod.rs";

#[derive(clap::Args)]
pub struct Options {
    /// An earlier revision to build, oldest first; may be repeated. Without one: the last with another ABI, the last before it
    /// with other programs of that same ABI, and the last with other programs than this one's.
    #[arg(long)]
    from: Vec<String>,
}

/// Whether no packet got out, and nothing broke, on the way up and down.
pub fn run(place: &Place, options: &Options) -> Result<bool> {
    if !is_root() {
        bail!("an upgrade loads programs and makes network namespaces: run `cargo xtask upgrade` as root");
    }
    setup::run(place, &setup::Options::default())?;
    let revisions = if options.from.is_empty() { earlier(place)? } else { options.from.clone() };
    let mut binaries = Vec::new();
    for revision in &revisions {
        binaries.push(build(place, revision)?);
    }
    build::egress(place, false)?;
    let builds = std::env::join_paths(&binaries).context("a path with a colon in it")?;
    let mut test = run::cargo(place);
    test.args(["test", "--package", "egress-tests", "--test", "upgrade_builds", "--", "--ignored", "--nocapture"]);
    run::status(test.env("EGRESS_BUILDS", builds))
}

fn git(place: &Place, args: &[&str]) -> Result<String> {
    let said = run::output(Command::new("git").arg("-C").arg(&place.workspace).args(args));
    let said =
        said.with_context(|| format!("`git {}` says nothing: is this a clone with its history?", args.join(" ")))?;
    Ok(said.trim().to_owned())
}

/// The revisions to come from, oldest first.
fn earlier(place: &Place) -> Result<Vec<String>> {
    let before = |path: &str, from: &str, extra: &[&str]| -> Result<Option<String>> {
        let change = git(place, &[&["log", "-1", "--format=%H"], extra, &[from, "--", path]].concat())?;
        Ok((!change.is_empty()).then(|| format!("{change}^")))
    };
    let mut revisions = Vec::new();
    let other_abi = before(ABI, "HEAD", &["-G", "pub const VERSION: u32"])?;
    if let Some(abi) = &other_abi {
        revisions.extend(before(PROGRAMS, abi, &[])?);
        revisions.push(abi.clone());
    }
    revisions.extend(before(PROGRAMS, "HEAD", &[])?);
    let mut hashes = Vec::new();
    for revision in revisions {
        let hash = git(place, &["rev-parse", &revision])?;
        if !hashes.contains(&hash) {
            hashes.push(hash);
        }
    }
    if hashes.is_empty() {
        bail!("no earlier revision is known here; name one, `--from REV`, in a clone with its history");
    }
    Ok(hashes)
}

/// The `egress` of a revision, built once.
fn build(place: &Place, revision: &str) -> Result<PathBuf> {
    let hash = git(place, &["rev-parse", "--short=12", &format!("{revision}^{{commit}}")])?;
    let folder = place.target.join("upgrade");
    let binary = folder.join(format!("egress-{hash}"));
    if binary.exists() {
        return Ok(binary);
    }
    println!("building {hash}: {}", git(place, &["log", "-1", "--format=%s", &hash])?);
    let source = folder.join(&hash);
    fs::create_dir_all(&source).with_context(|| format!("make {}", source.display()))?;
    let mut archive = Command::new("git")
        .arg("-C")
        .arg(&place.workspace)
        .args(["archive", &hash])
        .stdout(Stdio::piped())
        .spawn()
        .context("run git")?;
    let stream = archive.stdout.take().context("git's standard output")?;
    // With the time of now (-m): cargo would take a commit's files for older than what it built of another commit's.
    run::check(Command::new("tar").args(["-x", "-m", "-C"]).arg(&source).stdin(stream))?;
    if !archive.wait()?.success() {
        bail!("`git archive {hash}` failed");
    }
    // A target directory of its own: cargo tells crates of two checkouts apart by their paths within them alone, and would take
    // the one's for the other's. The tools are those of this one.
    let target = folder.join("target");
    fs::create_dir_all(&target).with_context(|| format!("make {}", target.display()))?;
    for tools in ["tools", "rust-src", "sysroot"] {
        let _ = std::os::unix::fs::symlink(place.target.join(tools), target.join(tools));
    }
    let mut cargo = run::cargo(place);
    cargo.current_dir(&source).env("CARGO_TARGET_DIR", &target);
    run::check(cargo.args(["build", "--quiet", "--package", "egress-user", "--bin", "egress"]))?;
    fs::copy(target.join("debug/egress"), &binary).with_context(|| format!("make {}", binary.display()))?;
    fs::remove_dir_all(&source).with_context(|| format!("remove {}", source.display()))?;
    Ok(binary)
}
