//! Which processes have the connections that a change would cut: looked up here, since the daemon may not look into others'
//! descriptors.

use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
    time::{Duration, Instant},
};

use procfs::process::{FDTarget, all_processes};

use crate::api::Cut;

/// How long is looked, at most.
const LIMIT: Duration = Duration::from_secs(2);

/// Writes down who has the connections of `cut`. What cannot be seen, as by another user than root, is left out.
pub(super) fn name(cut: &mut Cut) {
    let mut wanted: HashMap<u64, usize> = HashMap::new();
    let near: HashMap<&str, usize> = cut
        .destinations
        .iter()
        .enumerate()
        .flat_map(|(at, destination)| destination.near.iter().map(move |near| (near.as_str(), at)))
        .collect();
    if near.is_empty() {
        return;
    }
    for entry in procfs::net::tcp().into_iter().chain(procfs::net::tcp6()).flatten() {
        let local = SocketAddr::new(entry.local_address.ip().to_canonical(), entry.local_address.port());
        if let Some(at) = near.get(local.to_string().as_str()).filter(|_| entry.inode != 0) {
            wanted.insert(entry.inode, *at);
        }
    }
    let end = Instant::now() + LIMIT;
    let Ok(processes) = all_processes() else { return };
    for process in processes.flatten() {
        if Instant::now() > end {
            return;
        }
        let Ok(descriptors) = process.fd() else { continue };
        let of: HashSet<usize> = descriptors
            .flatten()
            .filter_map(|descriptor| match descriptor.target {
                FDTarget::Socket(inode) => wanted.get(&inode).copied(),
                _ => None,
            })
            .collect();
        if of.is_empty() {
            continue;
        }
        let Ok(stat) = process.stat() else { continue };
        let who: String = stat.comm.chars().flat_map(char::escape_default).collect();
        for at in of {
            cut.destinations[at].processes.push(format!("{who} ({})", process.pid));
        }
    }
}
