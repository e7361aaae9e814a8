//! Breaks things on purpose; see `egress_tests::chaos`. Run it by `cargo xtask chaos`, as root.

use std::process::ExitCode;

use clap::Parser as _;
use egress_tests::chaos::{Options, details, run, table};

fn main() -> anyhow::Result<ExitCode> {
    let rows = run(&Options::parse())?;
    println!("{}", table(&rows));
    let failed: Vec<_> = rows.iter().filter(|row| !row.holds()).collect();
    for row in &failed {
        eprintln!("{}", details(row));
    }
    Ok(if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
