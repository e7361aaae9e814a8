//! The benchmarks; see `egress_tests::bench`. Run them by `cargo xtask bench`, as root.

use clap::Parser as _;
use egress_tests::bench::{Options, run};

fn main() -> anyhow::Result<()> {
    run(&Options::parse())
}
