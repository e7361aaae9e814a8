//! Domain names and the patterns that rules write: parsed, checked and brought to one canonical form.

use std::fmt;

use serde::Serialize;

/// Longest name in presentation form without the trailing dot (RFC 1035, section 2.3.4: 255 octets on the wire).
pub const MAX_NAME: usize = 253;
/// Longest label (RFC 1035, section 2.3.4).
pub const MAX_LABEL: usize = 63;

/// A name in canonical form: lower case, A-labels, no trailing dot, 1 to 253 bytes, labels of 1 to 63 bytes of
/// letters, digits, `-` and `_`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct DomainName(Box<str>);

/// What a `to` item says about names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NamePattern {
    /// This name alone.
    Exact(DomainName),
    /// `*.base`: one or more labels below `base`, never `base` itself.
    Below(DomainName),
    /// `prefix*suffix.base`: exactly one label below `base`, with one byte or more for the `*`.
    InLabel { prefix: Box<str>, suffix: Box<str>, base: DomainName },
}

/// What is wrong with a written item (a name, an address, ports, a time). The text says what; `hint` says what to write.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}")]
pub struct ItemError {
    pub what: String,
    pub hint: Option<String>,
}

/// What `*` means here, in the words of every hint about it.
const WILDCARD_HELP: &str = "`*.example.com` matches one or more labels at any depth, `md-*.example.com` one label";

impl DomainName {
    /// Reads a name in any spelling: upper case, with a trailing dot, or with letters beyond ASCII (UTS 46).
    pub fn parse(text: &str) -> Result<Self, ItemError> {
        let trimmed = text.strip_suffix('.').unwrap_or(text);
        if trimmed.is_empty() {
            return Err(ItemError::new("an empty name", "write a name like `example.com`"));
        }
        // Far beyond any name that could convert to 253 bytes: do not convert it at all.
        if trimmed.len() > 4 * MAX_NAME {
            return Err(too_long(trimmed.len()));
        }
        if let Some(bad) = trimmed.chars().find(|c| c.is_ascii() && !is_name_char(*c) && *c != '.') {
            return Err(bad_character(text, bad));
        }
        if let Some(error) = empty_label(trimmed) {
            return Err(error);
        }
        let mut name = trimmed.to_ascii_lowercase();
        if !name.is_ascii() || name.split('.').any(|label| label.starts_with("xn--")) {
            name = idna::domain_to_ascii_cow(name.as_bytes(), idna::AsciiDenyList::EMPTY)
                .map_err(|_| {
                    ItemError::new(
                        format!("`{}` is not a valid internationalised name", excerpt(text)),
                        "write its A-label form (`xn--...`), as `idn` or a registrar shows it",
                    )
                })?
                .into_owned();
            if let Some(bad) = name.chars().find(|c| !is_name_char(*c) && *c != '.') {
                return Err(bad_character(text, bad));
            }
            if let Some(error) = empty_label(&name) {
                return Err(error);
            }
        }
        check_lengths(&name)?;
        if name.rsplit('.').next().is_some_and(|top| top.bytes().all(|b| b.is_ascii_digit())) {
            return Err(ItemError::new(
                format!("`{}` is neither a name nor an address", excerpt(text)),
                "an IPv4 address has four numbers from 0 to 255 without leading zeros, like `192.0.2.1`; \
                 a prefix is written `192.0.2.0/24`",
            ));
        }
        Ok(Self(name.into()))
    }

    /// The name without a trailing dot.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The labels from the top: `com`, `example`, `api`.
    pub fn labels_from_top(&self) -> impl Iterator<Item = &str> {
        self.0.rsplit('.')
    }

    /// The name one label up, or `None` at the top.
    pub fn parent(&self) -> Option<Self> {
        self.0.split_once('.').map(|(_, parent)| Self(parent.into()))
    }

    /// Whether this name is one or more labels below `base`.
    pub fn is_below(&self, base: &Self) -> bool {
        self.0.strip_suffix(&*base.0).is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'))
    }
}

impl NamePattern {
    /// Reads an exact name or one of the two forms of wildcard. Other dialects' forms are errors that say what to write.
    pub fn parse(text: &str) -> Result<Self, ItemError> {
        let shown = excerpt(text);
        if text.len() > 8 * MAX_NAME {
            return Err(too_long(text.len()));
        }
        if let Some((scheme, rest)) = text.split_once("://") {
            let host = rest.split(['/', ':', '?']).next().unwrap_or_default();
            let ports = match scheme {
                "http" => "80/tcp",
                _ => "443/tcp",
            };
            return Err(ItemError::new(
                format!("`{shown}` is a URL"),
                format!("write the host alone, `{host}`, and its port below `ports: [{ports}]`"),
            ));
        }
        if text.contains(['^', '$', '(', ')', '[', ']', '{', '}', '|', '\\', '+', '?']) {
            return Err(ItemError::new(
                format!("`{shown}` looks like a regular expression"),
                format!("there are no regular expressions here: {WILDCARD_HELP}"),
            ));
        }
        if let Some(base) = text.strip_prefix('.') {
            return Err(ItemError::new(
                format!("`{shown}` begins with a dot"),
                format!("write `*.{base}` for all names below it, and `{base}` too if the name itself is meant"),
            ));
        }
        if !text.contains('*') {
            return DomainName::parse(text).map(Self::Exact);
        }
        if text == "*" || text == "*." {
            return Err(ItemError::new("`*` alone is not a name", "write `any` for every destination"));
        }
        if let Some(rest) = text.strip_prefix("**") {
            let base = rest.trim_start_matches(['*', '.']);
            return Err(ItemError::new(
                format!("`{shown}` has a `**`"),
                format!("write `*.{base}`: it already matches at any depth"),
            ));
        }
        let Some((first, base)) = text.split_once('.') else {
            return Err(ItemError::new(
                format!("`{shown}` has a wildcard but no domain"),
                format!("a wildcard needs a name to stand below: {WILDCARD_HELP}"),
            ));
        };
        if base.contains('*') {
            let tail = base.rsplit_once('*').and_then(|(_, tail)| tail.split_once('.')).map_or("", |(_, tail)| tail);
            // `*.com` is no advice.
            let hint = if tail.contains('.') {
                format!("a `*` stands only in the leftmost label; write `*.{tail}`, or each name by itself")
            } else {
                "a `*` stands only in the leftmost label; write each name by itself".to_owned()
            };
            return Err(ItemError::new(format!("`{shown}` has a `*` that is not in the leftmost label"), hint));
        }
        let base = DomainName::parse(base)?;
        if first == "*" {
            if base.0.len() + 2 > MAX_NAME {
                return Err(too_long(base.0.len() + 2));
            }
            return Ok(Self::Below(base));
        }
        let (prefix, suffix) = first.split_once('*').unwrap_or((first, ""));
        if suffix.contains('*') {
            return Err(ItemError::new(format!("`{shown}` has two `*`"), format!("one is allowed: {WILDCARD_HELP}")));
        }
        if !first.is_ascii() {
            return Err(ItemError::new(
                format!("`{shown}` has a `*` in a label with letters beyond ASCII"),
                "such a label is encoded as a whole, so no part of it can vary; write `*.` and the names below it",
            ));
        }
        if let Some(bad) = first.chars().find(|c| *c != '*' && !is_name_char(*c)) {
            return Err(bad_character(text, bad));
        }
        if first.len() > MAX_LABEL {
            return Err(label_too_long(first));
        }
        if first.len() + 1 + base.0.len() > MAX_NAME {
            return Err(too_long(first.len() + 1 + base.0.len()));
        }
        Ok(Self::InLabel {
            prefix: prefix.to_ascii_lowercase().into(),
            suffix: suffix.to_ascii_lowercase().into(),
            base,
        })
    }

    /// Whether the pattern covers this name: the plain definition, of which the compiled tables are the fast form.
    pub fn matches(&self, name: &DomainName) -> bool {
        match self {
            Self::Exact(exact) => exact == name,
            Self::Below(base) => name.is_below(base),
            Self::InLabel { prefix, suffix, base } => name
                .0
                .split_once('.')
                .is_some_and(|(label, rest)| rest == base.as_str() && label_matches(label, prefix, suffix)),
        }
    }
}

/// Whether `label` is `prefix`, one byte or more, and `suffix`.
pub(super) fn label_matches(label: &str, prefix: &str, suffix: &str) -> bool {
    label.len() > prefix.len() + suffix.len() && label.starts_with(prefix) && label.ends_with(suffix)
}

impl ItemError {
    pub(super) fn new(what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { what: what.into(), hint: Some(hint.into()) }
    }
}

fn is_name_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '-' || c == '_'
}

fn empty_label(name: &str) -> Option<ItemError> {
    name.split('.').any(str::is_empty).then(|| {
        ItemError::new(
            format!("`{}` has an empty label", excerpt(name)),
            "a name has one dot between two labels, and none in front",
        )
    })
}

fn check_lengths(name: &str) -> Result<(), ItemError> {
    if let Some(label) = name.split('.').find(|label| label.len() > MAX_LABEL) {
        return Err(label_too_long(label));
    }
    if name.len() > MAX_NAME {
        return Err(too_long(name.len()));
    }
    Ok(())
}

fn too_long(len: usize) -> ItemError {
    ItemError::new(format!("a name of {len} bytes is too long"), "DNS names have at most 253 bytes")
}

fn label_too_long(label: &str) -> ItemError {
    ItemError::new(
        format!("the label `{}` of {} bytes is too long", excerpt(label), label.len()),
        "the parts between the dots have at most 63 bytes each (an IDN counts in its A-label form)",
    )
}

fn bad_character(text: &str, bad: char) -> ItemError {
    let what = format!("`{}` has a character that no name has: {bad:?}", excerpt(text));
    let hint = match bad {
        ':' => "write the host alone here, and its port below `ports`".to_owned(),
        '/' => "write the host alone; paths cannot be told apart, and a prefix begins with an address".to_owned(),
        ' ' | ',' | ';' => "write one item for each name".to_owned(),
        '@' => "write the host alone, without a user".to_owned(),
        '!' | '~' => "rules only add; to close an address write a rule with `action: deny`".to_owned(),
        _ => "names have letters, digits, `-`, `_` and dots".to_owned(),
    };
    ItemError::new(what, hint)
}

/// At most 64 characters, for messages.
pub(super) fn excerpt(text: &str) -> String {
    match text.char_indices().nth(64) {
        Some((at, _)) => format!("{}...", &text[..at]),
        None => text.to_owned(),
    }
}

impl fmt::Display for DomainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for NamePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => write!(f, "{name}"),
            Self::Below(base) => write!(f, "*.{base}"),
            Self::InLabel { prefix, suffix, base } => write!(f, "{prefix}*{suffix}.{base}"),
        }
    }
}

impl Serialize for NamePattern {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl std::str::FromStr for DomainName {
    type Err = ItemError;

    fn from_str(text: &str) -> Result<Self, ItemError> {
        Self::parse(text)
    }
}

impl std::str::FromStr for NamePattern {
    type Err = ItemError;

    fn from_str(text: &str) -> Result<Self, ItemError> {
        Self::parse(text)
    }
}
