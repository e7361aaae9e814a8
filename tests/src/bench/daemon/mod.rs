//! What the daemon itself costs.

mod flip;
mod names;
mod reload;
mod scale;
mod starts;

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::Serialize;

use flip::Flips;
use names::Fresh;
use reload::Sends;
use scale::Scale;
use starts::{Loads, Policy, Starts};

use super::statistics::Spread;

#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Exact names that are kept fresh.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..))]
    names: u32,
    /// For how long, in seconds.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
    /// Their TTL, in seconds.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..))]
    ttl: u32,
    /// Addresses, and wildcards, of the big policies.
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(100..=1_000_000))]
    big: u32,
    /// Only this part, printed and not written.
    #[arg(long)]
    only: Option<Part>,
}

/// A part of it all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// Starts, reloads, memory, idle time.
    Starts,
    /// How one policy follows another.
    Flips,
    /// Names that are kept fresh.
    Fresh,
    /// What a reload does to packets.
    Sends,
    /// A million learned addresses beside as many names as the big policies have.
    Learned,
    /// Ten times as many addresses as the big policies have, names, prefixes and rules in one.
    Whole,
}

impl Default for Options {
    fn default() -> Self {
        Self { names: 10_000, seconds: 60, ttl: 60, big: 100_000, only: None }
    }
}

/// What was measured.
#[derive(Debug, Serialize)]
struct Measured {
    starts: Vec<Starts>,
    loads: Option<Loads>,
    flips: Vec<Flips>,
    fresh: Option<Fresh>,
    sends: Vec<Sends>,
    scale: Vec<Scale>,
}

/// Measures, prints, and, if it was all, writes `daemon.md` and `daemon.json`.
pub fn run(options: &Options, out: &Path) -> Result<()> {
    let asked = |part| options.only.is_none_or(|only| only == part);
    let mut measured = Measured {
        starts: Vec::new(),
        loads: None,
        flips: Vec::new(),
        fresh: None,
        sends: Vec::new(),
        scale: Vec::new(),
    };
    if asked(Part::Starts) {
        for policy in [Policy::Addresses(100), Policy::Addresses(options.big), Policy::Names(options.big)] {
            eprintln!("bench: starts with {policy}");
            measured.starts.push(starts::measure(policy)?);
        }
        measured.loads = Some(starts::loads()?);
    }
    if asked(Part::Sends) {
        eprintln!("bench: packets during a reload of {} addresses", options.big);
        measured.sends = reload::measure(options.big)?;
    }
    if asked(Part::Flips) {
        eprintln!("bench: one policy after another");
        measured.flips = [100, options.big].into_iter().map(flip::measure).collect::<Result<_>>()?;
    }
    if asked(Part::Learned) {
        eprintln!("bench: addresses learned beside {} wildcards", options.big);
        measured.scale.push(scale::learned(options.big)?);
    }
    if asked(Part::Whole) {
        eprintln!("bench: {} addresses and more in one policy", options.big * 10);
        measured.scale.push(scale::whole(options.big * 10)?);
    }
    if asked(Part::Fresh) {
        eprintln!("bench: {} names kept fresh for {} s", options.names, options.seconds);
        measured.fresh = Some(names::measure(options.names, options.ttl, Duration::from_secs(options.seconds))?);
    }
    let text = markdown(&measured);
    println!("{text}");
    if options.only.is_some() {
        return Ok(());
    }
    let write = |name: &str, bytes: &[u8]| {
        let path = out.join(name);
        std::fs::write(&path, bytes).with_context(|| format!("write {}", path.display()))
    };
    write("daemon.md", text.as_bytes())?;
    write("daemon.json", &serde_json::to_vec_pretty(&measured)?)
}

fn markdown(measured: &Measured) -> String {
    let mut text = String::new();
    if !measured.starts.is_empty() {
        text.push_str(
            "| policy | run, ms | exec, ms | reload, ms | resident, MiB | idle, % of a processor |\n|---|---|---|---|---|---|\n",
        );
    }
    for of in &measured.starts {
        let (run, exec, reload) = (around(of.run), around(of.exec), around(of.reload));
        let _ = writeln!(text, "| {} | {run} | {exec} | {reload} | {:.1} | {:.2} |", of.policy, of.resident, of.idle);
    }
    if let Some(Loads { one, all }) = measured.loads {
        let (one, all) = (around(one), around(all));
        let _ = writeln!(
            text,
            "\n| the programs of a start, loaded with nothing else going on | ms |\n|---|---|\n\
             | on one processor | {one} |\n| on all | {all} |"
        );
    }
    if !measured.flips.is_empty() {
        let _ = writeln!(text, "\n{}", flips_table(&measured.flips));
    }
    if let Some(fresh) = &measured.fresh {
        let _ = writeln!(text, "\n{fresh}\n");
    }
    for scale in &measured.scale {
        let _ = writeln!(text, "\n{scale}\n");
    }
    if !measured.sends.is_empty() {
        text.push_str(
            "| a send, ns | p50 | p99 | p99.9 | longest | sends | over twice the median, of a million | of these with the processor kept |\n\
             |---|---|---|---|---|---|---|---|\n",
        );
    }
    for sends in &measured.sends {
        let [half, most, nearly, longest] = [sends.p50, sends.p99, sends.p999, sends.longest];
        let Sends { beside, count, slow, kept, .. } = sends;
        let _ =
            writeln!(text, "| {beside} | {half} | {most} | {nearly} | {longest} | {count} | {slow:.0} | {kept:.0} |");
    }
    text
}

fn flips_table(flips: &[Flips]) -> String {
    let mut text = String::from(
        "| addresses | from `egress apply` to the first packet judged by it, ms | packets judged by either policy for, us | a look takes, us |\n\
         |---|---|---|---|\n",
    );
    for Flips { addresses, applied, mixed, look } in flips {
        let _ = writeln!(text, "| {addresses} | {} | {mixed:.1} | {look:.1} |", around(*applied));
    }
    text
}

fn around(spread: Spread) -> String {
    format!("{:.0} ± {:.0}", spread.median, spread.spread)
}
