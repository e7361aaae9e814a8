//! The addresses of workloads' interfaces, inside their own network namespaces, followed as they change. The kernel tells them
//! across namespaces that a veth joins; nothing is entered (decision 0047).

use std::{collections::BTreeMap, io, sync::Arc, time::Duration};

use egress_ebpf::abi::{Address, InsideKey};
use futures_util::TryStreamExt as _;
use rtnetlink::{
    MulticastGroup, new_connection_with_strict_check,
    packet_route::{
        AddressFamily,
        address::{AddressAttribute, AddressMessage},
    },
    sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE},
};
use tokio::io::unix::AsyncFd;

use super::{Core, Link, links, state::lock};
use crate::datapath::WORKLOAD_HOOK;

/// A burst of changes is looked at once.
const BURST: Duration = Duration::from_millis(2);

/// The kernel's messages about addresses, here and in the namespaces that veths lead to.
#[derive(Debug)]
pub struct Addresses(Socket);

impl Addresses {
    /// Subscribes; that needs CAP_NET_BROADCAST, which what follows does not.
    ///
    /// # Errors
    /// When the netlink socket cannot be opened, or that capability is missing.
    pub fn subscribe() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.set_non_blocking(true)?;
        socket.set_listen_all_namespaces(true)?;
        socket.bind(&SocketAddr::new(0, 0))?;
        for group in [MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr] {
            socket.add_membership(group as u32)?;
        }
        Ok(Self(socket))
    }

    /// Writes down the addresses behind governed veths whenever they, or the veths, change. Must be called within a Tokio runtime.
    pub async fn follow(self, core: Arc<Core>) {
        // SAFETY: the socket owns its descriptor, and nothing takes it out before it is dropped.
        let told = match unsafe { AsyncFd::register(self.0) } {
            Ok(told) => told,
            Err(error) => return tracing::error!(%error, "cannot follow the addresses of workloads"),
        };
        loop {
            tokio::select! {
                () = core.veths_changed.notified() => {}
                ready = told.readable() => {
                    let Ok(mut ready) = ready else { return };
                    tokio::time::sleep(BURST).await;
                    // What they say is asked for anew; an overflow is a change like others.
                    while !drained(told.get_ref()) {}
                    ready.clear_ready();
                }
            }
            core.know_insides().await;
        }
    }
}

/// Reads one message; whether there was none.
fn drained(socket: &Socket) -> bool {
    let mut message = Vec::with_capacity(64);
    socket.recv(&mut message, libc::MSG_DONTWAIT).is_err_and(|error| error.raw_os_error() != Some(libc::ENOBUFS))
}

impl Core {
    /// Writes down the addresses behind governed veths, as they are now.
    pub async fn know_insides(&self) {
        if let Err(error) = self.find_insides().await {
            tracing::warn!(%error, "cannot learn the addresses of workloads: their first refused names get an error, not an answer");
        }
    }

    async fn find_insides(&self) -> anyhow::Result<()> {
        let governed: Vec<u32> = {
            let attached = lock(&self.attached);
            attached.iter().filter(|point| point.hook == WORKLOAD_HOOK).map(|point| point.interface).collect()
        };
        let mut insides = BTreeMap::new();
        if !governed.is_empty() {
            let links = links().await?;
            for link in links.iter().filter(|link| governed.contains(&link.index)) {
                insides.extend(addresses(link).await.into_iter().map(|inside| (inside, link.index)));
            }
        }
        Ok(lock(&self.datapath).set_insides(&insides)?)
    }
}

/// The addresses of a veth's other end; none where it went meanwhile.
async fn addresses(host: &Link) -> Vec<InsideKey> {
    let mut found = Vec::new();
    let Some((namespace, index)) = host.inside else { return found };
    let Ok((connection, handle, _)) = new_connection_with_strict_check() else { return found };
    let connection = tokio::spawn(connection);
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut request = handle.address().get();
        let message = request.message_mut();
        message.header.family = family;
        message.attributes.push(AddressAttribute::TargetNetNsId(namespace));
        let messages: Result<Vec<AddressMessage>, _> = request.execute().try_collect().await;
        found.extend(messages.iter().flatten().filter(|message| message.header.index == index).filter_map(read));
    }
    connection.abort();
    found
}

fn read(message: &AddressMessage) -> Option<InsideKey> {
    let (mut local, mut address) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(own) => local = Some(*own),
            // Of a link to one peer this is the peer's.
            AddressAttribute::Address(other) => address = Some(*other),
            _ => {}
        }
    }
    let address = Address::from(local.or(address)?);
    Some(InsideKey { address, ifindex: message.header.index, pad: 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_address_of_a_point_to_point_link_counts() {
        let mut message = AddressMessage::default();
        message.header.index = 5;
        assert_eq!(read(&message), None);
        message.attributes.push(AddressAttribute::Address("10.0.0.1".parse().unwrap()));
        let inside = |address: &str| {
            Some(InsideKey { address: Address::from(address.parse::<std::net::IpAddr>().unwrap()), ifindex: 5, pad: 0 })
        };
        assert_eq!(read(&message), inside("10.0.0.1"));
        message.attributes.push(AddressAttribute::Local("10.0.0.2".parse().unwrap()));
        assert_eq!(read(&message), inside("10.0.0.2"));
    }
}
