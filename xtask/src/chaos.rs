//! `cargo xtask chaos`

use anyhow::Result;

use crate::place::Place;
use crate::{build, run, setup};

#[derive(clap::Args)]
pub struct Options {
    /// Given to the run as they are (`-- --help` lists them).
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub args: Vec<String>,
}

/// Whether every promise held.
pub fn run(place: &Place, options: &Options) -> Result<bool> {
    setup::run(place, &setup::Options::default())?;
    build::egress(place, false)?;
    run::status(
        run::cargo(place)
            .args(["run", "--quiet", "--package", "egress-tests", "--bin", "chaos", "--"])
            .args(&options.args),
    )
}
