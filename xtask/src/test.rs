//! `cargo xtask test`

use std::fs;

use anyhow::{Context as _, Result, bail};

use crate::place::Place;
use crate::setup::{self, is_root};
use crate::{build, run};

#[derive(clap::Args)]
pub struct Options {
    /// Given to `cargo nextest run` as they are: a test's name, `-E EXPRESSION`, `--no-capture`. With any, the
    /// documentation's examples are left out.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub args: Vec<String>,
}

/// Whether every test passed.
pub fn run(place: &Place, options: &Options) -> Result<bool> {
    if !is_root() {
        bail!("the kernel tests load programs and make network namespaces: run `cargo xtask test` as root");
    }
    setup::run(place, &setup::Options::default())?;
    // The tests drive the binary that lies beside them.
    build::egress(place, false)?;

    let mut passed = true;
    let examples = if options.args.is_empty() {
        passed &= run::status(run::cargo(place).args(["test", "--quiet", "--doc", "--workspace"]))?;
        "the documentation's examples ran above"
    } else {
        "the documentation's examples were left out, as arguments were given"
    };

    // A test that finds the kernel too old for what it tests adds a line here, `test: reason`, and ends.
    let skips = place.target.join("nextest/skipped");
    fs::create_dir_all(place.target.join("nextest")).context("make target/nextest")?;
    fs::write(&skips, "").with_context(|| format!("write {}", skips.display()))?;
    let mut nextest = run::cargo(place);
    nextest.args(["nextest", "run", "--workspace"]).args(&options.args).env("EGRESS_SKIPS", &skips);
    passed &= run::status(&mut nextest)?;

    let skipped = fs::read_to_string(&skips).unwrap_or_default();
    println!("{examples}; tests that this machine cannot run: {}", skipped.lines().count());
    for line in skipped.lines() {
        println!("  skipped {line}");
    }
    Ok(passed)
}
