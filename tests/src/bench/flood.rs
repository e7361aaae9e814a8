//! A flood of forbidden datagrams beside allowed ones: what it costs these, and whether every one is counted.
//!
//! The allowed sender has one processor, the flood another, so that what is measured is what the flood takes beyond the time of
//! its own processor: shared tables, the ring buffer, the daemon that reads it, and the reader of the daemon's events.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use comfy_table::{Table, presets::NOTHING};
use nix::sys::signal::Signal;
use serde::Serialize;

use super::processor::{compute, pin};
use super::statistics::Spread;
use crate::daemon::binary;
use crate::{Governed, Place, Service, World};

const POLICY: &str = "version: 1\nrules:\n  - {name: sink, to: [203.0.113.10], ports: [7001/udp]}\n";
const ALLOWED: &str = "203.0.113.10:7001";
const DENIED: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 77);
const LIMIT: Duration = Duration::from_secs(30);
/// Datagrams of one system call of the flood at the uplink.
const BATCH: usize = 256;
/// Ports that a flood to many destinations goes round.
const MANY: u16 = 60_000;
/// What was folded in the kernel is told within four seconds.
const SWEPT: Duration = Duration::from_secs(5);

#[derive(Debug, clap::Args)]
pub struct Options {
    /// How often each state is measured.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// How long each measurement lasts, in milliseconds.
    #[arg(long, default_value_t = 1000)]
    millis: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { rounds: 5, millis: 1000 }
    }
}

/// What runs on the other processor meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Beside {
    /// A process that computes, which is what the others are compared with.
    Computing,
    /// Connected sockets in the cgroup, refused there, with nobody to read the ring buffer.
    SocketUntold,
    /// The same, read by the daemon and a subscriber.
    Socket,
    /// A socket that takes another port each time, refused by the system call's hook.
    SocketMany,
    /// A socket outside of the cgroup, refused at the uplink.
    UplinkUntold,
    Uplink,
    UplinkMany,
}

impl Beside {
    const ALL: [Self; 7] = [
        Self::Computing,
        Self::SocketUntold,
        Self::Socket,
        Self::SocketMany,
        Self::UplinkUntold,
        Self::Uplink,
        Self::UplinkMany,
    ];

    fn title(self) -> &'static str {
        match self {
            Self::Computing => "a process that computes",
            Self::SocketUntold => "refused at the socket, one destination, nobody reads",
            Self::Socket => "refused at the socket, one destination",
            Self::SocketMany => "refused at the socket, 60,000 destinations",
            Self::UplinkUntold => "refused at the uplink, one destination, nobody reads",
            Self::Uplink => "refused at the uplink, one destination",
            Self::UplinkMany => "refused at the uplink, 60,000 destinations",
        }
    }

    fn is_told(self) -> bool {
        !matches!(self, Self::SocketUntold | Self::UplinkUntold | Self::Computing)
    }

    fn floods(self) -> bool {
        self != Self::Computing
    }
}

/// One state's figures.
#[derive(Debug, Serialize)]
struct Figure {
    beside: Beside,
    /// Allowed datagrams a second, over those of the same round beside a process that computes.
    ratio: Spread,
    /// Refused datagrams a second.
    refused: Spread,
    /// Of the refused, the share in the counters of `status`, of all rounds together.
    counted: f64,
    /// Of the refused, the share that events told, folded or not.
    told: f64,
    /// Events that the ring buffer had no room for, or the subscriber did not take.
    lost: u64,
}

/// Measures, prints, and writes `flood.json`. Whether every refusal was counted.
pub fn run(options: &Options, out: &std::path::Path) -> Result<bool> {
    let world = World::new()?;
    world.serve(Service::UdpEcho, "203.0.113.10:7000")?;
    let test = Governed::over(world, POLICY)?;
    let told = Told::follow(&test)?;
    let length = Duration::from_millis(options.millis);
    let mut rounds: Vec<Vec<Round>> = Vec::new();
    for _ in 0..options.rounds.max(1) {
        rounds.push(Beside::ALL.into_iter().map(|beside| round(&test, &told, beside, length)).collect::<Result<_>>()?);
    }
    drop(told);
    let figures: Vec<_> = Beside::ALL.iter().enumerate().map(|(at, beside)| figure(*beside, at, &rounds)).collect();
    print(&figures);
    let path = out.join("flood.json");
    fs::write(&path, serde_json::to_vec_pretty(&figures)?).with_context(|| format!("write {}", path.display()))?;
    println!("{}", path.display());
    let complete = figures.iter().all(|figure| figure.counted == 1.0);
    if !complete {
        println!("NOT every refusal was counted");
    }
    Ok(complete)
}

/// One state once.
struct Round {
    allowed: f64,
    refused: f64,
    tried: u64,
    counted: u64,
    told: u64,
    lost: u64,
}

fn round(test: &Governed, told: &Told, beside: Beside, length: Duration) -> Result<Round> {
    let before = (counted(test)?, told.sum());
    if beside.floods() && !beside.is_told() {
        test.daemon.signal(Signal::SIGSTOP)?;
    }
    let (allowed, tried) = std::thread::scope(|scope| {
        let flood = scope.spawn(|| flood(test, beside, length + Duration::from_millis(200)));
        std::thread::sleep(Duration::from_millis(100));
        let allowed = test.inside.fork(LIMIT, || send_allowed(length));
        let flood = flood.join().map_err(|_| anyhow::anyhow!("the flood's thread died"))?;
        anyhow::Ok((allowed?, flood?))
    })?;
    test.daemon.signal(Signal::SIGCONT)?;
    // What was folded is told a while later.
    std::thread::sleep(if beside.floods() { SWEPT } else { Duration::ZERO });
    let after = (counted(test)?, told.sum());
    let (refusals, lost) = (after.0.0 - before.0.0, after.0.1 - before.0.1);
    Ok(Round {
        allowed,
        refused: tried.0 as f64 / tried.1,
        tried: tried.0,
        counted: refusals,
        told: after.1 - before.1,
        lost,
    })
}

fn figure(beside: Beside, at: usize, rounds: &[Vec<Round>]) -> Figure {
    let of = |value: &dyn Fn(&Round) -> f64| rounds.iter().map(|round| value(&round[at])).collect::<Vec<_>>();
    let ratios: Vec<_> = rounds.iter().map(|round| round[at].allowed / round[0].allowed).collect();
    let sum = |value: &dyn Fn(&Round) -> u64| rounds.iter().map(|round| value(&round[at])).sum::<u64>();
    let tried = sum(&|round| round.tried).max(1) as f64;
    let share = |value: u64| if beside.floods() { value as f64 / tried } else { 1.0 };
    Figure {
        beside,
        ratio: Spread::of(&ratios),
        refused: Spread::of(&of(&|round| round.refused)),
        counted: share(sum(&|round| round.counted)),
        told: share(sum(&|round| round.told)),
        lost: sum(&|round| round.lost),
    }
}

fn print(figures: &[Figure]) {
    let mut table = Table::new();
    let header = ["beside", "allowed, ratio", "spread", "refused/s", "counted", "told", "events lost"];
    table.load_preset(NOTHING).set_header(header);
    for figure in figures {
        let floods = |text: String| if figure.beside.floods() { text } else { String::new() };
        table.add_row([
            figure.beside.title().to_owned(),
            format!("{:.2}", figure.ratio.median),
            format!("{:.2}", figure.ratio.spread),
            floods(format!("{:.0}", figure.refused.median)),
            floods(format!("{:.4} %", figure.counted * 100.0)),
            floods(format!("{:.4} %", figure.told * 100.0)),
            floods(figure.lost.to_string()),
        ]);
    }
    println!("{table}");
}

/// Refused packets by the counters, and events lost.
fn counted(test: &Governed) -> Result<(u64, u64)> {
    let status = test.daemon.status()?;
    let counters = status["counters"].as_array().context("counters")?;
    // Of 60,000 ports one is DNS's, which has a reason of its own.
    let refused = counters.iter().filter(|counter| counter["passes"] == false);
    let refused = refused.filter_map(|counter| counter["packets"].as_u64()).sum();
    Ok((refused, status["events_lost"].as_u64().context("events_lost")?))
}

/// A subscriber, which adds up what the events tell.
struct Told {
    child: Child,
    sum: Arc<AtomicU64>,
}

impl Told {
    fn follow(test: &Governed) -> Result<Self> {
        let mut command = test.beside.command(&binary()?.to_string_lossy());
        command.args(["events", "--follow", "--json", "--dropped"]).env("EGRESS_SOCKET", test.daemon.socket());
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("start `egress events`")?;
        let sum = Arc::new(AtomicU64::new(0));
        let lines = BufReader::new(child.stdout.take().context("its output")?).lines();
        let adds = Arc::clone(&sum);
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let event: serde_json::Value = serde_json::from_str(&line).unwrap_or_default();
                if event["destination"] == DENIED.to_string() {
                    adds.fetch_add(event["count"].as_u64().unwrap_or(0), Ordering::Relaxed);
                }
            }
        });
        Ok(Self { child, sum })
    }

    fn sum(&self) -> u64 {
        self.sum.load(Ordering::Relaxed)
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Allowed datagrams a second.
fn send_allowed(length: Duration) -> Result<f64> {
    pin(0)?;
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect(ALLOWED)?;
    let (start, mut sent) = (Instant::now(), 0_u64);
    while start.elapsed() < length {
        for _ in 0..64 {
            // Nobody listens; what the other side says to that does not matter here.
            sent += u64::from(socket.send(&[0; 64]).is_ok());
        }
    }
    Ok(sent as f64 / start.elapsed().as_secs_f64())
}

/// How many were tried, and in how many seconds.
fn flood(test: &Governed, beside: Beside, length: Duration) -> Result<(u64, f64)> {
    let place: &Place = match beside {
        Beside::UplinkUntold | Beside::Uplink | Beside::UplinkMany => &test.beside,
        _ => &test.inside,
    };
    place.fork(LIMIT, || {
        pin(1)?;
        let start = Instant::now();
        let tried = match beside {
            Beside::Computing => {
                compute(length);
                0
            }
            Beside::SocketUntold | Beside::Socket => from_a_socket(start, length)?,
            Beside::SocketMany => to_many(start, length)?,
            Beside::UplinkUntold | Beside::Uplink => in_batches(start, length, 1)?,
            Beside::UplinkMany => in_batches(start, length, MANY)?,
        };
        Ok((tried, start.elapsed().as_secs_f64()))
    })
}

/// A connected socket's sends are judged as packets, one a system call.
fn from_a_socket(start: Instant, length: Duration) -> Result<u64> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect(SocketAddr::from((DENIED, 7000)))?;
    let mut tried = 0;
    while start.elapsed() < length {
        for _ in 0..64 {
            ensure!(socket.send(&[0; 8]).is_err(), "a forbidden datagram was sent");
        }
        tried += 64;
    }
    Ok(tried)
}

/// An unconnected socket's sends are judged by the system call's hook.
fn to_many(start: Instant, length: Duration) -> Result<u64> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    let (mut tried, mut port) = (0, 0);
    while start.elapsed() < length {
        for _ in 0..64 {
            port = port % MANY + 1;
            ensure!(socket.send_to(&[0; 8], (DENIED, port)).is_err(), "a forbidden datagram was sent");
        }
        tried += 64;
    }
    Ok(tried)
}

/// At the uplink a datagram is dropped behind the system call's back, so that one call sends many.
fn in_batches(start: Instant, length: Duration, ports: u16) -> Result<u64> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    let bytes = [0_u8; 8];
    let mut part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let mut addresses: Vec<_> = (0..BATCH).map(|_| sockaddr(SocketAddrV4::new(DENIED, 7000))).collect();
    let mut messages: Vec<libc::mmsghdr> = addresses
        .iter_mut()
        .map(|address| {
            // SAFETY: all-zero is a valid message header.
            let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
            message.msg_hdr.msg_name = (&raw mut *address).cast();
            message.msg_hdr.msg_namelen = size_of::<libc::sockaddr_in>() as u32;
            message.msg_hdr.msg_iov = &raw mut part;
            message.msg_hdr.msg_iovlen = 1;
            message
        })
        .collect();
    let (mut tried, mut port) = (0_u64, 0);
    while start.elapsed() < length {
        if ports > 1 {
            for address in &mut addresses {
                port = port % ports + 1;
                address.sin_port = port.to_be();
            }
        }
        // SAFETY: the headers point to addresses and bytes that outlive the call.
        let sent = unsafe { libc::sendmmsg(socket.as_raw_fd(), messages.as_mut_ptr(), BATCH as u32, 0) };
        // One that fails (ENOBUFS) was dropped at the uplink too, and ends its batch.
        tried += u64::try_from(sent).unwrap_or(1).max(1);
    }
    Ok(tried)
}

fn sockaddr(address: SocketAddrV4) -> libc::sockaddr_in {
    libc::sockaddr_in {
        sin_family: libc::AF_INET as u16,
        sin_port: address.port().to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(address.ip().octets()) },
        sin_zero: [0; 8],
    }
}
