//! DNS lookups: straight to unbound, with Egress reading along, and through a proxy on the node that fills a set.
//!
//! dnsmasq stands for the proxies that others put in the path: it forwards every query, without a cache of its own, and
//! writes the answers' addresses into an nftables set (dnsmasq(8), `--nftset`).

use std::net::UdpSocket;
use std::os::fd::OwnedFd;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::load::Metric;
use crate::bench::statistics::quantile;
use crate::cgroup::Cgroup;
use crate::daemon::Daemon;
use crate::model::dns_query;
use crate::place::Place;
use crate::resolvers::Resolver;
use crate::world::{NODE_V4, World};

const RUN: Duration = Duration::from_millis(600);
const NAMES: u32 = 100;
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

/// Dropped in this order: what is in the path, then the resolver, then its world.
pub struct Way {
    _daemon: Option<Daemon>,
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
            _daemon: daemon,
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

    pub fn measure(&self) -> Result<Vec<(Metric, f64)>> {
        let asks = self.asks.clone();
        let took = self.inside.fork(Duration::from_secs(20), || {
            let socket = socket(&asks)?;
            let (start, mut took) = (Instant::now(), Vec::new());
            while start.elapsed() < RUN {
                took.push(lookup(&socket, took.len() as u32 % NAMES)?);
            }
            Ok(took)
        })?;
        Ok(vec![(Metric::Lookup50, quantile(&took, 0.5)), (Metric::Lookup99, quantile(&took, 0.99))])
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
    let query = dns_query(&format!("n{n}.bench.example.com"));
    let mut answer = [0; 512];
    let start = Instant::now();
    socket.send(&query)?;
    let length = socket.recv(&mut answer).context("no answer within a second")?;
    let took = start.elapsed().as_nanos() as f64 / 1000.0;
    // NOERROR, and at least one answer record (RFC 1035, section 4.1.1).
    if length < 12 || answer[3] & 15 != 0 || answer[7] == 0 {
        bail!("n{n}.bench.example.com has no address");
    }
    Ok(took)
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
