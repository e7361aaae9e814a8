//! From `egress apply` to the first packet that the new policy judges, and whether all packets change at once.

use std::fs;
use std::io;
use std::net::UdpSocket;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use crate::Governed;
use crate::bench::network::peer;
use crate::bench::processor::pin;
use crate::bench::statistics::Spread;

/// Applies, each to the other policy of two.
const FLIPS: usize = 5;
/// Before a policy is asked for, and after it is in force.
const LEAD: Duration = Duration::from_millis(200);
const LIMIT: Duration = Duration::from_secs(60);
/// What one policy allows the other refuses. Nobody listens there.
const TARGETS: [&str; 2] = ["203.0.113.10:7003", "203.0.113.10:7004"];

/// How a policy takes the place of another.
#[derive(Debug, Serialize)]
pub struct Flips {
    /// Addresses in each of both policies, beside those that change.
    pub addresses: u32,
    /// Milliseconds from the start of `egress apply` until a packet is judged by its policy.
    pub applied: Spread,
    /// Microseconds from the first packet judged by the new policy until the last one judged by the old, at most; 0 where no packet of the
    /// new one came before one of the old.
    pub mixed: f64,
    /// Microseconds between two looks, each at both destinations.
    pub look: f64,
}

/// What a sender saw: nanoseconds of the monotonic clock.
#[derive(Debug, Serialize, Deserialize)]
struct Seen {
    first_new: u64,
    last_old: u64,
    looks: u64,
    length: u64,
}

/// Measures with so many addresses in the policy.
pub fn measure(addresses: u32) -> Result<Flips> {
    let policy = |turn: usize| {
        let of = turn % 2;
        let port = &TARGETS[of]["203.0.113.10:".len()..];
        // Another rule, not other ports of one: what is established by a rule that stays would go on.
        format!("{}  - {{name: turn-{of}, to: [203.0.113.10], ports: [{port}/udp]}}\n", peer::policy(addresses))
    };
    let test = Governed::new(&policy(0))?;
    let file = test.world.dir().join("turn.yaml");
    let (mut applied, mut mixed, mut look) = (Vec::new(), 0.0_f64, 0.0_f64);
    for turn in 1..=FLIPS {
        fs::write(&file, policy(turn))?;
        let (began, seen) = std::thread::scope(|scope| {
            let client = scope.spawn(|| {
                std::thread::sleep(LEAD);
                let began = monotonic()?;
                let run = test.daemon.egress(&["apply", &file.to_string_lossy()])?;
                ensure!(run.ok(), "egress apply failed: {run:?}");
                Ok(began)
            });
            let seen = test.inside.fork(LIMIT, || watch(TARGETS[(turn + 1) % 2], TARGETS[turn % 2]))?;
            let began = client.join().map_err(|_| anyhow::anyhow!("the applying thread died"))??;
            anyhow::Ok((began, seen))
        })?;
        applied.push(seen.first_new.saturating_sub(began) as f64 / 1e6);
        mixed = mixed.max(seen.last_old.saturating_sub(seen.first_new) as f64 / 1e3);
        look = look.max(seen.length as f64 / seen.looks as f64 / 1e3);
    }
    Ok(Flips { addresses, applied: Spread::of(&applied), mixed, look })
}

/// Sends to both until only the second passes.
fn watch(old: &str, new: &str) -> Result<Seen> {
    pin(0)?;
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    let (start, mut seen) = (Instant::now(), Seen { first_new: 0, last_old: 0, looks: 0, length: 0 });
    ensure!(passes(&socket, old)? && !passes(&socket, new)?, "the policy that is to go is not in force");
    let began = monotonic()?;
    loop {
        let (old_passes, old_at) = (passes(&socket, old)?, monotonic()?);
        let (new_passes, new_at) = (passes(&socket, new)?, monotonic()?);
        seen.looks += 1;
        for (is_new, at) in [(!old_passes, old_at), (new_passes, new_at)] {
            if !is_new {
                seen.last_old = at;
            } else if seen.first_new == 0 {
                seen.first_new = at;
            }
        }
        if seen.first_new != 0 && new_at > seen.first_new + LEAD.as_nanos() as u64 {
            seen.length = new_at - began;
            return Ok(seen);
        }
        ensure!(start.elapsed() < LIMIT / 2, "the policy does not come");
    }
}

/// Whether a datagram leaves.
fn passes(socket: &UdpSocket, to: &str) -> Result<bool> {
    match socket.send_to(&[0; 16], to) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(false),
        Err(error) => Err(error).context("send"),
    }
}

fn monotonic() -> Result<u64> {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC)?;
    Ok(time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64)
}
