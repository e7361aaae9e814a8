//! Which resolvers are trusted, and where their answers are believed.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
};

use egress_ebpf::abi::{LEARN_AT_CGROUP, LEARN_AT_UPLINK, LEARN_BY_LOOPBACK, ResolverTrust};

use super::{Core, state::lock};
use crate::{
    datapath::{Resolver, WORKLOAD_HOOK},
    policy::{Compiled, Resolvers},
    resolve::system::SystemResolvers,
};

/// Where answers can be believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Believe {
    /// At the uplinks, where no workload can forge an arrival; of resolvers on this node at the cgroup.
    AtUplinks,
    /// At the cgroup alone, since no uplink is governed.
    AtCgroup,
}

/// The trusted resolvers of a policy: its own, or the system's with those that a local stub asks in its turn.
pub fn resolvers(policy: &Compiled, system: Option<&SystemResolvers>, believe: Believe) -> Vec<Resolver> {
    let local = local_addresses();
    let mut trusted: Vec<Resolver> = Vec::new();
    let mut add = |address: SocketAddr| {
        let address = SocketAddr::new(address.ip().to_canonical(), address.port());
        if !trusted.iter().any(|known| known.address == address) {
            trusted.push(Resolver { address, trust: trust(address.ip(), &local, believe) });
        }
    };
    match (&policy.dns.resolvers, system) {
        (Resolvers::Addresses(addresses), _) => addresses.iter().copied().for_each(&mut add),
        (Resolvers::System, Some(system)) => {
            system.asked.iter().chain(&system.upstreams).copied().for_each(&mut add);
        }
        (Resolvers::System, None) => {}
    }
    trusted
}

fn trust(address: IpAddr, local: &[IpAddr], believe: Believe) -> ResolverTrust {
    if address.is_loopback() || local.contains(&address) {
        return LEARN_AT_CGROUP | LEARN_BY_LOOPBACK;
    }
    match believe {
        Believe::AtUplinks => LEARN_AT_UPLINK,
        Believe::AtCgroup => LEARN_AT_CGROUP,
    }
}

fn local_addresses() -> Vec<IpAddr> {
    addresses().map(|(_, address)| address).collect()
}

/// The addresses of this network namespace, each with its interface.
fn addresses() -> impl Iterator<Item = (String, IpAddr)> {
    nix::ifaddrs::getifaddrs().into_iter().flatten().filter_map(|interface| {
        let address = interface.address?;
        let address = address
            .as_sockaddr_in()
            .map(|address| IpAddr::from(address.ip()))
            .or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::from(address.ip())))?;
        Some((interface.interface_name, address))
    })
}

/// The interfaces that have the address which packets to this one come from; none where there is no way to it, or loopback has that address,
/// which tells nothing. Nothing is sent.
fn interfaces_to(to: SocketAddr) -> Vec<String> {
    let any = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { IpAddr::from(Ipv6Addr::UNSPECIFIED) };
    let from = UdpSocket::bind((any, 0)).and_then(|socket| {
        socket.connect(to)?;
        socket.local_addr()
    });
    let Ok(from) = from else { return Vec::new() };
    addresses().filter(|(name, address)| *address == from.ip() && name != "lo").map(|(name, _)| name).collect()
}

impl Core {
    /// Tells of resolvers whose answers are believed at uplinks and come by an interface that is none.
    pub(super) fn note_resolvers(&self) {
        let active = self.active();
        let believed = active.settings.resolvers.iter().filter(|resolver| resolver.trust & LEARN_AT_UPLINK != 0);
        let ways: Vec<_> = believed.map(|resolver| (resolver.address, interfaces_to(resolver.address))).collect();
        let attached = lock(&self.attached);
        let judges = |hook: &str| hook.starts_with("uplink_") || hook == WORKLOAD_HOOK;
        let governed: BTreeSet<_> =
            attached.iter().filter(|point| judges(point.hook)).map(|point| point.target.clone()).collect();
        drop(attached);
        // What a bridge gets comes by its ports.
        let hears = |name: &String| {
            governed.contains(name) || std::path::Path::new(&format!("/sys/class/net/{name}/bridge")).exists()
        };
        let deaf = ways.into_iter().find(|(_, names)| !names.is_empty() && !names.iter().any(hears));
        let note = deaf.map(|(resolver, names)| {
            format!(
                "nothing is learned from what resolver {resolver} answers: it comes by {}, which is not governed; name it beside the \
                 others, `--interface`",
                names.join(", ")
            )
        });
        self.set_note("ways to resolvers", note);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stub_is_believed_by_loopback_and_a_remote_resolver_at_the_uplinks() {
        let remote: IpAddr = "192.0.2.53".parse().unwrap();
        let local: IpAddr = "198.51.100.1".parse().unwrap();
        assert_eq!(trust(remote, &[local], Believe::AtUplinks), LEARN_AT_UPLINK);
        assert_eq!(trust(remote, &[local], Believe::AtCgroup), LEARN_AT_CGROUP);
        for here in [local, IpAddr::from([127, 0, 0, 53])] {
            assert_eq!(trust(here, &[local], Believe::AtUplinks), LEARN_AT_CGROUP | LEARN_BY_LOOPBACK);
        }
    }
}
