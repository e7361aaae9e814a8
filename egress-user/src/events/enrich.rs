//! From the kernel's record to an [`Event`]: names, processes, cgroups, containers, the wall clock.

use std::{
    collections::{HashMap, VecDeque},
    net::IpAddr,
    os::fd::BorrowedFd,
    path::PathBuf,
};

use egress_ebpf::{
    abi::{self, DropEvent, LearnedEvent, NAME_KEY, NEVER, PROTO_ICMP, PROTO_ICMPV6, PROTO_TCP, PROTO_UDP, TICK_SHIFT},
    reason::Reason,
};

use super::{
    CgroupPaths, Clock, Event, Hook, Icmp, Kind, LearnedAddress, LearnedName, RawEvent, Refusal, Verdict, Workload,
    escape, pods::Pods, process::Processes,
};

/// Where the enricher looks; tests give it directories of their own.
#[derive(Clone, Debug)]
pub struct Roots {
    /// Where procfs is mounted.
    pub proc: PathBuf,
    /// Where cgroup v2 is mounted.
    pub cgroup: PathBuf,
    /// Where the kubelet keeps its pods' logs.
    pub pods: PathBuf,
    /// The name of an interface of the initial network namespace, by its index.
    pub interface: fn(u32) -> Option<String>,
}

impl Roots {
    /// This machine's, with cgroup v2 mounted at `cgroup`.
    pub fn host(cgroup: impl Into<PathBuf>) -> Self {
        Self { proc: "/proc".into(), cgroup: cgroup.into(), pods: "/var/log/pods".into(), interface: interface_name }
    }
}

fn interface_name(index: u32) -> Option<String> {
    nix::net::if_::if_indextoname(index).ok().map(|name| escape(name.to_bytes()))
}

/// What the policy and the resolver know beyond the record.
pub trait Known {
    /// The names that `address` has now, or had.
    fn names(&self, _address: IpAddr) -> Vec<String> {
        Vec::new()
    }
    /// The deny rule that closes a destination. `protocol` is an IP protocol number, `port` 0 where there is none.
    fn deny_rule(&self, _destination: IpAddr, _protocol: u8, _port: u16) -> Option<String> {
        None
    }
    /// The rules that have a name, or a pattern that matches it.
    fn name_rules(&self, _name: &str) -> Vec<String> {
        Vec::new()
    }
}

/// Knows nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Nothing;

impl Known for Nothing {}

/// Adds to a record what the kernel does not put there. Reads `/proc` and the cgroup tree: call it on a thread that may
/// block. What is gone by then is left out, never an error.
#[derive(Debug)]
pub struct Enricher {
    interface: fn(u32) -> Option<String>,
    cgroups: CgroupPaths,
    pods: Pods,
    processes: Processes,
    names: Names,
}

impl Enricher {
    /// An enricher that has seen nothing yet.
    pub fn new(roots: Roots) -> Self {
        Self {
            interface: roots.interface,
            cgroups: CgroupPaths::new(roots.cgroup),
            pods: Pods::new(roots.pods),
            processes: Processes::new(roots.proc),
            names: Names::default(),
        }
    }

    /// Hears of new cgroups from now on, so that those of short-lived containers are known: [`Enricher::hear`].
    pub fn watch(&mut self) {
        self.cgroups.watch();
    }

    /// What becomes readable when there is something to [`hear`](Self::hear) of.
    pub fn watched(&self) -> Option<BorrowedFd<'_>> {
        self.cgroups.watched()
    }

    /// Notes new cgroups. Never blocks.
    pub fn hear(&mut self) {
        self.cgroups.hear();
    }

    /// The event of a record.
    pub fn enrich(&mut self, raw: &RawEvent, known: &dyn Known) -> Event {
        self.enrich_at(raw, known, &Clock::now())
    }

    /// The same, with the clocks given.
    pub fn enrich_at(&mut self, raw: &RawEvent, known: &dyn Known, clock: &Clock) -> Event {
        match raw {
            RawEvent::Drop(event) => {
                let refusal = Box::new(self.refusal(event, known, clock));
                let kind = match refusal.verdict {
                    Verdict::Drop => Kind::Dropped(refusal),
                    Verdict::Pass => Kind::WouldDrop(refusal),
                };
                Event::new(clock.wall(event.time), kind)
            }
            RawEvent::Learned(event) => {
                let learned = learned(event, known);
                for address in &learned.addresses {
                    self.names.remember(address.address, &learned.name);
                }
                Event::new(clock.wall(event.time), Kind::Learned(learned))
            }
        }
    }

    fn refusal(&mut self, event: &DropEvent, known: &dyn Known, clock: &Clock) -> Refusal {
        let hook = Hook::from_number(event.hook);
        let ip = event.ethertype == 0 && hook != Hook::Lsm;
        let destination = ip.then(|| address(event.destination)).filter(|address| {
            // A packet that could not be parsed as far as its destination.
            !(address.is_unspecified() && event.reason == Reason::Malformed as u8)
        });
        let is_icmp = ip && matches!(event.proto, PROTO_ICMP | PROTO_ICMPV6);
        let has_ports = ip && !is_icmp && event.destination_port != 0;
        let [icmp_type, icmp_code] = event.destination_port.to_be_bytes();
        let process = self.processes.find(&event.process, event.time, clock);
        let (processes, pid) = (&self.processes, event.process.pid);
        let cgroup = self.cgroups.path_with_hint(event.cgroup, || (pid != 0).then(|| processes.cgroup(pid)).flatten());
        let workload = cgroup.as_deref().map(Workload::of_cgroup).unwrap_or_default();
        let pod = workload.pod_uid.as_deref().and_then(|uid| self.pods.find(uid));
        let (pod_namespace, pod_name) = pod.map(|pod| (pod.namespace, pod.name)).unzip();
        // Elsewhere the index belongs to the workload's network namespace, where another interface may have it.
        let on_host = matches!(hook, Hook::UplinkEgress | Hook::UplinkIngress | Hook::WorkloadIngress);
        let denied = event.reason == Reason::Denied as u8;
        Refusal {
            verdict: if event.enforced == 0 { Verdict::Pass } else { Verdict::Drop },
            reason: Reason::from_number(event.reason)
                .map_or_else(|| format!("reason-{}", event.reason), |reason| reason.name().to_owned()),
            hook,
            protocol: if event.ethertype != 0 {
                format!("ethertype-{:#06x}", event.ethertype)
            } else if ip {
                protocol(event.proto)
            } else {
                "socket".to_owned()
            },
            source: ip.then(|| address(event.source)).filter(|address| !address.is_unspecified()),
            source_port: (has_ports && event.source_port != 0).then_some(event.source_port),
            destination,
            destination_port: has_ports.then_some(event.destination_port),
            icmp: is_icmp.then_some(Icmp { kind: icmp_type, code: icmp_code }),
            names: destination.map(|address| self.names.of(address, known)).unwrap_or_default(),
            query: (event.name_len != 0).then(|| name(&event.name, event.name_len)),
            rule: destination
                .filter(|_| denied)
                .and_then(|to| known.deny_rule(to, event.proto, if has_ports { event.destination_port } else { 0 })),
            process,
            container: workload.container,
            pod_uid: workload.pod_uid,
            pod_namespace,
            pod_name,
            cgroup,
            cgroup_id: (event.cgroup != 0).then_some(event.cgroup),
            netns: (event.netns != 0).then_some(event.netns),
            interface: (on_host && event.ifindex != 0).then(|| (self.interface)(event.ifindex)).flatten(),
            interface_index: (event.ifindex != 0).then_some(event.ifindex),
            bytes: event.len,
            generation: event.generation,
            count: event.count,
        }
    }
}

fn learned(event: &LearnedEvent, known: &dyn Known) -> LearnedName {
    let addresses = event.addresses.iter().take(usize::from(event.count)).map(|learned| LearnedAddress {
        address: address(learned.address),
        ttl: learned.ttl,
        seconds_left: (learned.expiry != NEVER).then(|| {
            let end = u64::from(learned.expiry) << TICK_SHIFT;
            u32::try_from(end.saturating_sub(event.time) / 1_000_000_000).unwrap_or(u32::MAX)
        }),
    });
    let name = name(&event.key.name, u16::try_from(event.key.len).unwrap_or(u16::MAX));
    LearnedName {
        resolver: address(event.resolver),
        resolver_port: event.resolver_port,
        rcode: event.rcode,
        addresses: addresses.collect(),
        refused: u32::from(event.refused),
        rules: known.name_rules(&name),
        name,
        generation: event.generation,
        count: event.answers,
    }
}

/// IPv4-mapped addresses are IPv4 ones.
fn address(address: abi::Address) -> IpAddr {
    IpAddr::from(address)
}

/// The kernel keeps names reversed; a length beyond the field is cut.
fn name(bytes: &[u8], len: u16) -> String {
    let mut bytes = bytes[..usize::from(len).min(NAME_KEY)].to_vec();
    bytes.reverse();
    escape(&bytes)
}

/// IANA's keyword for a protocol number, in lower case, for those that turn up.
fn protocol(number: u8) -> String {
    let known = match number {
        PROTO_ICMP => "icmp",
        2 => "igmp",
        4 => "ipip",
        PROTO_TCP => "tcp",
        PROTO_UDP => "udp",
        41 => "ipv6",
        47 => "gre",
        50 => "esp",
        51 => "ah",
        PROTO_ICMPV6 => "icmpv6",
        132 => "sctp",
        136 => "udplite",
        other => return other.to_string(),
    };
    known.to_owned()
}

/// Addresses whose names are remembered after they expired: the oldest go first. Few, since [`Known`] remembers the others for a while.
const ADDRESSES: usize = 4096;
/// Names of one address.
const NAMES: usize = 8;

/// The names that addresses had, so that a drop after the expiry still tells what it was about.
#[derive(Debug, Default)]
struct Names {
    by_address: HashMap<IpAddr, Vec<String>>,
    order: VecDeque<IpAddr>,
}

impl Names {
    fn remember(&mut self, address: IpAddr, name: &str) {
        if !self.by_address.contains_key(&address) {
            if self.order.len() >= ADDRESSES
                && let Some(oldest) = self.order.pop_front()
            {
                self.by_address.remove(&oldest);
            }
            self.order.push_back(address);
        }
        let names = self.by_address.entry(address).or_default();
        if names.first().is_some_and(|known| known == name) {
            return;
        }
        names.retain(|known| known != name);
        names.insert(0, name.to_owned());
        names.truncate(NAMES);
    }

    fn of(&self, address: IpAddr, known: &dyn Known) -> Vec<String> {
        let mut names = self.by_address.get(&address).cloned().unwrap_or_default();
        for name in known.names(address) {
            let name = escape(name.as_bytes());
            if names.len() < NAMES && !names.contains(&name) {
                names.push(name);
            }
        }
        names
    }
}
