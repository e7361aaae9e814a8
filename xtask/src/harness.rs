//! The binaries of the test crate, as commands: `cargo xtask demo`, `cargo xtask chaos`.

use anyhow::Result;

use crate::place::Place;
use crate::{build, run, setup};

#[derive(clap::Args)]
pub struct Options {
    /// Given to it as they are (`-- --help` lists them).
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub args: Vec<String>,
}

/// Sets up, builds and runs the binary `name`. Whether all was as it should be.
pub fn run(place: &Place, name: &str, options: &Options) -> Result<bool> {
    setup::run(place, &setup::Options::default())?;
    build::egress(place, false)?;
    run::status(
        run::cargo(place)
            .args(["run", "--quiet", "--package", "egress-tests", "--bin", name, "--"])
            .args(&options.args),
    )
}
