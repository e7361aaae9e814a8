//! `rules:`.

use std::collections::{HashMap, HashSet};

use super::{
    super::{
        compiled::Action,
        document::{Item, Rule, Silence},
        ports::{self, Ports},
        target::Target,
        warn,
    },
    Fields, Key, Node, Reader, Span, Value, excerpt,
};

const RULE_KEYS: &[&str] = &["name", "why", "action", "to", "ports", "silence"];
const ITEM_KEYS: &[&str] = &["set", "unset"];
/// Longest name of a rule, in bytes: it is shown in tables and metrics.
const MAX_RULE_NAME: usize = 128;

impl Reader<'_> {
    pub(super) fn rules(&mut self, key: &Key, node: Node) -> Vec<Rule> {
        if matches!(&node.value, Value::List(items) if items.is_empty()) || matches!(node.value, Value::Null) {
            let span = if matches!(node.value, Value::Null) { &key.span } else { &node.span };
            self.error(span, "`rules` is empty", "no rule is listed")
                .hint("list at least one; for a policy that allows nothing leave the key `rules` out");
            return Vec::new();
        }
        let Some(nodes) = self.list(key, node, "rules") else {
            return Vec::new();
        };
        let mut seen: HashMap<String, Span> = HashMap::new();
        let mut rules = Vec::with_capacity(nodes.len());
        for node in nodes {
            let span = node.span.clone();
            let Value::Map(entries) = node.value else {
                self.error(&span, "a rule is a map", "").hint("write `- name: ...` with `to:` and `ports:` below it");
                continue;
            };
            rules.extend(self.rule(&span, entries, &mut seen));
        }
        rules
    }

    /// `seen` has the names of the rules before, and where they stand.
    fn rule(&mut self, span: &Span, entries: Vec<(Key, Node)>, seen: &mut HashMap<String, Span>) -> Option<Rule> {
        let mut fields = self.fields(entries, RULE_KEYS, "a rule");
        let name = self.rule_name(span, &mut fields).filter(|(name, span)| self.is_new(name, span, seen));
        let why = fields.remove("why").and_then(|(_, node)| self.text(&node, "why"));
        let action = fields.remove("action").map_or(Some(Action::Allow), |(_, node)| {
            let choices = [("allow", Action::Allow), ("deny", Action::Deny)];
            self.choice(&node, "action", &choices).map(|action| action.value)
        });
        let silence = fields.remove("silence").map(|(key, node)| self.silence(&key, node)).unwrap_or_default();
        let to = match fields.remove("to") {
            Some((key, node)) => self.to(&key, node, action),
            None => {
                self.error(span, "a rule without `to`", "this rule says no destination").hint(
                    "write names, addresses or prefixes, like `to: [\"*.example.com\", 192.0.2.0/24]`, or `to: [any]`",
                );
                None
            }
        };
        let ports = match fields.remove("ports") {
            Some((key, node)) => self.items(&key, node, "ports", Ports::parse).map(|mut ports| {
                ports::normalise(&mut ports.value);
                ports.value
            }),
            None if action == Some(Action::Allow) => {
                self.error(span, "an allow rule without `ports`", "this rule says no port").hint(
                    "write them, like `ports: [443/tcp]`, or `ports: [any]` for TCP and UDP on every port and ICMP",
                );
                None
            }
            None => Some(vec![Ports::ANY]),
        };
        let (name, name_span) = name?;
        let place = Some(self.place(&name_span));
        Some(Rule { name, place, origin: "", why, action: action?, to: to?, ports: ports?, silence })
    }

    fn is_new(&mut self, name: &str, span: &Span, seen: &mut HashMap<String, Span>) -> bool {
        let Some(first) = seen.get(name) else {
            seen.insert(name.to_owned(), span.clone());
            return true;
        };
        let first = self.place(first);
        self.error(span, format!("there are two rules named `{}`", excerpt(name)), "again here")
            .also(first, "first here")
            .hint("name one of them differently, or put the items of both into one rule");
        false
    }

    fn rule_name(&mut self, span: &Span, fields: &mut Fields) -> Option<(String, Span)> {
        let Some((_, node)) = fields.remove("name") else {
            self.error(span, "a rule without a name", "").hint("write `name:`; reports and `explain` show it");
            return None;
        };
        let name = self.text(&node, "name")?;
        if name.trim().is_empty()
            || name.trim() != name
            || name.len() > MAX_RULE_NAME
            || name.contains(char::is_control)
        {
            self.error(&node.span, "not a name for a rule", "")
                .hint(format!("write 1 to {MAX_RULE_NAME} bytes on one line, without spaces at the ends"));
            return None;
        }
        Some((name, node.span))
    }

    fn to(&mut self, key: &Key, node: Node, action: Option<Action>) -> Option<Vec<Item>> {
        let nodes = self.list(key, node, "to")?;
        let count = nodes.len();
        let mut seen = HashSet::new();
        let mut good = 0;
        let mut items = Vec::with_capacity(count);
        for node in nodes {
            let Some(target) = self.target(&node) else {
                continue;
            };
            if action == Some(Action::Deny)
                && let Target::Name(name) = &target
            {
                self.error(&node.span, format!("`{name}` in a deny rule"), "deny rules take addresses and prefixes").hint(
                    "a name that no rule allows is denied already; narrow the rule that allows it, or deny its addresses",
                );
                continue;
            }
            good += 1;
            if seen.insert(target.clone()) {
                items.push(Item { target, place: Some(self.place(&node.span)) });
            }
        }
        (good == count).then_some(items)
    }

    /// A `to` item: a text, or `{set: with placeholders, unset: without}`.
    fn target(&mut self, node: &Node) -> Option<Target> {
        let Value::Map(entries) = &node.value else {
            let text = self.text(node, "an item of to")?;
            let text = self.filled(&node.span, &text)?;
            return self.read_target(&node.span, &text);
        };
        let mut fields = self.fields(entries.clone(), ITEM_KEYS, "an item of `to`");
        let (Some((_, set)), Some((_, unset))) = (fields.remove("set"), fields.remove("unset")) else {
            self.error(&node.span, "an item of `to` is a text, or has both `set` and `unset`", "")
                .hint("write a name or an address; with a `: ` or a `*` in front it needs quotes");
            return None;
        };
        let set_text = self.text(&set, "set")?;
        let unset_text = self.text(&unset, "unset")?;
        if let Ok(text) = self.fill(&set_text) {
            if text == set_text {
                self.error(&set.span, "`set` has no placeholder", "")
                    .hint("write one like `${region}`, or write the item as a text alone");
                return None;
            }
            return self.read_target(&set.span, &text);
        }
        let text = self.filled(&unset.span, &unset_text)?;
        self.read_target(&unset.span, &text)
    }

    fn read_target(&mut self, span: &Span, text: &str) -> Option<Target> {
        match Target::parse(text) {
            Ok(target) => Some(target),
            Err(error) => {
                self.item_error(span, error);
                None
            }
        }
    }

    fn silence(&mut self, key: &Key, node: Node) -> Vec<Silence> {
        let Some(entries) = self.map(key, node) else {
            return Vec::new();
        };
        let known: Vec<&'static str> = warn::NAMES.iter().map(|(name, _)| *name).collect();
        let fields = self.fields(entries, &known, "`silence`");
        let mut silence = Vec::new();
        for (warning, (key, node)) in fields {
            let Some(reason) = self.text(&node, warning) else {
                continue;
            };
            if reason.trim().is_empty() {
                self.error(&node.span, format!("`{warning}` is silenced without a reason"), "")
                    .hint("say why it is right here, for the next reader");
                continue;
            }
            silence.push(Silence { warning, reason, place: self.place(&key.span) });
        }
        silence.sort_by(|a, b| a.warning.cmp(b.warning));
        silence
    }
}
