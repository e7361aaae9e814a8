//! What a send costs as the sockets grow that have a flow: each of them is asked in turn, so that no cache holds what is remembered of it.

use std::fmt::Write as _;
use std::net::UdpSocket;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::sys::resource::{Resource, setrlimit};
use serde::Serialize;

use super::peer::{Kind, Peer, SINK_PORT, allowed};
use crate::bench::lines::{Line, draw};
use crate::bench::statistics::Spread;

const KINDS: [Kind; 5] = [Kind::Nothing, Kind::EmptyPrograms, Kind::Egress, Kind::NftSet, Kind::NftConntrack];
const SIZES: [u32; 4] = [10, 100, 1000, 10_000];
/// How long sends last, at least: each socket sends once in any case.
const RUN: Duration = Duration::from_millis(200);
const LIMIT: Duration = Duration::from_secs(30);

/// Nanoseconds of a send at one peer with so many sockets.
#[derive(Debug, Serialize)]
pub struct Sockets {
    pub peer: &'static str,
    pub sockets: u32,
    pub value: Spread,
    /// Over what was measured without enforcement in the same round.
    pub ratio: Spread,
}

/// Measures every peer `rounds` times, in turn.
pub fn measure(rounds: u32) -> Result<Vec<Sockets>> {
    let peers = KINDS.into_iter().map(|kind| Peer::new(kind, 100)).collect::<Result<Vec<_>>>()?;
    let mut taken = vec![vec![Vec::new(); SIZES.len()]; peers.len()];
    for round in 0..rounds as usize {
        for turn in 0..peers.len() {
            let which = (round + turn) % peers.len();
            for (values, size) in taken[which].iter_mut().zip(SIZES) {
                values.push(sends(&peers[which], size)?);
            }
        }
    }
    let mut figures = Vec::new();
    for (peer, values) in peers.iter().zip(&taken) {
        for (number, sockets) in SIZES.into_iter().enumerate() {
            let (own, without) = (&values[number], &taken[0][number]);
            let ratios: Vec<f64> = own.iter().zip(without).map(|(own, without)| own / without).collect();
            let (value, ratio) = (Spread::of(own), Spread::of(&ratios));
            figures.push(Sockets { peer: peer.kind.name(), sockets, value, ratio });
        }
    }
    Ok(figures)
}

/// Nanoseconds of a send, one by each socket and over again, after each has sent one.
fn sends(peer: &Peer, count: u32) -> Result<f64> {
    peer.inside.fork(LIMIT, || {
        // The forked process has what the bench has open.
        let room = u64::from(count) + 4096;
        setrlimit(Resource::RLIMIT_NOFILE, room, room).context("make room for the sockets")?;
        let mut sockets = Vec::new();
        for _ in 0..count {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.connect(allowed(SINK_PORT))?;
            socket.send(&[0; 64])?;
            sockets.push(socket);
        }
        let (start, mut sent) = (Instant::now(), 0_u32);
        while start.elapsed() < RUN {
            for socket in &sockets {
                socket.send(&[0; 64])?;
            }
            sent += count;
        }
        Ok(start.elapsed().as_nanos() as f64 / f64::from(sent))
    })
}

/// A row for each peer, a column for each size.
#[must_use]
pub fn table(figures: &[Sockets]) -> String {
    let mut text = String::from("| UDP send, ns, by sockets in turn |");
    for size in SIZES {
        let _ = write!(text, " {size} |");
    }
    let _ = writeln!(text, "\n|---{}|", "|---".repeat(SIZES.len()));
    for row in figures.chunks(SIZES.len()) {
        let _ = write!(text, "| {} |", row[0].peer);
        for Sockets { value, ratio, .. } in row {
            let _ = write!(
                text,
                " {:.0} ± {:.0} ({:.2} ± {:.2}) |",
                value.median, value.spread, ratio.median, ratio.spread
            );
        }
        text.push('\n');
    }
    text
}

/// A line for each peer.
#[must_use]
pub fn plot(figures: &[Sockets]) -> Option<String> {
    let line = |row: &[Sockets]| Line {
        label: row[0].peer.to_owned(),
        points: row.iter().map(|of| (of.sockets, of.value.median)).collect(),
    };
    let says = "Nanoseconds of a UDP send, by sockets with a flow that send in turn.";
    draw("A send's cost as sockets grow", says, figures.chunks(SIZES.len()).map(line).collect())
}
