//! The interfaces of the default routes, followed as they change.

use std::{collections::BTreeSet, io};

use futures_util::StreamExt as _;
use procfs::net::RouteEntry;
use rtnetlink::{MulticastGroup, new_multicast_connection};

/// The names of the interfaces that a default route of either family leaves by, in this network namespace.
pub fn default_uplinks() -> Vec<String> {
    let mut names = BTreeSet::new();
    if let Ok(procfs::net::RouteEntries(routes)) = read_routes() {
        names.extend(routes.into_iter().filter(is_default).map(|route| route.iface));
    }
    // Fields of ipv6_route (net/ipv6/route.c): destination, its prefix length, ..., metric, refcount, use, flags, device.
    if let Ok(text) = std::fs::read_to_string("/proc/self/net/ipv6_route") {
        for line in text.lines() {
            let fields: Vec<_> = line.split_whitespace().collect();
            if let [destination, "00", .., _flags, device] = fields.as_slice()
                && destination.bytes().all(|byte| byte == b'0')
                && *device != "lo"
            {
                names.insert((*device).to_owned());
            }
        }
    }
    names.into_iter().collect()
}

fn read_routes() -> procfs::ProcResult<procfs::net::RouteEntries> {
    use procfs::FromRead as _;
    procfs::net::RouteEntries::from_read(std::fs::File::open("/proc/self/net/route")?)
}

fn is_default(route: &RouteEntry) -> bool {
    route.destination.is_unspecified() && route.mask.is_unspecified()
}

/// Says when links or routes of this network namespace changed.
#[derive(Debug)]
pub struct Follower {
    changes: tokio::sync::watch::Receiver<u64>,
    task: tokio::task::AbortHandle,
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Follower {
    /// Subscribes to the kernel's link and route messages. Must be called within a Tokio runtime.
    ///
    /// # Errors
    /// When the netlink socket cannot be opened.
    pub fn start() -> io::Result<Self> {
        let groups = [MulticastGroup::Link, MulticastGroup::Ipv4Route, MulticastGroup::Ipv6Route];
        let (connection, _handle, mut messages) = new_multicast_connection(&groups)?;
        let (sender, changes) = tokio::sync::watch::channel(0);
        let task = tokio::spawn(async move {
            let connection = tokio::spawn(connection);
            while messages.next().await.is_some() {
                sender.send_modify(|count| *count += 1);
            }
            connection.abort();
        })
        .abort_handle();
        Ok(Self { changes, task })
    }

    /// Waits for the next change; several at once count as one.
    pub async fn changed(&mut self) {
        if self.changes.changed().await.is_err() {
            // The netlink task ended: nothing will change any more.
            std::future::pending::<()>().await;
        }
    }
}
