//! `egress learn`: what was seen becomes a policy under which the same passes and nothing else does.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use egress_tests::daemon::{Daemon, binary, egress};
use egress_tests::demo::Load;
use egress_tests::mntns::BPFFS;
use egress_tests::world::{DNS_V4, UPLINK};
use egress_tests::{Cgroup, Place, Service, World};
use egress_user::policy::{self, Sources};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const LIMIT: Duration = Duration::from_secs(20);

/// What a person would write for the rows of the demo that the AKS policies allow.
const BY_HAND: &str = "
version: 1
dns: {resolvers: [203.0.113.53]}
rules:
  - name: api-server
    to: [demo-1a2b3c.hcp.westeurope.azmk8s.io]
    ports: [443/tcp, 9000/tcp]
  - name: https
    to:
      - aksrepos.azurecr.io
      - wus2managed42.blob.core.windows.net
      - mcr.microsoft.com
      - management.azure.com
      - login.microsoftonline.com
      - packages.microsoft.com
      - dc.services.visualstudio.com
      - 7c1e2a.ods.opinsights.azure.com
      - westeurope.monitoring.azure.com
      - gov-prod-policy-data.trafficmanager.net
      - apt.dockerproject.org
      - nvidia.github.io
    ports: [443/tcp]
  - name: ubuntu
    to: [security.ubuntu.com]
    ports: [80/tcp]
  - name: time
    to: [91.189.94.4, '2620:1ec:123::123']
    ports: [123/udp]
";

/// Every pair of destination and ports that a policy opens, and whom it asks.
fn meaning(path: &Path) -> BTreeSet<String> {
    let sources = Sources { policies: vec![path.to_owned()], ..Sources::default() };
    let loaded = policy::load(&sources).unwrap();
    assert!(loaded.warnings.is_empty(), "egress check --strict would refuse it: {:?}", loaded.warnings);
    let compiled = loaded.compiled;
    let mut pairs: BTreeSet<String> = BTreeSet::new();
    for grant in &compiled.grants {
        for ports in &compiled.rules[grant.rule as usize].ports {
            pairs.insert(format!("{} {ports}", grant.item));
        }
    }
    pairs.insert(format!("{:?} {:?} {:?}", compiled.mode, compiled.dns, compiled.builtins));
    pairs
}

/// `egress learn ARGS`, once it says that it watches.
fn start(place: &Place, args: &[&str]) -> Child {
    let mut command = place.command(&binary().unwrap().to_string_lossy());
    command.arg("learn").args(args).env("EGRESS_BPFFS", BPFFS);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let line = lines.next().unwrap().unwrap();
    assert!(line.starts_with("learning from") && line.ends_with("nothing is blocked"), "{line}");
    // Read to the end, so that the pipe never fills or breaks.
    std::thread::spawn(move || lines.for_each(drop));
    child
}

/// Ends it as Ctrl-C does.
fn finish(mut child: Child) {
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGINT).unwrap();
    let start = Instant::now();
    while child.try_wait().unwrap().is_none() {
        assert!(start.elapsed() < LIMIT, "learn did not end");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

fn written(world: &World, name: &str, text: &str) -> PathBuf {
    let path = world.dir().join(name);
    std::fs::write(&path, text).unwrap();
    path
}

/// The demo's allowed rows are driven while `learn` watches. The policy that it writes equals the one written by hand;
/// under it everything passes again and nothing is reported, and what the demo forbids is blocked.
#[test]
fn a_learned_policy_means_what_a_person_would_write() {
    let load = Load::new().unwrap();
    let policy = load.world.dir().join("learned.yaml");
    let cgroup = load.cgroup.path().to_str().unwrap();
    let options = ["--cgroup", cgroup, "--interface", UPLINK, "--resolver", DNS_V4, "-o", policy.to_str().unwrap()];
    let child = start(&load.world.node(), &[&options[..], &["--for", "5m"]].concat());
    let through = load.drive(true).unwrap();
    assert!(through.iter().all(|(_, through)| *through), "learning blocks nothing: {through:?}");
    finish(child);

    let text = std::fs::read_to_string(&policy).unwrap();
    println!("{text}");
    let by_hand = written(&load.world, "by-hand.yaml", BY_HAND);
    assert_eq!(meaning(&policy), meaning(&by_hand), "{text}");
    assert!(text.contains("curl") && text.contains("seen "), "who used it, and how often:\n{text}");

    let mut daemon = Daemon::builder(&load.world).policy(&policy).cgroup(&load.cgroup).start().unwrap();
    let through = load.drive(true).unwrap();
    assert!(through.iter().all(|(_, through)| *through), "the same again: {through:?}\n{text}");
    assert_eq!(daemon.events(true).unwrap(), Vec::<serde_json::Value>::new());
    let through = load.drive(false).unwrap();
    assert!(through.iter().all(|(_, through)| !through), "anything else is dropped: {through:?}");
    assert!(through.len() > 20);
    daemon.stop().unwrap();
}

/// One command alone; its exit code counts, and a name with a private address is allowed as such.
#[test]
fn one_command_is_learned() {
    let world = World::new().unwrap();
    world.serve_everywhere(Service::Http, 80).unwrap();
    world.dns.set_text("www.example.com", 30, &["203.0.113.80"]);
    world.dns.set_text("db.corp.example", 30, &["169.254.169.254"]);
    world.dns.set_text("unused.example.com", 30, &["203.0.113.81"]);
    let (_cgroup, place) = world.governed("learn").unwrap();
    let (policy, events) = (world.dir().join("learned.yaml"), world.dir().join("events.jsonl"));
    let (out, log) = (policy.to_str().unwrap(), events.to_str().unwrap());
    let script =
        "curl -s http://www.example.com/ && curl -s http://db.corp.example/ && getent hosts unused.example.com; exit 7";
    let options = ["learn", "-o", out, "--events", log, "--resolver", DNS_V4, "--", "sh", "-c", script];
    let run = egress(&place, &options, LIMIT).unwrap();
    assert_eq!(run.code(), Some(7), "{run:?}");
    let text = std::fs::read_to_string(&policy).unwrap();
    let by_hand = written(
        &world,
        "by-hand.yaml",
        "version: 1
dns: {resolvers: [203.0.113.53], allowPrivate: [db.corp.example]}
rules:
  - {name: all, to: [www.example.com, db.corp.example], ports: [80/tcp]}
",
    );
    assert_eq!(meaning(&policy), meaning(&by_hand), "{text}");
    assert!(text.contains("not connected to: unused.example.com"), "{text}");
    assert!(std::fs::read_to_string(&events).unwrap().lines().count() >= 4);
    let run = egress(&place, &options, LIMIT).unwrap();
    assert!(run.code() == Some(2) && run.stderr.contains("--force"), "it writes over no policy: {run:?}");
    let run = egress(&place, &["exec", "-p", out, "--", "curl", "-s", "http://db.corp.example/"], LIMIT).unwrap();
    assert!(run.ok() && run.stderr.is_empty(), "{run:?}\n{text}");
}

/// Nothing follows interfaces while it learns: one that is not there is an error, not a watch of the cgroup alone.
#[test]
fn an_interface_that_is_not_there_is_refused() {
    let world = World::new().unwrap();
    let (_cgroup, place) = world.governed("learn").unwrap();
    let policy = world.dir().join("learned.yaml");
    let out = policy.to_str().unwrap();
    let options = ["learn", "-o", out, "--resolver", DNS_V4, "--interface", "mistyped0", "--for", "1s"];
    let run = egress(&place, &options, LIMIT).unwrap();
    assert!(run.code() == Some(2) && run.stderr.contains("no interface mistyped0"), "{run:?}");
    assert!(!policy.exists(), "{run:?}");
}

/// A daemon in audit mode is asked for its events; one that enforces is no place to learn.
#[test]
fn a_daemon_in_audit_mode_is_learned_from() {
    let world = World::new().unwrap();
    world.serve_everywhere(Service::Http, 80).unwrap();
    world.dns.set_text("www.example.com", 30, &["203.0.113.80"]);
    let cgroup = Cgroup::new("learn").unwrap();
    let place = world.node().in_cgroup(&cgroup);
    let policy = world.dir().join("learned.yaml");
    let daemon = Daemon::builder(&world).policy("deny-all").arg("--mode").arg("audit").cgroup(&cgroup).start().unwrap();
    let socket = daemon.socket().to_str().unwrap().to_owned();
    let child = start(&world.node(), &["--socket", &socket, "-o", policy.to_str().unwrap()]);
    let run = place.run("curl", &["-s", "http://www.example.com/"], LIMIT).unwrap();
    assert!(run.ok(), "{run:?}");
    std::thread::sleep(Duration::from_millis(300));
    finish(child);
    let by_hand = "version: 1\nrules:\n  - {name: all, to: [www.example.com], ports: [80/tcp]}\n";
    let text = std::fs::read_to_string(&policy).unwrap();
    assert_eq!(meaning(&policy), meaning(&written(&world, "by-hand.yaml", by_hand)), "{text}");
    drop(daemon);

    let daemon = Daemon::builder(&world).policy("deny-all").cgroup(&cgroup).start().unwrap();
    let run = daemon.egress(&["learn", "--force", "-o", policy.to_str().unwrap()]).unwrap();
    assert!(run.code() == Some(2) && run.stderr.contains("a daemon enforces"), "{run:?}");
}
