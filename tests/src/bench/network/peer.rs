//! What is compared: the same node and world each time, and something that enforces (or nothing).
//!
//! Each is configured as its own documentation advises, and must be seen to enforce before it is timed.

use std::any::Any;
use std::fmt::Write as _;
use std::fs::File;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use egress_user::datapath::{
    Pins,
    sys::{self, AttachType},
};

use crate::bench::raw;
use crate::cgroup::Cgroup;
use crate::daemon::Daemon;
use crate::mntns::BPFFS;
use crate::place::Place;
use crate::probe;
use crate::servers::Service;
use crate::world::{DNS_V4, UPLINK, World};

/// Where the load goes, allowed by every peer.
pub const ALLOWED: &str = "203.0.113.10";
/// What no peer allows.
pub const DENIED: &str = "198.51.100.77";
/// TCP and UDP.
pub const PORT: u16 = 7000;
/// Where iperf3 listens.
pub const IPERF_PORT: u16 = 7001;
/// UDP, to a socket that nobody reads: its buffer fills, and the kernel drops the rest at once.
pub const SINK_PORT: u16 = 7002;
/// Protocol and port of all that every peer allows to [`ALLOWED`].
const OPEN: [(&str, u16); 4] = [("tcp", PORT), ("udp", PORT), ("tcp", IPERF_PORT), ("udp", SINK_PORT)];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Nothing,
    EmptyPrograms,
    /// The same, and programs that let every socket be made and connected.
    EmptyHooks,
    Egress,
    /// Without the cgroup's hooks of these names, which is not how it is meant to be: to tell what each takes.
    EgressWithout(&'static [&'static str]),
    /// A concatenated set in nftables, without connection tracking.
    NftSet,
    /// The same behind `ct state established,related accept`.
    NftConntrack,
    /// iptables with an ipset, behind `--ctstate ESTABLISHED,RELATED`, as its documentation has it.
    Ipset,
}

impl Kind {
    pub const ALL: [Self; 6] =
        [Self::Nothing, Self::EmptyPrograms, Self::Egress, Self::NftSet, Self::NftConntrack, Self::Ipset];

    /// What a connection's cost is made of.
    pub const PARTS: [Self; 7] = [
        Self::Nothing,
        Self::EmptyPrograms,
        Self::EmptyHooks,
        Self::EgressWithout(&["connect4"]),
        Self::EgressWithout(&["connect4", "socket_create"]),
        Self::EgressWithout(&["connect4", "socket_create", "sendmsg4", "socket_egress", "socket_ingress"]),
        Self::Egress,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::EmptyPrograms => "empty programs",
            Self::EmptyHooks => "empty programs and hooks",
            Self::Egress => "egress",
            Self::EgressWithout(&["connect4"]) => "egress without its connect hook",
            Self::EgressWithout(&["connect4", "socket_create"]) => "egress without both hooks",
            Self::EgressWithout(_) => "egress at the uplink alone",
            Self::NftSet => "nftables set",
            Self::NftConntrack => "nftables ct+set",
            Self::Ipset => "iptables+ipset",
        }
    }

    fn enforces(self) -> bool {
        match self {
            Self::Nothing | Self::EmptyPrograms | Self::EmptyHooks => false,
            // What the uplink's program finds in the cgroup it takes for judged there.
            Self::EgressWithout(hooks) => !hooks.contains(&"socket_egress"),
            Self::Egress | Self::NftSet | Self::NftConntrack | Self::Ipset => true,
        }
    }
}

/// A peer that is set up. Dropped in this order: what enforces goes before its node.
pub struct Peer {
    pub kind: Kind,
    /// What detaches when it is dropped.
    _guard: Option<Box<dyn Any>>,
    /// Where the load runs.
    pub inside: Place,
    _cgroup: Cgroup,
    _sink: UdpSocket,
    pub world: World,
}

impl Peer {
    /// Sets it up with `destinations` allowed ones besides those that the load uses.
    pub fn new(kind: Kind, destinations: u32) -> Result<Self> {
        let world = World::new()?;
        for at in ["0.0.0.0", "[::]"] {
            world.serve(Service::TcpEcho, &format!("{at}:{PORT}"))?;
        }
        world.serve(Service::UdpEcho, &format!("{DENIED}:{PORT}"))?;
        world.serve(Service::UdpEcho, &format!("{ALLOWED}:{PORT}"))?;
        let sink = world.world_ns.run(|| UdpSocket::bind((ALLOWED, SINK_PORT)))?;
        let cgroup = Cgroup::new("bench")?;
        let inside = world.node().in_cgroup(&cgroup);
        let mut guard: Option<Box<dyn Any>> = None;
        match kind {
            Kind::Nothing => {}
            Kind::EmptyPrograms => guard = Some(Box::new(empty_programs(&cgroup, &world)?)),
            Kind::EmptyHooks => {
                let mut links = empty_programs(&cgroup, &world)?;
                let directory = File::open(cgroup.path())?;
                for (hook, at) in raw::empty_hooks()? {
                    links.push(sys::link_create(hook.as_fd(), directory.as_raw_fd() as u32, at)?);
                }
                guard = Some(Box::new(links));
            }
            Kind::Egress => {
                let builder = Daemon::builder(&world).policy_text(&policy(destinations)).cgroup(&cgroup);
                guard = Some(Box::new(builder.start()?));
            }
            Kind::EgressWithout(hooks) => {
                let builder = Daemon::builder(&world).policy_text(&policy(destinations)).cgroup(&cgroup);
                let mut daemon = builder.start()?;
                // It would put back what it misses; enforcement outlives it.
                daemon.stop()?;
                let id = cgroup.id()?;
                world.mounts.run(|| {
                    let pins = Pins::new(Path::new(BPFFS));
                    hooks.iter().map(|hook| format!("cgroup-{id}-{hook}")).try_for_each(|pin| {
                        ensure!(pins.link(&pin).exists(), "there is no pinned link {pin}");
                        Ok(pins.detach(&pin)?)
                    })
                })?;
                guard = Some(Box::new(daemon));
            }
            Kind::NftSet => feed(&world, "nft", &["-f", "-"], &nftables(destinations, false))?,
            Kind::NftConntrack => feed(&world, "nft", &["-f", "-"], &nftables(destinations, true))?,
            Kind::Ipset => {
                feed(&world, "ipset", &["restore"], &ipset(destinations))?;
                feed(&world, "iptables-restore", &[], IPTABLES)?;
            }
        }
        let peer = Self { kind, _guard: guard, inside, _cgroup: cgroup, _sink: sink, world };
        peer.verify()?;
        Ok(peer)
    }

    /// Whether it lets through what it should, and only that.
    fn verify(&self) -> Result<()> {
        let reaches = |to: &str, tcp: bool| -> Result<bool> {
            let to = format!("{to}:{PORT}");
            Ok(if tcp { probe::tcp(&self.inside, &to)?.echoed } else { probe::udp(&self.inside, &to, 5)?.echoed })
        };
        for tcp in [true, false] {
            ensure!(reaches(ALLOWED, tcp)?, "{}: what is allowed does not pass", self.kind.name());
            let passes = reaches(DENIED, tcp)?;
            ensure!(passes != self.kind.enforces(), "{}: what is denied passes: {passes}", self.kind.name());
        }
        Ok(())
    }
}

/// Programs that let everything pass, where ours are: two at the cgroup, two at the uplink. Closing a link detaches it.
pub fn empty_programs(cgroup: &Cgroup, world: &World) -> Result<Vec<OwnedFd>> {
    let directory = File::open(cgroup.path()).with_context(|| format!("open {}", cgroup.path().display()))?;
    let (socket, link) = (raw::empty(raw::CGROUP_SKB)?, raw::empty(raw::CLASSIFIER)?);
    let mut links = Vec::new();
    for attach in [AttachType::CgroupIngress, AttachType::CgroupEgress] {
        links.push(sys::link_create(socket.as_fd(), directory.as_raw_fd() as u32, attach)?);
    }
    let index = world.node_ns.ifindex(UPLINK)?;
    for attach in [AttachType::TcxIngress, AttachType::TcxEgress] {
        links.push(world.node_ns.run(|| sys::link_create(link.as_fd(), index, attach))?);
    }
    Ok(links)
}

/// The n-th destination that is allowed besides those of the load, in 20.0.0.0/8.
fn destination(n: u32) -> Ipv4Addr {
    Ipv4Addr::from(0x1400_0000 + n)
}

/// A policy with `destinations` addresses more than the load needs.
pub fn policy(destinations: u32) -> String {
    let ports = OPEN.map(|(protocol, port)| format!("{port}/{protocol}"));
    let mut text = format!(
        "version: 1\nrules:\n  - {{name: load, to: [{ALLOWED}, '2001:db8::10'], ports: [{}]}}\n\
         \x20 - {{name: names, to: ['*.bench.example.com'], ports: [{PORT}/tcp]}}\n",
        ports.join(", ")
    );
    if destinations > 0 {
        text.push_str("  - name: many\n    ports: [443/tcp]\n    to:\n");
        for n in 0..destinations {
            let _ = writeln!(text, "      - {}", destination(n));
        }
    }
    text
}

/// <https://wiki.nftables.org/wiki-nftables/index.php/Concatenations>: address, protocol and port in one set.
fn nftables(destinations: u32, conntrack: bool) -> String {
    let mut elements = String::new();
    for (protocol, port) in OPEN {
        let _ = write!(elements, "{ALLOWED} . {protocol} . {port}, ");
    }
    for n in 0..destinations {
        let _ = write!(elements, "{} . tcp . 443, ", destination(n));
    }
    let established = if conntrack { "  ct state established,related accept\n" } else { "" };
    format!(
        "table inet bench {{\n set allowed {{\n  type ipv4_addr . inet_proto . inet_service\n  elements = {{ {elements} }}\n }}\n \
         chain out {{\n  type filter hook output priority filter; policy drop;\n  oifname \"lo\" accept\n{established}  \
         ip daddr {DNS_V4} udp dport 53 accept\n  ip daddr . meta l4proto . th dport @allowed accept\n  \
         icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert, nd-router-solicit }} accept\n }}\n}}\n"
    )
}

/// ipset(8), type `hash:ip,port`.
fn ipset(destinations: u32) -> String {
    let room = (destinations + 16).next_power_of_two();
    let mut text = format!("create allowed hash:ip,port family inet hashsize {room} maxelem {}\n", room * 2);
    for (protocol, port) in OPEN {
        let _ = writeln!(text, "add allowed {ALLOWED},{protocol}:{port}");
    }
    for n in 0..destinations {
        let _ = writeln!(text, "add allowed {},tcp:443", destination(n));
    }
    text
}

const IPTABLES: &str = "*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT DROP [0:0]
-A OUTPUT -o lo -j ACCEPT
-A OUTPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT
-A OUTPUT -m set --match-set allowed dst,dst -j ACCEPT
-A OUTPUT -d 203.0.113.53/32 -p udp -m udp --dport 53 -j ACCEPT
COMMIT
";

fn feed(world: &World, program: &str, args: &[&str], input: &str) -> Result<()> {
    let mut command: Command = world.node().command(program);
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("start {program}: is its Debian package installed?"))?;
    child.stdin.take().context("stdin")?.write_all(input.as_bytes())?;
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!("{program} refused its configuration: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// An address of the load.
pub fn allowed(port: u16) -> SocketAddr {
    SocketAddr::new(ALLOWED.parse().expect("an address"), port)
}
