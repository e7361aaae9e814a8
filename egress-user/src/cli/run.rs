//! `egress run`: the daemon, in the foreground.

use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
};

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};

use super::{Failure, args::RunArgs, disabled, output};
use crate::{
    api::{Server, SocketOptions, Source as _, Texts},
    daemon::{
        self, Addresses, Applied, Base, Believe, Changer, Core, Enforcement, Follower, Handle, NamesFile, NotReady,
        PolicyFiles, ProgramLog, Ready, Scope, Store, Stored, Wanted, allow_private, asked, resolve_settings, ring,
    },
    datapath::{self, Cgroup, Pins, Room, Uplink},
    events::{Opened, SinkSpec, Style, Subscribed, start_sinks},
    memory,
    metrics::{Metrics, Timed},
    policy::{self, DomainName},
    privilege,
    resolve::{
        self, Limits, Refresher, Resolver,
        system::{self, SystemResolvers},
    },
};

/// Runs until SIGTERM or SIGINT. Enforcement stays on (P2), unless `--detach-on-exit`.
pub fn main(args: RunArgs, socket: &Path) -> anyhow::Result<ExitCode> {
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_env("EGRESS_LOG")
                .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn,egress_user=info,programs=info")),
        )
        .with_ansi(Style::detect(&std::io::stderr()).color)
        .with_writer(std::io::stderr)
        .init();
    if let Some(why) = disabled::by_whom() {
        output::eprint(&format!("ENFORCEMENT IS OFF: {why}\n"));
        let mut removed = Vec::new();
        let all = Pins::new(&Pins::default_bpffs()).detach_all(&mut removed);
        if !removed.is_empty() {
            output::eprint(&format!("removed {} objects that were in force\n", removed.len()));
        }
        all?;
        // Else systemd takes the end for a failed start, and what requires the unit, perhaps the network, does not come up.
        let said = format!("enforcement is off: {why}");
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready, sd_notify::NotifyState::Status(&said)]);
        return Ok(ExitCode::from(super::exit::NO));
    }
    memory::set_up();
    datapath::prepare(args.log_programs);
    let started = start(&args, socket)?;
    // The runtime's threads are made by this one and have no more rights than it has now.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(serve(&args, started))
}

/// What is made with all privileges, before the daemon gives them up.
struct Started {
    names: Option<SystemResolvers>,
    program_log: Option<ProgramLog>,
    server: Server,
    metrics: Option<Metrics>,
    sinks: Vec<Subscribed>,
    core: Arc<Core>,
    pins: Option<Pins>,
    change: Changing,
    addresses: Option<Addresses>,
    what: String,
}

/// What is needed to change the policy later.
struct Changing {
    base: Base,
    store: Store,
    stored: Stored,
    texts: Texts,
    trial: bool,
    files: PolicyFiles,
}

/// Puts the policy in force, and leaves this thread with the rights that it needs from then on.
fn start(args: &RunArgs, socket: &Path) -> anyhow::Result<Started> {
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
    let (ready, mut enforcement, trial) = enforce(&base, ready, (&store, &mut stored), names.as_ref(), &scope)?;
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
        .map_err(|error| Failure::machine(error.to_string(), "enforcement stays on; `egress detach` ends it"))?;
    let change = Changing { base, store, stored, texts: ready.texts, trial, files: followed };
    Ok(Started { names, program_log, server, metrics, sinks, core, pins, change, addresses, what })
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
) -> anyhow::Result<(Ready, Enforcement, bool)> {
    let failed = |error: crate::datapath::Error| {
        let hint = if nix::unistd::geteuid().is_root() {
            "`cargo xtask doctor`, in egress' source, lists what it needs"
        } else {
            "run it as root"
        };
        Failure::machine(error.to_string(), hint)
    };
    let compile = |texts| {
        base.compile(&texts, names)
            .inspect_err(|error| tracing::error!(%error, "what was on trial cannot be read any more, and ends"))
            .ok()
    };
    if let Some(trial) = stored.trial.take().and_then(compile) {
        match Enforcement::start(&trial.policy, trial.settings.clone(), scope, true) {
            Ok(enforcement) => {
                stored.before_applied = stored.applied.is_some();
                stored.before = Some(ready.texts);
                let waits = enforcement.waits;
                if !waits {
                    // In force or confirmed, by a daemon that died before it could write that down.
                    let over = base.read(names).map(|(files, _)| files.texts).unwrap_or_default();
                    let by_files = over == trial.texts;
                    stored.applied = (!by_files).then(|| Applied { texts: trial.texts.clone(), over });
                    if let Err(error) = store.write(stored) {
                        tracing::warn!(%error, "a restart will not know of the confirmed policy");
                    }
                }
                return Ok((trial, enforcement, waits));
            }
            // Its time ran out, or it never was in force.
            Err(crate::datapath::Error::NothingPending) => {}
            Err(error) => return Err(failed(error).into()),
        }
    }
    let enforcement = Enforcement::start(&ready.policy, ready.settings.clone(), scope, false).map_err(failed)?;
    Ok((ready, enforcement, false))
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

async fn serve(args: &RunArgs, started: Started) -> anyhow::Result<ExitCode> {
    let Started { names, program_log, server, metrics, sinks, core, pins, change, addresses, what } = started;
    // Before anybody is told that the daemon is there: until then a signal ends it, SIGHUP too.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let told = Arc::clone(&core);
    let note = move |note| told.set_note("resolvers", note);
    let mut watcher = system::watch(system::Paths::default(), names.clone(), note);
    let resolver = Resolver::new(&asked(&core.active().settings), Limits::default());
    let refresher = Arc::new(refresher(&core, &resolver));
    core.set_refresher(Arc::clone(&refresher));
    let Changing { base, store, stored, texts, trial, files } = change;
    let asking = (resolver, refresher);
    let changer = Changer::new(&core, base, asking, store, (texts, names), (stored, trial));
    core.set_changer(Box::new(Handle(Arc::clone(&changer))));
    // Subscribed before the first look: what changes between the two is seen.
    let wanted = wanted(&args.interface)?;
    let follows = wanted != Wanted::None;
    let mut follower = follows.then(Follower::start).transpose().context("follow the network's changes")?;
    let links = if follows { daemon::links().await.context("list the network's links")? } else { Vec::new() };
    core.govern_workloads(&links).map_err(|error| {
        Failure::machine(
            error.to_string(),
            "`egress run --interface none` governs sockets alone; see docs/known-issues.md",
        )
    })?;
    if let Some(addresses) = addresses {
        core.know_insides().await;
        tokio::spawn(addresses.follow(Arc::clone(&core)));
    }
    if let Some(lines) = program_log {
        daemon::follow_program_log(lines).context("follow the programs' debug lines")?;
    }
    tokio::spawn(daemon::reclaim(Arc::clone(&core)));
    if follows {
        follow_uplinks(&core, &wanted);
    }
    let running = start_sinks(sinks).context("start the threads that write events")?;
    // What reads events from standard output finds nothing else there.
    let say = if args.sinks.take_stdout() { output::eprint } else { output::tell };
    say(&format!("{what}\n"));
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);

    if follows {
        // For uplinks to come: those that are there are governed, and need not wait for it (50 ms).
        let core = Arc::clone(&core);
        tokio::task::spawn_blocking(move || {
            if let Err(error) = core.prepare_uplinks() {
                tracing::error!(%error, "an uplink of another kind could not be governed");
            }
        });
    }
    tokio::spawn(files.follow(Arc::clone(&changer)));
    tokio::spawn(Arc::clone(&core).keep_names(NamesFile::new(&args.state)));
    tokio::spawn(Arc::clone(&core).sweep_forever());
    tokio::spawn(Arc::clone(&core).note_hits());
    // What it took to read the policy.
    core.freed().tell();
    tokio::spawn(core.freed().clone().give_back());
    if let Some(metrics) = metrics {
        let source = Arc::clone(&core) as Arc<dyn crate::api::Source>;
        tokio::spawn(metrics.serve(source, core.measures().clone()));
    }
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let serving = tokio::spawn(server.serve(Arc::clone(&core) as Arc<dyn crate::api::Source>, async {
        let _ = stopped.await;
    }));
    let mut again = tokio::time::interval(AGAIN);
    again.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut watchdog = sd_notify::watchdog_enabled().map(|limit| tokio::time::interval(limit / 3));
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = hangup.recv() => {
                if !tokio::task::block_in_place(|| changer.reload()) {
                    tracing::error!("the policy was not changed: the old one stays in force");
                }
            }
            () = due(watchdog.as_mut()) => {
                // From this loop, so that a loop that hangs is noticed.
                let _ = sd_notify::notify(&[sd_notify::NotifyState::Watchdog]);
            }
            () = changed(follower.as_mut()) => {
                follow_uplinks(&core, &wanted);
                follow_workloads(&core).await;
            }
            _ = again.tick(), if follows && !core.ungoverned().is_empty() => {
                follow_uplinks(&core, &wanted);
                follow_workloads(&core).await;
            }
            system = resolvers_changed(&mut watcher) => {
                tokio::task::block_in_place(|| changer.set_system(system));
            }
        }
    }
    let _ = stop.send(());
    let _ = serving.await;
    core.hub().close();
    tokio::task::block_in_place(|| running.finish());
    tokio::task::block_in_place(|| core.write_names(&NamesFile::new(&args.state)));
    if args.detach_on_exit
        && let Some(pins) = &pins
    {
        pins.detach_all(&mut Vec::new())?;
        say("enforcement is off\n");
    } else if pins.is_some_and(|pins| pins.hold()) {
        say("enforcement stays on; `egress detach` ends it\n");
    }
    Ok(ExitCode::SUCCESS)
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

/// What `--interface` names.
pub(super) fn wanted(interfaces: &[String]) -> Result<Wanted, Failure> {
    if interfaces.len() > 1 && interfaces.iter().any(|name| name == "none") {
        return Err(Failure::input(
            "`none` stands alone: `--interface none` governs no interface",
            "leave it out, or the others",
        ));
    }
    Ok(Wanted::from_arguments(interfaces))
}

fn no_cgroup(error: datapath::Error) -> Failure {
    use datapath::Error::{NotACgroup, Path};
    let what = error.to_string();
    match error {
        NotACgroup { .. } => Failure::input(what, "`systemd-cgls` lists those there are"),
        Path { source, .. } if matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Failure::input(
                what,
                "write its path, like /sys/fs/cgroup/system.slice; `systemd-cgls` lists those there are",
            )
        }
        _ => Failure::machine(what, "`egress run --help` says what each option takes"),
    }
}

/// What `--cgroup` and `--interface` name.
pub(super) fn scope_of(cgroup: Option<&Path>, interfaces: &[String], pins: Option<Pins>) -> anyhow::Result<Scope> {
    let wanted = wanted(interfaces)?;
    let cgroup = Cgroup::open(cgroup).map_err(no_cgroup)?;
    let (uplinks, missing) = wanted
        .find()
        .map_err(|error| Failure::machine(error.to_string(), "`egress run --help` says what each option takes"))?;
    if !missing.is_empty() {
        let missing = missing.join(", ");
        tracing::warn!(
            "there is no interface {missing}: governed as soon as it appears; `ip link` lists those there are"
        );
    }
    let has_past = pins.is_some() || cgroup.is_populated();
    Ok(Scope {
        cgroup,
        uplinks,
        answered: vec![Uplink::loopback()],
        pins,
        has_past,
        room: Room::default(),
        tells: false,
    })
}

fn refresher(core: &Arc<Core>, resolver: &Resolver) -> Refresher {
    let active = core.active();
    let refresher = Refresher::start(
        Arc::new(Timed::new(resolver.clone(), core.measures().clone())),
        resolve_settings(&active.policy),
        allow_private(&active.policy),
        Arc::clone(core) as Arc<dyn resolve::AnswerSink>,
    );
    refresher.set_names(active.policy.exact_names.iter().map(DomainName::as_str));
    for name in &active.policy.exact_names {
        refresher.recall(name.as_str(), core.recalled(name.as_str()));
    }
    refresher
}

/// How soon what could not be attached to is tried again.
const AGAIN: std::time::Duration = std::time::Duration::from_secs(2);

fn follow_uplinks(core: &Core, wanted: &Wanted) {
    let before = core.ungoverned();
    match core.govern_uplinks(wanted) {
        Ok(added) if !added.is_empty() => tracing::info!(?added, "new uplinks are governed"),
        Ok(_) => {}
        // It is tried again and again: told once.
        Err(error) if core.ungoverned() != before => tracing::error!(%error, "cannot govern a new uplink"),
        Err(_) => {}
    }
}

async fn follow_workloads(core: &Core) {
    let before = core.ungoverned();
    let links = match daemon::links().await {
        Ok(links) => links,
        Err(error) => {
            core.cannot_list_links(&error);
            if core.ungoverned() != before {
                tracing::error!(%error, "cannot list the network's links");
            }
            return;
        }
    };
    match core.govern_workloads(&links) {
        Ok(added) if !added.is_empty() => tracing::info!(?added, "new workloads' veths are governed"),
        Ok(_) => {}
        Err(error) if core.ungoverned() != before => tracing::error!(%error, "cannot govern a workload's veth"),
        Err(_) => {}
    }
}

/// The next tick; never without a watchdog.
async fn due(watchdog: Option<&mut tokio::time::Interval>) {
    match watchdog {
        Some(interval) => drop(interval.tick().await),
        None => std::future::pending().await,
    }
}

async fn changed(follower: Option<&mut Follower>) {
    match follower {
        Some(follower) => follower.changed().await,
        None => std::future::pending().await,
    }
}

async fn resolvers_changed(watcher: &mut system::Watcher) -> SystemResolvers {
    while watcher.resolvers.changed().await.is_ok() {
        if let Some(system) = watcher.resolvers.borrow_and_update().clone() {
            return system;
        }
    }
    std::future::pending().await
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
