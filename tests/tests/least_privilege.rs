//! P9: the running daemon keeps nothing that it does not use, and those who may only read cannot hold it up.

use std::fs;
use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::{Duration, Instant};

use egress_tests::held::python;
use egress_tests::probe::tcp;
use egress_tests::{Cgroup, Daemon, Governed, Service, World, daemon};
use nix::sys::signal::Signal;

const POLICY: &str = "version: 1
rules:
  - {name: one, to: [203.0.113.10], ports: [7000/tcp]}
";
const DENIED: &str = "198.51.100.77:7000";
/// The number of a group that nobody is in.
const GROUP: u32 = 54_321;

fn governed() -> Governed {
    let world = World::new().unwrap();
    world.serve(Service::TcpEcho, "0.0.0.0:7000").unwrap();
    Governed::over(world, POLICY).unwrap()
}

/// `/proc/PID/task/*/status` of every thread: its name, and the value of each of `fields`.
fn threads(pid: u32, fields: &[&str]) -> Vec<(String, Vec<String>)> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let statuses = tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("status")).ok());
    let field = |status: &str, name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t"));
        line.unwrap_or_default().to_owned()
    };
    statuses.map(|status| (field(&status, "Name"), fields.iter().map(|name| field(&status, name)).collect())).collect()
}

/// CAP_NET_ADMIN (12), CAP_PERFMON (38), CAP_BPF (39); and CAP_SYS_PTRACE (19) of the thread that reads `/proc`.
const CONTROL: &str = "000000c000001000";
const EVENTS: &str = "0000000000080000";

/// P9: after the start every thread has the capabilities of its part, none in reserve, a filter, and no way to more.
#[test]
fn no_thread_keeps_what_it_does_not_use() {
    let test = governed();
    test.daemon.status().unwrap();
    let fields = ["CapEff", "CapPrm", "CapInh", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp"];
    let threads = threads(test.daemon.pid(), &fields);
    assert!(threads.len() >= 3, "{threads:?}");
    for (name, values) in &threads {
        let kept = if name == "events" { EVENTS } else { CONTROL };
        let none = "0000000000000000";
        assert_eq!(*values, [kept, kept, none, kept, none, "1", "2"], "{name}: {fields:?}");
    }
    assert!(threads.iter().any(|(name, _)| name == "events"), "{threads:?}");
    let limits = fs::read_to_string(format!("/proc/{}/limits", test.daemon.pid())).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
}

/// P9: with no more than that the daemon does all of its work: it says who was refused, down to the executable of another
/// user's process, reads its policy again, and a restart takes over.
#[test]
fn what_it_keeps_is_enough() {
    let mut test = governed();
    let as_nobody = "import os, socket; os.setgid(65534); os.setuid(65534)\ntry: socket.create_connection(('198.51.100.77', 7000), 1)\nexcept OSError: pass\nimport time; time.sleep(1)";
    test.inside.run(python(), &["-c", as_nobody], Duration::from_secs(5)).unwrap();
    let of_nobody = |event: &serde_json::Value| event["process"]["uid"] == 65534;
    let event = test.event(of_nobody).unwrap().expect("a drop of nobody's process");
    assert!(event["process"]["exe"].as_str().is_some_and(|exe| exe.contains("python")), "{event:#}");

    let generation = test.daemon.status().unwrap()["generation"].clone();
    let more = format!("{POLICY}  - {{name: more, to: [203.0.113.12], ports: [7000/tcp]}}\n");
    test.reload(&more, |status| status["generation"] != generation).unwrap();
    assert!(tcp(&test.inside, "203.0.113.12:7000").unwrap().echoed);
    assert!(test.daemon.stop().unwrap().success(), "{}", test.daemon.output());
    assert!(!test.daemon.socket().exists(), "the socket is removed at the end");
    test.restart().unwrap();
    assert!(tcp(&test.inside, "203.0.113.12:7000").unwrap().echoed);
    assert!(tcp(&test.inside, DENIED).unwrap().refused());
}

/// P9: a member of the socket's group reads; whoever is not in it is refused.
#[test]
fn the_sockets_group_reads_and_nobody_else() {
    let world = World::new().unwrap();
    let cgroup = Cgroup::new("governed").unwrap();
    let group = GROUP.to_string();
    let builder = Daemon::builder(&world).policy_text(POLICY).cgroup(&cgroup);
    let daemon = builder.arg("--socket-group").arg(&group).start().unwrap();
    // Others may walk to the socket: what refuses them is its mode.
    fs::set_permissions(world.dir(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let copy = world.dir().join("egress");
    fs::copy(daemon::binary().unwrap(), &copy).unwrap();
    let ask = |group: u32| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", "65534", "--clear-groups", "--regid", &group.to_string()]);
        command.arg(&copy).args(["status", "--json", "--socket"]).arg(daemon.socket());
        command.output().unwrap()
    };
    let member = ask(GROUP);
    let status: serde_json::Value = serde_json::from_slice(&member.stdout).unwrap();
    assert_eq!(status["mode"], "enforce", "{member:?}");
    let stranger = ask(65534);
    assert_ne!(stranger.status.code(), Some(0), "{stranger:?}");
    assert!(stranger.stdout.is_empty(), "{stranger:?}");
}

/// P9, P6: readers that connect and say nothing, as many as they can, do not keep root out.
#[test]
fn a_flood_of_slow_clients_leaves_room_for_root() {
    let world = World::new().unwrap();
    let cgroup = Cgroup::new("governed").unwrap();
    let builder = Daemon::builder(&world).policy_text(POLICY).cgroup(&cgroup);
    let daemon = builder.arg("--socket-group").arg(GROUP.to_string()).start().unwrap();
    fs::set_permissions(world.dir(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let socket = daemon.socket().to_owned();
    // A process of the group holds 200 connections with half a request each, until its input closes.
    let script = format!(
        "import socket, sys\nheld = []\nfor n in range(200):\n s = socket.socket(socket.AF_UNIX); s.settimeout(0.5)\n try: s.connect({:?}); s.send(b'GET /v1/st'); held.append(s)\n except OSError: pass\nprint(len(held), flush=True); sys.stdin.read()",
        socket.to_string_lossy()
    );
    let mut flood = Command::new("setpriv")
        .args(["--reuid", "65534", "--clear-groups", "--regid", &GROUP.to_string(), python(), "-c", &script])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(flood.stdout.take().unwrap()), &mut line).unwrap();
    let started = Instant::now();
    let status = daemon.status();
    let took = started.elapsed();
    drop(flood.stdin.take());
    flood.wait().unwrap();
    assert!(line.trim().parse::<u32>().unwrap() > 64, "the flood reached the daemon: {line}");
    assert_eq!(status.unwrap()["mode"], "enforce", "{line}");
    assert!(took < Duration::from_secs(4), "{took:?}");
    // And one that sends garbage without end is cut off.
    let mut stream = UnixStream::connect(&socket).unwrap();
    let sent = (0..64).take_while(|_| stream.write_all(&[b'x'; 65_536]).is_ok()).count();
    assert!(sent < 64, "4 MB were taken");
}

/// P2: no signal is lost: the one thread that may not pass it on, since it may send nothing, is never given any.
#[test]
fn signals_go_to_threads_that_pass_them_on() {
    let test = governed();
    let taken = [Signal::SIGHUP, Signal::SIGINT, Signal::SIGTERM];
    let threads = threads(test.daemon.pid(), &["SigBlk"]);
    // The others block them too, for a moment, while they are made.
    let (_, values) = threads.iter().find(|(name, _)| name == "events").unwrap();
    let blocked = u64::from_str_radix(&values[0], 16).unwrap();
    assert_eq!(taken.map(|signal| blocked >> (signal as u64 - 1) & 1), [1; 3], "{blocked:x}");
}
