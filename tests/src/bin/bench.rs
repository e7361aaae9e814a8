//! The benchmarks; see `egress_tests::bench`. Run them by `cargo xtask bench`, as root.

use std::process::ExitCode;

use clap::Parser as _;
use egress_tests::bench::{Options, run};

fn main() -> anyhow::Result<ExitCode> {
    Ok(if run(&Options::parse())? { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
