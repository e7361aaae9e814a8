//! Tests that go through the whole of the policy: text in, tables or diagnostics out.

mod diagnostics;
mod embedded;
mod explain;
mod items;
mod merge;
mod schema;
mod tables;
mod warnings;

use std::sync::Arc;

use super::{
    Compiled, Diagnostic, PolicyError, SourceFile,
    compile::compile,
    document::Document,
    merge::merge,
    parse::{Settings, parse},
};

/// Parses and merges files given as (name, text).
fn document(files: &[(&str, &str)], set: &[(&str, &str)]) -> Result<(Document, Vec<Arc<SourceFile>>), PolicyError> {
    let files: Vec<_> = files.iter().map(|(name, text)| Arc::new(SourceFile::new(*name, *text))).collect();
    let mut settings = Settings::new(set.iter().map(|(key, value)| (key.to_string(), value.to_string())));
    let mut diagnostics = Vec::new();
    let documents = files
        .iter()
        .enumerate()
        .map(|(index, file)| parse(u32::try_from(index).unwrap(), file, &mut settings, &mut diagnostics))
        .collect();
    let document = merge(documents, &mut diagnostics);
    if diagnostics.is_empty() { Ok((document, files)) } else { Err(PolicyError { diagnostics, files }) }
}

fn compiled(text: &str) -> Compiled {
    let (document, files) = document(&[("p.yaml", text)], &[]).unwrap_or_else(|error| panic!("{error}"));
    compile(&document, &files, &[]).unwrap()
}

/// The whole report, as a user sees it.
fn report(text: &str) -> String {
    document(&[("p.yaml", text)], &[]).expect_err("the policy is wrong").to_string()
}

/// The first error of a rule with this `to` item, as (what, hint).
fn item_error(item: &str) -> (String, String) {
    let text =
        format!("rules:\n  - name: x\n    to: [{}]\n    ports: [443/tcp]\n", serde_json::to_string(item).unwrap());
    let error = document(&[("p.yaml", &text)], &[]).expect_err(item);
    let Diagnostic { title, hint, .. } = error.diagnostics[0].clone();
    (title, hint.unwrap_or_default())
}
