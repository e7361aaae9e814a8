//! `cargo xtask bench`

use anyhow::{Result, bail};

use crate::place::Place;
use crate::run;
use crate::setup::{self, is_root};

#[derive(clap::Args)]
pub struct Options {
    /// What to measure, and its options as they are: `verdict` (`-- --help` lists them).
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
    pub args: Vec<String>,
}

/// Whether everything could be measured.
pub fn run(place: &Place, options: &Options) -> Result<bool> {
    if !is_root() {
        bail!("benchmarks load programs and make network namespaces: run `cargo xtask bench` as root");
    }
    setup::run(place, &setup::Options::building())?;
    run::status(
        run::cargo(place)
            // The object in it is always an optimised one, and its programs run in the kernel.
            .args(["run", "--quiet", "--package", "egress-tests", "--bin", "bench", "--"])
            .args(&options.args),
    )
}
