//! The load, made by one process inside the governed cgroup, and what it measures.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::bench::statistics;

use super::peer::{IPERF_PORT, PORT, Peer, SINK_PORT, allowed};

/// How long one run of one load lasts.
const RUN: Duration = Duration::from_millis(400);
const LIMIT: Duration = Duration::from_secs(20);

/// What a load measures; each is a row of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// Nanoseconds of one send of 64 bytes by a connected UDP socket; the way through both namespaces is part of it.
    UdpSend,
    /// Nanoseconds of a datagram there and its echo back.
    UdpEcho,
    /// Microseconds to make a socket and connect it: the median.
    Open,
    /// Microseconds to connect, ask, be answered and close: the median.
    Connect,
    /// Microseconds of a request of 64 bytes and its answer, over one connection: median, 99th and 99.9th percentile.
    Request50,
    Request99,
    Request999,
    /// Nanoseconds of a send that is refused.
    Denied,
    /// Mbit/s of one TCP stream (iperf3).
    Stream,
    /// Microseconds of a DNS lookup through unbound: median and 99th percentile.
    Lookup50,
    Lookup99,
    /// DNS lookups through unbound a second, several at once.
    Lookups,
}

impl Metric {
    pub fn title(self) -> &'static str {
        match self {
            Self::UdpSend => "UDP send, ns",
            Self::UdpEcho => "UDP echo, ns",
            Self::Open => "connect p50, us",
            Self::Connect => "connect-request-close p50, us",
            Self::Request50 => "request p50, us",
            Self::Request99 => "request p99, us",
            Self::Request999 => "request p99.9, us",
            Self::Denied => "denied UDP send, ns",
            Self::Stream => "TCP stream, Mbit/s",
            Self::Lookup50 => "DNS lookup p50, us",
            Self::Lookup99 => "DNS lookup p99, us",
            Self::Lookups => "DNS lookups a second",
        }
    }

    /// Whether more of it is better.
    pub fn more_is_better(self) -> bool {
        matches!(self, Self::Stream | Self::Lookups)
    }
}

/// One run of every load at one peer.
pub fn measure(peer: &Peer) -> Result<Vec<(Metric, f64)>> {
    let mut measured = peer.inside.fork(LIMIT, || {
        let mut measured = vec![(Metric::UdpSend, udp_send()?), (Metric::UdpEcho, udp_echo()?)];
        measured.extend(connections()?);
        measured.extend(requests()?);
        measured.push((Metric::Denied, denied()?));
        Ok(measured)
    })?;
    measured.push((Metric::Stream, stream(peer)?));
    Ok(measured)
}

/// Calls `f` in batches until the run is over; nanoseconds of one call.
fn per_call(mut f: impl FnMut() -> Result<()>) -> Result<f64> {
    const BATCH: u32 = 64;
    let (start, mut calls) = (Instant::now(), 0_u32);
    while start.elapsed() < RUN {
        for _ in 0..BATCH {
            f()?;
        }
        calls += BATCH;
    }
    Ok(start.elapsed().as_nanos() as f64 / f64::from(calls))
}

fn udp_send() -> Result<f64> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect(allowed(SINK_PORT))?;
    per_call(|| {
        socket.send(&[0; 64]).context("send")?;
        Ok(())
    })
}

fn udp_echo() -> Result<f64> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect(allowed(PORT))?;
    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    per_call(|| {
        socket.send(&[0; 64])?;
        socket.recv(&mut [0; 128]).context("no echo within two seconds")?;
        Ok(())
    })
}

fn exchange(stream: &mut TcpStream) -> Result<()> {
    let mut answer = [0; 64];
    stream.write_all(&[7; 64])?;
    stream.read_exact(&mut answer)?;
    Ok(())
}

/// One run of the load that connects at one peer.
pub fn measure_connections(peer: &Peer) -> Result<Vec<(Metric, f64)>> {
    peer.inside.fork(LIMIT, || Ok(connections()?.to_vec()))
}

fn connections() -> Result<[(Metric, f64); 2]> {
    let (mut opened, mut whole) = (Vec::new(), Vec::new());
    let (start, mut last) = (Instant::now(), Instant::now());
    while start.elapsed() < RUN {
        let mut stream = TcpStream::connect(allowed(PORT)).context("connect")?;
        opened.push(last.elapsed().as_nanos() as f64 / 1000.0);
        exchange(&mut stream)?;
        // Without the wait of TIME_WAIT, or the ports run out.
        let linger = libc::linger { l_onoff: 1, l_linger: 0 };
        nix::sys::socket::setsockopt(&stream, nix::sys::socket::sockopt::Linger, &linger)?;
        drop(stream);
        whole.push(last.elapsed().as_nanos() as f64 / 1000.0);
        last = Instant::now();
    }
    Ok([(Metric::Open, &opened), (Metric::Connect, &whole)]
        .map(|(metric, took)| (metric, statistics::quantile(took, 0.5))))
}

fn requests() -> Result<[(Metric, f64); 3]> {
    let mut stream = TcpStream::connect(allowed(PORT))?;
    stream.set_nodelay(true)?;
    let mut took = Vec::new();
    let start = Instant::now();
    while start.elapsed() < RUN {
        let begin = Instant::now();
        exchange(&mut stream)?;
        took.push(begin.elapsed().as_nanos() as f64 / 1000.0);
    }
    Ok([(Metric::Request50, 0.5), (Metric::Request99, 0.99), (Metric::Request999, 0.999)]
        .map(|(metric, share)| (metric, statistics::quantile(&took, share))))
}

fn denied() -> Result<f64> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    let to = SocketAddr::new(super::peer::DENIED.parse()?, PORT);
    per_call(|| {
        // Refused by what enforces, with whatever error it gives; sent where nothing does.
        let _ = socket.send_to(&[0; 64], to);
        Ok(())
    })
}

/// iperf3 (Debian package `iperf3`), one stream.
fn stream(peer: &Peer) -> Result<f64> {
    let port = IPERF_PORT.to_string();
    let mut server = peer.world.outside().command("iperf3");
    server.args(["--server", "--one-off", "--port", &port, "--bind", super::peer::ALLOWED]);
    server.stdout(std::process::Stdio::null());
    let mut server = server.spawn().context("start iperf3: is its Debian package installed?")?;
    let mut run = None;
    for _ in 0..20 {
        std::thread::sleep(Duration::from_millis(25));
        let args = ["--client", super::peer::ALLOWED, "--port", &port, "--time", "1", "--json"];
        let done = peer.inside.run("iperf3", &args, LIMIT)?;
        if done.ok() {
            run = Some(done);
            break;
        }
    }
    let _ = server.kill();
    let _ = server.wait();
    let run = run.context("iperf3 did not reach its server")?;
    let result: serde_json::Value = serde_json::from_str(&run.stdout)?;
    let bits = result["end"]["sum_received"]["bits_per_second"].as_f64();
    ensure!(bits.is_some_and(|bits| bits > 0.0), "iperf3 said: {}", run.stdout);
    Ok(bits.unwrap_or_default() / 1e6)
}
