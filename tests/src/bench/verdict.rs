//! `bench verdict`: the real programs by BPF_PROG_TEST_RUN, in turns with an empty one.

mod answers;
mod bounds;
mod cold;
mod place;
mod plot;
mod report;

use std::{
    net::{IpAddr, SocketAddr},
    time::Instant,
};

use anyhow::{Result, ensure};
use egress_ebpf::abi::Config;
use egress_user::datapath::sys;

use self::place::Place;
use super::{
    picture, programs, raw,
    statistics::{self, Spread},
    wire::{self, ACK, SYN, TCP, UDP},
};
use crate::NetNs;

#[derive(clap::Args)]
pub struct Options {
    /// Rounds, each with every row once; the medians count.
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Runs of a row in a round.
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(2..))]
    repeat: u32,
    /// Addresses (and a tenth as many prefixes and names, at most 100,000) in the tables, one table after another.
    #[arg(long, value_delimiter = ',', default_values_t = ADDRESSES, value_parser = clap::value_parser!(u32).range(1..))]
    addresses: Vec<u32>,
    /// Rules, each with some of 10,000 addresses, one policy after another.
    #[arg(long, value_delimiter = ',', default_values_t = RULES, value_parser = clap::value_parser!(u32).range(1..))]
    rules: Vec<u32>,
}

const ADDRESSES: [u32; 5] = [100, 1000, 10_000, 100_000, 1_000_000];
const RULES: [u32; 5] = [1, 10, 100, 1000, 10_000];
/// Addresses where rules grow.
const SHARED_OUT: u32 = 10_000;

impl Default for Options {
    fn default() -> Self {
        Self { rounds: 15, repeat: 20_000, addresses: ADDRESSES.to_vec(), rules: RULES.to_vec() }
    }
}

/// One thing that is measured.
struct Row {
    what: &'static str,
    program: &'static str,
    frame: Vec<u8>,
    passes: bool,
    /// What else the policy has: `Config` flags.
    flags: u32,
    /// Whether it goes by loopback, not by the uplink.
    loopback: bool,
}

/// One figure.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Figure {
    /// Addresses in the table.
    pub addresses: u32,
    /// What was measured, and by which program.
    pub what: String,
    pub program: String,
    /// Nanoseconds of one run, the median of the rounds.
    pub nanoseconds: f64,
    /// The same of the empty program.
    pub empty: f64,
    /// The spread: the middle half of the rounds.
    pub spread: f64,
    /// The ratio to the empty program's run right before.
    pub ratio: Spread,
}

/// Every figure of a run.
#[derive(Default, serde::Serialize)]
pub struct Figures {
    pub verdicts: Vec<Figure>,
    pub parts: Vec<cold::Part>,
    pub by_rules: Vec<cold::Part>,
    pub memory: Vec<place::Memory>,
    pub programs: Vec<Program>,
}

/// What a program costs to load.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Program {
    pub program: &'static str,
    #[serde(flatten)]
    pub shape: programs::Shape,
    /// Milliseconds, the verifier's and the loader's.
    pub load: f64,
}

/// Measures, prints, and writes `verdict.json` and, where there are several sizes, the plots `growth` and `rules`. Whether every bound held.
pub fn run(options: &Options, bench: &super::Options) -> Result<bool> {
    let quick = Options { rounds: 9, addresses: vec![100], rules: Vec::new(), ..Options::default() };
    let options = if bench.quick { &quick } else { options };
    let node = NetNs::new("bench")?;
    node.ip("link add out type veth peer name far")?;
    let ifindex = node.ifindex("out")?;
    let mut figures = Figures::default();
    for addresses in &options.addresses {
        node.run(|| measure(options, *addresses, ifindex, &mut figures))?;
    }
    for rules in &options.rules {
        let parts = node.run(|| cold::by_rules(&mut Place::new(SHARED_OUT, *rules, ifindex)?, options))?;
        figures.by_rules.extend(parts);
    }
    figures.programs = node.run(load_all)?;
    report::print(&figures);
    std::fs::write(bench.out.join("verdict.json"), serde_json::to_string_pretty(&figures)?)?;
    if let Some(growth) = plot::growth(&figures.verdicts) {
        picture::write(&bench.out, "growth", &growth)?;
    }
    if let Some(rules) = plot::rules(&figures.by_rules) {
        picture::write(&bench.out, "rules", &rules)?;
    }
    ensure!(bounds::all_known(&figures.verdicts), "a bound in verdict/bounds.rs is of a row that is not measured");
    let mut behind = if bench.quick { bounds::behind(&figures) } else { Vec::new() };
    for _ in 1..bounds::PASSES {
        if behind.is_empty() {
            return Ok(true);
        }
        let mut again = Figures::default();
        node.run(|| measure(options, options.addresses[0], ifindex, &mut again))?;
        let still = bounds::behind(&again);
        behind.retain(|(row, _)| still.iter().any(|(other, _)| other == row));
    }
    behind.iter().for_each(|(_, says)| eprintln!("behind its bound in each of {} runs: {says}", bounds::PASSES));
    Ok(behind.is_empty())
}

fn measure(options: &Options, addresses: u32, ifindex: u32, figures: &mut Figures) -> Result<()> {
    let mut place = Place::new(addresses, 1, ifindex)?;
    let rows = rows();
    let empty = [raw::empty(raw::CGROUP_SKB)?, raw::empty(raw::CLASSIFIER)?];
    let mut taken = vec![[Vec::new(), Vec::new()]; rows.len()];
    for _ in 0..options.rounds {
        for (row, [own, base]) in rows.iter().zip(&mut taken) {
            place.configure(row.flags)?;
            let empty = &empty[usize::from(!row.program.starts_with("socket"))];
            // Loopback has the same index in every network namespace.
            let ifindex = if row.loopback { 1 } else { ifindex };
            let input = || sys::TestInput { packet: &row.frame, ifindex, output: None, repeat: options.repeat };
            base.push(sys::test_run(std::os::fd::AsFd::as_fd(empty), input())?.nanoseconds);
            let ran = sys::test_run(place.object.program(row.program)?, input())?;
            let passed = ran.returned != if row.program.starts_with("socket") { 0 } else { 2 };
            ensure!(passed == row.passes, "{} at {}: passed {passed}", row.what, row.program);
            own.push(ran.nanoseconds);
        }
    }
    for (row, [own, base]) in rows.iter().zip(&mut taken) {
        figures.verdicts.push(Figure {
            addresses,
            what: row.what.to_owned(),
            program: row.program.to_owned(),
            nanoseconds: quantile(own, 0.5),
            empty: quantile(base, 0.5),
            spread: quantile(own, 0.75) - quantile(own, 0.25),
            ratio: ratio(own, base),
        });
    }
    place.configure(0)?;
    figures.verdicts.extend(answers::measure(&mut place, addresses, options)?);
    figures.parts.extend(cold::parts(&mut place, addresses, options)?);
    figures.memory.push(place.memory()?);
    Ok(())
}

/// The value below which this part of the values lies.
pub fn quantile(values: &[u32], part: f64) -> f64 {
    statistics::quantile(&values.iter().map(|value| f64::from(*value)).collect::<Vec<_>>(), part)
}

/// The ratios of runs to the empty program's right before them.
fn ratio(own: &[u32], base: &[u32]) -> Spread {
    let of = |(own, base): (&u32, &u32)| f64::from(*own) / f64::from((*base).max(1));
    Spread::of(&own.iter().zip(base).map(of).collect::<Vec<_>>())
}

const PREFIXES: u32 = Config::PREFIXES_4 | Config::PREFIXES_6;
const DENIES: u32 = Config::DENIES_4 | Config::DENIES_6;

fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for (four, six) in [(true, ""), (false, " v6")] {
        let leak = |text: &str| -> &'static str { format!("{text}{six}").leak() };
        let near = if four { "10.1.1.1" } else { "2001:db8:1::1" };
        let learned = place::address(four, 50);
        let (prefix, denied, none): (IpAddr, IpAddr, IpAddr) = if four {
            (place::prefix(true, 7), "203.0.113.9".parse().unwrap(), "192.0.2.200".parse().unwrap())
        } else {
            (place::prefix(false, 7), "2001:db8:dead::9".parse().unwrap(), "2001:db8:ffff::1".parse().unwrap())
        };
        let near: IpAddr = near.parse().unwrap();
        let mut add = |what, proto, to: IpAddr, flags, passes, policy| {
            for program in ["socket_egress", "uplink_egress"] {
                let far = SocketAddr::new(to, 443);
                let frame = wire::frame(proto, SocketAddr::new(near, 40_000 + u16::from(proto)), far, flags, &[0; 32]);
                rows.push(Row { what, program, frame, passes, flags: policy, loopback: false });
            }
        };
        // The first run of a row opens its flow; every later one is an established packet's. A SYN is judged each time.
        add(leak("established tcp"), TCP, learned, ACK, true, 0);
        add(leak("established udp"), UDP, learned, 0, true, 0);
        add(leak("first packet by name"), TCP, learned, SYN, true, 0);
        add(leak("first packet by name, with deny rules"), TCP, learned, SYN, true, DENIES);
        add(leak("first packet by prefix"), TCP, prefix, SYN, true, PREFIXES);
        add(leak("denied"), TCP, denied, SYN, false, DENIES);
        add(leak("no rule"), TCP, none, SYN, false, 0);
        // A test run's socket is of no family, as below a workload's sockets: the way with a look at the routes.
        let frame = wire::frame(TCP, SocketAddr::new(near, 40_000), SocketAddr::new(learned, 443), ACK, &[0; 32]);
        rows.push(Row {
            what: leak("from a workload"),
            program: "workload_ingress",
            frame,
            passes: true,
            flags: 0,
            loopback: false,
        });
        let far = SocketAddr::new(learned, 443);
        for program in ["socket_ingress", "uplink_ingress"] {
            let reply =
                |proto| wire::frame(proto, far, SocketAddr::new(near, 40_000 + u16::from(proto)), ACK, &[0; 32]);
            rows.push(Row {
                what: leak("reply in tcp"),
                program,
                frame: reply(TCP),
                passes: true,
                flags: 0,
                loopback: false,
            });
            rows.push(Row {
                what: leak("reply in udp"),
                program,
                frame: reply(UDP),
                passes: true,
                flags: 0,
                loopback: false,
            });
        }
    }
    for (what, program) in [("by loopback", "socket_egress"), ("in by loopback", "socket_ingress")] {
        // Nobody's flow, in both directions: the same frame serves.
        let far = SocketAddr::new(place::STUB.ip(), 8080);
        let frame = wire::frame(UDP, place::NEAR, far, 0, &[0; 32]);
        rows.push(Row { what, program, frame, passes: true, flags: 0, loopback: true });
    }
    let frame = wire::frame(UDP, place::NEAR, place::STUB, 0, &wire::query(1, place::NAME));
    rows.push(Row { what: "query to a stub", program: "socket_egress", frame, passes: true, flags: 0, loopback: true });
    for (what, name, passes) in [("query", place::NAME, true), ("query refused", "tunnel.example.org", false)] {
        // A refused query is turned round by the uplink's program, and in the next run of its row would be an answer.
        for program in ["socket_egress", "uplink_egress"].into_iter().take(if passes { 2 } else { 1 }) {
            let frame = wire::frame(UDP, place::CLIENT, place::RESOLVER, 0, &wire::query(1, name));
            rows.push(Row { what, program, frame, passes, flags: 0, loopback: false });
        }
    }
    rows
}

/// Loads every program of a fresh object, one after the other.
fn load_all() -> Result<Vec<Program>> {
    let object = place::object(1024, 1)?;
    let mut programs = Vec::new();
    for program in programs::ALL {
        let began = Instant::now();
        let fd = object.program(program)?;
        let load = began.elapsed().as_secs_f64() * 1e3;
        programs.push(Program { program, shape: programs::shape(fd)?, load });
    }
    Ok(programs)
}
