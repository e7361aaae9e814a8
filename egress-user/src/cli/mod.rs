//! The command line: one module for each command, the arguments of all in [`args`].

pub mod apply;
pub mod args;
pub mod check;
pub mod completions;
pub mod confirm;
pub mod detach;
pub mod diff;
mod disabled;
pub mod events;
pub mod exec;
pub mod explain_daemon;
pub mod explain_offline;
mod explain_packet;
pub mod learn;
pub mod man;
pub mod output;
pub mod policies;
pub mod report;
pub mod rollback;
pub mod run;
pub mod schema;
mod sinks;
pub mod status;
pub mod top;

use std::{path::PathBuf, process::ExitCode};

use clap::{
    Parser, Subcommand,
    error::{ContextKind, ContextValue, ErrorKind},
};

use crate::{
    api::{ClientError, DEFAULT_SOCKET},
    datapath,
    policy::PolicyError,
};

/// Exit codes of every command (`exec` ends with the command's own where it ran).
pub mod exit {
    /// Done, or yes.
    pub const DONE: u8 = 0;
    /// A clean no.
    pub const NO: u8 = 1;
    /// Wrong input.
    pub const WRONG_INPUT: u8 = 2;
    /// The machine cannot do it: a missing privilege, kernel feature, cgroup v2.
    pub const MACHINE: u8 = 3;
}

/// Locks a node's outbound traffic to a written allowlist of names
#[derive(Debug, Parser)]
#[command(name = "egress", version, arg_required_else_help = true, max_term_width = 100)]
#[command(after_help = "Exit codes: 0 done or yes, 1 a clean no, 2 wrong input, 3 the machine cannot do it.\n\
                        A policy P is a file, a directory of *.yaml, or the name of an embedded policy (`egress policies`).")]
pub struct Cli {
    /// The daemon's socket, for commands that talk to it
    #[arg(long, global = true, value_name = "PATH", env = "EGRESS_SOCKET", default_value = DEFAULT_SOCKET)]
    pub socket: PathBuf,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Enforce a policy on this machine: the daemon, in the foreground
    Run(args::RunArgs),
    /// Run one command under a policy; no daemon needed
    Exec(args::ExecArgs),
    /// Validate policies; exit 2 and positions where they are wrong
    Check(args::CheckArgs),
    /// Say whether a destination is allowed, by which rule, and why
    Explain(args::ExplainArgs),
    /// Show what the daemon enforces: mode, attach points, rules, names, drops
    Status(args::StatusArgs),
    /// Show what was dropped and learned
    Events(args::EventsArgs),
    /// Show what is dropped, and what each rule matches, live
    Top(args::TopArgs),
    /// Put another policy in force; with --confirm the old one comes back by itself unless confirmed
    Apply(args::ApplyArgs),
    /// Keep the policy that `apply --confirm` put in force
    Confirm(args::ChangeArgs),
    /// Go back to the policy before the last change
    Rollback(args::ChangeArgs),
    /// Compare two policies, or the one in force with a file, by meaning; exit 1 where they differ
    Diff(args::DiffArgs),
    /// Watch what leaves for a while, or one command, and write the policy that it needs; nothing is blocked
    Learn(args::LearnArgs),
    /// Write a page that shows a run: who talked to whom, what was blocked, and when
    Report(args::ReportArgs),
    /// Break-glass: remove every program, pin and cgroup that egress made
    Detach(args::DetachArgs),
    /// List the embedded policies, or print one
    Policies(args::PoliciesArgs),
    /// Print the JSON schema of a policy
    Schema,
    /// Print shell completions
    Completions(args::CompletionsArgs),
    /// Write the manual pages
    Man(args::ManArgs),
}

/// An error with an exit code and what to do next.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct Failure {
    pub code: u8,
    pub what: String,
    pub hint: Option<String>,
}

impl Failure {
    /// The input is wrong (exit 2).
    pub fn input(what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { code: exit::WRONG_INPUT, what: what.into(), hint: Some(hint.into()) }
    }

    /// The machine cannot do it (exit 3).
    pub fn machine(what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { code: exit::MACHINE, what: what.into(), hint: Some(hint.into()) }
    }

    /// Enforcement cannot begin (exit 3).
    pub fn kernel(error: &datapath::Error) -> Self {
        use datapath::Error::{Full, NoCgroup, NoInterface, Ports, Privilege, Shape, Taken};
        let hint = match error {
            // They say what to do.
            Full { .. } | NoCgroup | NoInterface(_) | Ports { .. } | Privilege(_) | Shape { .. } | Taken(_) => None,
            _ if !nix::unistd::geteuid().is_root() => Some("run it as root".to_owned()),
            _ => Some("`cargo xtask doctor`, in egress' source, lists what it needs".to_owned()),
        };
        Self { code: exit::MACHINE, what: error.to_string(), hint }
    }
}

/// The error that the daemon did not answer; where there is none, with what to do without one.
fn without_daemon(error: ClientError, hint: Option<impl Into<String>>) -> anyhow::Error {
    match (&error, hint) {
        (ClientError::NoDaemon(_), Some(hint)) => Failure::machine(error.to_string(), hint).into(),
        _ => error.into(),
    }
}

/// Parses the arguments and runs the command.
pub fn main() -> ExitCode {
    let cli = Cli::try_parse().unwrap_or_else(|error| with_tip(error).exit());
    match dispatch(cli) {
        Ok(code) => code,
        Err(error) => ExitCode::from(complain(&error)),
    }
}

/// Says how a command is written where its first word was taken for an argument of ours.
fn with_tip(mut error: clap::Error) -> clap::Error {
    let taken = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(word)) if error.kind() == ErrorKind::UnknownArgument => word.clone(),
        _ => return error,
    };
    if !taken.starts_with('-') && error.render().to_string().contains("-- <CMD>") {
        let tip = format!("put `--` before the command: `-- {taken}`");
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![tip.into()]));
    }
    error
}

fn dispatch(Cli { socket, command }: Cli) -> anyhow::Result<ExitCode> {
    match command {
        Command::Run(args) => run::main(args, &socket),
        Command::Exec(args) => exec::main(args),
        Command::Check(args) => check::main(args),
        Command::Explain(args) if args.is_offline() => explain_offline::main(args),
        Command::Explain(args) => explain_daemon::main(&socket, args),
        Command::Status(args) => status::run(&socket, args.json),
        Command::Events(args) => events::run(&socket, args),
        Command::Top(args) => top::run(&socket, args),
        Command::Apply(args) => apply::main(&args, &socket),
        Command::Confirm(args) => confirm::main(&args, &socket),
        Command::Rollback(args) => rollback::main(&args, &socket),
        Command::Diff(args) => diff::main(&args, &socket),
        Command::Learn(args) => learn::main(args, &socket),
        Command::Report(args) => report::main(args, &socket),
        Command::Detach(args) => detach::main(args, &socket),
        Command::Policies(args) => policies::main(args),
        Command::Schema => schema::main(),
        Command::Completions(args) => completions::main(args),
        Command::Man(args) => man::main(args),
    }
}

/// Prints an error with its causes and what to do; gives the exit code.
pub fn complain(error: &anyhow::Error) -> u8 {
    if let Some(policy) = error.downcast_ref::<PolicyError>() {
        policy.eprint();
        return exit::WRONG_INPUT;
    }
    output::eprint(&format!("error: {error:#}\n"));
    let Some(failure) = error.downcast_ref::<Failure>() else {
        return exit::MACHINE;
    };
    if let Some(hint) = &failure.hint {
        output::eprint(&format!("help: {hint}\n"));
    }
    failure.code
}
