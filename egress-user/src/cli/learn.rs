//! `egress learn`: watch, then write the policy that what was seen needs. Nothing is blocked meanwhile.
//!
//! Three ways to watch: a command in a cgroup of its own; the daemon's events, where one runs in audit mode; else
//! programs of its own in audit mode, which go when this process ends, however it ends.

mod watch;

use std::{
    fs,
    io::{IsTerminal, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use anyhow::Context as _;
use serde::Serialize;

use super::{Failure, args::LearnArgs, exit, output};
use crate::{
    daemon::search_domains,
    events::Event,
    learn::{Learner, Options, Plan},
    policy::{self, Mode, PolicyError, Sources},
    resolve::system,
};

/// What was learned, for `--json`.
#[derive(Serialize)]
struct Outcome<'a> {
    /// The policy's path, or `-`.
    policy: String,
    rules: usize,
    /// Names and addresses in the rules.
    destinations: usize,
    /// Events that were read.
    events: u64,
    /// Events that were lost: something may be missing.
    lost: u64,
    /// What is in no rule: why, and how often it was seen.
    left_out: Vec<(&'a str, u64)>,
    /// Warnings of `egress check`.
    warnings: usize,
    /// The exit status of the command, where one was run.
    #[serde(skip_serializing_if = "Option::is_none")]
    command: Option<String>,
}

/// Where events go: the learner, and the file of `--events`.
#[derive(Default)]
pub(super) struct Sink {
    pub(super) learner: Learner,
    file: Option<std::io::BufWriter<fs::File>>,
    trouble: Option<std::io::Error>,
}

impl Sink {
    pub(super) fn add(&mut self, event: &Event) {
        self.learner.add(event);
        let Some(file) = &mut self.file else { return };
        let written = serde_json::to_writer(&mut *file, event).map_err(Into::into).and_then(|()| file.write_all(b"\n"));
        if let Err(error) = written {
            self.trouble = Some(error);
            self.file = None;
        }
    }
}

pub(super) fn lock(sink: &Mutex<Sink>) -> MutexGuard<'_, Sink> {
    sink.lock().unwrap_or_else(PoisonError::into_inner)
}

pub fn main(args: LearnArgs, socket: &Path) -> anyhow::Result<ExitCode> {
    let to_stdout = args.output == Path::new("-");
    if !to_stdout && !args.force && args.output.exists() {
        let what = format!("{} is there already", args.output.display());
        return Err(Failure::input(what, "name another file, or write over it with --force").into());
    }
    // Said now, not after ten minutes of watching.
    let folder = args.output.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !to_stdout && !folder.is_dir() {
        let what = format!("{} cannot be written: there is no directory {}", args.output.display(), folder.display());
        return Err(Failure::input(what, "make it, or name another file").into());
    }
    let mut sink = Sink::default();
    if let Some(path) = &args.events {
        let file = fs::File::create(path).with_context(|| format!("make the file {}", path.display()))?;
        sink.file = Some(std::io::BufWriter::new(file));
    }
    let sink = Arc::new(Mutex::new(sink));
    let start = Instant::now();
    let (about, code) = watch::watch(&args, socket, &sink)?;
    let mut sink = lock(&sink);
    if let Some(file) = &mut sink.file
        && let Err(error) = file.flush()
    {
        sink.trouble = Some(error);
    }
    if let Some(error) = &sink.trouble {
        output::eprint(&format!("warning: the file of --events is not whole: {error}\n"));
    }
    let about = format!("{about}, {} s", start.elapsed().as_secs());
    let resolvers = args.resolver.clone();
    let plan = Plan::of(&sink.learner, args.wildcards);
    let text = plan.text(&sink.learner, &Options { about, resolvers });
    let path = write(&args.output, &text, to_stdout)?;
    let warnings = check(path.as_deref())?;
    let outcome = Outcome {
        policy: args.output.display().to_string(),
        rules: plan.rules.len(),
        destinations: plan.items(),
        events: sink.learner.events(),
        lost: sink.learner.lost(),
        left_out: sink.learner.left_out().collect(),
        warnings,
        command: code.as_ref().map(|code| format!("{code:?}")),
    };
    tell(&outcome, args.json, to_stdout)?;
    Ok(code.unwrap_or(ExitCode::from(exit::DONE)))
}

/// Writes beside the file, then takes its place: whoever reads it never sees half a policy.
fn write(path: &Path, text: &str, to_stdout: bool) -> anyhow::Result<Option<PathBuf>> {
    if to_stdout {
        output::print(text);
        return Ok(None);
    }
    let mut beside = path.as_os_str().to_owned();
    beside.push(".part");
    let written = fs::write(&beside, text).and_then(|()| fs::rename(&beside, path));
    if let Err(error) = written {
        // What was learned took its time: it is not thrown away.
        output::print(text);
        let what = format!("cannot write {}: {error}; the policy is on standard output", path.display());
        return Err(Failure::input(what, "save it from there").into());
    }
    Ok(Some(path.to_owned()))
}

/// The number of warnings of `egress check`.
fn check(path: Option<&Path>) -> Result<usize, PolicyError> {
    let Some(path) = path else { return Ok(0) };
    let loaded = policy::load(&Sources { policies: vec![path.to_owned()], ..Sources::default() })?;
    policy::eprint_all(&loaded.warnings, &loaded.files);
    Ok(loaded.warnings.len())
}

fn tell(outcome: &Outcome<'_>, json: bool, to_stdout: bool) -> anyhow::Result<()> {
    if json && !to_stdout {
        return output::json(outcome);
    }
    let mut text = format!(
        "learned {} for {} from {} events: {}\n",
        output::count(outcome.rules, "rule"),
        output::count(outcome.destinations, "destination"),
        outcome.events,
        outcome.policy
    );
    for (what, count) in &outcome.left_out {
        text.push_str(&format!("  left out, seen {count}: {what}\n"));
    }
    if outcome.lost > 0 {
        text.push_str(&format!("  {} events were lost: something may be missing; learn again\n", outcome.lost));
    }
    if !to_stdout {
        text.push_str(&format!("Read it, then try it: `egress run --mode audit --policy {}`\n", outcome.policy));
    }
    output::eprint(&text);
    Ok(())
}

/// The policy under which everything passes and every answer is told.
pub(super) fn watching(
    resolvers: &[std::net::SocketAddr],
    system: Option<&system::SystemResolvers>,
) -> Result<policy::Compiled, PolicyError> {
    let sources = Sources {
        policies: vec!["deny-all".into()],
        mode: Some(Mode::Audit),
        resolvers: resolvers.to_vec(),
        internal: search_domains(system),
        ..Sources::default()
    };
    Ok(policy::load(&sources)?.compiled)
}

/// Progress on standard error: one line that is written over on a terminal, a line a minute elsewhere.
pub(super) struct Progress {
    terminal: bool,
    said: Option<Instant>,
}

impl Progress {
    pub(super) fn new() -> Self {
        Self { terminal: std::io::stderr().is_terminal(), said: None }
    }

    pub(super) fn tell(&mut self, left: u64, sink: &Mutex<Sink>) {
        if !self.terminal && self.said.is_some_and(|said| said.elapsed().as_secs() < 60) {
            return;
        }
        self.said = Some(Instant::now());
        let (destinations, events) = {
            let sink = lock(sink);
            (sink.learner.destinations(), sink.learner.events())
        };
        let line = format!(
            "learning: {} left, {}, {events} events",
            humantime(left),
            output::count(destinations, "destination")
        );
        output::eprint(&if self.terminal { format!("\r\x1b[K{line}") } else { format!("{line}\n") });
    }

    pub(super) fn end(&self) {
        if self.terminal {
            output::eprint("\r\x1b[K");
        }
    }
}

fn humantime(seconds: u64) -> String {
    humantime::format_duration(std::time::Duration::from_secs(seconds)).to_string()
}
