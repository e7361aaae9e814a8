//! What Egress costs, measured side by side in one run: ratios, since no absolute time means much on another machine.

mod daemon;
mod flood;
mod lines;
mod network;
mod picture;
mod processor;
pub mod programs;
pub mod raw;
pub mod statistics;
mod verdict;
mod wire;

use std::path::PathBuf;

use anyhow::{Context as _, Result};

/// Measures what Egress costs; without a command, all of it.
#[derive(clap::Parser)]
#[command(name = "bench")]
pub struct Options {
    #[command(subcommand)]
    what: Option<What>,
    /// The short run, without a command of the verdicts alone, which fails where a ratio falls behind its bound by more than the spread.
    #[arg(long, global = true)]
    quick: bool,
    /// Where tables, JSON and plots go.
    #[arg(long, global = true, default_value = "target/bench", overrides_with = "out")]
    out: PathBuf,
}

#[derive(clap::Subcommand)]
enum What {
    /// A packet's verdict by BPF_PROG_TEST_RUN, over an empty program's, and what the programs cost to load.
    Verdict(verdict::Options),
    /// Packets, connections and DNS lookups through namespaces, beside what would be used instead.
    Network(network::Options),
    /// The daemon's own cost: starts, reloads, memory, what names that are kept fresh take, and what a reload does to packets.
    Daemon(daemon::Options),
    /// Allowed datagrams beside a flood of forbidden ones, and whether each of these is counted and told.
    Flood(flood::Options),
}

/// Runs what was asked for, as root. Whether every bound held.
pub fn run(options: &Options) -> Result<bool> {
    std::fs::create_dir_all(&options.out).with_context(|| format!("make {}", options.out.display()))?;
    match &options.what {
        Some(What::Verdict(verdict)) => verdict::run(verdict, options),
        Some(What::Network(network)) => network::run(network, options),
        Some(What::Daemon(daemon)) => daemon::run(daemon, &options.out).map(|()| true),
        Some(What::Flood(flood)) => flood::run(flood, &options.out),
        // The network's ratios depend on what else runs on a machine with few processors: CI does not ask for them.
        None if options.quick => verdict::run(&verdict::Options::default(), options),
        None => {
            let verdict = verdict::run(&verdict::Options::default(), options)?;
            let network = network::run(&network::Options::default(), options)?;
            let flood = flood::run(&flood::Options::default(), &options.out)?;
            daemon::run(&daemon::Options::default(), &options.out)?;
            Ok(network && verdict && flood)
        }
    }
}
