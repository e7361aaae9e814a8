//! `--events` of `egress run` and `egress exec`: what is told reaches every sink, and a sink that fails holds up nothing. Needs root.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpListener,
    os::unix::net::UnixDatagram,
    path::Path,
    process::Stdio,
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use egress_tests::daemon::egress;
use egress_tests::world::DNS_V4;
use egress_tests::{Cgroup, Daemon, Place, World, skip};
use opentelemetry_proto::tonic::{collector::logs::v1::ExportLogsServiceRequest, logs::v1::LogRecord};
use prost::Message;
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(15);
const POLICY: &str = "version: 1
rules:
  - {name: named, to: [api.example.com], ports: [443/tcp]}
";

fn wait<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < LIMIT, "waited in vain for {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// `count` datagrams that no rule allows, each to a port of its own, so that none is folded.
fn refused(inside: &Place, from: u16, count: u16) {
    let script = format!(
        "import socket\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\nfor n in range({from}, {from} + {count}):\n try: s.sendto(b'x', ('198.51.100.9', n))\n except PermissionError: pass"
    );
    assert!(inside.run("/usr/bin/python3", &["-c", &script], LIMIT).unwrap().ok());
}

type Records = Arc<Mutex<Vec<LogRecord>>>;

/// A collector for OTLP over HTTP: takes every request until the test ends.
fn collect(listener: TcpListener) -> Records {
    let records = Records::default();
    let all = Arc::clone(&records);
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = BufReader::new(stream.unwrap());
            let mut head = String::new();
            while stream.read_line(&mut head).unwrap() > 2 {}
            let head = head.to_ascii_lowercase();
            assert!(head.starts_with("post /v1/logs http/1.1\r\n"), "{head}");
            assert!(head.contains("content-type: application/x-protobuf\r\n"), "{head}");
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok()).unwrap();
            let mut body = vec![0; length];
            stream.read_exact(&mut body).unwrap();
            let request = ExportLogsServiceRequest::decode(body.as_slice()).unwrap();
            for scope in request.resource_logs.into_iter().flat_map(|resource| resource.scope_logs) {
                all.lock().unwrap().extend(scope.log_records);
            }
            stream.get_mut().write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").unwrap();
        }
    });
    records
}

fn ports(text: &str) -> Vec<u64> {
    let events = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    events.filter_map(|event| event["destination_port"].as_u64()).collect()
}

#[test]
fn events_reach_every_sink() {
    let world = World::new().unwrap();
    let cgroup = Cgroup::new("governed").unwrap();
    let inside = world.node().in_cgroup(&cgroup);
    let (file, journal) = (world.dir().join("events.jsonl"), world.dir().join("journal"));
    let entries = UnixDatagram::bind(&journal).unwrap();
    entries.set_nonblocking(true).unwrap();
    let listener = world.node_ns.run(|| TcpListener::bind("127.0.0.1:0").unwrap());
    let url = format!("otlp:http://{}", listener.local_addr().unwrap());
    let records = collect(listener);
    let mut builder = Daemon::builder(&world).policy_text(POLICY).cgroup(&cgroup);
    for sink in ["stdout:json", &format!("file:{}", file.display()), &format!("journal:{}", journal.display()), &url] {
        builder = builder.arg("--events").arg(sink);
    }
    let mut daemon = builder.start().unwrap();
    refused(&inside, 7000, 20);
    let want: Vec<u64> = (7000..7020).collect();
    wait("the file", || (ports(&fs::read_to_string(&file).unwrap()) == want).then_some(()));
    wait("standard output", || (ports(&daemon.output()) == want).then_some(()));
    let mut told = Vec::new();
    wait("the journal", || {
        let mut buffer = [0; 65_536];
        while let Ok(length) = entries.recv(&mut buffer) {
            let entry = String::from_utf8_lossy(&buffer[..length]).into_owned();
            told.extend(
                entry.lines().find_map(|line| line.strip_prefix("EGRESS_DESTINATION_PORT=")?.parse::<u64>().ok()),
            );
        }
        (told == want).then_some(())
    });
    wait("the collector", || {
        let records = records.lock().unwrap();
        (records.iter().filter(|record| record.event_name == "egress.dropped").count() == 20).then_some(())
    });
    // The file is moved away, as logrotate does it; and what is told last is written before the daemon ends.
    fs::rename(&file, world.dir().join("events.jsonl.1")).unwrap();
    refused(&inside, 8000, 3);
    let sinks = wait("the counts", || {
        let status = daemon.status().unwrap();
        let sinks = status["sinks"].as_array().unwrap().clone();
        sinks.iter().all(|sink| sink["written"].as_u64() >= Some(23)).then_some(sinks)
    });
    assert_eq!(sinks.len(), 4);
    assert!(sinks.iter().all(|sink| sink["lost"] == 0), "{sinks:?}");
    assert!(daemon.stop().unwrap().success());
    assert_eq!(ports(&fs::read_to_string(&file).unwrap()), [8000, 8001, 8002]);
}

/// P1: a collector outside, by its name: the daemon's own traffic is governed like any other, and needs a rule.
#[test]
fn a_collector_outside_needs_a_rule() {
    let rule = "  - {name: telemetry, to: [collector.example.com], ports: [4318/tcp]}\n";
    for policy in [POLICY.to_owned(), format!("{POLICY}{rule}")] {
        let allowed = policy.contains("telemetry");
        let world = World::new().unwrap();
        world.set_resolvers(&[DNS_V4]).unwrap();
        world.dns.set_text("collector.example.com", 60, &["203.0.113.90"]);
        let records = collect(world.world_ns.run(|| TcpListener::bind("203.0.113.90:4318").unwrap()));
        let cgroup = Cgroup::new("governed").unwrap();
        let builder = Daemon::builder(&world).policy_text(&policy).cgroup(&cgroup);
        let daemon = builder.arg("--events").arg("otlp:http://collector.example.com:4318").start().unwrap();
        refused(&world.node().in_cgroup(&cgroup), 7000, 3);
        if allowed {
            let told = |record: &&LogRecord| record.event_name == "egress.dropped";
            wait("the collector", || (records.lock().unwrap().iter().filter(told).count() >= 3).then_some(()));
        } else {
            wait("a word on it", || daemon.output().contains("events do not reach this sink").then_some(()));
            assert!(records.lock().unwrap().is_empty());
            let collector = "203.0.113.90".parse().ok();
            world.sniffer.assert_none("the daemon's own packet", |frame| frame.destination == collector);
        }
    }
}

/// systemd's own journald, on a journal of its own, gives the fields back.
#[test]
fn journald_keeps_the_fields() {
    const JOURNALD: &str = "/lib/systemd/systemd-journald";
    const CONFIG: &str = "[Journal]\nStorage=volatile\nReadKMsg=no\nAudit=no\nRateLimitBurst=0\n";
    let has_id = fs::read_to_string("/etc/machine-id").is_ok_and(|id| id.trim().len() == 32);
    if !Path::new(JOURNALD).exists() || !has_id {
        return skip("journald_keeps_the_fields", "there is no systemd-journald, or no /etc/machine-id, here");
    }
    let world = World::new().unwrap();
    let node = world.node();
    let script = "d=/run/systemd/journald.conf.d; mkdir -p /run/systemd/journal /run/log/journal $d; printf %s \"$0\" >$d/test.conf";
    assert!(node.run("sh", &["-c", script, CONFIG], LIMIT).unwrap().ok());
    let mut journald = node.command(JOURNALD).stdin(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    wait("journald", || node.run("test", &["-S", "/run/systemd/journal/socket"], LIMIT).unwrap().ok().then_some(()));
    let cgroup = Cgroup::new("governed").unwrap();
    let builder = Daemon::builder(&world).policy_text(POLICY).cgroup(&cgroup);
    let daemon = builder.arg("--events").arg("journal").start().unwrap();
    refused(&node.in_cgroup(&cgroup), 7000, 3);
    let read = ["--directory=/run/log/journal", "-o", "json", "--no-pager", "EGRESS_REASON=no-rule"];
    let entries = wait("three entries", || {
        let run = world.node().run("journalctl", &read, LIMIT).unwrap();
        let entries: Vec<Value> = run.stdout.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        (entries.len() == 3).then_some(entries)
    });
    for (entry, port) in entries.iter().zip(["7000", "7001", "7002"]) {
        assert_eq!(
            (&entry["EGRESS_DESTINATION_PORT"], &entry["EGRESS_DESTINATION"]),
            (&port.into(), &"198.51.100.9".into())
        );
        assert!(entry["MESSAGE"].as_str().unwrap().contains("198.51.100.9"), "{entry}");
    }
    drop(daemon);
    journald.kill().unwrap();
    journald.wait().unwrap();
}

/// P6, P1: a full disk, a journal and a collector that are not there: enforcement and the sinks that work go on.
#[test]
fn sinks_that_fail_hold_up_nothing() {
    let world = World::new().unwrap();
    let cgroup = Cgroup::new("governed").unwrap();
    let inside = world.node().in_cgroup(&cgroup);
    let file = world.dir().join("events.jsonl");
    let mut builder = Daemon::builder(&world).policy_text(POLICY).cgroup(&cgroup);
    let gone = format!("journal:{}", world.dir().join("gone").display());
    for sink in ["file:/dev/full", &gone, "otlp:http://127.0.0.1:9", &format!("file:{}", file.display())] {
        builder = builder.arg("--events").arg(sink);
    }
    let mut daemon = builder.start().unwrap();
    refused(&inside, 7000, 20);
    wait("the file that works", || (ports(&fs::read_to_string(&file).unwrap()).len() == 20).then_some(()));
    wait("a word on each that does not", || {
        (daemon.output().matches("events do not reach this sink").count() == 3).then_some(())
    });
    assert_eq!(daemon.status().unwrap()["mode"], "enforce");
    let started = Instant::now();
    assert!(daemon.stop().unwrap().success());
    assert!(started.elapsed() < Duration::from_secs(8), "{:?}", started.elapsed());
}

#[test]
fn a_sink_that_cannot_be_opened_is_said_before_anything_is_in_force() {
    let world = World::new().unwrap();
    let cgroup = Cgroup::new("governed").unwrap();
    let builder = Daemon::builder(&world).policy_text(POLICY).cgroup(&cgroup);
    let run = builder.arg("--events").arg("file:/nowhere/events.jsonl").run_to_end(LIMIT).unwrap();
    assert_eq!(run.code(), Some(3), "{run:?}");
    assert!(run.stderr.contains("cannot write events to file:/nowhere/events.jsonl"), "{run:?}");
    // A named pipe that nobody reads would hold up the start for ever.
    let pipe = world.dir().join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let builder = Daemon::builder(&world).policy_text(POLICY).cgroup(&cgroup);
    let run = builder.arg("--events").arg(format!("file:{}", pipe.display())).run_to_end(LIMIT).unwrap();
    assert!(run.code() == Some(3) && run.stderr.contains("it is a named pipe"), "{run:?}");
}

/// A file that is reached by a symbolic link is made anew where it was, though the daemon may write in few directories.
#[test]
fn a_symbolic_links_file_is_made_anew_where_it_leads() {
    let world = World::new().unwrap();
    let cgroup = Cgroup::new("governed").unwrap();
    let inside = world.node().in_cgroup(&cgroup);
    // Not below the world's directory, where the daemon has its socket and may write.
    let (volume, log) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (real, link) = (volume.path().join("events.jsonl"), log.path().join("events.jsonl"));
    fs::write(&real, "").unwrap();
    std::os::unix::fs::symlink(&real, &link).unwrap();
    let sink = format!("file:{}", link.display());
    let builder = Daemon::builder(&world).policy_text(POLICY).cgroup(&cgroup).arg("--events").arg(sink);
    let _daemon = builder.start().unwrap();
    for ports_from in [7000, 7100] {
        refused(&inside, ports_from, 3);
        let want: Vec<_> = (u64::from(ports_from)..u64::from(ports_from) + 3).collect();
        wait("the file", || (ports(&fs::read_to_string(&real).unwrap_or_default()) == want).then_some(()));
        fs::remove_file(&real).unwrap();
    }
}

/// Nobody reads the daemon's standard output any more: it goes on, and so do the other sinks.
#[test]
fn a_closed_standard_output_ends_nothing() {
    let world = World::new().unwrap();
    let cgroup = Cgroup::new("governed").unwrap();
    let inside = world.node().in_cgroup(&cgroup);
    for sinks in [&["stdout:json"][..], &[]] {
        let file = world.dir().join(format!("events-{}.jsonl", sinks.len()));
        let mut builder = Daemon::builder(&world).policy_text(POLICY).cgroup(&cgroup);
        for sink in sinks.iter().map(ToString::to_string).chain([format!("file:{}", file.display())]) {
            builder = builder.arg("--events").arg(sink);
        }
        let mut daemon = builder.spawn_unread().unwrap();
        wait("the daemon", || daemon.status().ok());
        refused(&inside, 7000, 5);
        wait("the file", || (ports(&fs::read_to_string(&file).unwrap_or_default()).len() == 5).then_some(()));
        let lost = &daemon.status().unwrap()["sinks"];
        assert_eq!(lost.as_array().unwrap().len(), sinks.len() + 1, "{lost}");
        assert!(daemon.stop().unwrap().success());
    }
}

/// P6: what a sink misses that does not read is counted while it hangs, in `status` and the metrics; and once.
#[test]
fn what_a_hanging_sink_misses_is_counted_meanwhile() {
    const REFUSED: u16 = 4000;
    let world = World::new().unwrap();
    let cgroup = Cgroup::new("governed").unwrap();
    let inside = world.node().in_cgroup(&cgroup);
    // A journal whose socket is full after a few entries.
    let (journal, file) = (world.dir().join("journal"), world.dir().join("events.jsonl"));
    let entries = UnixDatagram::bind(&journal).unwrap();
    let mut builder =
        Daemon::builder(&world).policy_text(POLICY).cgroup(&cgroup).arg("--metrics").arg("127.0.0.1:9464");
    for sink in [format!("journal:{}", journal.display()), format!("file:{}", file.display())] {
        builder = builder.arg("--events").arg(sink);
    }
    let daemon = builder.start().unwrap();
    // In parts, so that the sink that works keeps up.
    for part in 0..8 {
        refused(&inside, 7000 + part * REFUSED / 8, REFUSED / 8);
        wait("the file", || {
            let told = ports(&fs::read_to_string(&file).unwrap()).len();
            (told == usize::from((part + 1) * REFUSED / 8)).then_some(())
        });
    }
    let sink = |name: &str| {
        let status = daemon.status().unwrap();
        status["sinks"]
            .as_array()
            .unwrap()
            .iter()
            .find(|s| s["sink"].as_str().unwrap().starts_with(name))
            .unwrap()
            .clone()
    };
    let (hanging, works) = (sink("journal"), sink("file"));
    assert_eq!(works["lost"], 0);
    // 1,024 wait in its queue, and up to 512 are tried.
    let (lost, all) = (hanging["lost"].as_u64().unwrap(), works["written"].as_u64().unwrap());
    let written = hanging["written"].as_u64().unwrap();
    assert!((all - written - 1536..=all - written - 1024).contains(&lost) && lost > 2000, "{hanging} of {all}");
    let run = world.node().run("curl", &["-sS", "http://127.0.0.1:9464/metrics"], LIMIT).unwrap();
    let line =
        run.stdout.lines().find(|line| line.starts_with("egress_sink_events_lost_total{sink=\"journal")).unwrap();
    assert!(line.ends_with(&format!("}} {lost}")), "{line}");
    // It reads again: what it gets and what is counted as lost are all there was.
    let (mut got, mut buffer) = (0_u64, [0; 65_536]);
    entries.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let last = wait("the rest", || {
        while let Ok(length) = entries.recv(&mut buffer) {
            got += u64::from(!String::from_utf8_lossy(&buffer[..length]).contains("EGRESS_KIND=lost"));
        }
        let last = sink("journal")["lost"].as_u64().unwrap();
        (got + last == sink("file")["written"].as_u64().unwrap()).then_some(last)
    });
    assert_eq!(last, lost, "no more was lost, and none of it counted twice");
}

/// `egress exec --events`: the same sinks; the summary and the command's status are as they are without.
#[test]
fn a_commands_events_reach_the_sinks() {
    let world = World::new().unwrap();
    let (_cgroup, place) = world.governed("exec").unwrap();
    let file = world.dir().join("events.jsonl");
    let listener = world.node_ns.run(|| TcpListener::bind("127.0.0.1:0").unwrap());
    let url = format!("otlp:http://{}", listener.local_addr().unwrap());
    let records = collect(listener);
    let script = "import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for n in range(7000, 7020):
    try: s.sendto(b'x', ('198.51.100.9', n))
    except PermissionError: pass
sys.exit(3)";
    let exec = |sinks: &[&str]| {
        let mut args = vec!["exec", "--allow", "203.0.113.10:443"];
        args.extend(sinks.iter().flat_map(|sink| ["--events", sink]));
        args.extend(["--", "/usr/bin/python3", "-c", script]);
        egress(&place, &args, LIMIT).unwrap()
    };
    let without = exec(&[]);
    let with = exec(&[&format!("file:{}", file.display()), "-", &url]);
    let want: Vec<u64> = (7000..7020).collect();
    assert_eq!(ports(&fs::read_to_string(&file).unwrap()), want);
    assert_eq!(ports(&with.stdout), want, "{with:?}");
    // All was sent before `exec` ended.
    assert_eq!(records.lock().unwrap().iter().filter(|record| record.event_name == "egress.dropped").count(), 20);
    assert_eq!((with.code(), without.code(), without.stdout.as_str()), (Some(3), Some(3), ""));
    let said = |text: &str| text.lines().map(|line| line.split(", by ").next().unwrap().to_owned()).collect::<Vec<_>>();
    assert_eq!(said(&with.stderr), said(&without.stderr));
    assert_eq!(with.stderr.matches("198.51.100.9").count(), 40, "{with:?}");

    // One that takes nothing is said, and holds the command's status up for seconds at most.
    let full = exec(&["file:/dev/full"]);
    assert_eq!(full.code(), Some(3));
    assert!(
        full.stderr.contains("egress: 20 events did not reach file:/dev/full") && full.took < LIMIT / 2,
        "{full:?}"
    );
    let missing = exec(&["file:/nowhere/events.jsonl"]);
    assert_eq!(missing.code(), Some(3));
    assert!(missing.stderr.contains("cannot write events to file:/nowhere/events.jsonl") && missing.stdout.is_empty());
}
