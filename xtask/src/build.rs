//! `cargo xtask build`

use anyhow::Result;

use crate::place::Place;
use crate::{run, setup};

#[derive(clap::Args)]
pub struct Options {
    /// Optimised, as for use.
    #[arg(long)]
    pub release: bool,
}

pub fn run(place: &Place, options: &Options) -> Result<()> {
    setup::run(place, &setup::Options::building())?;
    egress(place, options.release)
}

/// The `egress` binary, for which the build script makes the eBPF object.
pub fn egress(place: &Place, release: bool) -> Result<()> {
    let mut cargo = run::cargo(place);
    cargo.args(["build", "--package", "egress-user", "--bin", "egress"]);
    if release {
        cargo.arg("--release");
    }
    run::check(&mut cargo)
}
