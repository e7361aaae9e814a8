//! `cargo xtask bench`

use anyhow::{Result, bail};

use crate::place::Place;
use crate::setup::{self, is_root};
use crate::{build, run};

#[derive(clap::Args)]
pub struct Options {
    /// Only a short run, which fails where a ratio falls behind its bound: without more, that of CI, which measures
    /// verdicts alone and needs no release build, since only the kernel's time counts.
    #[arg(long)]
    pub quick: bool,
    /// What to measure, and its options as they are: `verdict`, `network`, `daemon`, `flood` (`-- --help` lists them); all without.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub args: Vec<String>,
}

/// Whether every bound held. Everything but CI's run is a release build.
pub fn run(place: &Place, options: &Options) -> Result<bool> {
    if !is_root() {
        bail!("benchmarks load programs and make network namespaces: run `cargo xtask bench` as root");
    }
    setup::run(place, &setup::Options::default())?;
    let release = !(options.quick && options.args.is_empty());
    if release {
        build::egress(place, true)?;
    }
    let mut cargo = run::cargo(place);
    cargo.args(["run", "--quiet"]).args(release.then_some("--release"));
    cargo.args(["--package", "egress-tests", "--bin", "bench", "--"]);
    cargo.args(options.quick.then_some("--quick")).arg("--out").arg(place.target.join("bench")).args(&options.args);
    run::status(&mut cargo)
}
