//! One policy file after parsing, or all of them after merging: checked values, each with its place.

use std::time::Duration;

use super::{
    compiled::{Action, Mode, Queries, Resolvers},
    diagnostic::Place,
    name::{DomainName, NamePattern},
    ports::Ports,
    target::Target,
};

/// A value and where it was written.
#[derive(Clone, Debug)]
pub struct At<T> {
    pub value: T,
    pub place: Place,
}

#[derive(Clone, Debug, Default)]
pub struct Document {
    pub mode: Option<At<Mode>>,
    pub dns: DnsDocument,
    /// Keys of `builtins:` in the order of the files.
    pub builtins: Vec<(&'static str, At<bool>)>,
    pub rules: Vec<Rule>,
}

#[derive(Clone, Debug, Default)]
pub struct DnsDocument {
    pub resolvers: Option<At<Resolvers>>,
    pub queries: Option<At<Queries>>,
    pub internal: Option<At<Vec<DomainName>>>,
    pub min_ttl: Option<At<Duration>>,
    pub grace: Option<At<Duration>>,
    pub max_stale: Option<At<Duration>>,
    pub allow_private: Option<At<Vec<NamePattern>>>,
}

#[derive(Clone, Debug)]
pub struct Rule {
    pub name: String,
    /// The value of `name:`. `None` for a rule of the command line.
    pub place: Option<Place>,
    /// What the place is called in `status` and `explain` where there is none in a file.
    pub origin: &'static str,
    pub why: Option<String>,
    pub action: Action,
    /// At least one, without duplicates.
    pub to: Vec<Item>,
    /// Normalised, at least one.
    pub ports: Vec<Ports>,
    pub silence: Vec<Silence>,
}

/// One `to` item, placeholders filled.
#[derive(Clone, Debug)]
pub struct Item {
    pub target: Target,
    pub place: Option<Place>,
}

/// `silence: { warning-name: reason }`.
#[derive(Clone, Debug)]
pub struct Silence {
    pub warning: &'static str,
    pub reason: String,
    pub place: Place,
}

impl Rule {
    /// Whether both rules say the same; places and silenced warnings do not count.
    pub fn same(&self, other: &Self) -> bool {
        let targets = |rule: &Self| {
            let mut targets: Vec<_> = rule.to.iter().map(|item| item.target.clone()).collect();
            targets.sort_unstable();
            targets
        };
        self.name == other.name
            && self.why == other.why
            && self.action == other.action
            && self.ports == other.ports
            && targets(self) == targets(other)
    }
}
