//! What it takes to keep exact names fresh.

use std::fmt::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;
use serde::Serialize;

use super::starts::resident;
use crate::bench::{processor, wire};
use crate::cgroup::Cgroup;
use crate::daemon::Daemon;
use crate::world::{DNS_V4, World};

/// Beside a TTL: a first round of questions is behind it by then, and the refreshes have spread.
const SETTLED: Duration = Duration::from_secs(15);

/// A daemon that keeps names fresh.
#[derive(Debug, Serialize)]
pub struct Fresh {
    pub names: u32,
    /// What every answer says, in seconds.
    pub ttl: u32,
    /// How long it was looked at.
    pub seconds: f64,
    /// What it took of one processor, per cent.
    pub processor: f64,
    /// Questions that it asked a second: for A records, and more rarely for the AAAA records that no name has.
    pub questions: f64,
    /// Microseconds of a processor for each of them.
    pub each: f64,
    /// The same of a loop that does nothing but the system calls which no asker can spare: a socket of its own for each question, so that
    /// its port cannot be guessed.
    pub bare: f64,
    /// Resident memory, MiB.
    pub resident: f64,
}

impl fmt::Display for Fresh {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} exact names with a TTL of {} s, kept fresh for {:.0} s: {:.2} % of a processor, {:.0} questions a second, {:.0} us each \
             (system calls alone {:.0}), {:.1} MiB.",
            self.names, self.ttl, self.seconds, self.processor, self.questions, self.each, self.bare, self.resident
        )
    }
}

/// Measures a daemon whose policy has `count` exact names, for `length`.
pub fn measure(count: u32, ttl: u32, length: Duration) -> Result<Fresh> {
    let world = World::new()?;
    let cgroup = Cgroup::new("bench")?;
    let mut text = String::from("version: 1\nrules:\n  - name: names\n    ports: [443/tcp]\n    to:\n");
    for n in 0..count {
        let name = format!("n{n}.bench.example.com");
        let _ = writeln!(text, "      - {name}");
        // 20.0.0.0/8 is routed nowhere in the world: nothing is sent there.
        world.dns.set(&name, ttl, &[IpAddr::V4(Ipv4Addr::from(0x1400_0000 + n))]);
    }
    let daemon = Daemon::builder(&world).policy_text(&text).cgroup(&cgroup).start()?;
    std::thread::sleep(Duration::from_secs(u64::from(ttl)) + SETTLED);
    world.dns.forget();
    let (start, before) = (Instant::now(), processor::time(daemon.pid())?);
    std::thread::sleep(length);
    let (took, seconds) = (processor::time(daemon.pid())? - before, start.elapsed().as_secs_f64());
    let questions = world.dns.asked().len() as f64 / seconds;
    let status = daemon.status()?;
    let failing = status["names"].as_array().into_iter().flatten().filter(|name| !name["last_error"].is_null()).count();
    ensure!(failing == 0, "{failing} names could not be resolved");
    // Each name once in its TTL, at least.
    ensure!(questions > f64::from(count) / f64::from(ttl), "only {questions:.0} questions a second: the names get old");
    Ok(Fresh {
        names: count,
        ttl,
        seconds,
        processor: took / seconds * 100.0,
        questions,
        each: took / seconds / questions * 1e6,
        bare: bare(&world)?,
        resident: resident(daemon.pid())?,
    })
}

/// Questions of the bare loop, and how far apart they are: about as often as the daemon asks.
const BARE: u16 = 1000;
const APART: Duration = Duration::from_millis(5);

/// What asking costs without a resolver library and without Egress, beside the governed cgroup: microseconds of a processor for each.
fn bare(world: &World) -> Result<f64> {
    world.node().fork(Duration::from_secs(60), || {
        let before = used()?;
        for id in 0..BARE {
            std::thread::sleep(APART);
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.set_read_timeout(Some(Duration::from_secs(5)))?;
            socket.connect((DNS_V4, 53))?;
            socket.send(&wire::query(id, "n1.bench.example.com"))?;
            socket.recv(&mut [0; 512]).context("no answer")?;
        }
        Ok((used()? - before) * 1e6 / f64::from(BARE))
    })
}

/// Seconds of user and system time that this process took.
fn used() -> Result<f64> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let seconds = |time: TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    Ok(seconds(usage.user_time()) + seconds(usage.system_time()))
}
