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
    InLabel {
        prefix: Box<str>,
        suffix: Box<str>,
        base: DomainName,
    },
}

/// What is wrong with a written name. The text says what; [`NameError::hint`] says what to write.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}")]
pub struct NameError {
    pub what: String,
    pub hint: Option<String>,
}

impl DomainName {
    /// The name without a trailing dot.
    pub fn as_str(&self) -> &str {
        &self.0
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
            Self::InLabel {
                prefix,
                suffix,
                base,
            } => write!(f, "{prefix}*{suffix}.{base}"),
        }
    }
}

impl Serialize for NamePattern {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
