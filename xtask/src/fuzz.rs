//! `cargo xtask fuzz`: coverage-guided fuzzing of the parsers, by libFuzzer, with the stable compiler.
//!
//! The compiler's own pass counts coverage; no sanitizer of memory is used, which stable has not: the parsers' bounds are
//! checked by the language, and `debug-assertions` and overflow checks are on.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail};

use crate::place::Place;
use crate::run;

const TARGETS: [&str; 3] = ["dns_query", "dns_answer", "packet"];

/// What libFuzzer needs of the compiler (LLVM's `SanitizerCoverage`): counters of edges, and the values that are compared.
const COVERAGE: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1";

/// The longest input: longer ones add records, not paths.
const MAX_LEN: usize = 2048;

#[derive(clap::Args)]
pub struct Options {
    /// `dns_query`, `dns_answer` or `packet`; all of them, one after the other, when none is named.
    pub target: Option<String>,
    /// For each target.
    #[arg(long, default_value_t = 60)]
    pub seconds: u32,
    /// Then takes what was found up into the corpus that is kept, as few and as short inputs as reach the same.
    #[arg(long)]
    pub keep: bool,
}

/// Whether no target found anything.
pub fn run(place: &Place, options: &Options) -> Result<bool> {
    let wanted: Vec<&str> = match &options.target {
        Some(name) if TARGETS.contains(&name.as_str()) => vec![name],
        Some(name) => bail!("there is no fuzz target `{name}`; there are {}", TARGETS.join(", ")),
        None => TARGETS.to_vec(),
    };
    let folder = place.workspace.join("tests/fuzz");
    let host = host()?;
    let build = place.target.join("fuzz");
    let mut cargo = run::cargo(place);
    cargo
        .args(["build", "--release", "--quiet", "--target", &host])
        .arg("--manifest-path")
        .arg(folder.join("Cargo.toml"));
    // With a target named, the flags are for the target's crates alone, not for build scripts.
    run::check(cargo.arg("--target-dir").arg(&build).env("RUSTFLAGS", COVERAGE))?;
    let mut clean = true;
    for name in wanted {
        let program = build.join(&host).join("release").join(name);
        let kept = folder.join("corpus").join(name);
        let found = build.join("corpus").join(name);
        let crashes = build.join("findings").join(name);
        for dir in [&found, &crashes] {
            fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
        }
        println!("fuzz: {name} for {} s", options.seconds);
        let mut fuzz = std::process::Command::new(&program);
        fuzz.arg(format!("-max_total_time={}", options.seconds)).arg(format!("-max_len={MAX_LEN}"));
        fuzz.args(["-timeout=5", "-print_final_stats=1", "-verbosity=1"]);
        fuzz.arg(format!("-artifact_prefix={}/", crashes.display())).arg(&found).arg(&kept);
        if !run::status(&mut fuzz)? {
            println!("fuzz: {name} FAILED; the input is in {}, give it to {}", crashes.display(), program.display());
            clean = false;
        } else if options.keep {
            keep(&program, &kept, &found)?;
        }
    }
    Ok(clean)
}

/// Replaces the corpus by the fewest inputs that reach all that it and the run reached.
fn keep(program: &Path, kept: &Path, found: &Path) -> Result<()> {
    let next = kept.with_extension("next");
    fs::create_dir_all(&next).with_context(|| format!("make {}", next.display()))?;
    let mut merge = std::process::Command::new(program);
    run::check(merge.args(["-set_cover_merge=1", "-use_counters=0", "-verbosity=0"]).arg(&next).arg(kept).arg(found))?;
    fs::remove_dir_all(kept).with_context(|| format!("remove {}", kept.display()))?;
    fs::rename(&next, kept).with_context(|| format!("rename {}", next.display()))
}

fn host() -> Result<String> {
    let text = run::output(std::process::Command::new("rustc").arg("-vV")).context("run `rustc -vV`")?;
    let host = text.lines().find_map(|line| line.strip_prefix("host: ")).context("`rustc -vV` names no host")?;
    Ok(host.to_owned())
}
