//! The daemon itself: how long it takes to be in force, to change, and what it holds.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::Signal;
use serde::Serialize;

use super::peer::policy;
use crate::bench::statistics::Spread;
use crate::cgroup::Cgroup;
use crate::daemon::{self, egress};
use crate::world::World;

/// How often each start is timed.
const STARTS: usize = 7;
/// How long it is left alone to see whether it stays idle.
const IDLE: Duration = Duration::from_secs(5);

/// Milliseconds, but where another unit is said.
#[derive(Debug, Clone, Serialize)]
pub struct Daemon {
    pub destinations: u32,
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

/// Measures a daemon whose policy has `destinations` addresses.
pub fn measure(destinations: u32) -> Result<Daemon> {
    let world = World::new()?;
    let cgroup = Cgroup::new("bench")?;
    let text = policy(destinations);
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
    let before = processor_time(daemon.pid())?;
    std::thread::sleep(IDLE);
    let idle = (processor_time(daemon.pid())? - before) / IDLE.as_secs_f64() * 100.0;
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
    Ok(Daemon {
        destinations,
        run: Spread::of(&starts),
        exec: exec(&world)?,
        reload: Spread::of(&reloads),
        resident,
        idle,
    })
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

/// Seconds of user and system time so far (proc_pid_stat(5), fields 14 and 15).
fn processor_time(pid: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<&str> = stat.rsplit_once(')').context("/proc/PID/stat")?.1.split_whitespace().collect();
    let ticks = fields[11].parse::<f64>()? + fields[12].parse::<f64>()?;
    let second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)?.context("clock ticks")?;
    Ok(ticks / second as f64)
}

/// MiB.
fn resident(pid: u32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? / 1024.0)
}
