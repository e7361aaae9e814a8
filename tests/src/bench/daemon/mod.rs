//! What the daemon itself costs.

mod names;
mod reload;
mod starts;

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::Serialize;

use names::Fresh;
use reload::Sends;
use starts::{Policy, Starts};

use super::statistics::Spread;

#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Exact names that are kept fresh.
    #[arg(long, default_value_t = 10_000)]
    names: u32,
    /// For how long, in seconds.
    #[arg(long, default_value_t = 120)]
    seconds: u64,
    /// Their TTL, in seconds.
    #[arg(long, default_value_t = 60)]
    ttl: u32,
    /// Addresses, and wildcards, of the big policies.
    #[arg(long, default_value_t = 100_000)]
    big: u32,
    /// Only the names that are kept fresh, printed and not written.
    #[arg(long)]
    fresh: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { names: 10_000, seconds: 120, ttl: 60, big: 100_000, fresh: false }
    }
}

/// All that was measured.
#[derive(Debug, Serialize)]
struct Measured {
    starts: Vec<Starts>,
    fresh: Fresh,
    sends: Vec<Sends>,
}

/// Measures, prints, and writes `daemon.md` and `daemon.json`.
pub fn run(options: &Options, out: &Path) -> Result<()> {
    let fresh = || {
        eprintln!("bench: {} names kept fresh for {} s", options.names, options.seconds);
        names::measure(options.names, options.ttl, Duration::from_secs(options.seconds))
    };
    if options.fresh {
        println!("{}", fresh()?);
        return Ok(());
    }
    let big = [Policy::Addresses(options.big), Policy::Names(options.big)];
    let starts = [Policy::Addresses(100)].into_iter().chain(big).map(|policy| {
        eprintln!("bench: starts with {policy}");
        starts::measure(policy)
    });
    let starts = starts.collect::<Result<_>>()?;
    eprintln!("bench: packets during a reload of {} addresses", options.big);
    let sends = reload::measure(options.big)?;
    let measured = Measured { starts, fresh: fresh()?, sends };
    let text = markdown(&measured);
    println!("{text}");
    let write = |name: &str, bytes: &[u8]| {
        let path = out.join(name);
        std::fs::write(&path, bytes).with_context(|| format!("write {}", path.display()))
    };
    write("daemon.md", text.as_bytes())?;
    write("daemon.json", &serde_json::to_vec_pretty(&measured)?)
}

fn markdown(measured: &Measured) -> String {
    let mut text = String::from(
        "| policy | run, ms | exec, ms | reload, ms | resident, MiB | idle, % of a processor |\n|---|---|---|---|---|---|\n",
    );
    let around = |spread: Spread| format!("{:.0} ± {:.0}", spread.median, spread.spread);
    for of in &measured.starts {
        let (run, exec, reload) = (around(of.run), around(of.exec), around(of.reload));
        let _ = writeln!(text, "| {} | {run} | {exec} | {reload} | {:.1} | {:.2} |", of.policy, of.resident, of.idle);
    }
    let _ = writeln!(text, "\n{}\n", measured.fresh);
    text.push_str("| a send, ns | p50 | p99 | p99.9 | longest | sends |\n|---|---|---|---|---|---|\n");
    for sends in &measured.sends {
        let [half, most, nearly, longest] = [sends.p50, sends.p99, sends.p999, sends.longest];
        let _ = writeln!(text, "| {} | {half} | {most} | {nearly} | {longest} | {} |", sends.beside, sends.count);
    }
    text
}
