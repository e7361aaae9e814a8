//! Several files as one policy: rules are a union, everything else is said once.

use std::collections::HashMap;

use super::{
    diagnostic::{Diagnostic, Place},
    document::{At, Document, Rule},
    name::excerpt,
};

pub fn merge(documents: Vec<Document>, diagnostics: &mut Vec<Diagnostic>) -> Document {
    let mut merged = Document::default();
    let mut names: HashMap<String, usize> = HashMap::new();
    for document in documents {
        once("mode", &mut merged.mode, document.mode, diagnostics);
        // Full destructuring: a new key cannot be forgotten here.
        let super::document::DnsDocument { resolvers, queries, internal, min_ttl, grace, max_stale, allow_private } =
            document.dns;
        let dns = &mut merged.dns;
        once("dns.resolvers", &mut dns.resolvers, resolvers, diagnostics);
        once("dns.queries", &mut dns.queries, queries, diagnostics);
        once("dns.internal", &mut dns.internal, internal, diagnostics);
        once("dns.minTtl", &mut dns.min_ttl, min_ttl, diagnostics);
        once("dns.grace", &mut dns.grace, grace, diagnostics);
        once("dns.maxStale", &mut dns.max_stale, max_stale, diagnostics);
        once("dns.allowPrivate", &mut dns.allow_private, allow_private, diagnostics);
        for (name, value) in document.builtins {
            match merged.builtins.iter().find(|(before, _)| *before == name) {
                Some((_, before)) => twice(&format!("builtins.{name}"), &before.place, &value.place, diagnostics),
                None => merged.builtins.push((name, value)),
            }
        }
        for rule in document.rules {
            match names.get(&rule.name) {
                Some(index) => same_rule(&mut merged.rules[*index], rule, diagnostics),
                None => {
                    names.insert(rule.name.clone(), merged.rules.len());
                    merged.rules.push(rule);
                }
            }
        }
    }
    merged
}

fn once<T>(name: &str, slot: &mut Option<At<T>>, value: Option<At<T>>, diagnostics: &mut Vec<Diagnostic>) {
    match (&slot, value) {
        (Some(before), Some(again)) => twice(name, &before.place, &again.place, diagnostics),
        (None, value @ Some(_)) => *slot = value,
        (_, None) => {}
    }
}

fn twice(name: &str, before: &Place, again: &Place, diagnostics: &mut Vec<Diagnostic>) {
    diagnostics.push(
        Diagnostic::error(format!("two files say `{name}`"))
            .at(again, "again here")
            .also(before, "first here")
            .hint("files merge as a union, so this may be said in one of them only"),
    );
}

/// The same rule in two files is one rule; two rules of one name are an error.
fn same_rule(before: &mut Rule, again: Rule, diagnostics: &mut Vec<Diagnostic>) {
    if before.same(&again) {
        before.silence.extend(again.silence);
        return;
    }
    let (Some(first), Some(second)) = (&before.place, &again.place) else {
        return;
    };
    diagnostics.push(
        Diagnostic::error(format!("two files have different rules named `{}`", excerpt(&again.name)))
            .at(second, "another one here")
            .also(first, "one here")
            .hint("name one of them differently, or make both the same"),
    );
}
