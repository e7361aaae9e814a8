//! `egress run`: the daemon, in the foreground.

use std::{path::Path, process::ExitCode, sync::Arc};

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};

use super::{Failure, args::RunArgs, disabled, output};
use crate::{
    api::Source as _,
    daemon::{self, Changer, Core, Follower, Handle, NamesFile, Wanted, allow_private, asked, resolve_settings},
    datapath::{self, Pins},
    events::{Style, start_sinks},
    memory,
    metrics::Timed,
    policy::DomainName,
    resolve::{
        self, Limits, Refresher, Resolver,
        system::{self, SystemResolvers},
    },
};

mod scope;
mod start;

pub(super) use scope::{scope_of, wanted};
use start::{Changing, Started, start};

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
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.context("begin to serve")?;
    let ended = runtime.block_on(serve(&args, started));
    // A change under way is waited for, a file system that does not answer is not.
    runtime.shutdown_timeout(LAST_CHANGE);
    ended
}

async fn serve(args: &RunArgs, started: Started) -> anyhow::Result<ExitCode> {
    let Started { names, program_log, server, metrics, sinks, core, attempt, pins, change, addresses, what } = started;
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
    if let Some(lines) = program_log {
        daemon::follow_program_log(lines).context("follow the programs' debug lines")?;
    }
    let running = start_sinks(sinks).context("start the threads that write events")?;
    // What an earlier daemon had at workloads' veths is changed in place: before that this start counts.
    let mut attempt = Some(attempt);
    if let Some(taking_over) = attempt.take_if(|attempt| attempt.takes_over()) {
        core.succeeded(taking_over).map_err(|error| Failure::kernel(&error))?;
    }
    core.govern_workloads(&links).map_err(|error| {
        Failure::machine(
            error.to_string(),
            "`egress run --interface none` governs sockets alone; see docs/known-issues.md",
        )
    })?;
    if let Some(first) = attempt {
        core.succeeded(first).map_err(|error| Failure::kernel(&error))?;
    }
    if let Some(addresses) = addresses {
        core.know_insides().await;
        tokio::spawn(addresses.follow(Arc::clone(&core)));
    }
    tokio::spawn(daemon::reclaim(Arc::clone(&core)));
    if follows {
        follow_uplinks(&core, &wanted);
    }
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
    let reload = Arc::new(tokio::sync::Notify::new());
    tokio::spawn(daemon::reload_when_told(Arc::clone(&changer), Arc::clone(&reload)));
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
            _ = hangup.recv() => reload.notify_one(),
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

/// How long a change of the policy may take that is under way when the daemon is to end.
const LAST_CHANGE: std::time::Duration = std::time::Duration::from_secs(10);
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
