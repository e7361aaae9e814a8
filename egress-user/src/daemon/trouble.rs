//! When a resolver, or a name, begins to fail and when it works again: told once each.

use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
    sync::Arc,
};

use crate::{
    events::{ResolverTrouble, escape},
    resolve::{Answer, Failure, Family, Reason},
};

/// Names and resolvers that are remembered as failing; past it the oldest knowledge is let go, and told anew.
const FAILING: usize = 100_000;

/// What fails now.
#[derive(Debug, Default)]
pub struct Troubles {
    resolvers: HashSet<Option<SocketAddr>>,
    names: HashMap<(Arc<str>, Family), String>,
}

impl Troubles {
    /// What is to be told of a failure: nothing where it was told before.
    pub fn failed(&mut self, failure: &Failure) -> Option<ResolverTrouble> {
        let message = failure.reason.to_string();
        let trouble = |name: Option<&str>| ResolverTrouble {
            resolver: failure.resolver.map(|resolver| resolver.to_string()),
            name: name.map(str::to_owned),
            recovered: false,
            message: escape(message.as_bytes()),
        };
        if is_the_resolvers(&failure.reason) {
            return self.resolvers.insert(failure.resolver).then(|| trouble(None));
        }
        if self.names.len() >= FAILING {
            self.names.clear();
        }
        // A name that does not exist fails twice, for each family: one event.
        let told = Family::BOTH
            .iter()
            .any(|family| self.names.get(&(Arc::clone(&failure.name), *family)).is_some_and(|known| *known == message));
        self.names.insert((Arc::clone(&failure.name), failure.family), message.clone());
        (!told).then(|| trouble(Some(&failure.name)))
    }

    /// What is to be told of an answer: what it ends.
    pub fn answered(&mut self, answer: &Answer) -> Vec<ResolverTrouble> {
        let mut ended = Vec::new();
        let recovered = |name: Option<&str>, message: &str| ResolverTrouble {
            resolver: Some(answer.resolver.to_string()),
            name: name.map(str::to_owned),
            recovered: true,
            message: message.to_owned(),
        };
        // One answer shows that somebody answers, which ends the trouble of having nobody.
        if self.resolvers.remove(&Some(answer.resolver)) | self.resolvers.remove(&None) {
            ended.push(recovered(None, "it answers"));
        }
        let family =
            if answer.addresses.iter().any(|(address, _)| address.is_ipv4()) { Family::V4 } else { Family::V6 };
        let key = |family| (Arc::clone(&answer.name), family);
        if let Some(message) = self.names.remove(&key(family)) {
            // What failed together, and was told once, is over together; else it is told again. A family that fails by
            // itself while the other is answered is not told again with every answer.
            for other in Family::BOTH {
                if self.names.get(&key(other)) == Some(&message) {
                    self.names.remove(&key(other));
                }
            }
            ended.push(recovered(Some(&answer.name), "it has addresses"));
        }
        ended
    }
}

/// Whether the resolver does not serve this node at all; other failures are about a name.
fn is_the_resolvers(reason: &Reason) -> bool {
    matches!(reason, Reason::Timeout | Reason::Unreachable { .. } | Reason::NoResolver | Reason::Refused)
}

#[cfg(test)]
mod tests;
