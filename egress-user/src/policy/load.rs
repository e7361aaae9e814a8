//! From what the command line names to a compiled policy: find the files, read, parse, merge, compile, warn.

use std::{
    fs,
    io::{self, Read},
    net::SocketAddr,
    os::{
        fd::AsFd as _,
        unix::fs::{FileTypeExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{
    compile,
    compiled::{Action, Compiled, Mode, Resolvers},
    diagnostic::{Diagnostic, Place, PolicyError, Severity, SourceFile},
    document::{At, Document, Item, Rule},
    embedded, merge,
    name::{DomainName, ItemError, NamePattern},
    parse::{self, MAX_BYTES, Settings},
    ports::Ports,
    target::{self, Target},
    warn,
};

/// Where a policy comes from, and what the command line adds to it.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// Files, directories and names of embedded policies, as `--policy` takes them.
    pub policies: Vec<PathBuf>,
    /// Policies as text, each with the name that errors and `status` show.
    pub texts: Vec<(String, String)>,
    /// `--allow DEST`, in order; each becomes a rule `allow-1`, `allow-2`, ...
    pub allow: Vec<String>,
    /// `--set KEY=VALUE`.
    pub set: Vec<(String, String)>,
    /// `--mode`: wins over what the files say.
    pub mode: Option<Mode>,
    /// `--resolver`: where not empty, wins over what the files say.
    pub resolvers: Vec<SocketAddr>,
    /// More names for `dns.internal`: the host's search domains.
    pub internal: Vec<DomainName>,
}

/// A policy that may be installed.
#[derive(Debug)]
pub struct Loaded {
    pub compiled: Compiled,
    /// Not silenced ones; severity `Warning`.
    pub warnings: Vec<Diagnostic>,
    /// Warnings that a rule silences, with its reason.
    pub silenced: Vec<(Diagnostic, String)>,
    /// The files as they were read; diagnostics point into them.
    pub files: Vec<Arc<SourceFile>>,
    /// The files and directories on disk that were read (no embedded policies): what to watch for changes.
    pub paths: Vec<PathBuf>,
    /// Where each exact name was written, for [`Loaded::unresolved`].
    exact: Vec<(DomainName, Option<Place>, bool)>,
}

/// Reads, merges, checks and compiles. Nothing at all (no policy, no `--allow`) is an error, not an empty policy.
pub fn load(sources: &Sources) -> Result<Loaded, PolicyError> {
    let mut diagnostics = Vec::new();
    let mut paths = Vec::new();
    let mut files = read_all(&sources.policies, &mut paths, &mut diagnostics, Pipes::Read);
    for (name, text) in &sources.texts {
        if text.len() as u64 > MAX_BYTES {
            diagnostics.push(Diagnostic::error(format!("the policy `{name}` is larger than {MAX_BYTES} bytes")));
        } else {
            files.push(Arc::new(SourceFile::new(name.clone(), text.clone())));
        }
    }
    if files.is_empty() && sources.allow.is_empty() && diagnostics.is_empty() {
        diagnostics.push(
            Diagnostic::error("no policy")
                .hint("name one with `--policy`: a file, a directory, or an embedded policy (see `egress policies`)"),
        );
    }
    let mut settings = Settings::new(sources.set.iter().cloned());
    let documents: Vec<_> = files
        .iter()
        .enumerate()
        .map(|(index, file)| {
            parse::parse(u32::try_from(index).unwrap_or(u32::MAX), file, &mut settings, &mut diagnostics)
        })
        .collect();
    check_settings(sources, &settings, &mut diagnostics);
    let mut document = merge::merge(documents, &mut diagnostics);
    add_command_line(sources, &mut document, &mut diagnostics);
    if diagnostics.iter().any(|diagnostic| diagnostic.severity == Severity::Error) {
        // In the order of the files; what has no place (a file that is not there) comes first.
        diagnostics.sort_by_key(|diagnostic| diagnostic.at.as_deref().map(|(place, _)| (place.file, place.span.start)));
        return Err(PolicyError { diagnostics, files });
    }
    let compiled = match compile::compile(&document, &files, &sources.internal) {
        Ok(compiled) => compiled,
        Err(diagnostic) => {
            return Err(PolicyError { diagnostics: vec![diagnostic], files });
        }
    };
    let warn::Found { warnings, silenced } = warn::check(&document, &compiled);
    let exact = exact_places(&document);
    Ok(Loaded { compiled, warnings, silenced, files, paths, exact })
}

impl Loaded {
    /// The exact names for which [`Loaded::unresolved`] will ask.
    pub fn names_to_resolve(&self) -> Vec<DomainName> {
        self.exact.iter().filter(|(.., silenced)| !silenced).map(|(name, ..)| name.clone()).collect()
    }

    /// Warnings `unresolved` for exact names of which `resolves` says no; silenced ones are not asked for.
    pub fn unresolved(&self, mut resolves: impl FnMut(&DomainName) -> bool) -> Vec<Diagnostic> {
        let mut warnings = Vec::new();
        for (name, place, silenced) in &self.exact {
            if !silenced && !resolves(name) {
                warnings.push(warn::unresolved(name, place.as_ref()));
            }
        }
        warnings
    }
}

fn exact_places(document: &Document) -> Vec<(DomainName, Option<Place>, bool)> {
    let mut seen = std::collections::HashSet::new();
    let mut exact = Vec::new();
    for rule in &document.rules {
        let silenced = rule.silence.iter().any(|silence| silence.warning == "unresolved");
        for item in &rule.to {
            if let Target::Name(NamePattern::Exact(name)) = &item.target
                && seen.insert(name.clone())
            {
                exact.push((name.clone(), item.place.clone(), silenced));
            }
        }
    }
    exact
}

/// Name and text of each file.
pub type NamedTexts = Vec<(String, String)>;

/// What a policy that is named and no file, like `/dev/stdin`, is taken for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pipes {
    /// Read, and waited for.
    Read,
    /// What it said is gone, and nobody waits for more.
    Refuse,
}

/// Read of a pipe in one go.
const AT_ONCE: u64 = 1 << 16;
/// How long a named pipe is waited for that nobody writes to.
const UNWRITTEN: Duration = Duration::from_secs(10);

/// What the files and directories say now, by name, without a look at what it means: to see whether something changed. With
/// them, every path on disk that was read, the files of a directory too; none for embedded policies. Waits for nobody.
pub fn read_texts(policies: &[PathBuf]) -> (Result<NamedTexts, PolicyError>, Vec<PathBuf>) {
    let (mut paths, mut diagnostics) = (Vec::new(), Vec::new());
    let files = read_all(policies, &mut paths, &mut diagnostics, Pipes::Refuse);
    let directories: Vec<PathBuf> = paths.iter().filter(|path| path.is_dir()).cloned().collect();
    for directory in directories {
        paths.extend(list(&directory).unwrap_or_default());
    }
    if !diagnostics.is_empty() {
        return (Err(PolicyError { diagnostics, files }), paths);
    }
    (Ok(files.iter().map(|file| (file.name.clone(), file.text.clone())).collect()), paths)
}

fn read_all(
    policies: &[PathBuf],
    paths: &mut Vec<PathBuf>,
    diagnostics: &mut Vec<Diagnostic>,
    pipes: Pipes,
) -> Vec<Arc<SourceFile>> {
    let mut files: Vec<Arc<SourceFile>> = Vec::new();
    let mut named: Vec<PathBuf> = Vec::new();
    for policy in policies {
        // Naming one policy twice is harmless: its rules are the same.
        if named.contains(policy) {
            continue;
        }
        named.push(policy.clone());
        match read(policy, paths, pipes) {
            Ok(read) => files.extend(read.into_iter().map(Arc::new)),
            Err(diagnostic) => diagnostics.push(diagnostic),
        }
    }
    files
}

/// A path on disk wins over an embedded name, so that `./aks-required` and a file of that name mean what they say.
fn read(policy: &Path, paths: &mut Vec<PathBuf>, pipes: Pipes) -> Result<Vec<SourceFile>, Diagnostic> {
    let shown = policy.display();
    let metadata = match fs::metadata(policy) {
        Ok(metadata) => metadata,
        Err(error) => {
            if let Some(embedded) = policy.to_str().and_then(embedded::find) {
                return Ok(vec![SourceFile::new(format!("{}.yaml", embedded.name), embedded.text)]);
            }
            let names: Vec<_> = embedded::ALL.iter().map(|policy| policy.name).collect();
            let near = policy.to_str().and_then(|name| parse::nearest(name, &names));
            let hint = match near {
                _ if error.kind() == io::ErrorKind::PermissionDenied => return Err(unreadable(policy, &error)),
                Some(near) => format!("did you mean the embedded policy `{near}`?"),
                None => "name a file, a directory, or an embedded policy (see `egress policies`)".to_owned(),
            };
            return Err(unreadable(policy, &error).hint(hint));
        }
    };
    // A pipe is read once: there is nothing to follow.
    if metadata.is_file() || metadata.is_dir() {
        paths.push(policy.to_owned());
    }
    if !metadata.is_dir() {
        return read_file(policy, pipes).map(|file| vec![file]);
    }
    let found = list(policy).map_err(|error| {
        let listed = Diagnostic::error(format!("cannot list the directory `{shown}`: {}", cause(&error)));
        if error.kind() == io::ErrorKind::PermissionDenied { listed.hint(NOT_PERMITTED) } else { listed }
    })?;
    if found.is_empty() {
        return Err(Diagnostic::error(format!("the directory `{shown}` has no policy"))
            .hint("policies in a directory end in `.yaml` or `.yml`"));
    }
    found.iter().map(|path| read_file(path, Pipes::Refuse)).collect()
}

/// A daemon has no other rights to files than their modes give.
const NOT_PERMITTED: &str = "let its reader have it: a running daemon is root without root's right to others' files, so make root its owner, \
                             or let all read it (`chmod o+r`, of directories `o+rx`)";

fn unreadable(policy: &Path, error: &io::Error) -> Diagnostic {
    let shown = policy.display();
    let diagnostic = Diagnostic::error(format!("cannot read the policy `{shown}`: {}", cause(error)));
    if error.kind() == io::ErrorKind::PermissionDenied { diagnostic.hint(NOT_PERMITTED) } else { diagnostic }
}

/// The policies of a directory, sorted.
fn list(directory: &Path) -> std::io::Result<Vec<PathBuf>> {
    let entries = fs::read_dir(directory)?.collect::<Result<Vec<_>, _>>()?;
    let mut found: Vec<PathBuf> = entries
        .into_iter()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml"))
        .filter(|path| !path.is_dir())
        .collect();
    found.sort();
    Ok(found)
}

fn read_file(path: &Path, pipes: Pipes) -> Result<SourceFile, Diagnostic> {
    let shown = path.display();
    let failed = |error: io::Error| unreadable(path, &error);
    // To open a pipe would wait until somebody writes to it.
    let open = fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path);
    let file = open.map_err(failed)?;
    let kind = file.metadata().map_err(failed)?.file_type();
    let mut bytes = Vec::new();
    if kind.is_file() {
        file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    } else if pipes == Pipes::Read {
        read_pipe(&file, kind.is_fifo(), &mut bytes).map_err(failed)?;
    } else {
        return Err(failed(io::Error::other("it is no regular file")).hint(
            "a directory takes files and links to files; a pipe that is named is read once, at the start: write its text into a file",
        ));
    }
    if bytes.len() as u64 > MAX_BYTES {
        return Err(Diagnostic::error(format!("the policy `{shown}` is larger than {} MiB", MAX_BYTES >> 20))
            .hint("is it a policy? If so, write prefixes and wildcards instead of single addresses and names"));
    }
    match String::from_utf8(bytes) {
        Ok(text) => Ok(SourceFile::new(shown.to_string(), text.strip_prefix('\u{feff}').unwrap_or(&text))),
        Err(error) => {
            let before = &error.as_bytes()[..error.utf8_error().valid_up_to()];
            let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
            Err(Diagnostic::error(format!("the policy `{shown}` is not UTF-8 text (line {line})"))
                .hint("save it as UTF-8"))
        }
    }
}

/// Reads what was opened without waiting, and waits for what comes.
fn read_pipe(file: &fs::File, fifo: bool, bytes: &mut Vec<u8>) -> io::Result<()> {
    let ready = |timeout: PollTimeout| -> io::Result<bool> {
        let mut polled = [PollFd::new(file.as_fd(), PollFlags::POLLIN)];
        Ok(poll(&mut polled, timeout)? != 0)
    };
    let mut unwritten = fifo;
    while bytes.len() as u64 <= MAX_BYTES {
        match file.take(AT_ONCE).read_to_end(bytes) {
            // The end of what was written, of nothing too; but a pipe that nobody opened yet has no end.
            Ok(0) if unwritten => {
                unwritten = false;
                if !ready(PollTimeout::try_from(UNWRITTEN).unwrap_or(PollTimeout::MAX))? {
                    return Err(io::Error::other(format!("nobody writes to this pipe ({} s)", UNWRITTEN.as_secs())));
                }
            }
            Ok(read) if (read as u64) < AT_ONCE => return Ok(()),
            Ok(_) => unwritten = false,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                unwritten = false;
                ready(PollTimeout::NONE)?;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The message of an I/O error without the number that Rust appends.
fn cause(error: &std::io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_lowercase().chain(chars).collect())
}

fn check_settings(sources: &Sources, settings: &Settings, diagnostics: &mut Vec<Diagnostic>) {
    let known: Vec<&str> = settings.placeholders().collect();
    for (index, (name, _)) in sources.set.iter().enumerate() {
        if sources.set[..index].iter().any(|(before, _)| before == name) {
            diagnostics.push(Diagnostic::error(format!("`--set {name}` is there twice")).hint("keep one of them"));
        } else if !known.contains(&name.as_str()) && diagnostics.is_empty() {
            let hint = if known.is_empty() {
                "these policies have no placeholders".to_owned()
            } else {
                format!("they use {}", parse::quoted(&known))
            };
            diagnostics.push(Diagnostic::error(format!("no policy uses `${{{name}}}`")).hint(hint));
        }
    }
}

fn add_command_line(sources: &Sources, document: &mut Document, diagnostics: &mut Vec<Diagnostic>) {
    let nowhere = Place { file: 0, span: 0..0 };
    if let Some(mode) = sources.mode {
        document.mode = Some(At { value: mode, place: nowhere.clone() });
    }
    if !sources.resolvers.is_empty() {
        document.dns.resolvers =
            Some(At { value: Resolvers::Addresses(sources.resolvers.clone()), place: nowhere.clone() });
    }
    let mut taken: std::collections::HashSet<String> = document.rules.iter().map(|rule| rule.name.clone()).collect();
    for (index, text) in sources.allow.iter().enumerate() {
        match allow_rule(text, index + 1, &mut taken) {
            Ok(rule) => document.rules.push(rule),
            Err(error) => diagnostics.push(Diagnostic {
                hint: error.hint,
                ..Diagnostic::error(format!("--allow {}: {}", super::name::excerpt(text), error.what))
            }),
        }
    }
}

/// `--allow DEST` as a rule `allow-NUMBER`, or the next name that is free.
fn allow_rule(text: &str, mut number: usize, taken: &mut std::collections::HashSet<String>) -> Result<Rule, ItemError> {
    let (target, ports) = target::parse_destination(text)?;
    let ports = ports.unwrap_or(Ports { proto: super::compiled::Proto::Tcp, from: 443, to: 443 });
    while !taken.insert(format!("allow-{number}")) {
        number += 1;
    }
    Ok(Rule {
        name: format!("allow-{number}"),
        place: None,
        origin: "--allow",
        why: Some(format!("--allow {text} on the command line")),
        action: Action::Allow,
        to: vec![Item { target, place: None }],
        ports: vec![ports],
        silence: Vec::new(),
    })
}

/// Whether `--allow` can read this: for an error before anything else is done.
pub fn check_allow(text: &str) -> Result<(), ItemError> {
    target::parse_destination(text).map(|_| ())
}
