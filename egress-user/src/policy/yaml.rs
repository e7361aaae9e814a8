//! YAML text to a tree of nodes with byte positions: the only module that knows the YAML crate.
//!
//! The tree keeps duplicate keys and numbers as they were written, so that the checks above it can report everything
//! that is wrong at once, each in its place.

use std::{fmt, ops::Range};

use serde::{
    Deserialize,
    de::{Deserializer, MapAccess, SeqAccess, Visitor},
};
use serde_saphyr::{
    Location, Spanned, UserMessageFormatter,
    budget::BudgetBreach,
    options::{DuplicateKeyPolicy, MergeKeyPolicy},
};

/// A byte range of the source text. Never beyond its end.
pub type Span = Range<u32>;

#[derive(Clone, Debug)]
pub struct Node {
    pub value: Value,
    /// Of a scalar: the scalar. Of a list or map: where it begins.
    pub span: Span,
}

#[derive(Clone, Debug)]
pub enum Value {
    Null,
    /// `true` or `false`, unquoted (YAML 1.2; `yes` and `on` are text).
    Bool(bool),
    /// A plain number, as it was written.
    Number(String),
    Text(String),
    List(Vec<Node>),
    /// In the order of the file, duplicates included.
    Map(Vec<(Key, Node)>),
}

#[derive(Clone, Debug)]
pub struct Key {
    pub name: String,
    pub span: Span,
}

/// Not YAML: what the parser says, and where.
#[derive(Clone, Debug)]
pub struct SyntaxError {
    pub message: String,
    pub span: Span,
    pub looks: Looks,
}

/// What a mistake looks like that people make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Looks {
    /// `*name` where no `&name` is: a wildcard without quotes.
    Wildcard,
    /// A line `---`: several policies in one file.
    SecondDocument,
    /// `key: text: more`: a text without quotes, or a key that is indented too far.
    Colon,
    /// Any other.
    Other,
}

/// Parses one document. An empty text (or only comments) is [`Value::Null`].
///
/// The budgets are far above what a policy of a million rules needs, and stop alias bombs.
pub fn parse(text: &str) -> Result<Node, SyntaxError> {
    if text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#')) {
        return Ok(Node { value: Value::Null, span: 0..0 });
    }
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_events: 50_000_000,
            max_nodes: 50_000_000,
            max_depth: 32,
            max_documents: 1,
            max_total_scalar_bytes: 1 << 30,
            max_total_comment_bytes: 1 << 30,
        },
        duplicate_keys: DuplicateKeyPolicy::PassThrough,
        merge_keys: MergeKeyPolicy::Error,
        strict_booleans: true,
        emit_comments: false,
    };
    match serde_saphyr::from_str_with_options::<Spanned<RawValue>>(text, options) {
        Ok(raw) => Ok(finish(raw, text)),
        Err(error) => Err(syntax_error(&error, text)),
    }
}

fn syntax_error(error: &serde_saphyr::Error, text: &str) -> SyntaxError {
    use serde_saphyr::MessageFormatter;
    let error = error.without_snippet();
    let message = UserMessageFormatter.format_message(error).into_owned();
    let span = error.location().map_or(0..0, |location| span(location, text));
    let looks = match error {
        serde_saphyr::Error::UnknownAnchor { .. } => Looks::Wildcard,
        serde_saphyr::Error::Budget { breach: BudgetBreach::Documents { .. }, .. } => Looks::SecondDocument,
        _ if message.contains("mapping values are not allowed") => Looks::Colon,
        _ => Looks::Other,
    };
    SyntaxError { message, span, looks }
}

/// What the YAML crate gives: numbers lose their spelling, which [`finish`] takes from the source again.
enum RawValue {
    Null,
    Bool(bool),
    Number,
    Text(String),
    List(Vec<Spanned<RawValue>>),
    Map(Vec<(Spanned<String>, Spanned<RawValue>)>),
}

fn finish(raw: Spanned<RawValue>, text: &str) -> Node {
    let span = span(raw.referenced, text);
    let value = match raw.value {
        RawValue::Null => Value::Null,
        RawValue::Bool(value) => Value::Bool(value),
        RawValue::Number => {
            let written = self::span(raw.defined, text);
            Value::Number(text[written.start as usize..written.end as usize].trim().to_owned())
        }
        RawValue::Text(value) => Value::Text(value),
        RawValue::List(items) => Value::List(items.into_iter().map(|item| finish(item, text)).collect()),
        RawValue::Map(entries) => Value::Map(
            entries
                .into_iter()
                .map(|(key, value)| {
                    let key = Key { span: self::span(key.referenced, text), name: key.value };
                    (key, finish(value, text))
                })
                .collect(),
        ),
    };
    Node { value, span }
}

fn span(location: Location, text: &str) -> Span {
    let span = location.span();
    let end = text.len();
    let clamp = |offset: u64| {
        let offset = usize::try_from(offset).unwrap_or(end).min(end);
        u32::try_from(text.floor_char_boundary(offset)).unwrap_or(u32::MAX)
    };
    match (span.byte_offset(), span.byte_len()) {
        (Some(offset), Some(len)) => clamp(offset)..clamp(offset + len),
        // Errors carry a line and column only; both count from 1, columns in characters.
        _ if location.line() > 0 => {
            let line = usize::try_from(location.line() - 1).unwrap_or(usize::MAX);
            let column = usize::try_from(location.column().saturating_sub(1)).unwrap_or(usize::MAX);
            let start = text.split_inclusive('\n').take(line).map(str::len).sum::<usize>();
            let rest = text[start..].lines().next().unwrap_or("");
            let offset = rest.char_indices().nth(column).map_or(rest.len(), |(at, _)| at);
            clamp((start + offset) as u64)..clamp((start + offset) as u64)
        }
        _ => 0..0,
    }
}

impl<'de> Deserialize<'de> for RawValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = RawValue;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value, a list or a map")
    }

    fn visit_unit<E>(self) -> Result<RawValue, E> {
        Ok(RawValue::Null)
    }

    fn visit_none<E>(self) -> Result<RawValue, E> {
        Ok(RawValue::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<RawValue, E> {
        Ok(RawValue::Bool(value))
    }

    fn visit_i64<E>(self, _: i64) -> Result<RawValue, E> {
        Ok(RawValue::Number)
    }

    fn visit_u64<E>(self, _: u64) -> Result<RawValue, E> {
        Ok(RawValue::Number)
    }

    fn visit_i128<E>(self, _: i128) -> Result<RawValue, E> {
        Ok(RawValue::Number)
    }

    fn visit_u128<E>(self, _: u128) -> Result<RawValue, E> {
        Ok(RawValue::Number)
    }

    fn visit_f64<E>(self, _: f64) -> Result<RawValue, E> {
        Ok(RawValue::Number)
    }

    fn visit_str<E>(self, value: &str) -> Result<RawValue, E> {
        Ok(RawValue::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<RawValue, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(RawValue::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawValue, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(RawValue::Map(entries))
    }
}
