//! One lookup of each name, for `check --resolve`.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, stream};

use super::answer::{Family, Reason};
use super::private::{Kind, is_private};
use super::resolver::{Limits, Outcome, Resolver};

const IN_FLIGHT: usize = 32;

/// What one name gave: addresses of both families, and the CNAME targets on the way.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resolved {
    pub addresses: Vec<IpAddr>,
    pub aliases: Vec<Arc<str>>,
    /// Those of `addresses` that the daemon refuses unless `dns.allowPrivate` names this name.
    pub private: Vec<(IpAddr, Kind)>,
}

/// Looks each name up once, some at a time, and gives the outcomes in the names' order. `timeout` is for one query to
/// one resolver; every resolver is asked once. A name with no address of either family is an error; of two reasons the
/// one that says more is given.
pub async fn resolve_once(
    names: &[String],
    resolvers: &[SocketAddr],
    timeout: Duration,
) -> Vec<(String, Result<Resolved, Reason>)> {
    let resolver = Resolver::new(resolvers, Limits { timeout, attempts: 1, ..Limits::default() });
    stream::iter(names.to_vec())
        .map(|name| {
            let resolver = resolver.clone();
            async move {
                let (v4, v6) = tokio::join!(resolver.lookup(&name, Family::V4), resolver.lookup(&name, Family::V6));
                (name, resolved([v4, v6]))
            }
        })
        .buffered(IN_FLIGHT)
        .collect()
        .await
}

fn resolved(outcomes: [Outcome; 2]) -> Result<Resolved, Reason> {
    let mut resolved = Resolved::default();
    let mut misses = vec![];
    for outcome in outcomes {
        match outcome {
            Ok(found) => {
                resolved.addresses.extend(found.addresses.iter().map(|(address, _)| *address));
                resolved.aliases.extend(found.aliases.into_iter().map(|(alias, _)| alias));
            }
            Err(miss) => misses.push(miss.reason),
        }
    }
    if resolved.addresses.is_empty() {
        misses.sort_by_key(|reason| matches!(reason, Reason::Empty));
        return Err(misses.swap_remove(0));
    }
    resolved.aliases.sort();
    resolved.aliases.dedup();
    resolved.private =
        resolved.addresses.iter().filter_map(|address| is_private(*address).map(|kind| (*address, kind))).collect();
    Ok(resolved)
}
