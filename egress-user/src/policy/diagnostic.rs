//! Errors and warnings with a place in a policy file, shown the way rustc shows its own.

use std::{
    fmt,
    io::{IsTerminal, Write},
    ops::Range,
    sync::Arc,
};

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};
use serde::Serialize;

use super::yaml::Span;

/// One policy file as it was read.
#[derive(Debug)]
pub struct SourceFile {
    /// As the user wrote the path, or `aks-required.yaml` for an embedded policy.
    pub name: String,
    pub text: String,
    /// Byte offsets at which the lines begin.
    lines: Vec<u32>,
}

/// A range of one of the files that were loaded together.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    /// Index into the files.
    pub file: u32,
    pub span: Span,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    Error,
    Warning,
}

/// One thing that is wrong or doubtful.
#[derive(Clone, Debug)]
pub struct Diagnostic {
    pub severity: Severity,
    /// The name of a warning (what `silence:` takes); `None` for errors.
    pub code: Option<&'static str>,
    pub title: String,
    /// Where, and what to say below the caret. `None` where no file is to blame.
    pub at: Option<Box<(Place, String)>>,
    /// Other places that matter.
    pub also: Vec<(Place, String)>,
    /// What to write.
    pub hint: Option<String>,
    /// What more there is to know.
    pub note: Option<Box<str>>,
}

/// A diagnostic as data, for `--json`.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub severity: Severity,
    /// The warning's name.
    pub code: Option<&'static str>,
    pub message: String,
    /// The file as it was named, with line and column from 1; absent where no file is to blame.
    pub file: Option<String>,
    pub line: Option<u32>,
    pub column: Option<u32>,
    pub note: Option<String>,
    pub hint: Option<String>,
}

/// More are counted, not shown: the first ones are what a reader acts on.
const SHOWN: usize = 20;
/// An excerpt of a line longer than this is cut round the caret.
const LONG_LINE: usize = 400;

impl SourceFile {
    pub fn new(name: impl Into<String>, text: impl Into<String>) -> Self {
        let text = text.into();
        let starts = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at + 1);
        let lines = std::iter::once(0).chain(starts).map(|at| u32::try_from(at).unwrap_or(u32::MAX)).collect();
        Self { name: name.into(), text, lines }
    }

    /// Line and column of a byte offset, both from 1; columns count characters.
    pub fn line_column(&self, offset: u32) -> (u32, u32) {
        let line = self.lines.partition_point(|start| *start <= offset).max(1);
        let start = self.lines[line - 1] as usize;
        let end = self.text.floor_char_boundary((offset as usize).min(self.text.len()));
        let column = self.text[start.min(end)..end].chars().count() + 1;
        (u32::try_from(line).unwrap_or(u32::MAX), u32::try_from(column).unwrap_or(u32::MAX))
    }

    /// The bytes of the line (from 1) without its end.
    fn line(&self, line: u32) -> Range<usize> {
        let index = line as usize - 1;
        let start = self.lines[index] as usize;
        let end = self.lines.get(index + 1).map_or(self.text.len(), |next| *next as usize - 1);
        start..end
    }
}

impl Diagnostic {
    pub fn error(title: impl Into<String>) -> Self {
        Self {
            severity: Severity::Error,
            code: None,
            title: title.into(),
            at: None,
            also: Vec::new(),
            hint: None,
            note: None,
        }
    }

    pub fn warning(code: &'static str, title: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, code: Some(code), ..Self::error(title) }
    }

    #[must_use]
    pub fn at(mut self, place: &Place, label: impl Into<String>) -> Self {
        self.at = Some(Box::new((place.clone(), label.into())));
        self
    }

    #[must_use]
    pub fn also(mut self, place: &Place, label: impl Into<String>) -> Self {
        self.also.push((place.clone(), label.into()));
        self
    }

    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    #[must_use]
    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.note = Some(note.into().into());
        self
    }

    pub fn report(&self, files: &[Arc<SourceFile>]) -> Report {
        let at = self.at.as_deref().map(|(place, _)| {
            let file = &files[place.file as usize];
            (file.name.clone(), file.line_column(place.span.start))
        });
        Report {
            severity: self.severity,
            code: self.code,
            message: self.title.clone(),
            line: at.as_ref().map(|(_, (line, _))| *line),
            column: at.as_ref().map(|(_, (_, column))| *column),
            file: at.map(|(file, _)| file),
            note: self.note.as_deref().map(str::to_owned),
            hint: self.hint.clone(),
        }
    }

    /// The diagnostic as a block of text that ends with a line feed.
    pub fn render(&self, files: &[Arc<SourceFile>], color: bool) -> String {
        let level = match self.severity {
            Severity::Error => Level::ERROR,
            Severity::Warning => Level::WARNING,
        };
        let mut title = level.primary_title(visible(&self.title));
        if let Some(code) = self.code {
            title = title.id(code);
        }
        // Places of the primary's file share its snippet, in the order of the file; others get one each.
        let mut group = Group::with_title(title);
        if let Some((place, label)) = self.at.as_deref() {
            let mut here = vec![(place, label.as_str(), AnnotationKind::Primary)];
            let (same, other): (Vec<_>, Vec<_>) = self.also.iter().partition(|(also, _)| also.file == place.file);
            here.extend(same.iter().map(|(place, label)| (place, label.as_str(), AnnotationKind::Context)));
            for (place, label, kind) in here {
                group = group.element(snippet(&files[place.file as usize], &place.span, label, kind));
            }
            for (place, label) in other {
                let kind = AnnotationKind::Primary;
                group = group.element(snippet(&files[place.file as usize], &place.span, label, kind));
            }
        }
        if let Some(note) = &self.note {
            group = group.element(Level::NOTE.message(visible(note)));
        }
        if let Some(hint) = &self.hint {
            group = group.element(Level::HELP.message(visible(hint)));
        }
        let renderer = if color { Renderer::styled() } else { Renderer::plain() };
        let mut text = renderer.render(&[group]);
        text.push('\n');
        text
    }
}

/// Control characters of the input must not reach the terminal; line feeds are the layout's own.
fn visible(text: &str) -> String {
    text.chars()
        .flat_map(|c| if c.is_control() && c != '\n' { c.escape_default().collect() } else { vec![c] })
        .collect()
}

fn snippet<'a>(
    file: &'a SourceFile,
    span: &Span,
    label: &'a str,
    kind: AnnotationKind,
) -> Snippet<'a, annotate_snippets::Annotation<'a>> {
    let (line, _) = file.line_column(span.start);
    let bytes = file.line(line);
    let mut start = bytes.start;
    let mut end = bytes.end;
    if end - start > LONG_LINE {
        start = file.text.floor_char_boundary((span.start as usize).saturating_sub(LONG_LINE / 2).max(start));
        end = file.text.ceil_char_boundary((start + LONG_LINE).min(end));
    }
    let text = &file.text[start..end];
    let from = (span.start as usize).clamp(start, end) - start;
    let to = (span.end as usize).clamp(start + from, end) - start;
    let annotation = kind.span(from..to.max(from));
    let annotation = if label.is_empty() { annotation } else { annotation.label(label) };
    Snippet::source(text).path(file.name.as_str()).line_start(line as usize).annotation(annotation)
}

/// Why a policy was refused. Displays as the whole report without colour.
#[derive(Clone, Debug)]
pub struct PolicyError {
    /// Never empty.
    pub diagnostics: Vec<Diagnostic>,
    pub files: Vec<Arc<SourceFile>>,
}

impl PolicyError {
    pub fn render(&self, color: bool) -> String {
        render_all(&self.diagnostics, &self.files, color)
    }

    /// Writes the report to standard error, coloured where that is a terminal and `NO_COLOR` is not set.
    pub fn eprint(&self) {
        eprint_all(&self.diagnostics, &self.files);
    }
}

/// Writes diagnostics to standard error, as [`PolicyError::eprint`] does.
pub fn eprint_all(diagnostics: &[Diagnostic], files: &[Arc<SourceFile>]) {
    let color = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    // A closed standard error must not turn a refusal into a panic.
    let _ = std::io::stderr().lock().write_all(render_all(diagnostics, files, color).as_bytes());
}

/// The first [`SHOWN`] diagnostics, a blank line between two, and how many more there are.
pub fn render_all(diagnostics: &[Diagnostic], files: &[Arc<SourceFile>], color: bool) -> String {
    let mut text =
        diagnostics.iter().take(SHOWN).map(|diagnostic| diagnostic.render(files, color)).collect::<Vec<_>>().join("\n");
    if diagnostics.len() > SHOWN {
        let errors = diagnostics[SHOWN..].iter().filter(|d| d.severity == Severity::Error).count();
        let warnings = diagnostics.len() - SHOWN - errors;
        let count = [(errors, "error"), (warnings, "warning")].into_iter().filter(|(n, _)| *n > 0);
        let count = count.map(|(n, what)| format!("{n} more {what}{}", if n == 1 { "" } else { "s" }));
        text.push_str(&format!("\n... and {}\n", count.collect::<Vec<_>>().join(" and ")));
    }
    text
}

impl fmt::Display for PolicyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.render(false).trim_end())
    }
}

impl std::error::Error for PolicyError {}
