//! DNS lookups: straight to unbound, with Egress reading along, and through a proxy on the node that fills a set.
//!
//! dnsmasq stands for the proxies that others put in the path: it forwards every query, without a cache of its own, and
//! writes the answers' addresses into an nftables set (dnsmasq(8), `--nftset`).

use std::net::UdpSocket;
use std::os::fd::OwnedFd;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use serde::Serialize;

use super::load::Metric;
use crate::bench::processor;
use crate::bench::statistics::{Spread, quantile};
use crate::cgroup::Cgroup;
use crate::daemon::Daemon;
use crate::model::dns_query;
use crate::place::Place;
use crate::resolvers::Resolver;
use crate::world::{NODE_V4, World};

const RUN: Duration = Duration::from_millis(600);
const NAMES: u32 = 100;
/// Lookups that are on their way at once where they are counted.
const AT_ONCE: u32 = 16;
/// Where unbound listens, in the world.
const UNBOUND: &str = "203.0.113.99";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Direct,
    /// Programs that let everything pass, where ours are.
    Empty,
    Egress,
    Proxy,
}

impl Kind {
    pub const ALL: [Self; 4] = [Self::Direct, Self::Empty, Self::Egress, Self::Proxy];

    pub fn name(self) -> &'static str {
        match self {
            Self::Direct => "nothing",
            Self::Empty => "empty programs",
            Self::Egress => "egress",
            Self::Proxy => "dnsmasq+nftables",
        }
    }
}

/// What a lookup takes of a processor in the process that stands in its path.
#[derive(Debug, Clone, Serialize)]
pub struct Spent {
    pub peer: &'static str,
    /// Microseconds of each lookup.
    pub each: Spread,
}

/// What one run measured.
pub struct Round {
    pub figures: Vec<(Metric, f64)>,
    /// Microseconds of a processor that each lookup took in what stands in its path, if that is a process.
    pub spent: Option<f64>,
}

/// Dropped in this order: what is in the path, then the resolver, then its world.
pub struct Way {
    daemon: Option<Daemon>,
    _empty: Option<Vec<OwnedFd>>,
    proxy: Option<Child>,
    inside: Place,
    asks: String,
    _cgroup: Cgroup,
    _unbound: Resolver,
    _world: World,
}

impl Way {
    pub fn new(kind: Kind) -> Result<Self> {
        let world = World::new()?;
        for n in 0..NAMES {
            world.dns.set_text(&format!("n{n}.bench.example.com"), 3600, &[&format!("20.2.0.{n}")]);
        }
        let unbound = Resolver::unbound(&world, UNBOUND)?;
        let cgroup = Cgroup::new("bench")?;
        let inside = world.node().in_cgroup(&cgroup);
        let (mut daemon, mut empty, mut proxy) = (None, None, None);
        let mut asks = UNBOUND.to_owned();
        match kind {
            Kind::Direct => {}
            Kind::Empty => empty = Some(super::peer::empty_programs(&cgroup, &world)?),
            Kind::Egress => {
                let builder = Daemon::builder(&world).policy_text(&super::peer::policy(100)).cgroup(&cgroup);
                daemon = Some(builder.resolvers(&[UNBOUND]).start()?);
            }
            Kind::Proxy => {
                proxy = Some(start_proxy(&world)?);
                asks = NODE_V4.to_owned();
            }
        }
        let way = Self {
            daemon,
            _empty: empty,
            proxy,
            inside,
            asks: format!("{asks}:53"),
            _cgroup: cgroup,
            _unbound: unbound,
            _world: world,
        };
        way.warm()?;
        Ok(way)
    }

    /// Asks for every name once, so that unbound has them all; waits for the first answer.
    fn warm(&self) -> Result<()> {
        let asks = self.asks.clone();
        self.inside.fork(Duration::from_secs(20), || {
            let socket = socket(&asks)?;
            let start = Instant::now();
            while lookup(&socket, 0).is_err() {
                if start.elapsed() > Duration::from_secs(10) {
                    bail!("{asks} does not answer");
                }
                std::thread::sleep(Duration::from_millis(50));
            }
            (0..NAMES).try_for_each(|n| lookup(&socket, n).map(drop))
        })
    }

    /// One run.
    pub fn measure(&self) -> Result<Round> {
        let path = self.daemon.as_ref().map(Daemon::pid).or_else(|| self.proxy.as_ref().map(Child::id));
        let spent = || path.map(processor::time).transpose();
        let before = spent()?;
        let asks = self.asks.clone();
        let (took, together) = self.inside.fork(Duration::from_secs(20), || {
            let socket = socket(&asks)?;
            let (start, mut took) = (Instant::now(), Vec::new());
            while start.elapsed() < RUN {
                took.push(lookup(&socket, took.len() as u32 % NAMES)?);
            }
            Ok((took, together(&socket)?))
        })?;
        // What the daemon hears late is its work too: answers are gathered for some milliseconds.
        std::thread::sleep(Duration::from_millis(20));
        let lookups = took.len() as f64 + f64::from(together);
        let spent = before.zip(spent()?).map(|(before, after)| (after - before) * 1e6 / lookups);
        let figures = vec![
            (Metric::Lookup50, quantile(&took, 0.5)),
            (Metric::Lookup99, quantile(&took, 0.99)),
            (Metric::Lookups, f64::from(together) / RUN.as_secs_f64()),
        ];
        Ok(Round { figures, spent })
    }
}

impl Drop for Way {
    fn drop(&mut self) {
        if let Some(proxy) = &mut self.proxy {
            let _ = proxy.kill();
            let _ = proxy.wait();
        }
    }
}

fn socket(asks: &str) -> Result<UdpSocket> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect(asks)?;
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    Ok(socket)
}

/// Microseconds of one lookup.
fn lookup(socket: &UdpSocket, n: u32) -> Result<f64> {
    let query = query(n);
    let start = Instant::now();
    socket.send(&query)?;
    answered(socket)?;
    Ok(start.elapsed().as_nanos() as f64 / 1000.0)
}

/// How many lookups are answered within a run, with [`AT_ONCE`] on their way.
fn together(socket: &UdpSocket) -> Result<u32> {
    let queries: Vec<Vec<u8>> = (0..NAMES).map(query).collect();
    let (start, mut asked, mut heard) = (Instant::now(), 0, 0);
    while start.elapsed() < RUN {
        while asked - heard < AT_ONCE {
            // Those on their way at once are told apart by their ids (RFC 1035, section 4.1.1).
            let mut query = queries[(asked % NAMES) as usize].clone();
            query[..2].copy_from_slice(&(asked as u16).to_be_bytes());
            socket.send(&query)?;
            asked += 1;
        }
        answered(socket)?;
        heard += 1;
    }
    let counted = heard;
    while heard < asked {
        answered(socket)?;
        heard += 1;
    }
    Ok(counted)
}

fn query(n: u32) -> Vec<u8> {
    dns_query(&format!("n{n}.bench.example.com"))
}

/// Waits for an answer that has an address.
fn answered(socket: &UdpSocket) -> Result<()> {
    let mut answer = [0; 512];
    let length = socket.recv(&mut answer).context("no answer within a second")?;
    // NOERROR, and at least one answer record (RFC 1035, section 4.1.1).
    if length < 12 || answer[3] & 15 != 0 || answer[7] == 0 {
        bail!("a name of the bench has no address");
    }
    Ok(())
}

fn start_proxy(world: &World) -> Result<Child> {
    let table = "add table inet bench; add set inet bench names { type ipv4_addr; flags timeout; }";
    let run = world.node().run("nft", &[table], Duration::from_secs(5))?;
    if !run.ok() {
        bail!("nft refused the set: {}", run.stderr);
    }
    let mut command = world.node().command("dnsmasq");
    command.args(["--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--bind-interfaces"]);
    command.args(["--user=root", "--pid-file=", "--log-facility=-", "--cache-size=0"]);
    command.args([&format!("--server={UNBOUND}"), &format!("--listen-address={NODE_V4}")]);
    command.arg("--nftset=/bench.example.com/4#inet#bench#names");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().context("start dnsmasq: is its Debian package installed?")
}
