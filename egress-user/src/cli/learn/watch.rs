//! The three ways to watch.

use std::{
    path::Path,
    process::ExitCode,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{Failure, LearnArgs, Progress, Sink, lock, watching};
use crate::{
    api::{Client, ClientError, EventFilter, Status},
    cli::{exec, run},
    daemon::{Believe, Core, Enforcement, ring, settings},
    datapath::cgroup_root,
    events::Event,
    resolve::system,
};

/// How long the last events take from the kernel to here.
const LAST_EVENTS: Duration = Duration::from_millis(100);

/// Watches to the end. Gives what was watched, in words, and the exit code of a command.
pub fn watch(args: &LearnArgs, socket: &Path, sink: &Arc<Mutex<Sink>>) -> anyhow::Result<(String, Option<ExitCode>)> {
    if !args.command.is_empty() {
        let code = command(args, sink)?;
        let words: Vec<_> = args.command.iter().map(|word| crate::events::escape(word.as_encoded_bytes())).collect();
        return Ok((format!("`{}`", words.join(" ")), Some(code)));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let own_scope = args.cgroup.is_some() || !args.interface.is_empty() || !args.resolver.is_empty();
    match runtime.block_on(Client::new(socket).status()) {
        Ok(status) if status.mode == "audit" => {
            if own_scope {
                let what = "a daemon runs in audit mode, and it watches what it was told to";
                return Err(Failure::input(what, "leave out --cgroup, --interface and --resolver").into());
            }
            runtime.block_on(daemon(args, socket, &status, sink))?;
            Ok(("the events of the daemon".to_owned(), None))
        }
        Ok(_) => Err(Failure::input(
            "a daemon enforces a policy here: what it drops is not what would happen without it",
            "learn with its policy in audit mode (`mode: audit`, then `egress learn` again), or stop it and `egress detach`",
        )
        .into()),
        Err(ClientError::NoDaemon(_)) => {
            let about = runtime.block_on(own(args, sink))?;
            Ok((about, None))
        }
        Err(error) => Err(error.into()),
    }
}

fn command(args: &LearnArgs, sink: &Arc<Mutex<Sink>>) -> anyhow::Result<ExitCode> {
    let waiting = exec::Waiting::begin(&args.command, args.user.as_deref());
    let system = system::read(&system::Paths::default()).ok();
    let policy = watching(&args.resolver, system.as_ref())?;
    let sink = Arc::clone(sink);
    waiting?.govern(policy, system.as_ref(), Vec::new(), move |event| lock(&sink).add(event))
}

/// With programs of its own, which nothing pins.
async fn own(args: &LearnArgs, sink: &Arc<Mutex<Sink>>) -> anyhow::Result<String> {
    let system = system::read(&system::Paths::default()).ok();
    let policy = watching(&args.resolver, system.as_ref())?;
    // `run` waits for an interface; here nothing follows, and the policy would lack what leaves by it.
    let (_, missing) = run::wanted(&args.interface)?.find().unwrap_or_default();
    if !missing.is_empty() {
        let what = format!("there is no interface {}", missing.join(", "));
        return Err(
            Failure::input(what, "`ip link` lists those there are; `none` alone watches the cgroup only").into()
        );
    }
    let scope = run::scope_of(args.cgroup.as_deref(), &args.interface, None)?;
    let believe = if args.interface == ["none"] { Believe::AtCgroup } else { Believe::AtUplinks };
    let level = (scope.cgroup.level, scope.cgroup.id);
    let settings = settings(&policy, system.as_ref(), believe, level)
        .map_err(|error| Failure::input(error.to_string(), "then start again"))?;
    let enforcement = Enforcement::start(&policy, settings, &scope, false).map_err(|error| Failure::kernel(&error))?;
    let root = cgroup_root()?;
    let below = scope.cgroup.path.strip_prefix(&root).unwrap_or(&scope.cgroup.path).display().to_string();
    let about = format!(
        "cgroup /{below}{}",
        scope.uplinks.iter().map(|uplink| format!(", {}", uplink.name)).collect::<String>()
    );
    let (core, events) = Core::new(enforcement, policy, Vec::new());
    let seen = Arc::clone(sink);
    let reader = ring::Until::read(&core, events, LAST_EVENTS, move |event| lock(&seen).add(event))?;
    let stop = Stop::new()?;
    super::output::eprint(&format!("learning from {about}; nothing is blocked\n"));
    wait(args.time, sink, stop, std::future::pending()).await?;
    tokio::time::sleep(LAST_EVENTS).await;
    reader.finish();
    Ok(about)
}

/// From a daemon in audit mode.
async fn daemon(args: &LearnArgs, socket: &Path, before: &Status, sink: &Arc<Mutex<Sink>>) -> anyhow::Result<()> {
    let client = Client::new(socket);
    let mut stream = client.events(EventFilter { follow: true, recent: Some(0), ..EventFilter::default() }).await?;
    let stop = Stop::new()?;
    super::output::eprint("learning from the events of the daemon; nothing is blocked\n");
    if before.policy.rules > 0 {
        super::output::eprint(&format!(
            "note: the daemon's policy has {}: what it allows is not seen, and not in the policy to be written\n",
            super::output::count(before.policy.rules, "rule")
        ));
    }
    let reading = async {
        while let Some(line) = stream.next_line().await? {
            match serde_json::from_str::<Event>(&line) {
                Ok(event) => lock(sink).add(&event),
                Err(_) => lock(sink).learner.lose(1),
            }
        }
        super::output::eprint("\nwarning: the daemon ended; this is what was learned until then\n");
        anyhow::Ok(())
    };
    wait(args.time, sink, stop, reading).await
}

/// The signals that end the watching. Made before a person is told that it goes on: until then one of them would end the
/// program, and what was learned would be lost.
struct Stop {
    interrupt: Signal,
    terminate: Signal,
}

impl Stop {
    fn new() -> std::io::Result<Self> {
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }
}

/// Until the time is over, a signal comes, or `other` ends.
async fn wait(
    time: Duration,
    sink: &Arc<Mutex<Sink>>,
    mut stop: Stop,
    other: impl Future<Output = anyhow::Result<()>>,
) -> anyhow::Result<()> {
    let mut progress = Progress::new();
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    let end = Instant::now() + time;
    tokio::pin!(other);
    let result = loop {
        tokio::select! {
            result = &mut other => break result,
            _ = stop.interrupt.recv() => break Ok(()),
            _ = stop.terminate.recv() => break Ok(()),
            () = tokio::time::sleep_until(end.into()) => break Ok(()),
            _ = tick.tick() => {
                progress.tell(end.saturating_duration_since(Instant::now()).as_secs(), sink);
            }
        }
    };
    progress.end();
    result
}
