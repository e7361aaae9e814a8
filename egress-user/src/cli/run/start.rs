//! What `run` does with all privileges: reads the policy, puts it in force, and gives the rest of its rights up.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Context as _;

use super::scope_of;
use crate::{
    api::{Server, SocketOptions, Source as _, Texts},
    cli::{Failure, args::RunArgs},
    daemon::{
        self, Addresses, Applied, Attempt, Base, Believe, Core, Enforcement, NamesFile, NotReady, PolicyFiles,
        ProgramLog, Ready, Scope, Store, Stored, ring,
    },
    datapath::{self, Pins, Room},
    events::{Opened, SinkSpec, Subscribed},
    metrics::Metrics,
    policy, privilege,
    resolve::system::{self, SystemResolvers},
};

/// What is made with all privileges, before the daemon gives them up.
pub(super) struct Started {
    pub(super) names: Option<SystemResolvers>,
    pub(super) program_log: Option<ProgramLog>,
    pub(super) server: Server,
    pub(super) metrics: Option<Metrics>,
    pub(super) sinks: Vec<Subscribed>,
    pub(super) core: Arc<Core>,
    /// Before `core` says that it succeeded, every failure puts back what was.
    pub(super) attempt: Attempt,
    pub(super) pins: Option<Pins>,
    pub(super) change: Changing,
    pub(super) addresses: Option<Addresses>,
    pub(super) what: String,
}

/// What is needed to change the policy later.
pub(super) struct Changing {
    pub(super) base: Base,
    pub(super) store: Store,
    pub(super) stored: Stored,
    pub(super) texts: Texts,
    pub(super) trial: bool,
    pub(super) files: PolicyFiles,
}

/// Puts the policy in force, and leaves this thread with the rights that it needs from then on.
pub(super) fn start(args: &RunArgs, socket: &Path) -> anyhow::Result<Started> {
    let names = system::read(&system::Paths::default()).ok();
    let scope = scope(args)?;
    // Without an uplink by the user's own word; a node that has no default route yet will have one.
    let believe = if args.interface == ["none"] { Believe::AtCgroup } else { Believe::AtUplinks };
    let base = base(args, believe, (scope.cgroup.level, scope.cgroup.id))?;
    let (files, loaded) = base.read(names.as_ref()).map_err(not_ready)?;
    policy::eprint_all(&loaded.warnings, &loaded.files);
    let followed = PolicyFiles::new(base.sources.policies.clone(), loaded.paths.clone(), &files.texts.files);
    // The socket comes before anything in the kernel: it is also what finds a second daemon.
    let options = SocketOptions { path: socket.to_owned(), group: args.socket_group };
    let server = Server::bind(&options).map_err(|error| {
        let is_root = nix::unistd::geteuid().is_root();
        Failure::machine(error.to_string(), if is_root { "see `egress status`" } else { "run it as root" })
    })?;
    let metrics = args.metrics.map(bind_metrics).transpose()?;
    let sinks = args.sinks.open()?;
    // Made now: later the daemon may write below it, and make no other.
    if let Err(error) = daemon::make_dir(&args.state) {
        let state = args.state.display();
        tracing::warn!(%error, %state, "cannot make the state directory: a restart will not know what was applied and learned");
    }
    let store = Store::new(&args.state);
    let mut stored = store.read();
    let ready = latest(&base, files, &mut stored, names.as_ref());
    let (ready, (mut enforcement, attempt), trial) =
        enforce(&base, ready, (&store, &mut stored), names.as_ref(), &scope)?;
    let pins = enforcement.pins.clone();
    let by_apply = by_apply(&ready.texts, trial, &stored);
    let what = format!(
        "{} in {}{}{by_apply}",
        if ready.policy.mode == policy::Mode::Enforce {
            "enforcement is on"
        } else {
            "enforcement is on (audit: nothing is dropped)"
        },
        scope.cgroup.path.display(),
        scope.uplinks.iter().map(|uplink| format!(", {}", uplink.name)).collect::<String>(),
    );
    let take_log = || enforcement.datapath.object().log(daemon::Named);
    let program_log = args.log_programs.then(take_log).transpose()?;
    let (core, events) = Core::new(enforcement, ready.policy, ready.texts.names());
    core.measures().set_sinks(sinks.iter().map(Opened::tally).collect());
    let sinks = sinks.into_iter().map(|sink| sink.subscribe(core.hub())).collect();
    core.recall_names(&NamesFile::new(&args.state));
    ring::read(&core, events, |_| {}).context("start the thread that reads the kernel's events")?;
    let addresses = (args.interface != ["none"]).then(Addresses::subscribe).and_then(|subscribed| {
        subscribed
            .inspect_err(|error| {
                tracing::warn!(%error, "cannot follow the addresses of workloads: their first refused names get an error, not an answer");
            })
            .ok()
    });
    privilege::restrict(privilege::Role::Control, &writable(socket, args, pins.as_ref()))
        .map_err(|error| Failure::machine(error.to_string(), "what was in force before is again"))?;
    let change = Changing { base, store, stored, texts: ready.texts, trial, files: followed };
    Ok(Started { names, program_log, server, metrics, sinks, core, attempt, pins, change, addresses, what })
}

fn bind_metrics(address: SocketAddr) -> Result<Metrics, Failure> {
    Metrics::bind(address).map_err(|error| {
        Failure::machine(
            format!("cannot serve metrics at {address}: {error}"),
            "give an address of this node and a free port, like `--metrics 127.0.0.1:9464`",
        )
    })
}

/// The policy to start with: what was applied, as long as the files say what they said then; else the files.
fn latest(base: &Base, files: Ready, stored: &mut Stored, names: Option<&SystemResolvers>) -> Ready {
    let Some(applied) = stored.applied.take() else { return files };
    if applied.over != files.texts {
        tracing::warn!("the files changed after `egress apply`: they are the latest word");
        return files;
    }
    match base.compile(&applied.texts, names) {
        Ok(ready) => {
            stored.applied = Some(applied);
            ready
        }
        Err(error) => {
            tracing::error!(%error, "what was applied cannot be read any more; the files count");
            files
        }
    }
}

/// What is said where a policy is in force that is not that of the files given.
fn by_apply(texts: &Texts, trial: bool, stored: &Stored) -> String {
    let names = texts.names().join(", ");
    if trial {
        return format!(
            "\non trial: {names}, by `egress apply --confirm`; `egress confirm` keeps it, else what was in force before comes back"
        );
    }
    if stored.applied.as_ref().is_none_or(|applied| applied.texts != *texts) {
        return String::new();
    }
    format!(
        "\nin force: {names}, by `egress apply` (not the files given); a change of the files puts these in force, `egress rollback` what was before"
    )
}

/// Puts the policy in force, or goes on with the one that an earlier daemon put on trial: then `true`.
fn enforce(
    base: &Base,
    ready: Ready,
    (store, stored): (&Store, &mut Stored),
    names: Option<&SystemResolvers>,
    scope: &Scope,
) -> anyhow::Result<(Ready, (Enforcement, Attempt), bool)> {
    let failed = |error: datapath::Error| Failure::kernel(&error);
    let compile = |texts| {
        base.compile(&texts, names)
            .inspect_err(|error| tracing::error!(%error, "what was on trial cannot be read any more, and ends"))
            .ok()
    };
    if let Some(trial) = stored.trial.take().and_then(compile) {
        match Enforcement::begin(&trial.policy, trial.settings.clone(), scope, true) {
            Ok(begun) => {
                stored.before_applied = stored.applied.is_some();
                stored.before = Some(ready.texts);
                let waits = begun.0.waits;
                if !waits {
                    // In force or confirmed, by a daemon that died before it could write that down.
                    let over = base.read(names).map(|(files, _)| files.texts).unwrap_or_default();
                    let by_files = over == trial.texts;
                    stored.applied = (!by_files).then(|| Applied { texts: trial.texts.clone(), over });
                    if let Err(error) = store.write(stored) {
                        tracing::warn!(%error, "a restart will not know of the confirmed policy");
                    }
                }
                return Ok((trial, begun, waits));
            }
            // Its time ran out, or it never was in force.
            Err(datapath::Error::NothingPending) => {}
            Err(error) => return Err(failed(error).into()),
        }
    }
    let begun = Enforcement::begin(&ready.policy, ready.settings.clone(), scope, false).map_err(failed)?;
    Ok((ready, begun, false))
}

/// Where the running daemon writes: its socket's directory, its state, its pins and its files of events.
fn writable(socket: &Path, args: &RunArgs, pins: Option<&Pins>) -> Vec<PathBuf> {
    let socket = socket.parent().map(|dir| if dir.as_os_str().is_empty() { Path::new(".") } else { dir });
    let events = args.sinks.events.iter().filter_map(SinkSpec::writes_in);
    socket
        .into_iter()
        .chain([args.state.as_path()])
        .map(Path::to_owned)
        .chain(events)
        .chain(pins.map(|pins| pins.bpffs().to_owned()))
        .collect()
}

/// What the command line says of every policy.
fn base(args: &RunArgs, believe: Believe, cgroup: (Option<u32>, u64)) -> anyhow::Result<Base> {
    let mut sources = args.policy.sources();
    args.overrides.apply(&mut sources);
    if sources.policies.is_empty() && sources.allow.is_empty() {
        return Err(Failure::input(
            "no policy is given",
            "name one: `egress run --policy FILE`, an embedded one (`egress policies`), or `--allow DEST`",
        )
        .into());
    }
    Ok(Base { sources, believe, cgroup })
}

/// As the user sees it: a wrong policy with its positions.
fn not_ready(error: NotReady) -> anyhow::Error {
    match error {
        NotReady::Policy(error) => error.into(),
        NotReady::NoResolver(why) => Failure::input(why, "give one with `--resolver ADDR` or `dns.resolvers`").into(),
    }
}

fn scope(args: &RunArgs) -> anyhow::Result<Scope> {
    let scope = scope_of(args.cgroup.as_deref(), &args.interface, Some(Pins::new(&Pins::default_bpffs())))?;
    let room = Room { addresses: args.max_addresses, flows: args.max_flows };
    Ok(Scope { room, tells: args.log_programs, ..scope })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_that_is_not_that_of_the_files_is_told() {
        let texts = |name: &str| Texts { files: vec![(name.to_owned(), String::new())], ..Texts::default() };
        let (files, applied) = (texts("/etc/egress/policy.yaml"), texts("/root/new.yaml"));
        let stored = |applied: Option<&Texts>| Stored {
            applied: applied.map(|texts| Applied { texts: texts.clone(), over: files.clone() }),
            ..Stored::default()
        };
        assert_eq!(by_apply(&files, false, &stored(None)), "");
        // What was applied cannot be read any more: the files count.
        assert_eq!(by_apply(&files, false, &stored(Some(&applied))), "");
        let told = by_apply(&applied, false, &stored(Some(&applied)));
        assert!(told.starts_with("\nin force: /root/new.yaml, by `egress apply` (not the files given)"), "{told}");
        let told = by_apply(&applied, true, &stored(None));
        assert!(told.contains("on trial: /root/new.yaml") && told.contains("egress confirm"), "{told}");
    }
}
