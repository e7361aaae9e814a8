//! Which processor a process runs on, and what it takes of it.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

/// Keeps this process to one processor.
pub fn pin(processor: usize) -> Result<()> {
    pin_other(0, processor)
}

/// Keeps a thread to one processor; 0 is the calling one.
pub fn pin_other(thread: i32, processor: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(processor)?;
    sched_setaffinity(Pid::from_raw(thread), &set).context("keep to one processor: there must be two")?;
    Ok(())
}

/// Computes, and does nothing else.
pub fn compute(length: Duration) {
    let (start, mut turns) = (Instant::now(), 0_u64);
    while start.elapsed() < length {
        turns = std::hint::black_box(turns + 1);
    }
}

/// Seconds of user and system time that all threads of a process took so far (proc_pid_stat(5), fields 14 and 15).
pub fn time(pid: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<&str> = stat.rsplit_once(')').context("/proc/PID/stat")?.1.split_whitespace().collect();
    let ticks = fields[11].parse::<f64>()? + fields[12].parse::<f64>()?;
    let second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)?.context("clock ticks")?;
    Ok(ticks / second as f64)
}
