//! What Egress costs, measured side by side in one run: ratios, since no absolute time means much on another machine.

pub mod programs;
pub mod raw;
mod verdict;
mod wire;

use anyhow::Result;

/// Measures what Egress costs.
#[derive(clap::Parser)]
#[command(name = "bench")]
pub struct Options {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    /// A packet's verdict by BPF_PROG_TEST_RUN, over an empty program's, and what the programs cost to load.
    Verdict(verdict::Options),
}

/// Runs what was asked for, as root.
pub fn run(options: &Options) -> Result<()> {
    match &options.what {
        What::Verdict(options) => verdict::run(options),
    }
}
