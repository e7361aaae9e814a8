//! The demo; see `egress_tests::demo`. Run it by `cargo xtask demo`, as root.

use std::process::ExitCode;

use clap::Parser as _;
use egress_tests::demo::{Options, run};

fn main() -> anyhow::Result<ExitCode> {
    Ok(if run(Options::parse())? { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
