//! An event as a flat list of fields, for sinks that know no nesting.

use serde_json::Value;

use crate::events::{Event, Kind};

/// Every field of the JSON form, its path joined by dots (`process.pid`), in the form's order. Arrays stay arrays.
pub(super) fn flat(event: &Event) -> Vec<(String, Value)> {
    let mut fields = Vec::new();
    if let Ok(value) = serde_json::to_value(event) {
        walk("", value, &mut fields);
    }
    fields
}

fn walk(path: &str, value: Value, fields: &mut Vec<(String, Value)>) {
    let Value::Object(object) = value else {
        fields.push((path.to_owned(), value));
        return;
    };
    for (key, value) in object {
        let path = if path.is_empty() { key } else { format!("{path}.{key}") };
        walk(&path, value, fields);
    }
}

/// How much an event matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Severity {
    Error,
    Warning,
    Notice,
    Info,
}

pub(super) fn severity(event: &Event) -> Severity {
    match &event.kind {
        Kind::Policy(change) if !change.applied => Severity::Error,
        Kind::Resolver(trouble) if trouble.recovered => Severity::Notice,
        Kind::Dropped(_) | Kind::Resolver(_) | Kind::Lost(_) => Severity::Warning,
        Kind::WouldDrop(_) | Kind::Policy(_) => Severity::Notice,
        Kind::Learned(_) => Severity::Info,
    }
}
