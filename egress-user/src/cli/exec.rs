//! `egress exec`: one command, and all it starts, in a cgroup of its own under a policy. No daemon.
//!
//! Nothing is pinned. Three processes hold the links: this one, and a *janitor* that it forks, which outlives it. When
//! this process dies in whatever way, the janitor kills what is left in the cgroup and removes it, and the programs go
//! with the last link; enforcement never ends before the last process that it governs.

mod cgroup;
mod child;
mod held;
mod user;

use std::{
    ffi::OsString,
    process::ExitCode,
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::Context as _;
use nix::unistd::Pid;

pub use cgroup::remove_leftovers;

use self::{cgroup::ExecCgroup, held::Held, user::User};
use super::{Failure, args::ExecArgs, output};
use crate::{
    api::Source as _,
    daemon::{self, Believe, Core, Enforcement, Scope, ring},
    datapath::{self, Room, Settings, netns_cookie},
    events::{Event, Opened, Style, Summary, start_sinks},
    policy::{self, Compiled},
    resolve::system::{self, SystemResolvers},
};

/// How long to wait for the last events after the command has ended.
const LAST_EVENTS: Duration = Duration::from_millis(20);

/// Runs the command; ends with its exit status, or 128 and the signal's number that ended it.
pub fn main(args: ExecArgs) -> anyhow::Result<ExitCode> {
    let waiting = Waiting::begin(&args.command, args.user.as_deref());
    let system = system::read(&system::Paths::default()).ok();
    let mut sources = args.policy.sources();
    args.overrides.apply(&mut sources);
    sources.internal = crate::daemon::search_domains(system.as_ref());
    if sources.policies.is_empty() && sources.allow.is_empty() {
        return Err(Failure::input(
            "nothing is allowed: no policy is given",
            "allow something: `egress exec --allow github.com -- CMD`, or `--policy deny-all` if nothing is what you mean",
        )
        .into());
    }
    let loaded = policy::load(&sources)?;
    let sinks = args.sinks.open()?;
    let tallies: Vec<_> = sinks.iter().map(Opened::tally).collect();
    let summary = Arc::new(Mutex::new(Summary::new()));
    let seen = Arc::clone(&summary);
    let code = waiting?.govern(loaded.compiled, system.as_ref(), sinks, move |event| {
        seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner).add(event);
    })?;
    let summary = summary.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if args.json {
        output::eprint(&format!("{}\n", serde_json::to_string(&*summary)?));
    } else if !args.quiet && !summary.is_empty() {
        output::eprint(&summary.render(Style::detect(&std::io::stderr())));
    }
    // With `--json` standard error has the summary alone.
    if !args.json && !args.quiet {
        for tally in tallies.iter().filter(|tally| tally.missing() > 0) {
            let (name, missing) = (tally.name(), tally.missing());
            output::eprint(&format!("egress: {missing} events did not reach {name}\n"));
        }
    }
    Ok(code)
}

/// A command whose process waits for its policy, in a cgroup of its own.
#[derive(Debug)]
pub(super) struct Waiting {
    // In this order: the cgroup can be removed when the process is gone.
    held: Held,
    cgroup: ExecCgroup,
}

impl Waiting {
    /// Begins what needs no policy. To be called before any thread is started.
    pub fn begin(command: &[OsString], user: Option<&str>) -> anyhow::Result<Self> {
        let user = user.map(User::find).transpose()?;
        let cgroup = ExecCgroup::make().map_err(|error| Failure::kernel(&error))?;
        let held = Held::fork(command, &cgroup, user.as_ref())?;
        datapath::prepare(false);
        held.enter();
        Ok(Self { held, cgroup })
    }

    /// Runs the command under a policy, and hands each event to `seen` and to the sinks. Gives the exit code of the command.
    pub fn govern(
        self,
        policy: Compiled,
        system: Option<&SystemResolvers>,
        sinks: Vec<Opened>,
        seen: impl Fn(&Event) + Send + 'static,
    ) -> anyhow::Result<ExitCode> {
        // In this order: what is bound last is dropped first.
        let Self { cgroup, held } = self;
        let scope = Scope {
            cgroup: cgroup.open().map_err(|error| Failure::kernel(&error))?,
            uplinks: Vec::new(),
            answered: daemon::answered_for_command(),
            pins: None,
            has_past: false,
            room: Room::default(),
            tells: false,
        };
        let resolvers = daemon::resolvers(&policy, system, Believe::AtCgroup);
        let settings = Settings {
            resolvers,
            cgroup_level: scope.cgroup.level,
            cgroup_id: scope.cgroup.id,
            teaching_netns: netns_cookie(),
        };
        let enforcement =
            Enforcement::start(&policy, settings, &scope, false).map_err(|error| Failure::kernel(&error))?;
        // Before any thread is started: the janitor is a fork of this process and inherits its links.
        let janitor = cgroup.start_janitor().context("start the process that cleans up")?;
        let (core, events) = Core::new(enforcement, policy, Vec::new());
        let sinks = sinks.into_iter().map(|sink| sink.subscribe(core.hub())).collect();
        let child = held.start()?;
        let sinks = start_sinks(sinks).context("start the threads that write events")?;
        let code = supervise(&core, events, child, seen)?;
        core.hub().close();
        sinks.finish();
        janitor.finish(&cgroup);
        Ok(code)
    }
}

fn supervise(
    core: &Arc<Core>,
    events: aya::maps::RingBuf<aya::maps::MapData>,
    child: Pid,
    seen: impl Fn(&Event) + Send + 'static,
) -> anyhow::Result<ExitCode> {
    let reader = ring::Until::read(core, events, LAST_EVENTS, seen)?;
    let code = child::wait(child)?;
    reader.finish();
    Ok(code)
}
