//! Which resolvers are trusted, and where their answers are believed.

use std::net::{IpAddr, SocketAddr};

use egress_ebpf::abi::{LEARN_AT_CGROUP, LEARN_AT_UPLINK, LEARN_BY_LOOPBACK, ResolverTrust};

use crate::{
    datapath::Resolver,
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
    nix::ifaddrs::getifaddrs()
        .into_iter()
        .flatten()
        .filter_map(|interface| {
            let address = interface.address?;
            address
                .as_sockaddr_in()
                .map(|address| IpAddr::from(address.ip()))
                .or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::from(address.ip())))
        })
        .collect()
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
