//! `explain` from the running state.

use std::{net::IpAddr, str::FromStr as _};

use egress_ebpf::abi::{NEVER, TICK_SHIFT};

use super::Core;
use crate::{
    api::{ExplainError, Explanation},
    datapath::boot_ticks,
    policy::{Context, Destination, DomainName, Host, Reason},
};

/// What the running policy does to `to`, with the names and addresses that were learned.
pub(super) fn explain(core: &Core, to: &str) -> Result<Explanation, ExplainError> {
    let destination = Destination::from_str(to)
        .map_err(|error| ExplainError { message: error.what.clone(), hint: error.hint.clone() })?;
    let active = core.active();
    let now = boot_ticks();
    let mut names = Vec::new();
    let mut addresses: Vec<IpAddr> = Vec::new();
    let mut entry = None;
    let mut via = None;
    {
        let book = core.book();
        match &destination.host {
            Host::Name(name) => {
                let known = book.addresses_of(name.as_str(), now);
                addresses = known.iter().map(|(address, _)| *address).collect();
                via = (!known.is_empty()).then(|| name.as_str().to_owned());
                entry = known.into_iter().map(|(_, entry)| entry).max_by_key(|entry| entry.expiry);
            }
            Host::Address(address) => {
                for name in book.names_of(*address) {
                    let living = book.addresses_of(&name, now).into_iter().find(|(known, _)| known == address);
                    if let (Some((_, known)), Ok(domain)) = (living, DomainName::parse(&name)) {
                        names.push(domain);
                        via = Some(name);
                        entry = Some(known);
                    }
                }
            }
        }
    }
    let resolvers: Vec<_> = active.settings.resolvers.iter().map(|resolver| resolver.address).collect();
    let context = Context { names: &names, addresses: &addresses, resolvers: &resolvers, live: true };
    let said = active.policy.decide_with(&destination, &context);
    let rule = |grants: &[u32]| {
        grants
            .first()
            .and_then(|grant| active.policy.grants.get(*grant as usize))
            .map(|grant| active.policy.rules[grant.rule as usize].name.clone())
    };
    let mut explanation = Explanation {
        destination: said.destination.to_string(),
        allowed: said.allowed,
        generation: active.installed.generation,
        notes: said.notes.clone(),
        ..Explanation::default()
    };
    explanation.nearest_rule.clone_from(&said.nearest);
    match &said.reason {
        Reason::Builtin { builtin } => {
            explanation.reason = "builtin".to_owned();
            explanation.builtin = Some((*builtin).to_owned());
        }
        Reason::Allow { grants, .. } => {
            explanation.reason = "rule".to_owned();
            explanation.rule = rule(grants);
            explanation.via_name = via;
            if let Some(entry) = entry {
                explanation.learned_from = Some(entry.resolver);
                if entry.expiry != NEVER {
                    explanation.seconds_left = Some((u64::from(entry.expiry - now) << TICK_SHIFT) / 1_000_000_000);
                }
            }
        }
        Reason::Deny { grants } => {
            explanation.reason = "denied".to_owned();
            explanation.rule = rule(grants);
        }
        Reason::NotAsked { grants } => {
            explanation.reason = "name-not-allowed".to_owned();
            explanation.rule = rule(grants);
        }
        Reason::NoRule => explanation.reason = "no-rule".to_owned(),
    }
    if !said.allowed && explanation.reason != "denied" {
        explanation.hint =
            Some(format!("to allow it, start with `--allow {}`, or add it to a rule's `to`", said.destination));
    }
    Ok(explanation)
}
