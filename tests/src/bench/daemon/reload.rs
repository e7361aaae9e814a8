//! What the load of a big policy does to packets that are sent meanwhile.
//!
//! The sender has one processor, the daemon another, so that what is measured is what the tables' writing takes of the packets, not
//! who gets the processor. A process that computes stands in the daemon's place for comparison.

use std::fs;
use std::net::UdpSocket;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use serde::Serialize;

use crate::Governed;
use crate::bench::network::peer;
use crate::bench::processor::{compute, pin, pin_other};

const ALLOWED: &str = "203.0.113.10:7001";
const LIMIT: Duration = Duration::from_secs(60);

/// How long sends took, in nanoseconds of a monotonic clock.
#[derive(Debug, Serialize)]
pub struct Sends {
    /// What ran on the other processor.
    pub beside: &'static str,
    pub p50: u32,
    pub p99: u32,
    pub p999: u32,
    pub longest: u32,
    pub count: usize,
}

/// Measures sends of one allowed UDP socket beside nothing, beside a process that computes, and while each of `count` addresses
/// is given other ports.
pub fn measure(count: u32) -> Result<Vec<Sends>> {
    let text = format!("{}  - {{name: sink, to: [203.0.113.10], ports: [7001/udp]}}\n", peer::policy(count));
    let test = Governed::new(&text)?;
    for thread in fs::read_dir(format!("/proc/{}/task", test.daemon.pid()))? {
        let thread = thread?.file_name();
        pin_other(thread.to_string_lossy().parse().context("a thread's id")?, 1)?;
    }
    let length = Duration::from_secs(2);
    let alone = send(&test, length)?;
    let computing = std::thread::scope(|scope| {
        let other = scope.spawn(|| {
            pin(1)?;
            compute(length + Duration::from_millis(300));
            anyhow::Ok(())
        });
        std::thread::sleep(Duration::from_millis(100));
        let took = send(&test, length);
        other.join().map_err(|_| anyhow::anyhow!("the computing thread died"))??;
        took
    })?;
    let loading = while_loading(&test, &text.replace("ports: [443/tcp]", "ports: [444/tcp]"))?;
    let (p, q, r) = ("nothing", "a process that computes", "the daemon, which loads the policy");
    Ok(vec![summary(p, alone), summary(q, computing), summary(r, loading)])
}

/// Sends from before a policy is asked for until it is in force.
fn while_loading(test: &Governed, text: &str) -> Result<Vec<u32>> {
    let before = test.daemon.status()?["generation"].clone();
    test.write_policy(text)?;
    // Written files are followed, too: whichever comes first.
    test.daemon.signal(Signal::SIGHUP)?;
    let mut took = Vec::new();
    let start = Instant::now();
    while test.daemon.status()?["generation"] == before {
        ensure!(start.elapsed() < LIMIT, "the reload does not come through: {}", test.daemon.output());
        took.extend(send(test, Duration::from_millis(500))?);
    }
    ensure!(!took.is_empty(), "the reload was over at once");
    Ok(took)
}

/// How long each send took, in nanoseconds.
fn send(test: &Governed, length: Duration) -> Result<Vec<u32>> {
    test.inside.fork(LIMIT, || {
        pin(0)?;
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect(ALLOWED)?;
        let mut took = Vec::with_capacity(4 << 20);
        let start = Instant::now();
        let mut last = start;
        while last.duration_since(start) < length {
            // Nobody listens; what the other side says to that does not matter here.
            let _ = socket.send(&[0; 64]);
            let now = Instant::now();
            took.push(u32::try_from(now.duration_since(last).as_nanos()).unwrap_or(u32::MAX));
            last = now;
        }
        Ok(took)
    })
}

fn summary(beside: &'static str, mut took: Vec<u32>) -> Sends {
    took.sort_unstable();
    let at = |share: f64| took[((took.len() - 1) as f64 * share) as usize];
    Sends { beside, p50: at(0.5), p99: at(0.99), p999: at(0.999), longest: at(1.0), count: took.len() }
}
