//! End to end: the same load at Egress and at what people would use instead, in the same namespaces, run by run in turn.

mod load;
mod lookup;
pub mod peer;
mod plot;
mod report;
mod sockets;

use std::collections::BTreeMap;

use anyhow::Result;
use serde::Serialize;

use std::time::Instant;

use load::Metric;
use lookup::{Spent, Way};
use peer::{Kind, Peer};
use sockets::Sockets;

use super::picture;
use super::statistics::Spread;

#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// How often each load runs at each peer.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// How many destinations are allowed besides those of the load, one set of peers after another.
    #[arg(long, value_delimiter = ',', default_values_t = [100, 100_000])]
    destinations: Vec<u32>,
    /// Only the DNS lookups, printed and not written.
    #[arg(long)]
    lookups: bool,
    /// Only what a connection's cost is made of, printed and not written.
    #[arg(long)]
    connections: bool,
    /// Only sends as sockets grow, printed and not written.
    #[arg(long)]
    sockets: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { rounds: 5, destinations: vec![100, 100_000], lookups: false, connections: false, sockets: false }
    }
}

/// All that was measured.
#[derive(Debug, Serialize)]
struct Measured {
    kernel: String,
    processors: usize,
    seconds: f64,
    figures: Vec<Figure>,
    /// What a lookup takes of a processor in what stands in its path.
    spent: Vec<Spent>,
    sockets: Vec<Sockets>,
}

/// Measures, prints, and writes `network.md`, `network.json` and the plots. Whether every bound held, which only the quick run asks.
pub fn run(options: &Options, bench: &super::Options) -> Result<bool> {
    let start = Instant::now();
    let quick = Options { rounds: 3, destinations: vec![100], lookups: false, connections: false, sockets: false };
    let options = if bench.quick { &quick } else { options };
    if options.lookups {
        let (figures, spent) = lookups(options.rounds)?;
        println!("{}\n{}", report::alone(&figures), report::spent(&spent));
        return Ok(true);
    }
    if options.connections {
        let figures = peers(&Kind::PARTS, 100, options.rounds, load::measure_connections)?;
        println!("{}", report::alone(&figures));
        return Ok(true);
    }
    if options.sockets {
        println!("{}", sockets::table(&sockets::measure(options.rounds)?));
        return Ok(true);
    }
    let mut figures = Vec::new();
    for &destinations in &options.destinations {
        eprintln!("bench: peers with {destinations} destinations, {} rounds", options.rounds);
        figures.extend(peers(&Kind::ALL, destinations, options.rounds, load::measure)?);
    }
    eprintln!("bench: DNS lookups, {} rounds", options.rounds);
    let (of_lookups, spent) = lookups(options.rounds)?;
    figures.extend(of_lookups);
    let sockets = if bench.quick { Vec::new() } else { sockets::measure(options.rounds)? };
    let measured = Measured {
        kernel: nix::sys::utsname::uname()?.release().to_string_lossy().into_owned(),
        processors: std::thread::available_parallelism()?.get(),
        seconds: start.elapsed().as_secs_f64(),
        figures,
        spent,
        sockets,
    };
    let text = report::markdown(&measured);
    println!("{text}");
    std::fs::write(bench.out.join("network.md"), text)?;
    std::fs::write(bench.out.join("network.json"), serde_json::to_vec_pretty(&measured)?)?;
    for &destinations in &options.destinations {
        let of_size: Vec<_> =
            measured.figures.iter().filter(|f| f.destinations == destinations && !f.is_lookup()).collect();
        let title = format!("Egress beside others, {destinations} allowed destinations");
        plot::write(&bench.out, &format!("network-{destinations}"), &title, &of_size)?;
    }
    let of_lookups: Vec<_> = measured.figures.iter().filter(|figure| figure.is_lookup()).collect();
    plot::write(&bench.out, "lookups", "DNS lookups through unbound", &of_lookups)?;
    if let Some(sockets) = sockets::plot(&measured.sockets) {
        picture::write(&bench.out, "sockets", &sockets)?;
    }
    let behind = report::behind(&measured.figures);
    if bench.quick && !behind.is_empty() {
        eprintln!("behind the bounds:\n  {}", behind.join("\n  "));
        return Ok(false);
    }
    Ok(true)
}

/// One peer, one metric.
#[derive(Debug, Clone, Serialize)]
struct Figure {
    peer: &'static str,
    /// Allowed destinations besides those of the load.
    destinations: u32,
    metric: Metric,
    value: Spread,
    /// Over what was measured without enforcement in the same round.
    ratio: Spread,
    /// The best round's over the best one's without enforcement: what else goes on on the machine's host only ever adds.
    best: f64,
}

impl Figure {
    fn is_lookup(&self) -> bool {
        matches!(self.metric, Metric::Lookup50 | Metric::Lookup99 | Metric::Lookups)
    }
}

/// Measures every peer `rounds` times, in turn, with `destinations` allowed.
fn peers(
    kinds: &[Kind],
    destinations: u32,
    rounds: u32,
    measure: impl Fn(&Peer) -> Result<Vec<(Metric, f64)>>,
) -> Result<Vec<Figure>> {
    let peers = kinds.iter().map(|kind| Peer::new(*kind, destinations)).collect::<Result<Vec<_>>>()?;
    let names = kinds.iter().map(|kind| kind.name()).collect();
    let mut table = Table { destinations, peers: names, values: BTreeMap::new() };
    for round in 0..rounds as usize {
        // Another one first each time: the machine's mood changes within a round too.
        for turn in 0..peers.len() {
            let which = (round + turn) % peers.len();
            table.add(round, which, measure(&peers[which])?);
        }
    }
    Ok(table.figures())
}

/// Measures DNS lookups, the same way.
fn lookups(rounds: u32) -> Result<(Vec<Figure>, Vec<Spent>)> {
    let ways = lookup::Kind::ALL.into_iter().map(Way::new).collect::<Result<Vec<_>>>()?;
    let names = lookup::Kind::ALL.map(lookup::Kind::name).to_vec();
    let mut table = Table { destinations: 100, peers: names, values: BTreeMap::new() };
    let mut spent = vec![Vec::new(); ways.len()];
    for round in 0..rounds as usize {
        for turn in 0..ways.len() {
            let which = (round + turn) % ways.len();
            let measured = ways[which].measure()?;
            table.add(round, which, measured.figures);
            spent[which].extend(measured.spent);
        }
    }
    let spent = lookup::Kind::ALL.iter().zip(spent).filter(|(_, took)| !took.is_empty());
    Ok((table.figures(), spent.map(|(kind, took)| Spent { peer: kind.name(), each: Spread::of(&took) }).collect()))
}

/// What was measured: by metric and peer, one value a round. The first peer enforces nothing.
struct Table {
    destinations: u32,
    peers: Vec<&'static str>,
    values: BTreeMap<(Metric, usize), BTreeMap<usize, f64>>,
}

impl Table {
    fn add(&mut self, round: usize, peer: usize, measured: Vec<(Metric, f64)>) {
        for (metric, value) in measured {
            self.values.entry((metric, peer)).or_default().insert(round, value);
        }
    }

    fn figures(&self) -> Vec<Figure> {
        let of = |(&(metric, peer), values): (&(Metric, usize), &BTreeMap<usize, f64>)| {
            let without = &self.values[&(metric, 0)];
            let ratios: Vec<f64> = values.iter().map(|(round, value)| value / without[round]).collect();
            let best = best(metric, values) / best(metric, without);
            let values: Vec<f64> = values.values().copied().collect();
            let (value, ratio) = (Spread::of(&values), Spread::of(&ratios));
            Figure { peer: self.peers[peer], destinations: self.destinations, metric, value, ratio, best }
        };
        self.values.iter().map(of).collect()
    }
}

/// The best of a metric's rounds.
fn best(metric: Metric, rounds: &BTreeMap<usize, f64>) -> f64 {
    let better = if metric.more_is_better() { f64::max } else { f64::min };
    rounds.values().copied().reduce(better).unwrap_or(f64::NAN)
}
