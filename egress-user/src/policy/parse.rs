//! From the YAML tree of one file to a checked document. Every error of the file is found in one pass.

mod fields;
mod rules;

use std::{collections::HashMap, net::SocketAddr};

use super::{
    compiled::{Builtins, Mode, Queries, Resolvers},
    diagnostic::{Diagnostic, Place, SourceFile},
    document::{At, DnsDocument, Document},
    duration,
    name::{DomainName, ItemError, NamePattern, excerpt},
    yaml::{self, Key, Node, Span, Value},
};

/// The values of `--set`, and which of them some file uses.
#[derive(Debug, Default)]
pub struct Settings {
    values: HashMap<String, String>,
    used: std::collections::BTreeSet<String>,
}

impl Settings {
    pub fn new(values: impl IntoIterator<Item = (String, String)>) -> Self {
        Self { values: values.into_iter().collect(), used: Default::default() }
    }

    /// The names of placeholders that were seen, filled or not.
    pub fn placeholders(&self) -> impl Iterator<Item = &str> {
        self.used.iter().map(String::as_str)
    }

    fn get(&mut self, name: &str) -> Option<&str> {
        self.used.insert(name.to_owned());
        self.values.get(name).map(String::as_str)
    }
}

/// Largest policy file. A rule takes about 100 bytes, so this is far above 100,000 of them.
pub const MAX_BYTES: u64 = 64 << 20;

const TOP_KEYS: &[&str] = &["version", "mode", "dns", "builtins", "rules"];
const DNS_KEYS: &[&str] = &["resolvers", "queries", "internal", "minTtl", "grace", "maxStale", "allowPrivate"];

/// Parses `files[file]`. What could be read comes back even when there are errors; the caller refuses it then.
pub fn parse(file: u32, source: &SourceFile, settings: &mut Settings, diagnostics: &mut Vec<Diagnostic>) -> Document {
    let mut reader = Reader { file, settings, diagnostics };
    let node = match yaml::parse(&source.text) {
        Ok(node) => node,
        Err(error) => {
            reader.syntax(&error, source);
            return Document::default();
        }
    };
    match node.value {
        Value::Null => {
            let empty = Diagnostic::error("the file is empty").hint(
                "write at least `version: 1` and one rule below `rules:`; a policy that allows nothing is embedded as `deny-all`",
            );
            reader.diagnostics.push(empty.at(&Place { file, span: 0..0 }, "no policy here"));
            Document::default()
        }
        Value::Map(entries) => reader.document(entries),
        _ => {
            reader
                .error(&node.span, "a policy is a map", "this is not a key")
                .hint("write `version: 1`, and one rule below `rules:`");
            Document::default()
        }
    }
}

struct Reader<'a> {
    file: u32,
    settings: &'a mut Settings,
    diagnostics: &'a mut Vec<Diagnostic>,
}

/// The diagnostic pushed last, to add to it.
struct Pushed<'a>(&'a mut Diagnostic);

impl Pushed<'_> {
    fn hint(self, hint: impl Into<String>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }

    fn also(self, place: Place, label: &str) -> Self {
        self.0.also.push((place, label.to_owned()));
        self
    }
}

impl Reader<'_> {
    fn place(&self, span: &Span) -> Place {
        Place { file: self.file, span: span.clone() }
    }

    fn error(&mut self, span: &Span, title: impl Into<String>, label: impl Into<String>) -> Pushed<'_> {
        let diagnostic = Diagnostic::error(title).at(&self.place(span), label);
        self.diagnostics.push(diagnostic);
        let last = self.diagnostics.len() - 1;
        Pushed(&mut self.diagnostics[last])
    }

    fn item_error(&mut self, span: &Span, error: ItemError) {
        let pushed = self.error(span, error.what, "");
        if let Some(hint) = error.hint {
            pushed.hint(hint);
        }
    }

    fn syntax(&mut self, error: &yaml::SyntaxError, source: &SourceFile) {
        let at = error.span.start as usize;
        let line_start = source.text[..at].rfind('\n').map_or(0, |at| at + 1);
        let line = source.text[line_start..].lines().next().unwrap_or("");
        let indent = &line[..line.len() - line.trim_start().len()];
        if let Some(tab) = indent.find('\t') {
            let tab = u32::try_from(line_start + tab).unwrap_or(u32::MAX);
            self.error(&(tab..tab + 1), "a tab in the indentation", "this is a tab")
                .hint("YAML is indented with spaces: replace the tab with two");
            return;
        }
        let rest = source.text[at..].trim_start();
        if rest.starts_with('*') && error.looks == yaml::Looks::Wildcard {
            let end = rest.find([',', ']', '\n', ' ']).unwrap_or(rest.len());
            let word = &rest[..end];
            let start = at + (source.text[at..].len() - rest.len());
            let span = u32::try_from(start).unwrap_or(u32::MAX)..u32::try_from(start + end).unwrap_or(u32::MAX);
            self.error(&span, "a wildcard without quotes", "YAML reads `*` as a reference to an anchor")
                .hint(format!("write it in quotes: \"{}\"", excerpt(word)));
            return;
        }
        if error.looks == yaml::Looks::SecondDocument {
            self.error(&error.span, "several policies in one file", "the second one begins here")
                .hint("write each into a file of its own, or remove this line and the keys that are there already");
            return;
        }
        let hint = match error.looks {
            yaml::Looks::Colon => "a text with `: ` in it stands in quotes; if this is a key, it is indented too far",
            _ => "look for an open bracket or quote, or another indentation, here or just above",
        };
        self.error(&error.span, format!("not YAML: {}", error.message), "here").hint(hint);
    }

    /// The entries of a map by known key. Reports unknown and duplicate keys, with the near one.
    fn fields(&mut self, entries: Vec<(Key, Node)>, known: &[&'static str], of: &str) -> Fields {
        let mut fields: Fields = HashMap::new();
        for (key, node) in entries {
            let Some(name) = known.iter().find(|name| **name == key.name) else {
                let hint = match nearest(&key.name, known) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => format!("the keys of {of} are {}", quoted(known)),
                };
                self.error(&key.span, format!("unknown key `{}` in {of}", excerpt(&key.name)), "").hint(hint);
                continue;
            };
            if let Some((first, _)) = fields.get(name) {
                let first = self.place(&first.span);
                self.error(&key.span, format!("the key `{name}` is there twice"), "again here")
                    .also(first, "first here")
                    .hint("keep one of them; a list takes several items");
                continue;
            }
            fields.insert(name, (key, node));
        }
        fields
    }

    fn document(&mut self, entries: Vec<(Key, Node)>) -> Document {
        let mut fields = self.fields(entries, TOP_KEYS, "a policy");
        let mut document = Document::default();
        if let Some((_, node)) = fields.remove("version") {
            let version = self.text(&node, "version");
            if version.is_some_and(|version| version != "1") {
                self.error(&node.span, "unknown version of the language", "").hint("this program reads `version: 1`");
            }
        }
        if let Some((_, node)) = fields.remove("mode") {
            document.mode = self.choice(&node, "mode", &[("enforce", Mode::Enforce), ("audit", Mode::Audit)]);
        }
        if let Some((key, node)) = fields.remove("dns")
            && let Some(entries) = self.map(&key, node)
        {
            document.dns = self.dns(entries);
        }
        if let Some((key, node)) = fields.remove("builtins")
            && let Some(entries) = self.map(&key, node)
        {
            let fields = self.fields(entries, &Builtins::NAMES, "`builtins`");
            for name in Builtins::NAMES {
                let Some((_, node)) = fields.get(name) else {
                    continue;
                };
                match node.value {
                    Value::Bool(value) => {
                        document.builtins.push((name, At { value, place: self.place(&node.span) }));
                    }
                    _ => {
                        self.error(&node.span, format!("`{name}` is on or off"), "").hint("write `true` or `false`");
                    }
                }
            }
        }
        if let Some((key, node)) = fields.remove("rules") {
            document.rules = self.rules(&key, node);
        }
        document
    }

    fn dns(&mut self, entries: Vec<(Key, Node)>) -> DnsDocument {
        let mut fields = self.fields(entries, DNS_KEYS, "`dns`");
        let mut dns = DnsDocument::default();
        if let Some((key, node)) = fields.remove("resolvers") {
            dns.resolvers = self.resolvers(&key, node);
        }
        if let Some((_, node)) = fields.remove("queries") {
            dns.queries =
                self.choice(&node, "queries", &[("allowlisted", Queries::Allowlisted), ("any", Queries::Any)]);
        }
        if let Some((key, node)) = fields.remove("internal") {
            dns.internal = self.items(&key, node, "dns.internal", |text| {
                let bare = text.strip_prefix("*.").unwrap_or(text);
                match DomainName::parse(bare) {
                    Ok(_) if bare != text => Err(ItemError::new(
                        format!("`{}` has a wildcard", excerpt(text)),
                        format!("write `{}`: internal names stand for all below them", excerpt(bare)),
                    )),
                    result => result,
                }
            });
        }
        if let Some((key, node)) = fields.remove("allowPrivate") {
            dns.allow_private = self.items(&key, node, "dns.allowPrivate", NamePattern::parse);
        }
        for (name, slot) in [("minTtl", &mut dns.min_ttl), ("grace", &mut dns.grace), ("maxStale", &mut dns.max_stale)]
        {
            let Some((_, node)) = fields.remove(name) else {
                continue;
            };
            let Some(text) = self.text(&node, name) else {
                continue;
            };
            match duration::parse(&text) {
                Ok(value) => *slot = Some(At { value, place: self.place(&node.span) }),
                Err(error) => self.item_error(&node.span, error),
            }
        }
        dns
    }

    fn resolvers(&mut self, key: &Key, node: Node) -> Option<At<Resolvers>> {
        let place = self.place(&node.span);
        if let Value::Text(text) = &node.value {
            if text == "system" {
                return Some(At { value: Resolvers::System, place });
            }
            let hint = match parse_resolver(text) {
                Ok(_) => format!("write a list: `resolvers: [\"{text}\"]`"),
                Err(_) => "write `system`, or a list of addresses like `[192.0.2.53]`".to_owned(),
            };
            self.error(&node.span, "`resolvers` is `system` or a list of addresses", "").hint(hint);
            return None;
        }
        let addresses = self.items(key, node, "dns.resolvers", parse_resolver)?;
        Some(At { value: Resolvers::Addresses(addresses.value), place })
    }
}

/// `ADDR`, `ADDR:PORT`, `V6` or `[V6]:PORT`; port 53 where none is written.
pub fn parse_resolver(text: &str) -> Result<SocketAddr, ItemError> {
    let text = text.trim();
    let address = match text.parse::<std::net::IpAddr>() {
        Ok(address) => SocketAddr::new(address.to_canonical(), 53),
        Err(_) => text.parse::<SocketAddr>().map_err(|_| {
            ItemError::new(
                format!("`{}` is not the address of a resolver", excerpt(text)),
                "write an address, with a port if it is not 53: `192.0.2.53`, `192.0.2.53:5353` or `[2001:db8::53]:5353`",
            )
        })?,
    };
    if address.port() == 0 {
        return Err(ItemError::new("port 0 does not exist", "leave the port out for 53"));
    }
    if address.ip().is_unspecified() || address.ip().is_multicast() {
        return Err(ItemError::new(
            format!("nothing answers at `{}`", address.ip()),
            "write the resolver's own address",
        ));
    }
    Ok(SocketAddr::new(address.ip().to_canonical(), address.port()))
}

/// The known key that was probably meant.
pub(super) fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    // The distance is quadratic in the length; no key is near a very long word.
    if word.len() > 40 {
        return None;
    }
    let plain = |text: &str| text.to_ascii_lowercase().replace(['-', '_'], "");
    known
        .iter()
        .map(|name| (strsim::damerau_levenshtein(&plain(word), &plain(name)), *name))
        .filter(|(distance, name)| *distance <= (name.len() / 3).max(1))
        .min()
        .map(|(_, name)| name)
}

pub(super) fn quoted(words: &[&str]) -> String {
    words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ")
}

type Fields = HashMap<&'static str, (Key, Node)>;
