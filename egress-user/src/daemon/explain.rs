//! `explain` from the running state: what the policy says, what was learned, and what the kernel's tables hold.
//!
//! The kernel's tables are the truth: where they say something else than policy and book, that is told.

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
    str::FromStr as _,
};

use egress_ebpf::{
    abi::{NEVER, TICK_SHIFT, Ticks},
    reason::Reason as KernelReason,
};

use super::{Active, Core, book::Entry, state::mode_name};
use crate::{
    api::{ExplainError, ExplainedAddress, ExplainedRule, Explanation, NearestRule},
    datapath::{Judged, boot_ticks},
    policy::{Action, Context, Destination, DomainName, Host, Reason},
};

/// Addresses of a name that are listed.
const LISTED: usize = 64;

/// What the running policy does to `to`, with the names and addresses that were learned.
pub(super) fn explain(core: &Core, to: &str) -> Result<Explanation, ExplainError> {
    let destination = Destination::from_str(to)
        .map_err(|error| ExplainError { message: error.what.clone(), hint: error.hint.clone() })?;
    let active = core.active();
    let now = boot_ticks();
    let known = Known::of(core, &destination, now);
    let names: Vec<DomainName> = known.living(now).filter_map(|(name, _, _)| DomainName::parse(name).ok()).collect();
    let mut addresses: Vec<IpAddr> = known.living(now).map(|(_, address, _)| address).collect();
    addresses.dedup();
    let resolvers: Vec<_> = active.settings.resolvers.iter().map(|resolver| resolver.address).collect();
    let is_name = matches!(destination.host, Host::Name(_));
    let context = Context {
        names: if is_name { &[] } else { &names },
        addresses: if is_name { &addresses } else { &[] },
        resolvers: &resolvers,
        live: true,
    };
    let said = active.policy.decide_with(&destination, &context);
    let mut explanation = Explanation {
        destination: said.destination.clone(),
        allowed: said.allowed,
        mode: mode_name(active.policy.mode).to_owned(),
        generation: active.installed.generation,
        nearest_rule: said.nearest.as_ref().map(|nearest| nearest.text.clone()),
        nearest: said
            .nearest
            .as_ref()
            .map(|nearest| NearestRule { near: nearest.near.name().to_owned(), rule: rule(&active, nearest.grant) }),
        add: said.add,
        notes: said.notes,
        ..Explanation::default()
    };
    let grants: &[u32] = match &said.reason {
        Reason::Builtin { builtin } => {
            explanation.reason = "builtin".to_owned();
            explanation.builtin = Some((*builtin).to_owned());
            &[]
        }
        Reason::Allow { grants, .. } => {
            explanation.reason = "rule".to_owned();
            grants
        }
        Reason::Deny { grants } => {
            explanation.reason = "denied".to_owned();
            grants
        }
        Reason::NotAsked { grants } => {
            explanation.reason = "name-not-allowed".to_owned();
            explanation.notes.push(
                "its address may be reached, but the name may not be asked for (`dns.queries: allowlisted`)".to_owned(),
            );
            grants
        }
        Reason::NoRule => {
            explanation.reason = "no-rule".to_owned();
            &[]
        }
    };
    explanation.rules = grants.iter().map(|grant| rule(&active, *grant)).collect();
    explanation.rule = explanation.rules.first().map(|rule| rule.name.clone());
    if explanation.builtin.is_none() {
        by_the_kernel(core, &active, &destination, &known, now, &mut explanation);
    }
    hint(&active, &mut explanation);
    Ok(explanation)
}

/// What the book knows of a destination: names and addresses that belong together, also those that no longer count.
struct Known(Vec<(String, IpAddr, Entry)>);

impl Known {
    fn of(core: &Core, destination: &Destination, now: Ticks) -> Self {
        let book = core.book();
        Self(match &destination.host {
            Host::Name(name) => {
                let living = book.addresses_of(name.as_str(), now);
                living.into_iter().map(|(address, entry)| (name.to_string(), address, entry)).collect()
            }
            Host::Address(address) => {
                let names = book.names_of(*address).into_iter();
                names.filter_map(|name| book.entry(&name, *address).map(|entry| (name, *address, entry))).collect()
            }
        })
    }

    fn living(&self, now: Ticks) -> impl Iterator<Item = (&str, IpAddr, &Entry)> {
        let living = self.0.iter().filter(move |(_, _, entry)| entry.expiry > now);
        living.map(|(name, address, entry)| (name.as_str(), *address, entry))
    }
}

pub(super) fn rule(active: &Active, grant: u32) -> ExplainedRule {
    let grant = &active.policy.grants[grant as usize];
    let rule = &active.policy.rules[grant.rule as usize];
    ExplainedRule {
        name: rule.name.clone(),
        action: if rule.action == Action::Deny { "deny" } else { "allow" }.to_owned(),
        item: grant.item.to_string(),
        ports: rule.ports.iter().map(ToString::to_string).collect(),
        source: rule.source.to_string(),
        why: rule.why.as_ref().map(|why| why.trim().to_owned()),
    }
}

/// Asks the kernel's tables of each address, and sets right what policy and book alone got wrong.
fn by_the_kernel(
    core: &Core,
    active: &Active,
    destination: &Destination,
    known: &Known,
    now: Ticks,
    explanation: &mut Explanation,
) {
    let grace = ticks(active.policy.dns.grace);
    let judge = |address: IpAddr| {
        let to = SocketAddr::new(address, destination.port);
        core.datapath().judge(to, destination.proto).ok().flatten()
    };
    let explained = |name: Option<&str>, address: IpAddr, entry: Option<&Entry>, judged: &Judged| ExplainedAddress {
        address,
        name: name.map(str::to_owned),
        allowed: judged.verdict.reason.passes(),
        reason: judged.verdict.reason.name().to_owned(),
        learned_from: entry.filter(|entry| !entry.resolver.is_empty()).map(|entry| entry.resolver.to_string()),
        learned_seconds_ago: entry.map(|entry| seconds(now.saturating_sub(entry.learned))),
        seconds_left: entry.filter(|entry| entry.expiry != NEVER).map(|entry| seconds(entry.expiry - now)),
        in_grace: entry.is_some_and(|entry| entry.expiry != NEVER && entry.expiry - now <= grace),
    };
    for (name, address, entry) in known.living(now).take(LISTED) {
        if let Some(judged) = judge(address) {
            explanation.addresses.push(explained(Some(name), address, Some(entry), &judged));
        }
    }
    if let Host::Address(address) = destination.host
        && let Some(judged) = judge(address)
    {
        agree(active, &judged, explanation);
        if judged.known && judged.until != NEVER && explanation.addresses.is_empty() {
            explanation.notes.push(
                "the kernel has this address from an answer whose name is not known any more: it was learned before the \
                 daemon was restarted, or the name went with an earlier policy"
                    .to_owned(),
            );
            explanation.addresses.push(ExplainedAddress {
                seconds_left: Some(seconds(judged.until - now)),
                in_grace: judged.until - now <= grace,
                ..explained(None, address, None, &judged)
            });
        }
    }
    tell_through_what(active, destination, explanation);
    if explanation.allowed {
        if let Host::Name(name) = &destination.host {
            let known = !explanation.addresses.is_empty();
            explanation.notes.extend(match core.last_error(name.as_str()) {
                Some(error) if known => Some(format!("the daemon's last question for it failed: {error}")),
                Some(error) => Some(format!("it has no address that counts, so nothing gets there now: {error}")),
                None if known => None,
                None => Some("no address of it is known now; they count as soon as it is asked for".to_owned()),
            });
        }
    } else {
        for (name, _, entry) in known.0.iter().filter(|(_, _, entry)| entry.expiry <= now) {
            let ago = seconds(now - entry.expiry);
            explanation.notes.push(format!(
                "it was an address of {name} until {ago} s ago: ask for the name again, and use the answer"
            ));
        }
    }
}

/// The kernel's word over the policy's, where they differ.
fn agree(active: &Active, judged: &Judged, explanation: &mut Explanation) {
    let reason = judged.verdict.reason;
    // A datagram or segment to a resolver is judged by its question, which a destination does not tell.
    if reason == KernelReason::Dns {
        return;
    }
    if reason.passes() == explanation.allowed {
        // Both refuse it: the kernel tells apart what the policy alone cannot, such as an answer that is too old.
        if explanation.reason == "no-rule" {
            reason.name().clone_into(&mut explanation.reason);
        }
        return;
    }
    explanation.allowed = reason.passes();
    reason.name().clone_into(&mut explanation.reason);
    let grant = active.installed.grants.iter().position(|index| *index == judged.verdict.grant);
    let grant = grant.filter(|_| judged.verdict.grant != 0).and_then(|grant| u32::try_from(grant).ok());
    explanation.rules = grant.map(|grant| rule(active, grant)).into_iter().collect();
    explanation.rule = explanation.rules.first().map(|rule| rule.name.clone());
    if explanation.allowed {
        (explanation.nearest, explanation.nearest_rule, explanation.add) = (None, None, None);
    } else {
        explanation.notes.push(
            "the policy allows it, and the kernel's tables do not have it: `egress status` tells what was not learned"
                .to_owned(),
        );
    }
}

/// The name and answer that decided, of those listed.
fn tell_through_what(active: &Active, destination: &Destination, explanation: &mut Explanation) {
    if !explanation.allowed {
        return;
    }
    let opens = |listed: &&ExplainedAddress| {
        let Some(name) = &listed.name else { return true };
        let classes = active.policy.match_name(name).classes;
        listed.allowed
            && classes
                .iter()
                .any(|class| active.policy.class_opens(*class, destination.proto, destination.port).is_some())
    };
    let longest = explanation.addresses.iter().filter(opens).max_by_key(|listed| listed.seconds_left);
    if let Some(listed) = longest.cloned() {
        explanation.via_name = listed.name;
        explanation.learned_from = listed.learned_from;
        explanation.learned_seconds_ago = listed.learned_seconds_ago;
        explanation.seconds_left = listed.seconds_left;
        explanation.in_grace = listed.in_grace;
    }
}

fn hint(active: &Active, explanation: &mut Explanation) {
    explanation.hint = match explanation.reason.as_str() {
        _ if explanation.allowed => None,
        "denied" => Some("no rule can allow it while that deny rule stands: narrow or remove it".to_owned()),
        _ => explanation.add.as_ref().map(|_| match active.files.as_slice() {
            [file] if Path::new(file).is_file() => {
                format!("paste this below `rules:` of {file}, then `egress apply {file}`")
            }
            _ => "paste this below `rules:` of a policy file, then `egress apply` with all that count".to_owned(),
        }),
    };
}

fn seconds(ticks: Ticks) -> u64 {
    (u64::from(ticks) << TICK_SHIFT) / 1_000_000_000
}

fn ticks(time: std::time::Duration) -> Ticks {
    u32::try_from(time.as_nanos() >> TICK_SHIFT).unwrap_or(u32::MAX)
}
