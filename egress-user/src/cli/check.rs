//! `egress check`: validates policies and warns of what is valid but doubtful.

use std::{
    collections::HashSet,
    net::ToSocketAddrs,
    process::ExitCode,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use serde::Serialize;

use super::{
    args::CheckArgs,
    exit,
    output::{self, count},
};
use crate::policy::{self, Diagnostic, DomainName, Loaded, PolicyError, Report, Sources, eprint_all};

/// Lookups under way at a time with `--resolve`.
const LOOKUPS: usize = 16;

/// What `--json` prints. `hash` is there when `ok` is.
#[derive(Serialize)]
struct Outcome {
    /// No errors, and with `--strict` no warnings.
    ok: bool,
    files: Vec<String>,
    rules: usize,
    /// Entries of the name table, wildcards included.
    names: usize,
    prefixes: usize,
    hash: Option<String>,
    errors: Vec<Report>,
    warnings: Vec<Report>,
    silenced: Vec<Silenced>,
}

#[derive(Serialize)]
struct Silenced {
    #[serde(flatten)]
    warning: Report,
    reason: String,
}

pub fn main(args: CheckArgs) -> anyhow::Result<ExitCode> {
    let sources = Sources { policies: args.policies.clone(), set: args.set.clone(), ..Sources::default() };
    let loaded = match policy::load(&sources) {
        Ok(loaded) => loaded,
        Err(error) if args.json => {
            output::json(&refused(&error))?;
            return Ok(ExitCode::from(exit::WRONG_INPUT));
        }
        Err(error) => {
            error.eprint();
            let errors = count(error.diagnostics.len(), "error");
            output::eprint(&format!("\n{errors}; a policy with errors changes nothing\n"));
            return Ok(ExitCode::from(exit::WRONG_INPUT));
        }
    };
    let mut warnings = loaded.warnings.clone();
    if args.resolve {
        warnings.extend(unresolved(&loaded));
    }
    let ok = !args.strict || warnings.is_empty();
    if args.json {
        output::json(&outcome(&loaded, &warnings, ok))?;
    } else {
        eprint_all(&warnings, &loaded.files);
        if !warnings.is_empty() {
            output::eprint("\n");
        }
        output::print(&summary(&loaded, &warnings, ok));
    }
    Ok(ExitCode::from(if ok { exit::DONE } else { exit::WRONG_INPUT }))
}

fn summary(loaded: &Loaded, warnings: &[Diagnostic], ok: bool) -> String {
    let compiled = &loaded.compiled;
    let mut text = format!(
        "{}: {} in {}, {}",
        if ok { "ok" } else { "not ok (--strict)" },
        count(compiled.rules.len(), "rule"),
        count(loaded.files.len(), "file"),
        count(warnings.len(), "warning"),
    );
    if !loaded.silenced.is_empty() {
        text.push_str(&format!(" ({} silenced, each with a reason)", loaded.silenced.len()));
    }
    if compiled.rules.is_empty() {
        text.push_str("; no rules, so only the builtins pass");
    }
    text.push('\n');
    text
}

fn outcome(loaded: &Loaded, warnings: &[Diagnostic], ok: bool) -> Outcome {
    let compiled = &loaded.compiled;
    Outcome {
        ok,
        files: loaded.files.iter().map(|file| file.name.clone()).collect(),
        rules: compiled.rules.len(),
        names: compiled.names.len(),
        prefixes: compiled.addresses.len() + compiled.denies.len(),
        hash: Some(format!("{:016x}", compiled.hash)),
        errors: Vec::new(),
        warnings: warnings.iter().map(|warning| warning.report(&loaded.files)).collect(),
        silenced: loaded
            .silenced
            .iter()
            .map(|(warning, reason)| Silenced { warning: warning.report(&loaded.files), reason: reason.clone() })
            .collect(),
    }
}

fn refused(error: &PolicyError) -> Outcome {
    Outcome {
        ok: false,
        files: error.files.iter().map(|file| file.name.clone()).collect(),
        rules: 0,
        names: 0,
        prefixes: 0,
        hash: None,
        errors: error.diagnostics.iter().map(|diagnostic| diagnostic.report(&error.files)).collect(),
        warnings: Vec::new(),
        silenced: Vec::new(),
    }
}

/// Asks the system's resolver for all exact names, some at a time: a name without an answer takes seconds.
fn unresolved(loaded: &Loaded) -> Vec<Diagnostic> {
    let names = loaded.names_to_resolve();
    let next = AtomicUsize::new(0);
    let found: Mutex<HashSet<&DomainName>> = Mutex::new(HashSet::new());
    std::thread::scope(|scope| {
        for _ in 0..LOOKUPS.min(names.len()) {
            scope.spawn(|| {
                while let Some(name) = names.get(next.fetch_add(1, Ordering::Relaxed)) {
                    // The trailing dot keeps search domains out of it.
                    let answers = (format!("{name}."), 443).to_socket_addrs();
                    if answers.is_ok_and(|mut answers| answers.next().is_some())
                        && let Ok(mut found) = found.lock()
                    {
                        found.insert(name);
                    }
                }
            });
        }
    });
    let found = found.into_inner().unwrap_or_default();
    loaded.unresolved(|name| found.contains(name))
}
