//! `cargo xtask lint`

use anyhow::Result;

use crate::place::Place;
use crate::{ebpf, run, setup};

pub fn run(place: &Place) -> Result<()> {
    setup::run(place, &setup::Options::building())?;
    println!("clippy: the workspace, for this machine");
    let everything = ["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"];
    run::check(run::cargo(place).args(everything))?;
    println!("clippy: the programs, for the BPF target");
    let mut programs = ebpf::cargo("clippy", &place.workspace, &place.target, std::env::consts::ARCH)?;
    run::check(programs.args(["--", "-D", "warnings"]))
}
