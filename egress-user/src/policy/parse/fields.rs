//! Reading single values: text, one of a few words, lists, maps.

use super::{At, Diagnostic, ItemError, Key, Node, Reader, Span, Value, excerpt, nearest, quoted};

impl Reader<'_> {
    /// The text of a scalar; numbers as they are written.
    pub(super) fn text(&mut self, node: &Node, name: &str) -> Option<String> {
        match &node.value {
            Value::Text(text) | Value::Number(text) => return Some(text.clone()),
            Value::Null => {
                self.error(&node.span, format!("`{name}` has no value"), "").hint("write one, or leave the key out");
            }
            Value::Bool(value) => {
                self.error(&node.span, format!("`{name}` is a text"), "")
                    .hint(format!("write it in quotes: \"{value}\""));
            }
            Value::List(_) => {
                self.error(&node.span, format!("`{name}` is one text"), "this is a list")
                    .hint("write it without brackets");
            }
            Value::Map(_) => {
                self.error(&node.span, format!("`{name}` is one text"), "this is a map")
                    .hint("put it in quotes if it has a `: ` in it");
            }
        }
        None
    }

    pub(super) fn choice<T: Copy>(&mut self, node: &Node, name: &str, choices: &[(&'static str, T)]) -> Option<At<T>> {
        let text = self.text(node, name)?;
        if let Some((_, value)) = choices.iter().find(|(word, _)| *word == text) {
            return Some(At { value: *value, place: self.place(&node.span) });
        }
        let words: Vec<_> = choices.iter().map(|(word, _)| *word).collect();
        let hint = match nearest(&text, &words) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("write one of {}", quoted(&words)),
        };
        self.error(&node.span, format!("`{}` is not a value of `{name}`", excerpt(&text)), "").hint(hint);
        None
    }

    /// The entries of a map; an absent value is an empty map.
    pub(super) fn map(&mut self, key: &Key, node: Node) -> Option<Vec<(Key, Node)>> {
        match node.value {
            Value::Map(entries) => Some(entries),
            Value::Null => {
                self.error(&key.span, format!("`{}` is empty", key.name), "")
                    .hint("write its keys below it, or leave it out");
                None
            }
            _ => {
                self.error(&node.span, format!("`{}` is a map", key.name), "").hint("write keys with values below it");
                None
            }
        }
    }

    /// The nodes of a list with at least one item.
    pub(super) fn list(&mut self, key: &Key, node: Node, of: &str) -> Option<Vec<Node>> {
        match node.value {
            Value::List(items) if !items.is_empty() => Some(items),
            Value::List(_) | Value::Null => {
                let span = if matches!(node.value, Value::Null) { &key.span } else { &node.span };
                self.error(span, format!("`{of}` is empty"), "nothing is listed").hint(empty_hint(&key.name));
                None
            }
            Value::Text(text) | Value::Number(text) => {
                let text = excerpt(&text);
                let quote = if text.starts_with('*') { "\"" } else { "" };
                self.error(&node.span, format!("`{of}` is a list"), "this is one item")
                    .hint(format!("write it in brackets: `{}: [{quote}{text}{quote}]`", key.name));
                None
            }
            Value::Bool(_) | Value::Map(_) => {
                self.error(&node.span, format!("`{of}` is a list"), "").hint("begin each item with `- `");
                None
            }
        }
    }

    /// A list of texts, each read by `read`. `None` if any is wrong.
    pub(super) fn items<T>(
        &mut self,
        key: &Key,
        node: Node,
        of: &str,
        read: impl Fn(&str) -> Result<T, ItemError>,
    ) -> Option<At<Vec<T>>> {
        let place = self.place(&node.span);
        let nodes = self.list(key, node, of)?;
        let count = nodes.len();
        let values: Vec<T> = nodes.iter().filter_map(|node| self.item(node, of, &read)).collect();
        (values.len() == count).then_some(At { value: values, place })
    }

    pub(super) fn item<T>(&mut self, node: &Node, of: &str, read: impl Fn(&str) -> Result<T, ItemError>) -> Option<T> {
        let text = self.text(node, &format!("an item of {of}"))?;
        match read(&text) {
            Ok(value) => Some(value),
            Err(error) => {
                self.item_error(&node.span, error);
                None
            }
        }
    }

    /// `text` with each `${name}` filled from `--set`. `Err` names the first that is not given.
    pub(super) fn fill(&mut self, text: &str) -> Result<String, String> {
        let mut filled = String::new();
        let mut rest = text;
        let mut missing = None;
        while let Some((before, after)) = rest.split_once("${") {
            let Some((name, after)) = after.split_once('}') else {
                break;
            };
            filled.push_str(before);
            match self.settings.get(name) {
                Some(value) => filled.push_str(value),
                None => missing = missing.or_else(|| Some(name.to_owned())),
            }
            rest = after;
        }
        filled.push_str(rest);
        missing.map_or(Ok(filled), Err)
    }

    /// [`Reader::fill`], with the error reported.
    pub(super) fn filled(&mut self, span: &Span, text: &str) -> Option<String> {
        match self.fill(text) {
            Ok(text) => Some(text),
            Err(name) => {
                let place = self.place(span);
                self.diagnostics.push(
                    Diagnostic::error(format!("`${{{name}}}` has no value"))
                        .at(&place, "to be filled")
                        .hint(format!("give it on the command line: `--set {name}=...`")),
                );
                None
            }
        }
    }
}

fn empty_hint(key: &str) -> &'static str {
    match key {
        "to" => "list at least one name, address or prefix, or write `[any]`",
        "ports" => "list at least one, like `443/tcp`, or write `[any]` for TCP and UDP on every port and ICMP",
        _ => "list at least one item, or leave the key out",
    }
}
