//! `egress run`: the daemon, in the foreground.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
};

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};

use super::{Failure, args::RunArgs, disabled, output};
use crate::{
    api::{Server, SocketOptions},
    daemon::{self, Believe, Core, Enforcement, Follower, Scope, Wanted, ring},
    datapath::{Cgroup, Pins, Settings, netns_cookie},
    policy::{self, Compiled, DomainName, Loaded, Resolvers},
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
                .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn,egress_user=info")),
        )
        .with_writer(std::io::stderr)
        .init();
    if args.metrics.is_some() {
        return Err(Failure::input("`--metrics` is not served yet", "leave it out").into());
    }
    if let Some(why) = disabled::by_whom() {
        output::eprint(&format!("ENFORCEMENT IS OFF: {why}\n"));
        let removed = Pins::new(&Pins::default_bpffs()).detach_all()?;
        if !removed.is_empty() {
            output::eprint(&format!("removed {} objects that were in force\n", removed.len()));
        }
        return Ok(ExitCode::from(super::exit::NO));
    }
    let started = start(&args, socket)?;
    // The runtime's threads are made by this one and have no more rights than it has now.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(serve(&args, started))
}

/// What is made with all privileges, before the daemon gives them up.
struct Started {
    names: Option<SystemResolvers>,
    server: Server,
    core: Arc<Core>,
    pins: Option<Pins>,
    believe: Believe,
    level: (u32, u64),
    what: String,
}

/// Puts the policy in force, and leaves this thread with the rights that it needs from then on.
fn start(args: &RunArgs, socket: &Path) -> anyhow::Result<Started> {
    let names = system::read(&system::Paths::default()).ok();
    let loaded = load(args, names.as_ref())?;
    policy::eprint_all(&loaded.warnings, &loaded.files);
    // The socket comes before anything in the kernel: it is also what finds a second daemon.
    let options = SocketOptions { path: socket.to_owned(), group: args.socket_group };
    let server = Server::bind(&options).map_err(|error| Failure::machine(error.to_string(), "see `egress status`"))?;
    let scope = scope(args)?;
    let level = (scope.cgroup.level, scope.cgroup.id);
    // Without an uplink by the user's own word; a node that has no default route yet will have one.
    let believe = if args.interface == ["none"] { Believe::AtCgroup } else { Believe::AtUplinks };
    let settings = settings(&loaded.compiled, names.as_ref(), believe, level)?;
    let enforcement = Enforcement::start(&loaded.compiled, settings, &scope).map_err(|error| {
        let hint = if nix::unistd::geteuid().is_root() {
            "`cargo xtask doctor`, in egress' source, lists what it needs"
        } else {
            "run it as root"
        };
        Failure::machine(error.to_string(), hint)
    })?;
    let pins = enforcement.pins.clone();
    let what = format!(
        "{} in {}{}",
        if loaded.compiled.mode == policy::Mode::Enforce {
            "enforcement is on"
        } else {
            "enforcement is on (audit: nothing is dropped)"
        },
        scope.cgroup.path.display(),
        scope.uplinks.iter().map(|uplink| format!(", {}", uplink.name)).collect::<String>(),
    );
    let (core, events) = Core::new(enforcement, loaded.compiled, files(args));
    ring::read(&core, events, |_| {}).context("start the thread that reads the kernel's events")?;
    privilege::restrict(privilege::Role::Control, &writable(socket, pins.as_ref()))
        .map_err(|error| Failure::machine(error.to_string(), "enforcement stays on; `egress detach` ends it"))?;
    Ok(Started { names, server, core, pins, believe, level, what })
}

/// Where the running daemon writes: its socket's directory and its pins.
fn writable(socket: &Path, pins: Option<&Pins>) -> Vec<PathBuf> {
    let socket = socket.parent().map(|dir| if dir.as_os_str().is_empty() { Path::new(".") } else { dir });
    socket.into_iter().map(Path::to_owned).chain(pins.map(|pins| pins.bpffs().to_owned())).collect()
}

async fn serve(args: &RunArgs, started: Started) -> anyhow::Result<ExitCode> {
    let Started { mut names, server, core, pins, believe, level, what } = started;
    let mut watcher = system::watch(system::Paths::default()).ok();
    if let Some(watcher) = &mut watcher
        && Some(&*watcher.resolvers.borrow()) != names.as_ref()
    {
        // They changed while the policy was being put in force.
        watcher.resolvers.mark_changed();
    }
    let resolver = Resolver::new(&asked(&core.active().settings), Limits::default());
    let refresher = Arc::new(refresher(&core, &resolver));
    core.set_refresher(Arc::clone(&refresher));
    // Subscribed before the first look: what changes between the two is seen.
    let wanted = Wanted::from_arguments(&args.interface);
    let follows = wanted != Wanted::None;
    let mut follower = follows.then(Follower::start).transpose().context("follow the network's changes")?;
    let links = if follows { daemon::links().await.context("list the network's links")? } else { Vec::new() };
    core.govern_workloads(&links).map_err(|error| {
        Failure::machine(
            error.to_string(),
            "`egress run --interface none` governs sockets alone; see docs/known-issues.md",
        )
    })?;
    tokio::spawn(daemon::reclaim(Arc::clone(&core)));
    if follows {
        core.prepare_uplinks()?;
        follow_uplinks(&core, &wanted);
    }
    output::print(&format!("{what}\n"));
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);

    tokio::spawn(Arc::clone(&core).sweep_forever());
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let serving = tokio::spawn(server.serve(Arc::clone(&core) as Arc<dyn crate::api::Source>, async {
        let _ = stopped.await;
    }));
    let mut watchdog = sd_notify::watchdog_enabled().map(|limit| tokio::time::interval(limit / 3));
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = hangup.recv() => {}
            () = due(watchdog.as_mut()) => {
                // From this loop, so that a loop that hangs is noticed.
                let _ = sd_notify::notify(&[sd_notify::NotifyState::Watchdog]);
                continue;
            }
            () = changed(follower.as_mut()) => {
                follow_uplinks(&core, &wanted);
                follow_workloads(&core).await;
                continue;
            }
            system = resolvers_changed(watcher.as_mut()) => names = Some(system),
        }
        // SIGHUP, or other resolvers: the policy is read again, and put in force only if all of it is right.
        reload(args, &core, names.as_ref(), believe, level, &resolver, &refresher);
    }
    let _ = stop.send(());
    let _ = serving.await;
    if args.detach_on_exit
        && let Some(pins) = pins
    {
        pins.detach_all()?;
        output::print("enforcement is off\n");
    }
    Ok(ExitCode::SUCCESS)
}

fn load(args: &RunArgs, system: Option<&SystemResolvers>) -> anyhow::Result<Loaded> {
    let mut sources = args.policy.sources();
    args.overrides.apply(&mut sources);
    sources.internal = search_domains(system);
    if sources.policies.is_empty() && sources.allow.is_empty() {
        return Err(Failure::input(
            "no policy is given",
            "name one: `egress run --policy FILE`, an embedded one (`egress policies`), or `--allow DEST`",
        )
        .into());
    }
    Ok(policy::load(&sources)?)
}

/// The host's search domains, as names that may be asked.
pub(super) fn search_domains(system: Option<&SystemResolvers>) -> Vec<DomainName> {
    system.into_iter().flat_map(|system| &system.search).filter_map(|name| DomainName::parse(name).ok()).collect()
}

fn files(args: &RunArgs) -> Vec<String> {
    let mut files: Vec<String> = args.policy.policy.iter().map(|path| path.display().to_string()).collect();
    files.extend(args.policy.allow.iter().map(|allow| format!("--allow {allow}")));
    files
}

fn scope(args: &RunArgs) -> anyhow::Result<Scope> {
    let machine = |error: crate::datapath::Error| {
        Failure::machine(error.to_string(), "`egress run --help` says what each option takes")
    };
    let cgroup = Cgroup::open(args.cgroup.as_deref()).map_err(machine)?;
    let (uplinks, missing) = Wanted::from_arguments(&args.interface).find();
    if !missing.is_empty() {
        let missing = missing.join(", ");
        tracing::warn!(
            "there is no interface {missing}: governed as soon as it appears; `ip link` lists those there are"
        );
    }
    Ok(Scope { cgroup, uplinks, pins: Some(Pins::new(&Pins::default_bpffs())) })
}

fn settings(
    policy: &Compiled,
    system: Option<&SystemResolvers>,
    believe: Believe,
    (cgroup_level, cgroup_id): (u32, u64),
) -> Result<Settings, Failure> {
    let resolvers = daemon::resolvers(policy, system, believe);
    if resolvers.is_empty() {
        let why = match policy.dns.resolvers {
            Resolvers::System => "/etc/resolv.conf names no resolver",
            Resolvers::Addresses(_) => "the policy names no resolver",
        };
        return Err(Failure::input(why, "give one with `--resolver ADDR` or `dns.resolvers`"));
    }
    Ok(Settings { resolvers, cgroup_level, cgroup_id, teaching_netns: netns_cookie() })
}

/// The resolvers to ask, which is all that are trusted.
fn asked(settings: &Settings) -> Vec<std::net::SocketAddr> {
    settings.resolvers.iter().map(|resolver| resolver.address).collect()
}

fn refresher(core: &Arc<Core>, resolver: &Resolver) -> Refresher {
    let active = core.active();
    let refresher = Refresher::start(
        Arc::new(resolver.clone()),
        resolve_settings(&active.policy),
        allow_private(&active.policy),
        Arc::clone(core) as Arc<dyn resolve::AnswerSink>,
    );
    refresher.set_names(active.policy.exact_names.iter().map(DomainName::as_str));
    refresher
}

fn resolve_settings(policy: &Compiled) -> resolve::Settings {
    resolve::Settings {
        min_ttl: policy.dns.min_ttl,
        grace: policy.dns.grace,
        max_stale: policy.dns.max_stale,
        ..resolve::Settings::default()
    }
}

fn allow_private(policy: &Compiled) -> resolve::AllowPrivate {
    let patterns = policy.dns.allow_private.clone();
    Arc::new(move |name| {
        DomainName::parse(name).is_ok_and(|name| patterns.iter().any(|pattern| pattern.matches(&name)))
    })
}

fn reload(
    args: &RunArgs,
    core: &Arc<Core>,
    system: Option<&SystemResolvers>,
    believe: Believe,
    level: (u32, u64),
    resolver: &Resolver,
    refresher: &Refresher,
) {
    let result = load(args, system).and_then(|loaded| {
        let settings = settings(&loaded.compiled, system, believe, level)?;
        core.install(loaded.compiled, files(args), settings)?;
        Ok(())
    });
    match result {
        Ok(()) => {
            let active = core.active();
            resolver.set_resolvers(&asked(&active.settings));
            refresher.reconfigure(resolve_settings(&active.policy), allow_private(&active.policy));
            refresher.set_names(active.policy.exact_names.iter().map(DomainName::as_str));
            refresher.retry_now();
            tracing::info!(generation = active.installed.generation, "the policy was read again");
        }
        Err(error) => {
            core.refused(&format!("{error:#}"));
            super::report(&error);
            tracing::error!("the policy was not changed: the old one stays in force");
        }
    }
}

fn follow_uplinks(core: &Core, wanted: &Wanted) {
    match core.govern_uplinks(wanted) {
        Ok(added) if !added.is_empty() => tracing::info!(?added, "new uplinks are governed"),
        Ok(_) => {}
        Err(error) => tracing::error!(%error, "cannot govern a new uplink"),
    }
}

async fn follow_workloads(core: &Core) {
    let links = match daemon::links().await {
        Ok(links) => links,
        Err(error) => return tracing::error!(%error, "cannot list the network's links"),
    };
    match core.govern_workloads(&links) {
        Ok(added) if !added.is_empty() => tracing::info!(?added, "new workloads' veths are governed"),
        Ok(_) => {}
        Err(error) => tracing::error!(%error, "cannot govern a workload's veth"),
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

async fn resolvers_changed(watcher: Option<&mut system::Watcher>) -> SystemResolvers {
    if let Some(watcher) = watcher
        && watcher.resolvers.changed().await.is_ok()
    {
        return watcher.resolvers.borrow_and_update().clone();
    }
    std::future::pending().await
}
