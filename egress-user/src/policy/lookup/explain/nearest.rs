//! Which rule almost allows a destination.

use super::{
    super::super::{
        compiled::{Compiled, NameKey},
        name::DomainName,
    },
    Context, Destination, Host,
};

/// Names are compared one by one for likeness; beyond this many that takes too long to be worth it.
const COMPARED: usize = 20_000;

impl Compiled {
    pub(super) fn nearest(&self, destination: &Destination, context: &Context<'_>) -> Option<String> {
        let other_ports = |classes: &[u32]| {
            // That `any` is open on some other port says nothing about this destination.
            let mut grants = classes.iter().flat_map(|class| &self.classes[*class as usize].grants);
            let grant = grants.find(|grant| self.grants[**grant as usize].item != "any")?;
            let ranges: Vec<String> = classes
                .iter()
                .flat_map(|class| &self.classes[*class as usize].ports)
                .filter(|range| range.grant == *grant)
                .map(ToString::to_string)
                .collect();
            Some(format!("rule `{}` allows it, but on {} only", self.rule_name(*grant), ranges.join(", ")))
        };
        match &destination.host {
            Host::Name(name) => {
                let found = self.match_name(name.as_str());
                other_ports(&found.classes).or_else(|| self.apex(name)).or_else(|| self.alike(name))
            }
            Host::Address(address) => context
                .names
                .iter()
                .find_map(|name| other_ports(&self.match_name(name.as_str()).classes))
                .or_else(|| other_ports(&[self.match_address(*address)])),
        }
    }

    pub(super) fn rule_name(&self, grant: u32) -> &str {
        &self.rules[self.grants[grant as usize].rule as usize].name
    }

    fn apex(&self, name: &DomainName) -> Option<String> {
        let entry = self.find(name.as_str(), true)?;
        let grant = self.classes[entry.class as usize].grants.first()?;
        let item = &self.grants[*grant as usize].item;
        Some(format!(
            "rule `{}` has `{item}`, which never matches `{name}` itself: add `{name}` to its `to`",
            self.rule_name(*grant)
        ))
    }

    fn alike(&self, name: &DomainName) -> Option<String> {
        let limit = (name.as_str().len() / 8).max(1);
        let (_, entry) = self
            .names
            .iter()
            .take(COMPARED)
            .filter(|entry| matches!(entry.key, NameKey::Exact(_)) && entry.class != 0)
            .filter(|entry| entry.key.name().as_str().len().abs_diff(name.as_str().len()) <= limit)
            .map(|entry| (strsim::osa_distance(entry.key.name().as_str(), name.as_str()), entry))
            .filter(|(distance, _)| *distance <= limit)
            .min_by_key(|(distance, _)| *distance)?;
        let grant = self.classes[entry.class as usize].grants.first()?;
        Some(format!("rule `{}` allows `{}`: is that the name meant?", self.rule_name(*grant), entry.key.name()))
    }
}
