//! Real resolver libraries as clients: small programs, built from `tests/clients/` when a test first needs them.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::fcntl::{Flock, FlockArg};

use crate::daemon::profile_dir;
use crate::place::Place;

/// Whose resolver a program uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Library {
    /// `getaddrinfo` of the system's C library.
    Glibc,
    /// `getaddrinfo` of musl, linked statically, as Alpine's programs behave.
    Musl,
    /// Go's own resolver, without cgo.
    Go,
    /// c-ares, as curl, Node.js and Envoy use it.
    CAres,
}

impl Library {
    pub const ALL: [Self; 4] = [Self::Glibc, Self::Musl, Self::Go, Self::CAres];

    /// The program's name, its source, and the compiler's words before and after `-o OUTPUT`.
    fn recipe(self) -> (&'static str, &'static str, &'static [&'static str], &'static [&'static str]) {
        match self {
            Self::Glibc => ("glibc", "getaddrinfo.c", &["cc", "-O1"], &[]),
            Self::Musl => ("musl", "getaddrinfo.c", &["musl-gcc", "-O1", "-static"], &[]),
            Self::Go => ("go", "lookup.go", &["go", "build"], &[]),
            Self::CAres => ("cares", "cares.c", &["cc", "-O1"], &["-lcares"]),
        }
    }
}

/// What one lookup gave, and how long it took inside the program.
#[derive(Debug, Clone, PartialEq)]
pub struct Lookup {
    pub took: Duration,
    /// Each once, in order.
    pub addresses: Vec<IpAddr>,
    /// The library's words where it failed; else empty.
    pub error: String,
}

/// Looks names up one after the other in one process, by its resolv.conf.
pub fn look_up(library: Library, place: &Place, names: &[&str], limit: Duration) -> Result<Vec<Lookup>> {
    let program = program(library)?;
    let run = place.run(&program.to_string_lossy(), names, limit)?;
    let lookups: Vec<_> = run.stdout.lines().map(parse).collect::<Result<_>>()?;
    if lookups.len() != names.len() {
        bail!("{library:?} looked {} of {} names up: {run:?}", lookups.len(), names.len());
    }
    Ok(lookups)
}

fn parse(line: &str) -> Result<Lookup> {
    let (took, rest) = line.split_once(' ').unwrap_or((line, ""));
    let took = Duration::from_secs_f64(took.parse::<f64>().with_context(|| format!("not a time: {line}"))? / 1e3);
    if let Some(error) = rest.strip_prefix("error: ") {
        return Ok(Lookup { took, addresses: Vec::new(), error: error.to_owned() });
    }
    let mut addresses: Vec<IpAddr> = rest.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
    addresses.sort();
    addresses.dedup();
    Ok(Lookup { took, addresses, error: String::new() })
}

/// The program, built if it is not there, or older than its source.
pub fn program(library: Library) -> Result<PathBuf> {
    let (name, source, before, after) = library.recipe();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients").join(source);
    let dir = profile_dir()?.join("clients");
    fs::create_dir_all(&dir)?;
    let output = dir.join(name);
    // Tests run in processes of their own: one of them builds, the others wait.
    let lock = fs::File::create(dir.join(format!("{name}.lock")))?;
    let _lock = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, error)| error)?;
    let age = |path: &Path| path.metadata().and_then(|data| data.modified()).ok();
    if age(&output).is_some_and(|built| age(&source).is_some_and(|written| written < built)) {
        return Ok(output);
    }
    let next = dir.join(format!("{name}.next"));
    let mut command = Command::new(before[0]);
    command.args(&before[1..]).arg("-o").arg(&next).arg(&source).args(after);
    command.env("CGO_ENABLED", "0").env("GO111MODULE", "off").env("GOCACHE", dir.join("go-cache"));
    command.env("GOTOOLCHAIN", "local").env("HOME", &dir);
    let built = command.output().with_context(|| {
        format!("start `{}`: `cargo xtask setup` installs the compilers of the test's clients", before[0])
    })?;
    if !built.status.success() {
        bail!("{before:?} cannot build {}: {}", source.display(), String::from_utf8_lossy(&built.stderr));
    }
    fs::rename(&next, &output)?;
    Ok(output)
}
