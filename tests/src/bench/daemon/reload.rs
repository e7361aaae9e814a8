//! What the load of a big policy does to packets that are sent meanwhile.
//!
//! The sender has one processor, the daemon another, so that what is measured is what the tables' writing takes of the packets, not
//! who gets the processor. A process that computes, and one that writes a table which no program reads, stand in the daemon's place for
//! comparison.

use std::fs;
use std::net::UdpSocket;
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use egress_user::datapath::sys::{ANY, NewMap, map_create, map_update};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

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
    /// Of a million sends those that took more than twice the median.
    pub slow: f64,
    /// Of a million sends those of these during which the sender kept its processor: what interrupts took, and the tables.
    pub kept: f64,
}

/// Sends as they were seen.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Took {
    /// Nanoseconds.
    each: Vec<u32>,
    /// Which of them took the processor from the sender, by their numbers, among those that took long.
    lost: Vec<usize>,
}

/// How often each is measured, in turns. A virtual machine has hours, and seconds, in which all it does takes half as long again: of each
/// kind the round with the lowest median counts.
const ROUNDS: usize = 5;

/// Measures sends of one allowed UDP socket beside nothing, beside others that work, and while each of `count` addresses
/// is given other ports.
pub fn measure(count: u32) -> Result<Vec<Sends>> {
    let policies = [443, 444].map(|port| {
        let policy = peer::policy(count).replace("ports: [443/tcp]", &format!("ports: [{port}/tcp]"));
        format!("{policy}  - {{name: sink, to: [203.0.113.10], ports: [7001/udp]}}\n")
    });
    ensure!(policies[0] != policies[1], "the bench's policy has no port to change");
    let test = Governed::new(&policies[0])?;
    for thread in fs::read_dir(format!("/proc/{}/task", test.daemon.pid()))? {
        let thread = thread?.file_name();
        pin_other(thread.to_string_lossy().parse().context("a thread's id")?, 1)?;
    }
    let table = table()?;
    let length = Duration::from_secs(1);
    let mut rounds: [Vec<Sends>; 4] = Default::default();
    for round in 0..ROUNDS {
        let took = [
            send(&test, length)?,
            beside(&test, length, compute)?,
            beside(&test, length, |length| write(&table, length))?,
            while_loading(&test, &policies[(round + 1) % 2])?,
        ];
        let names = [
            "nothing",
            "a process that computes",
            "a process that writes a table of its own",
            "the daemon, which loads the policy",
        ];
        for ((rounds, name), took) in rounds.iter_mut().zip(names).zip(took) {
            rounds.push(summary(name, took));
        }
    }
    let quietest = |rounds: Vec<Sends>| rounds.into_iter().min_by_key(|sends| sends.p50);
    Ok(rounds.into_iter().filter_map(quietest).collect())
}

/// Sends while a thread works on the other processor.
fn beside(test: &Governed, length: Duration, work: impl FnOnce(Duration) + Send) -> Result<Took> {
    std::thread::scope(|scope| {
        let other = scope.spawn(|| {
            pin(1)?;
            work(length + Duration::from_millis(300));
            anyhow::Ok(())
        });
        std::thread::sleep(Duration::from_millis(100));
        let took = send(test, length);
        other.join().map_err(|_| anyhow::anyhow!("the thread beside the sender died"))??;
        took
    })
}

/// Elements of [`table`]: as many as a node has room for addresses.
const ELEMENTS: u64 = 1 << 17;

/// A table of the addresses' kind and size.
fn table() -> Result<OwnedFd> {
    const HASH: u32 = 1;
    const NO_PREALLOC: u32 = 1;
    let table = NewMap {
        name: "of_its_own",
        map_type: HASH,
        key_size: 8,
        value_size: 64,
        max_entries: ELEMENTS as u32,
        flags: NO_PREALLOC,
        types: None,
    };
    map_create(&table).context("make a table")
}

/// Writes all of a table again and again.
fn write(table: &OwnedFd, length: Duration) {
    let start = Instant::now();
    for number in 0_u64.. {
        let written = map_update(table.as_fd(), &(number % ELEMENTS).to_ne_bytes(), &[number as u8; 64], ANY);
        written.expect("the table has room for each of its elements");
        if number % 1024 == 0 && start.elapsed() > length {
            break;
        }
    }
}

/// Sends from before a policy is asked for until it is in force.
fn while_loading(test: &Governed, text: &str) -> Result<Took> {
    let before = test.daemon.status()?["generation"].clone();
    test.write_policy(text)?;
    // Written files are followed, too: whichever comes first.
    test.daemon.signal(Signal::SIGHUP)?;
    let mut took = Took::default();
    let start = Instant::now();
    while test.daemon.status()?["generation"] == before {
        ensure!(start.elapsed() < LIMIT, "the reload does not come through: {}", test.daemon.output());
        let next = send(test, Duration::from_millis(500))?;
        let sent = took.each.len();
        took.lost.extend(next.lost.iter().map(|number| sent + number));
        took.each.extend(next.each);
    }
    ensure!(!took.each.is_empty(), "the reload was over at once");
    Ok(took)
}

/// A send that takes longer is asked whether the sender was preempted: some four medians.
const LONG: u32 = 4000;

/// How long each send took.
fn send(test: &Governed, length: Duration) -> Result<Took> {
    test.inside.fork(LIMIT, || {
        pin(0)?;
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect(ALLOWED)?;
        let mut took = Took { each: Vec::with_capacity(4 << 20), lost: Vec::new() };
        let mut switches = getrusage(UsageWho::RUSAGE_THREAD)?.involuntary_context_switches();
        let start = Instant::now();
        let mut last = start;
        while last.duration_since(start) < length {
            // Nobody listens; what the other side says to that does not matter here.
            let _ = socket.send(&[0; 64]);
            let now = Instant::now();
            let each = u32::try_from(now.duration_since(last).as_nanos()).unwrap_or(u32::MAX);
            last = now;
            if each > LONG {
                let until_now = getrusage(UsageWho::RUSAGE_THREAD)?.involuntary_context_switches();
                if until_now != switches {
                    took.lost.push(took.each.len());
                }
                switches = until_now;
                last = Instant::now();
            }
            took.each.push(each);
        }
        Ok(took)
    })
}

fn summary(beside: &'static str, took: Took) -> Sends {
    let mut sorted = took.each.clone();
    sorted.sort_unstable();
    let at = |share: f64| sorted[((sorted.len() - 1) as f64 * share) as usize];
    let (p50, count) = (at(0.5), sorted.len());
    let of_a_million = |number: usize| number as f64 * 1e6 / count as f64;
    let slow = took.each.iter().filter(|each| **each > 2 * p50).count();
    let lost = took.lost.iter().filter(|number| took.each[**number] > 2 * p50).count();
    let (p99, p999, longest) = (at(0.99), at(0.999), at(1.0));
    let (slow, kept) = (of_a_million(slow), of_a_million(slow - lost));
    Sends { beside, p50, p99, p999, longest, count, slow, kept }
}
