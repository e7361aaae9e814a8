//! From a merged document to the tables. Nothing here is quadratic in the number of rules; what a policy can multiply
//! out to (every narrow name holds the grants of every wildcard above it) is bounded by [`MAX_WORK`].

mod classes;
mod names;
mod prefixes;

use std::{collections::HashSet, sync::Arc};

use egress_ebpf::abi::INNER_MAX;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use self::classes::{Classes, GrantPorts};
use super::{
    compiled::{Action, Builtins, Compiled, CompiledRule, Dns, Grant, NameEntry, Proto, RuleSource},
    diagnostic::{Diagnostic, SourceFile},
    document::{Document, Item, Rule},
    name::{DomainName, NamePattern},
    ports::Ports,
    target::Target,
};

/// Most grants in all sets that are built, counted with repetition. A policy of 100,000 rules needs a few hundred
/// thousand; 10,000 wildcards on one domain with 10,000 names below it would need 100 million.
pub const MAX_WORK: usize = 16_000_000;

/// Counts the grants that are merged into sets, against [`MAX_WORK`].
struct Work(usize);

/// The policy multiplies out to more than [`MAX_WORK`] grants.
struct TooMuch;

impl Work {
    fn add(&mut self, grants: usize) -> Result<(), TooMuch> {
        self.0 += grants;
        if self.0 > MAX_WORK { Err(TooMuch) } else { Ok(()) }
    }
}

/// Compiles. `internal` joins `dns.internal`. The only errors are a policy that multiplies out too far, and one with too many
/// wildcards inside a label below one name.
pub fn compile(
    document: &Document,
    files: &[Arc<SourceFile>],
    internal: &[DomainName],
) -> Result<Compiled, Diagnostic> {
    let dns = dns(document, internal);
    let mut builtins = Builtins::default();
    for (name, value) in &document.builtins {
        if let Some(switch) = builtins.get_mut(name) {
            *switch = value.value;
        }
    }
    let mode = document.mode.as_ref().map(|mode| mode.value).unwrap_or_default();

    let rules = document.rules.iter().map(|rule| compiled_rule(rule, files)).collect();
    let mut grants = Vec::new();
    let mut grant_ports: Vec<GrantPorts> = Vec::new();
    let mut patterns: Vec<(&NamePattern, u32)> = Vec::new();
    let mut allows: Vec<(IpNet, u32)> = Vec::new();
    let mut denies: Vec<(IpNet, u32)> = Vec::new();
    for (index, rule) in document.rules.iter().enumerate() {
        let (ports, text): (Arc<[Ports]>, _) = (rule.ports.clone().into(), port_text(&rule.ports));
        for item in &rule.to {
            let grant = number(grants.len());
            grants.push(compiled_grant(number(index), rule, &text, &item.target));
            grant_ports.push(Arc::clone(&ports));
            let nets = if rule.action == Action::Deny { &mut denies } else { &mut allows };
            match &item.target {
                Target::Any => nets.extend(everything().map(|net| (net, grant))),
                Target::Net(net) => nets.push((*net, grant)),
                Target::Name(pattern) => patterns.push((pattern, grant)),
            }
        }
    }

    let mut classes = Classes::new();
    let mut work = Work(0);
    let tables = (|| {
        Ok((
            names::compile(&patterns, &dns.internal, &dns.allow_private, &mut classes, &mut work)?,
            prefixes::compile(allows, &mut classes, &mut work)?,
            prefixes::compile(denies, &mut classes, &mut work)?,
        ))
    })();
    let (names, addresses, denies) = tables.map_err(|TooMuch| too_entangled())?;
    if let Some(entry) = names.iter().find(|entry| entry.inner.len() > INNER_MAX as usize) {
        return Err(too_many_inside(document, entry));
    }
    let classes = classes.finish(&grant_ports);

    let exact: HashSet<&DomainName> = patterns
        .iter()
        .filter_map(|(pattern, _)| match pattern {
            NamePattern::Exact(name) => Some(name),
            NamePattern::Below(_) | NamePattern::InLabel { .. } => None,
        })
        .collect();
    let mut exact_names: Vec<DomainName> = exact.into_iter().cloned().collect();
    exact_names.sort_unstable();

    let hash = content_hash(document, mode, &dns, builtins);
    Ok(Compiled { mode, dns, builtins, rules, grants, classes, names, addresses, denies, exact_names, hash })
}

fn too_entangled() -> Diagnostic {
    Diagnostic::error("the policy multiplies out too far")
        .note(format!(
            "every name and prefix holds the grants of all wildcards and prefixes that cover it; together they are more \
             than {MAX_WORK}"
        ))
        .hint("put the ports of rules for the same wildcard or `any` into one rule, and drop rules that others cover")
}

/// More wildcards inside a label below one name than the programs look at.
fn too_many_inside(document: &Document, entry: &NameEntry) -> Diagnostic {
    let base = entry.key.name();
    let is_one =
        |item: &&Item| matches!(&item.target, Target::Name(NamePattern::InLabel { base: of, .. }) if of == base);
    let last = document.rules.iter().flat_map(|rule| &rule.to).rfind(is_one);
    let error = Diagnostic::error(format!("too many wildcards inside a label of `{base}`"))
        .note(format!(
            "there are {} right below `{base}`, those of `dns.allowPrivate` among them, and {INNER_MAX} are looked at",
            entry.inner.len()
        ))
        .hint(format!("write names out, or `*.{base}` for some of them"));
    let list = document.dns.allow_private.as_ref().map(|patterns| (&patterns.place, "here"));
    match last.and_then(|item| item.place.as_ref()).map(|place| (place, "the last one")).or(list) {
        Some((place, label)) => error.at(place, label),
        None => error,
    }
}

fn number(index: usize) -> u32 {
    u32::try_from(index).expect("files of 64 MiB hold fewer than 2^32 items")
}

/// What `any` stands for.
pub(super) fn everything() -> impl Iterator<Item = IpNet> {
    [IpNet::V4(Ipv4Net::default()), IpNet::V6(Ipv6Net::default())].into_iter()
}

fn dns(document: &Document, internal: &[DomainName]) -> Dns {
    let written = &document.dns;
    let mut dns = Dns::default();
    let set = |target: &mut _, value: &Option<super::document::At<_>>| {
        if let Some(value) = value {
            *target = value.value;
        }
    };
    set(&mut dns.min_ttl, &written.min_ttl);
    set(&mut dns.grace, &written.grace);
    set(&mut dns.max_stale, &written.max_stale);
    if let Some(queries) = &written.queries {
        dns.queries = queries.value;
    }
    if let Some(resolvers) = &written.resolvers {
        dns.resolvers = resolvers.value.clone();
    }
    if let Some(patterns) = &written.allow_private {
        dns.allow_private.clone_from(&patterns.value);
        dns.allow_private.sort_unstable();
        dns.allow_private.dedup();
    }
    dns.internal.extend(written.internal.iter().flat_map(|names| names.value.iter().cloned()));
    dns.internal.extend_from_slice(internal);
    dns.internal.sort_unstable();
    dns.internal.dedup();
    dns
}

fn compiled_rule(rule: &Rule, files: &[Arc<SourceFile>]) -> CompiledRule {
    let source = match &rule.place {
        Some(place) => {
            let file = &files[place.file as usize];
            RuleSource { file: file.name.clone(), line: file.line_column(place.span.start).0 }
        }
        None => RuleSource { file: rule.origin.to_owned(), line: 0 },
    };
    let (name, why, ports) = (rule.name.clone(), rule.why.clone(), rule.ports.clone());
    CompiledRule { name, why, action: rule.action, ports, source }
}

/// `ports` are those of the rule, as [`port_text`] has them.
fn compiled_grant(rule_index: u32, rule: &Rule, ports: &str, target: &Target) -> Grant {
    let item = target.to_string();
    let action = match rule.action {
        Action::Allow => "allow",
        Action::Deny => "deny",
    };
    // The name comes last: it is the only part that can hold spaces.
    let parts = [action, " ", &item, " ", ports, " ", &rule.name];
    let key = parts.iter().fold(OFFSET, |hash, part| fnv1a(hash, part.as_bytes()));
    Grant { rule: rule_index, item: item.into(), key }
}

/// Ports as a grant's key has them.
fn port_text(ports: &[Ports]) -> String {
    super::ports::list(ports).replace(", ", ",")
}

/// What [`fnv1a`] begins with.
pub(super) const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;

/// FNV-1a, 64 bit: short, without seed, and the same on every machine and version.
pub(super) fn fnv1a(hash: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(hash, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

fn content_hash(document: &Document, mode: super::compiled::Mode, dns: &Dns, builtins: Builtins) -> u64 {
    let head = format!("1 {mode:?} {dns:?} {builtins:?}");
    // Rules are hashed each by itself and summed, so that their order does not count.
    document.rules.iter().fold(fnv1a(OFFSET, head.as_bytes()), |sum, rule| {
        let mut targets: Vec<String> = rule.to.iter().map(|item| item.target.to_string()).collect();
        targets.sort_unstable();
        let ports = super::ports::list(&rule.ports);
        let text = format!("{:?}\0{}\0{:?}\0{targets:?}\0{ports}", rule.action, rule.name, rule.why);
        sum.wrapping_add(fnv1a(OFFSET, text.as_bytes()))
    })
}

/// Ports of every protocol as a [`super::compiled::PortRange`] has them.
fn port_range(ports: Ports, grant: u32) -> super::compiled::PortRange {
    let whole = matches!(ports.proto, Proto::Any | Proto::Icmp);
    let (from, to) = if whole { (0, u16::MAX) } else { (ports.from, ports.to) };
    super::compiled::PortRange { proto: ports.proto, from, to, grant }
}
