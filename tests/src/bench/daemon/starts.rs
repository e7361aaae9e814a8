//! How long a policy takes to be in force, and to change, by its size; what the daemon holds then.

use std::time::{Duration, Instant};
use std::{fmt, fs};

use anyhow::{Context as _, Result, bail};
use egress_user::datapath::{CGROUP_HOOKS, DENIAL_HOOK, Object, Sizes};
use nix::sys::signal::Signal;
use serde::Serialize;

use crate::bench::network::peer;
use crate::bench::processor;
use crate::bench::statistics::Spread;
use crate::cgroup::Cgroup;
use crate::daemon::{self, egress};
use crate::world::World;

/// How often each start is timed.
const STARTS: usize = 7;
/// What is done in the background after a start is over by then.
const SETTLED: Duration = Duration::from_secs(6);
/// How long it is left alone to see whether it stays idle.
const IDLE: Duration = Duration::from_secs(5);

/// Tables as small as can be: they are not what is measured.
const SMALL: Sizes =
    Sizes { addresses: 1024, prefixes: 64, classes: 64, grants: 64, names: 64, inner: 64, flows: 1024 };

/// What a policy is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Policy {
    /// One rule with so many addresses.
    Addresses(u32),
    /// One rule with so many wildcards, which nothing is asked for.
    Names(u32),
}

impl Policy {
    pub fn text(self) -> String {
        match self {
            Self::Addresses(count) => peer::policy(count),
            Self::Names(count) => {
                let names = (0..count).map(|n| format!("      - '*.n{n}.bench.example.com'\n")).collect::<String>();
                format!(
                    "{}  - name: names\n    ports: [443/tcp]\n    to:\n{names}",
                    peer::policy(0).replace("{name: names,", "{name: some,")
                )
            }
        }
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Addresses(count) => write!(f, "{count} addresses"),
            Self::Names(count) => write!(f, "{count} wildcards"),
        }
    }
}

/// Milliseconds, but where another unit is said.
#[derive(Debug, Clone, Serialize)]
pub struct Starts {
    pub policy: Policy,
    /// From the start of `egress run` until it says that enforcement is on.
    pub run: Spread,
    /// From the start of `egress exec` until the command has ended, less the same command alone.
    pub exec: Spread,
    /// From SIGHUP until another policy of the same size is in force.
    pub reload: Spread,
    /// Resident memory, MiB.
    pub resident: f64,
    /// Share of one processor while nothing happens, per cent.
    pub idle: f64,
}

/// Measures a daemon with a policy.
pub fn measure(policy: Policy) -> Result<Starts> {
    let world = World::new()?;
    let cgroup = Cgroup::new("bench")?;
    let text = policy.text();
    let mut starts = Vec::new();
    for _ in 0..STARTS {
        let builder = daemon::Daemon::builder(&world).policy_text(&text).cgroup(&cgroup);
        let start = Instant::now();
        let daemon = builder.start()?;
        starts.push(milliseconds(start.elapsed()));
        // Detaches, so that the next one begins from nothing.
        drop(daemon);
    }
    let builder = daemon::Daemon::builder(&world).policy_text(&text).cgroup(&cgroup);
    let file = builder.policy_file(0);
    let daemon = builder.start()?;
    std::thread::sleep(SETTLED);
    let before = processor::time(daemon.pid())?;
    std::thread::sleep(IDLE);
    let idle = (processor::time(daemon.pid())? - before) / IDLE.as_secs_f64() * 100.0;
    let resident = resident(daemon.pid())?;
    let mut reloads = Vec::new();
    for n in 0..STARTS {
        let generation = daemon.status()?["generation"].clone();
        fs::write(&file, format!("{text}  - {{name: extra, to: [203.0.113.{n}], ports: [1/tcp]}}\n"))?;
        let start = Instant::now();
        daemon.signal(Signal::SIGHUP)?;
        while daemon.status()?["generation"] == generation {
            if start.elapsed() > Duration::from_secs(60) {
                bail!("the reload does not come through: {}", daemon.output());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        reloads.push(milliseconds(start.elapsed()));
    }
    Ok(Starts { policy, run: Spread::of(&starts), exec: exec(&world)?, reload: Spread::of(&reloads), resident, idle })
}

/// What of a start the kernel's verifier takes at least: all programs that must be in force at a cgroup and one uplink, loaded again and again
/// with nothing else going on.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Loads {
    /// On one processor, one after the other; milliseconds.
    pub one: Spread,
    /// On all processors, as a start does it.
    pub all: Spread,
}

/// Measures that.
pub fn loads() -> Result<Loads> {
    let uplink = ["uplink_ingress", "uplink_egress", "control"];
    let hooks = CGROUP_HOOKS.iter().map(|(name, _)| *name);
    let names: Vec<_> = [DENIAL_HOOK].into_iter().chain(uplink).chain(hooks).collect();
    let (mut one, mut all) = (Vec::new(), Vec::new());
    for _ in 0..STARTS {
        let object = Object::load(&SMALL, None)?;
        let start = Instant::now();
        names.iter().try_for_each(|name| object.program(name).map(drop))?;
        one.push(milliseconds(start.elapsed()));
        let object = Object::load(&SMALL, None)?;
        let start = Instant::now();
        object.load_programs(&names);
        all.push(milliseconds(start.elapsed()));
        // What could not be loaded was passed over, and is told here.
        names.iter().try_for_each(|name| object.program(name).map(drop))?;
    }
    Ok(Loads { one: Spread::of(&one), all: Spread::of(&all) })
}

/// `egress exec --policy aks-required -- true`, less `true` alone.
fn exec(world: &World) -> Result<Spread> {
    let mut took = Vec::new();
    for _ in 0..STARTS {
        let start = Instant::now();
        let run =
            egress(&world.node(), &["exec", "-q", "--policy", "aks-required", "--", "true"], Duration::from_secs(9))?;
        let with = start.elapsed();
        if !run.ok() {
            bail!("egress exec failed: {run:?}");
        }
        let start = Instant::now();
        world.node().run("true", &[], Duration::from_secs(5))?;
        took.push(milliseconds(with.saturating_sub(start.elapsed())));
    }
    Ok(Spread::of(&took))
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// MiB.
pub fn resident(pid: u32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? / 1024.0)
}
