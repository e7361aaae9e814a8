//! `cargo xtask package`: a Debian package, laid out below `target/package` and packed by dpkg-deb.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::place::Place;
use crate::{build, run, setup};

#[derive(clap::Args)]
pub struct Options {
    /// Pack the debug build, uncompressed: quick, for tests.
    #[arg(long)]
    debug: bool,
    /// Pack the binary that is there, and build none.
    #[arg(long)]
    no_build: bool,
    /// The version, instead of the workspace's.
    #[arg(long)]
    version: Option<String>,
    /// Where to put the package, instead of target/package.
    #[arg(long)]
    out: Option<PathBuf>,
}

const SCRIPTS: [&str; 3] = ["postinst", "prerm", "postrm"];
const SHELLS: [(&str, &str); 3] = [
    ("bash", "usr/share/bash-completion/completions/egress"),
    ("zsh", "usr/share/zsh/vendor-completions/_egress"),
    ("fish", "usr/share/fish/vendor_completions.d/egress.fish"),
];

pub fn run(place: &Place, options: &Options) -> Result<()> {
    if !options.no_build {
        setup::run(place, &setup::Options::building())?;
        build::egress(place, !options.debug)?;
    }
    let out = options.out.clone().unwrap_or_else(|| place.target.join("package"));
    let version = options.version.clone().map_or_else(|| version(place), Ok)?;
    let architecture = run::output(Command::new("dpkg").arg("--print-architecture"))
        .context("dpkg says no architecture: build the package on Debian or what descends from it")?;
    let architecture = architecture.trim();
    let root = out.join(format!("egress_{version}_{architecture}"));
    if root.exists() {
        fs::remove_dir_all(&root).with_context(|| format!("remove {}", root.display()))?;
    }
    let binary = place.target.join(if options.debug { "debug/egress" } else { "release/egress" });
    lay_out(place, &root, &binary)?;
    control(place, &root, &version, architecture)?;
    let package = out.join(format!("egress_{version}_{architecture}.deb"));
    let mut pack = Command::new("dpkg-deb");
    pack.args(["--root-owner-group", if options.debug { "-Znone" } else { "-Zxz" }, "--build"]);
    run::check(pack.arg(&root).arg(&package))?;
    fs::remove_dir_all(&root).with_context(|| format!("remove {}", root.display()))?;
    println!("{}", package.display());
    Ok(())
}

/// The workspace's version.
fn version(place: &Place) -> Result<String> {
    let manifest = fs::read_to_string(place.workspace.join("Cargo.toml")).context("read Cargo.toml")?;
    let line = manifest.lines().find_map(|line| line.strip_prefix("version = \""));
    Ok(line.and_then(|rest| rest.split('"').next()).context("Cargo.toml says no version")?.to_owned())
}

fn lay_out(place: &Place, root: &Path, binary: &Path) -> Result<()> {
    if !binary.exists() {
        bail!("{} is not built: leave `--no-build` out", binary.display());
    }
    let source = |path: &str| place.workspace.join(path);
    put(binary, &root.join("usr/bin/egress"), 0o755)?;
    put(&source("deploy/systemd/egress.service"), &root.join("usr/lib/systemd/system/egress.service"), 0o644)?;
    let policies = root.join("etc/egress/policy.d");
    fs::create_dir_all(&policies)?;
    put_all(&source("policies"), &root.join("usr/share/egress/policies"))?;
    let doc = root.join("usr/share/doc/egress");
    put_all(&source("docs"), &doc.join("docs"))?;
    put_all(&source("docs/decisions"), &doc.join("docs/decisions"))?;
    put_all(&source("deploy/prometheus"), &doc.join("examples/prometheus"))?;
    put_all(&source("deploy/grafana"), &doc.join("examples/grafana"))?;
    put(&source("README.md"), &doc.join("README.md"), 0o644)?;
    put(&source("CHANGELOG.md"), &doc.join("changelog"), 0o644)?;
    let licences = ["LICENSE-MIT", "LICENSE-APACHE"].map(|name| fs::read_to_string(source(name)));
    let [mit, apache] = licences;
    let copyright = format!("Egress is licensed under either of these, at your option.\n\n{}\n{}", mit?, apache?);
    write(&doc.join("copyright"), copyright.as_bytes(), 0o644)?;

    let manual = root.join("usr/share/man/man1");
    fs::create_dir_all(&manual)?;
    // Its word on how to read the pages is of another place.
    run::output(Command::new(binary).arg("man").arg("--out").arg(&manual)).context("`egress man` failed")?;
    let mut compressed = vec![doc.join("changelog")];
    for page in fs::read_dir(&manual)? {
        compressed.push(page?.path());
    }
    // Without name and time: the same files give the same package.
    run::check(Command::new("gzip").arg("-9n").args(&compressed))?;
    for (shell, path) in SHELLS {
        let script = run::output(Command::new(binary).args(["completions", shell]));
        write(&root.join(path), script.context("`egress completions` failed")?.as_bytes(), 0o644)?;
    }
    // Whatever mask this was run under.
    for entry in walk(root)? {
        let mode = if entry.is_dir() || entry.ends_with("usr/bin/egress") { 0o755 } else { 0o644 };
        fs::set_permissions(&entry, fs::Permissions::from_mode(mode))?;
    }
    Ok(())
}

fn control(place: &Place, root: &Path, version: &str, architecture: &str) -> Result<()> {
    let from = place.workspace.join("deploy/debian");
    let size =
        walk(root)?.iter().filter_map(|path| path.metadata().ok()).map(|file| file.len().div_ceil(1024)).sum::<u64>();
    let libc = run::output(Command::new("getconf").arg("GNU_LIBC_VERSION")).context("`getconf` says no libc")?;
    let libc = libc.split_whitespace().last().context("`getconf` says no libc")?.to_owned();
    let template = fs::read_to_string(from.join("control")).context("read deploy/debian/control")?;
    let text = template
        .replace("@VERSION@", version)
        .replace("@ARCHITECTURE@", architecture)
        .replace("@LIBC@", &libc)
        .replace("@SIZE@", &size.to_string());
    let to = root.join("DEBIAN");
    write(&to.join("control"), text.as_bytes(), 0o644)?;
    for script in SCRIPTS {
        put(&from.join(script), &to.join(script), 0o755)?;
    }
    fs::set_permissions(&to, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

/// The files of one folder.
fn put_all(from: &Path, to: &Path) -> Result<()> {
    for entry in fs::read_dir(from).with_context(|| format!("read {}", from.display()))? {
        let path = entry?.path();
        if let (true, Some(name)) = (path.is_file(), path.file_name()) {
            put(&path, &to.join(name), 0o644)?;
        }
    }
    Ok(())
}

fn put(from: &Path, to: &Path, mode: u32) -> Result<()> {
    if let Some(folder) = to.parent() {
        fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    }
    fs::copy(from, to).with_context(|| format!("copy {} to {}", from.display(), to.display()))?;
    Ok(fs::set_permissions(to, fs::Permissions::from_mode(mode))?)
}

fn write(to: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    if let Some(folder) = to.parent() {
        fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    }
    fs::write(to, bytes).with_context(|| format!("write {}", to.display()))?;
    Ok(fs::set_permissions(to, fs::Permissions::from_mode(mode))?)
}

/// Everything below a folder, and it.
fn walk(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut all = vec![folder.to_owned()];
    let mut at = 0;
    while at < all.len() {
        if all[at].is_dir() {
            for entry in fs::read_dir(&all[at])? {
                all.push(entry?.path());
            }
        }
        at += 1;
    }
    Ok(all)
}
