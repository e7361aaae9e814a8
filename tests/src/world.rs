//! The topology: a node whose uplink leads to a world that owns every address the test needs.
//!
//! ```text
//! pod (10.244.0.2) -- node -- up0 192.0.2.10 ---- 192.0.2.1 world (lo: LOCAL_PREFIXES, all of them)
//! ```
//! The world answers for whole prefixes ("AnyIP"), so a server binds to any address in them without configuration.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use tokio::runtime::{Builder, Runtime};

use crate::cgroup::Cgroup;
use crate::dns::Dns;
use crate::mntns::MountNs;
use crate::netns::{NetNs, unique_name};
use crate::place::Place;
use crate::servers::{Hits, Service, serve};
use crate::sniffer::Sniffer;
use crate::tls::Authority;

pub const UPLINK: &str = "up0";
pub const NODE_V4: &str = "192.0.2.10";
pub const NODE_V6: &str = "3fff:0:0:1::10";
pub const GATEWAY_V4: &str = "192.0.2.1";
pub const GATEWAY_V6: &str = "3fff:0:0:1::1";
/// The trusted resolver.
pub const DNS_V4: &str = "203.0.113.53";
pub const DNS_V6: &str = "2001:db8::53";
pub const POD_V4: &str = "10.244.0.2";
pub const POD_V6: &str = "fd00:244::2";
/// The node's end of the pod's veth.
pub const POD_VETH: &str = "vpod0";

/// What the world answers for: documentation prefixes, and public ones as the real services have them.
pub const LOCAL_PREFIXES: [&str; 16] = [
    "203.0.113.0/24",
    "198.51.100.0/24",
    "20.0.0.0/8",
    "40.64.0.0/10",
    "13.224.0.0/14",
    "185.199.108.0/22",
    "13.64.0.0/11",
    "8.8.8.0/24",
    "9.9.9.0/24",
    "91.189.88.0/21",
    "168.63.129.16/32",
    "169.254.169.254/32",
    "2001:db8::/32",
    "2603:1000::/24",
    "2620:1ec::/36",
    "2606:50c0:8000::/36",
];

/// A node and its world. Everything goes when this is dropped.
#[derive(Debug)]
pub struct World {
    /// The trusted resolver, at [`DNS_V4`] and [`DNS_V6`].
    pub dns: Dns,
    /// What arrives in the world from the node.
    pub sniffer: Sniffer,
    /// Who reached the servers of [`World::serve`].
    pub hits: Hits,
    pub node_ns: NetNs,
    pub world_ns: NetNs,
    pub pod_ns: Option<NetNs>,
    pub mounts: MountNs,
    authority: Authority,
    runtime: Option<Runtime>,
    dir: tempfile::TempDir,
}

impl World {
    /// Node and world, joined, with the resolver running and named in the node's resolv.conf. Needs root.
    pub fn new() -> Result<Self> {
        let dir = tempfile::Builder::new().prefix(&unique_name("files-")).tempdir()?;
        let node_ns = NetNs::new("node")?;
        let world_ns = NetNs::new("world")?;
        let (near, far) = (
            [format!("{NODE_V4}/24"), format!("{NODE_V6}/64")],
            [format!("{GATEWAY_V4}/24"), format!("{GATEWAY_V6}/64")],
        );
        node_ns.veth(UPLINK, &[&near[0], &near[1]], &world_ns, "wup0", &[&far[0], &far[1]])?;
        node_ns.ip(&format!(
            "route add default via {GATEWAY_V4} dev {UPLINK}\nroute add default via {GATEWAY_V6} dev {UPLINK}"
        ))?;
        let local: String = LOCAL_PREFIXES.iter().map(|prefix| format!("route add local {prefix} dev lo\n")).collect();
        world_ns.ip(&local)?;
        for (key, value) in [
            ("ipv4/ip_nonlocal_bind", "1"),
            ("ipv6/ip_nonlocal_bind", "1"),
            ("ipv6/bindv6only", "1"),
            ("ipv4/ip_forward", "1"),
            ("ipv6/conf/all/forwarding", "1"),
            // Errors about closed ports must come at once and always: a client's result depends on them.
            ("ipv4/icmp_ratelimit", "0"),
            ("ipv6/icmp/ratelimit", "0"),
        ] {
            world_ns.sysctl(key, value)?;
        }
        let sniffer = Sniffer::new(&world_ns)?;
        let mounts = MountNs::new(dir.path(), &node_ns)?;
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let dns = Dns::default();
        for at in [DNS_V4, DNS_V6] {
            dns.listen(&world_ns, runtime.handle(), SocketAddr::new(at.parse()?, 53))?;
        }
        let authority = Authority::new()?;
        std::fs::write(dir.path().join("ca.pem"), authority.pem())?;
        let runtime = Some(runtime);
        let (hits, pod_ns) = (Hits::default(), None);
        let world = Self { dns, sniffer, hits, node_ns, world_ns, pod_ns, mounts, authority, runtime, dir };
        world.set_resolvers(&[DNS_V4])?;
        Ok(world)
    }

    /// The same with a pod behind the node: a namespace that the node forwards for, without translation.
    pub fn with_pod() -> Result<Self> {
        let mut world = Self::new()?;
        let pod = NetNs::new("pod")?;
        let (near, far) = (["10.244.0.1/24", "fd00:244::1/64"], [format!("{POD_V4}/24"), format!("{POD_V6}/64")]);
        world.node_ns.veth(POD_VETH, &near, &pod, "eth0", &[&far[0], &far[1]])?;
        pod.ip("route add default via 10.244.0.1\nroute add default via fd00:244::1")?;
        world.node_ns.sysctl("ipv4/ip_forward", "1")?;
        world.node_ns.sysctl("ipv6/conf/all/forwarding", "1")?;
        world.world_ns.ip(&format!("route add 10.244.0.0/24 via {NODE_V4}\nroute add fd00:244::/64 via {NODE_V6}"))?;
        world.pod_ns = Some(pod);
        Ok(world)
    }

    /// Adds an uplink `up<n>` (n from 1) to the running node, `198.18.<n>.10/24` and `3fff:0:1:<n>::10/64`, with no
    /// route by it; the world has `.1` and `::1`.
    pub fn add_uplink(&self, n: u8) -> Result<String> {
        let name = format!("up{n}");
        let near = [format!("198.18.{n}.10/24"), format!("3fff:0:1:{n}::10/64")];
        let far = [format!("198.18.{n}.1/24"), format!("3fff:0:1:{n}::1/64")];
        self.node_ns.veth(&name, &[&near[0], &near[1]], &self.world_ns, &format!("wup{n}"), &[&far[0], &far[1]])?;
        Ok(name)
    }

    /// Processes on the node: its network, resolv.conf and bpffs, no cgroup of its own yet.
    #[must_use]
    pub fn node(&self) -> Place {
        Place::new(&self.node_ns).with_mounts(&self.mounts)
    }

    /// Processes out in the world.
    #[must_use]
    pub fn outside(&self) -> Place {
        Place::new(&self.world_ns)
    }

    /// Processes in the pod, with the node's resolv.conf.
    ///
    /// # Panics
    /// Without a pod ([`World::with_pod`]).
    #[must_use]
    pub fn pod(&self) -> Place {
        Place::new(self.pod_ns.as_ref().expect("the world was made by with_pod")).with_mounts(&self.mounts)
    }

    /// A cgroup for what is governed, and the node's place in it.
    pub fn governed(&self, role: &str) -> Result<(Cgroup, Place)> {
        let cgroup = Cgroup::new(role)?;
        let place = self.node().in_cgroup(&cgroup);
        Ok((cgroup, place))
    }

    /// Starts a server in the world; `at` is `ADDR:PORT` or `[ADDR]:PORT`.
    pub fn serve(&self, service: Service, at: &str) -> Result<()> {
        let at = at.parse().with_context(|| format!("`{at}` is not ADDR:PORT"))?;
        serve(&self.world_ns, self.runtime(), service, at, &self.authority, &self.hits)
    }

    /// Starts TCP and UDP echo servers in the world, at each `ADDR:PORT`.
    pub fn serve_echoes(&self, at: &[&str]) -> Result<()> {
        at.iter().try_for_each(|at| {
            self.serve(Service::TcpEcho, at)?;
            self.serve(Service::UdpEcho, at)
        })
    }

    /// Starts a server on every IPv4 and IPv6 address of the world (TCP services).
    pub fn serve_everywhere(&self, service: Service, port: u16) -> Result<()> {
        self.serve(service, &format!("0.0.0.0:{port}"))?;
        self.serve(service, &format!("[::]:{port}"))
    }

    /// Starts another DNS server in the world, with a table of its own: a resolver that nobody trusts.
    pub fn other_dns(&self, at: &str) -> Result<Dns> {
        let dns = Dns::default();
        dns.listen(&self.world_ns, self.runtime(), SocketAddr::new(at.parse()?, 53))?;
        Ok(dns)
    }

    /// Writes the node's resolv.conf: these resolvers, two tries of one second.
    pub fn set_resolvers(&self, addresses: &[&str]) -> Result<()> {
        let lines: String = addresses.iter().map(|address| format!("nameserver {address}\n")).collect();
        self.mounts.set_resolv_conf(&(lines + "options timeout:1 attempts:2\n"))
    }

    /// The authority's certificate as a file, for `curl --cacert`.
    #[must_use]
    pub fn ca_file(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    /// A directory of the world's own, seen from the node too.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The runtime of the servers.
    ///
    /// # Panics
    /// Never: it is there until drop.
    #[must_use]
    pub fn runtime(&self) -> &tokio::runtime::Handle {
        self.runtime.as_ref().expect("the runtime lives as long as the world").handle()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Without waiting: its sockets keep the world's namespace until they close.
            runtime.shutdown_background();
        }
    }
}
