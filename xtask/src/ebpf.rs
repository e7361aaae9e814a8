//! How the eBPF object is built: which compiler, which linker, which flags.
//!
//! Shared, as a file, by `xtask` and by `egress-user/build.rs`, so that both always build the same object. Standard
//! library only: a build script should not have to compile anything first.
//!
//! The BPF target is tier 3, so its `core` is built from source (`-Z build-std`). That is an unstable option, which the
//! stable compiler takes under `RUSTC_BOOTSTRAP=1`; it needs the compiler's own library source. Where rustup has not
//! installed that, `cargo xtask setup` makes a *shadow sysroot* below the target directory: links to the real one, plus
//! the source.

// Each of the two users needs its own part of this file.
#![allow(dead_code)]

use std::env;
use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The linker's pinned version: the newest that was tried with the compiler's LLVM 22.
pub const BPF_LINKER_VERSION: &str = "0.10.4";
const BPF_TARGET: &str = "bpfel-unknown-none";
const BINARY: &str = "egress-ebpf";

/// Why the object cannot be built. Each text ends with what to do.
#[derive(Debug)]
pub enum Error {
    /// The host is big-endian.
    BigEndian,
    /// The compiler could not be asked.
    Rustc { call: String, source: io::Error },
    /// The compiler answered with an error.
    RustcFailed { call: String, stderr: String },
    /// Neither the sysroot nor the shadow sysroot of this compiler has the library source.
    NoRustSrc { release: String },
    /// `bpf-linker` of the pinned version is neither below the target directory nor on the path; `others` are those of
    /// another version.
    NoLinker { looked_in: PathBuf, others: Vec<PathBuf> },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BigEndian => write!(f, "the eBPF object is built for little-endian hosts only; build on one"),
            Self::Rustc { call, source } => write!(f, "cannot run `{call}`: {source}; install Rust and try again"),
            Self::RustcFailed { call, stderr } => write!(f, "`{call}` failed: {}; repair the toolchain", stderr.trim()),
            Self::NoRustSrc { release } => {
                write!(f, "the library source of rustc {release} (rust-src) is missing; run `cargo xtask setup`")
            }
            Self::NoLinker { looked_in, others } => {
                write!(
                    f,
                    "bpf-linker {BPF_LINKER_VERSION} is missing (looked in {} and on the path",
                    looked_in.display()
                )?;
                for other in others {
                    write!(f, "; {} is another version", other.display())?;
                }
                write!(f, "); run `cargo xtask setup`")
            }
        }
    }
}

impl std::error::Error for Error {}

/// The compiler that cargo would use here, and where it lives.
#[derive(Debug, Clone)]
pub struct Compiler {
    /// The compiler itself, not rustup's proxy.
    pub rustc: PathBuf,
    /// Its sysroot.
    pub sysroot: PathBuf,
    /// `1.95.0`, the version number alone.
    pub release: String,
    /// The host triple.
    pub host: String,
    /// The whole answer to `rustc -vV`: says whether a shadow sysroot was made for this very compiler.
    pub identity: String,
}

impl Compiler {
    /// Asks `rustc` (the environment's `RUSTC`, else the one on the path).
    pub fn detect() -> Result<Self, Error> {
        let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
        let identity = ask(&rustc, &["-vV"])?;
        let sysroot = PathBuf::from(ask(&rustc, &["--print", "sysroot"])?.trim());
        let field = |name: &str| {
            identity.lines().find_map(|line| line.strip_prefix(name)).map(str::trim).unwrap_or_default().to_owned()
        };
        let own = sysroot.join("bin/rustc");
        Ok(Self {
            rustc: if own.exists() { own } else { rustc.into() },
            sysroot,
            release: field("release:"),
            host: field("host:"),
            identity,
        })
    }

    /// Whether rustup (or the distribution) has put the library source where cargo looks for it.
    pub fn has_rust_src(&self) -> bool {
        has_library_source(&self.sysroot)
    }
}

fn ask(program: &OsString, args: &[&str]) -> Result<String, Error> {
    let call = format!("{} {}", program.to_string_lossy(), args.join(" "));
    let output =
        Command::new(program).args(args).output().map_err(|source| Error::Rustc { call: call.clone(), source })?;
    if !output.status.success() {
        return Err(Error::RustcFailed { call, stderr: String::from_utf8_lossy(&output.stderr).into_owned() });
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Whether `sysroot` holds what `-Z build-std` reads.
pub fn has_library_source(sysroot: &Path) -> bool {
    sysroot.join("lib/rustlib/src/rust/library/core/src/lib.rs").exists()
}

/// Where `cargo xtask setup` puts the shadow sysroot.
pub fn shadow_sysroot(target: &Path) -> PathBuf {
    target.join("sysroot")
}

/// The file in the shadow sysroot that holds [`Compiler::identity`]; written last, so that it also says "complete".
pub fn shadow_identity(target: &Path) -> PathBuf {
    shadow_sysroot(target).join("made-for")
}

/// Whether the shadow sysroot is there, whole, and made for this compiler.
pub fn has_shadow(target: &Path, compiler: &Compiler) -> bool {
    has_library_source(&shadow_sysroot(target))
        && fs::read_to_string(shadow_identity(target)).is_ok_and(|identity| identity == compiler.identity)
}

/// Where `cargo xtask setup` puts the tools it installs.
pub fn tools_bin(target: &Path) -> PathBuf {
    target.join("tools/bin")
}

/// `bpf-linker` of the pinned version, ours first, else one on the path. Another version may bring another LLVM than the
/// compiler's and then refuses its bitcode, with an error that does not say so.
pub fn linker(target: &Path) -> Result<PathBuf, Error> {
    let looked_in = tools_bin(target);
    let path = env::var_os("PATH").unwrap_or_default();
    let mut others = Vec::new();
    for directory in std::iter::once(looked_in.clone()).chain(env::split_paths(&path)) {
        let file = directory.join("bpf-linker");
        if is_pinned(&file) {
            return Ok(file);
        }
        if file.is_file() && !others.contains(&file) {
            others.push(file);
        }
    }
    Err(Error::NoLinker { looked_in, others })
}

/// Whether `file` runs and says the pinned version (`bpf-linker 0.10.4`).
fn is_pinned(file: &Path) -> bool {
    let answer = Command::new(file).arg("--version").output();
    answer.is_ok_and(|answer| {
        String::from_utf8_lossy(&answer.stdout).split_whitespace().any(|word| word == BPF_LINKER_VERSION)
    })
}

/// `PATH` with our tools in front.
pub fn path_with_tools(target: &Path) -> OsString {
    path_with(Some(&tools_bin(target)))
}

/// `PATH` with `first` in front.
fn path_with(first: Option<&Path>) -> OsString {
    let path = env::var_os("PATH").unwrap_or_default();
    let joined = env::join_paths(first.map(Path::to_path_buf).into_iter().chain(env::split_paths(&path)));
    // A directory whose name holds a colon cannot stand in PATH: then the tools must be on it already.
    joined.unwrap_or(path)
}

/// The file that [`cargo`] with `build` makes.
pub fn object(target: &Path) -> PathBuf {
    inner_target(target).join(BPF_TARGET).join("release").join(BINARY)
}

/// A target directory of its own: the outer cargo holds the lock of the other while a build script runs.
fn inner_target(target: &Path) -> PathBuf {
    target.join("ebpf")
}

/// `cargo build` or `cargo clippy` of the eBPF binary. `workspace` and `target` are absolute, `arch` is the name that
/// Rust gives the architecture the programs will run on (`x86_64`).
pub fn cargo(subcommand: &str, workspace: &Path, target: &Path, arch: &str) -> Result<Command, Error> {
    if cfg!(target_endian = "big") {
        return Err(Error::BigEndian);
    }
    let compiler = Compiler::detect()?;
    let rustc = if compiler.has_rust_src() {
        compiler.rustc.clone()
    } else if has_shadow(target, &compiler) {
        shadow_sysroot(target).join("bin/rustc")
    } else {
        return Err(Error::NoRustSrc { release: compiler.release });
    };
    let linker = linker(target)?;
    let flags = [
        // Line numbers in the verifier's log, and the types for BTF.
        "-Cdebuginfo=2".to_owned(),
        "-Clink-arg=--btf".to_owned(),
        // The linker's default makes a call of a byte-by-byte `memset` of every zeroed struct: slow for every packet, and
        // thousands of instructions for the verifier. With this zeros are stores.
        "-Clink-arg=--disable-expand-memcpy-in-order".to_owned(),
        "-Cpanic=abort".to_owned(),
        // 32-bit jumps and atomics: every kernel from 5.12 on takes them.
        "-Ctarget-cpu=v3".to_owned(),
        // The registers' layout that aya-ebpf shall use: the target's own architecture is only ever `bpf`.
        format!("--cfg=bpf_target_arch=\"{arch}\""),
    ];
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // What the outer cargo says to its build scripts and wrappers is about the host.
    for (key, _) in env::vars_os() {
        let name = key.to_string_lossy();
        if name.starts_with("CARGO_") && !matches!(&*name, "CARGO_HOME" | "CARGO_NET_OFFLINE" | "CARGO_TERM_COLOR")
            || matches!(
                &*name,
                "RUSTC_WRAPPER" | "RUSTC_WORKSPACE_WRAPPER" | "RUSTFLAGS" | "RUSTDOCFLAGS" | "CLIPPY_ARGS"
            )
            || matches!(&*name, "TARGET" | "HOST" | "OUT_DIR" | "OPT_LEVEL" | "PROFILE" | "DEBUG" | "MAKEFLAGS")
        {
            command.env_remove(key);
        }
    }
    command
        .current_dir(workspace.join("egress-ebpf"))
        .env("PATH", path_with(linker.parent()))
        .env("RUSTC", rustc)
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"))
        .arg(subcommand)
        .arg("--target-dir")
        .arg(inner_target(target))
        .args(["--features", "programs", "--bin", BINARY, "-Z", "build-std=core", "--target", BPF_TARGET, "--release"]);
    Ok(command)
}
