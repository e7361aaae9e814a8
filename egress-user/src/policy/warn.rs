//! What is valid but doubtful. Each warning has a name, which a rule's `silence:` takes together with a reason.

use std::net::SocketAddr;

use ipnet::IpNet;

use super::{
    compiled::{Action, Compiled, Proto, Resolvers},
    diagnostic::{Diagnostic, Place},
    document::{Document, Item, Rule},
    name::{DomainName, NamePattern},
    ports::{self, Ports},
    target::Target,
};

/// Every warning and what it means.
pub const NAMES: &[(&str, &str)] = &[
    ("public-suffix", "a wildcard right under a public suffix: anyone can register a name below it"),
    ("covered", "another rule allows (or denies) everything that the item does"),
    ("denied", "a deny rule closes everything that the item allows"),
    ("wide-ports", "`any`, or a prefix as wide as a continent, on many ports"),
    ("resolver-denied", "a deny rule closes a resolver that the policy asks"),
    ("unused-silence", "a rule silences a warning that it does not cause"),
    ("unresolved", "a name that does not resolve (looked at with --resolve only)"),
];

/// More ports than this to `any` are many.
const MANY_PORTS: u32 = 16;
/// Most grants of a class that are looked at for one that covers: keeps the cost of a warning flat.
const LOOKED_AT: usize = 256;
/// A prefix at most this long is as good as `any`: IPv4 and IPv6.
const WIDE: (u8, u8) = (4, 8);

/// What [`check`] found, in the order of the rules.
#[derive(Debug, Default)]
pub struct Found {
    pub warnings: Vec<Diagnostic>,
    /// Silenced ones, each with the reason that the rule gives.
    pub silenced: Vec<(Diagnostic, String)>,
}

pub fn check(document: &Document, compiled: &Compiled) -> Found {
    let mut warnings = Found::default();
    let mut grant = 0;
    for rule in &document.rules {
        let before = warnings.silenced.len();
        for item in &rule.to {
            let found = [
                public_suffix(item),
                wide_ports(rule, item),
                denied(document, compiled, rule, item, grant),
                covered(document, compiled, rule, item, grant),
            ];
            for (diagnostic, place) in found.into_iter().flatten().map(|warning| (warning, item.place.as_ref())) {
                push(&mut warnings, rule, diagnostic, place);
            }
            grant += 1;
        }
        if rule.action == Action::Deny {
            resolver_denied(compiled, rule, &mut warnings);
        }
        unused_silence(rule, &mut warnings, before);
    }
    warnings
}

/// The warning that a name does not resolve.
pub fn unresolved(name: &DomainName, place: Option<&Place>) -> Diagnostic {
    let warning = Diagnostic::warning("unresolved", format!("`{name}` does not resolve"))
        .hint("is it spelled as meant? A name that is only there at times can be silenced with a reason");
    match place {
        Some(place) => warning.at(place, "no address now"),
        None => warning,
    }
}

fn push(found: &mut Found, rule: &Rule, mut warning: Diagnostic, place: Option<&Place>) {
    let Some(code) = warning.code else { return };
    if let Some(place) = place
        && warning.at.is_none()
    {
        warning.at = Some(Box::new((place.clone(), String::new())));
    }
    if let Some(silence) = rule.silence.iter().find(|silence| silence.warning == code) {
        found.silenced.push((warning, silence.reason.clone()));
        return;
    }
    // The command line has no place to write a reason, and what is typed by hand is meant.
    if rule.place.is_some() && code != "unused-silence" {
        let hint = warning.hint.take().map(|hint| format!("{hint}; or ")).unwrap_or_default();
        warning.hint = Some(format!("{hint}say why it is right: `silence: {{{code}: \"...\"}}` in the rule"));
    }
    found.warnings.push(warning);
}

fn public_suffix(item: &Item) -> Option<Diagnostic> {
    let Target::Name(NamePattern::Below(base) | NamePattern::InLabel { base, .. }) = &item.target else {
        return None;
    };
    // psl also answers with an unknown top-level name by its default rule `*`; that is a wide wildcard all the same.
    let suffix = psl::suffix_str(base.as_str())?;
    (suffix == base.as_str()).then(|| {
        Diagnostic::warning("public-suffix", format!("`{}` is right under a public suffix", item.target))
            .note(format!("anyone can get a name below `{base}`, and data can leave to it"))
            .hint("write the names that are needed")
    })
}

fn wide_ports(rule: &Rule, item: &Item) -> Option<Diagnostic> {
    let wide = match &item.target {
        Target::Any => true,
        Target::Net(IpNet::V4(net)) => net.prefix_len() <= WIDE.0,
        Target::Net(IpNet::V6(net)) => net.prefix_len() <= WIDE.1,
        Target::Name(_) => false,
    };
    let count = |ports: &Ports| match ports.proto {
        Proto::Any => u32::MAX,
        Proto::Icmp => 1,
        Proto::Tcp | Proto::Udp => u32::from(ports.to - ports.from) + 1,
    };
    let many = rule.ports.iter().fold(0_u32, |sum, ports| sum.saturating_add(count(ports))) > MANY_PORTS;
    (rule.action == Action::Allow && wide && many).then(|| {
        let title = format!("`{}` on {}", item.target, ports::list(&rule.ports));
        Diagnostic::warning("wide-ports", title)
            .note("this opens most of the internet on most ports")
            .hint("name the destinations or the ports that are needed")
    })
}

/// A deny rule that closes all that the item (an address or prefix of an allow rule) opens.
fn denied(document: &Document, compiled: &Compiled, rule: &Rule, item: &Item, grant: u32) -> Option<Diagnostic> {
    if rule.action == Action::Deny {
        return None;
    }
    let class = |net: IpNet| compiled.denies_covering(net);
    let nets: Vec<IpNet> = nets(&item.target)?;
    let deny =
        nets.iter().map(|net| other(document, compiled, rule, class(*net), grant)).collect::<Option<Vec<_>>>()?;
    let other = deny.first()?;
    let title = format!("rule `{}` denies all that `{}` allows", other.name, item.target);
    Some(also(Diagnostic::warning("denied", title), other).hint("drop one of the two"))
}

/// Another grant of the same action that covers this one in destination and ports.
fn covered(document: &Document, compiled: &Compiled, rule: &Rule, item: &Item, grant: u32) -> Option<Diagnostic> {
    let other = match &item.target {
        Target::Name(pattern) => other(document, compiled, rule, compiled.pattern_class(pattern), grant)?,
        target => {
            let class = |net: IpNet| match rule.action {
                Action::Allow => compiled.allows_covering(net),
                Action::Deny => compiled.denies_covering(net),
            };
            let nets = nets(target)?;
            let found: Option<Vec<_>> =
                nets.iter().map(|net| other(document, compiled, rule, class(*net), grant)).collect();
            found?.into_iter().next()?
        }
    };
    let (what, verb) = match rule.action {
        Action::Allow => ("allows", "allowed"),
        Action::Deny => ("denies", "denied"),
    };
    let title = format!("`{}` is already {verb} by rule `{}`", item.target, other.name);
    Some(
        also(Diagnostic::warning("covered", title), other)
            .note(format!("that rule {what} it on {}", ports::list(&other.ports)))
            .hint("drop one of the two"),
    )
}

fn also(warning: Diagnostic, other: &Rule) -> Diagnostic {
    match &other.place {
        Some(place) => warning.also(place, "this rule"),
        None => warning,
    }
}

/// The prefixes of an address item; `None` for names.
fn nets(target: &Target) -> Option<Vec<IpNet>> {
    match target {
        Target::Any => Some(super::compile::everything().collect()),
        Target::Net(net) => Some(vec![*net]),
        Target::Name(_) => None,
    }
}

/// The rule of another grant of the class whose ports cover this rule's. Of two equal grants the later one is covered.
fn other<'a>(document: &'a Document, compiled: &Compiled, rule: &Rule, class: u32, grant: u32) -> Option<&'a Rule> {
    let this = &compiled.grants[grant as usize];
    compiled.classes.of(class).grants.iter().take(LOOKED_AT).find_map(|number| {
        let grant_of = &compiled.grants[*number as usize];
        if *number == grant || grant_of.rule == this.rule && grant_of.item == this.item {
            return None;
        }
        let candidate = &document.rules[grant_of.rule as usize];
        let equal = grant_of.item == this.item && candidate.ports == rule.ports && candidate.action == rule.action;
        (ports::cover(&candidate.ports, &rule.ports) && (!equal || *number < grant)).then_some(candidate)
    })
}

fn resolver_denied(compiled: &Compiled, rule: &Rule, warnings: &mut Found) {
    let Resolvers::Addresses(resolvers) = &compiled.dns.resolvers else {
        return;
    };
    for item in &rule.to {
        let Some(nets) = nets(&item.target) else {
            continue;
        };
        let hit = |resolver: &&SocketAddr| {
            nets.iter().any(|net| net.contains(&resolver.ip()))
                && rule.ports.iter().any(|ports| {
                    ports.matches(Proto::Udp, resolver.port()) || ports.matches(Proto::Tcp, resolver.port())
                })
        };
        if let Some(resolver) = resolvers.iter().find(hit) {
            let title = format!("rule `{}` denies the resolver {resolver}", rule.name);
            let warning = Diagnostic::warning("resolver-denied", title)
                .note("no name can be resolved by it, so rules for names open nothing")
                .hint("narrow the rule, or ask another resolver");
            push(warnings, rule, warning, item.place.as_ref());
        }
    }
}

/// `before`: how many warnings the rules before this one silenced.
fn unused_silence(rule: &Rule, found: &mut Found, before: usize) {
    for silence in &rule.silence {
        let used = found.silenced[before..].iter().any(|(warning, _)| warning.code == Some(silence.warning));
        // Whether a name resolves is asked later, and seldom; a silence of this warning is for the next one.
        if used || matches!(silence.warning, "unresolved" | "unused-silence") {
            continue;
        }
        let title = format!("rule `{}` silences `{}`, which it does not cause", rule.name, silence.warning);
        let warning = Diagnostic::warning("unused-silence", title).hint("drop the line");
        push(found, rule, warning, Some(&silence.place));
    }
}
