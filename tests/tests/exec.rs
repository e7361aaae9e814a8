//! `egress exec`: one command, and all it starts, under a policy of its own, with no daemon (P1, P2).

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use egress_tests::daemon::{binary, egress};
use egress_tests::held::python;
use egress_tests::mntns::BPFFS;
use egress_tests::{Cgroup, Frame, Place, Run, Service, World};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const LIMIT: Duration = Duration::from_secs(8);
const ALLOW: &str = "203.0.113.10:7000";
const CONNECT: &str = "import socket, sys
for a in sys.argv[1:]:
    try: socket.create_connection((a, 7000), 2); print('yes', flush=True)
    except PermissionError: print('no', flush=True)
";

struct Test {
    place: Place,
    cgroup: Cgroup,
    world: World,
}

fn test() -> Test {
    let world = World::new().unwrap();
    world.serve(Service::TcpEcho, "0.0.0.0:7000").unwrap();
    world.serve_everywhere(Service::Https, 443).unwrap();
    world.dns.cname("www.example.com", 20, "edge.example.net");
    world.dns.set_text("edge.example.net", 20, &["203.0.113.80", "2001:db8::80"]);
    world.dns.set_text("forbidden.example", 20, &["203.0.113.66"]);
    let (cgroup, place) = world.governed("exec").unwrap();
    Test { place, cgroup, world }
}

impl Test {
    fn exec(&self, options: &[&str], command: &[&str]) -> Run {
        egress(&self.place, &[&["exec"], options, &["--"], command].concat(), LIMIT).unwrap()
    }

    /// `egress exec` in the background, after its command has printed a line.
    fn start(&self, options: &[&str], script: &str) -> Child {
        let mut command = self.place.command(&binary().unwrap().to_string_lossy());
        command.arg("exec").args(options).args(["--", "sh", "-c", script]).env("EGRESS_BPFFS", BPFFS);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        child
    }

    fn cgroups(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.cgroup.path()).unwrap().flatten();
        entries.filter(|e| e.path().is_dir()).map(|e| e.file_name().to_string_lossy().into_owned()).collect()
    }

    #[track_caller]
    fn assert_cgroups_go(&self) {
        let start = Instant::now();
        while !self.cgroups().is_empty() {
            assert!(start.elapsed() < Duration::from_secs(2), "left: {:?}", self.cgroups());
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

fn signal(child: &Child, signal: Signal) {
    kill(Pid::from_raw(child.id().cast_signed()), signal).unwrap();
}

/// Section 4: the command's exit status is that of `exec`, and 128 and the signal's number after a signal.
#[test]
fn the_exit_status_is_the_commands() {
    let test = test();
    for (script, code) in [("exit 0", 0), ("exit 7", 7), ("kill -TERM $$", 143), ("kill -KILL $$", 137)] {
        let run = test.exec(&["--allow", ALLOW], &["sh", "-c", script]);
        assert_eq!(run.code(), Some(code), "{script}: {run:?}");
        assert_eq!(run.stderr, "", "{script}");
    }
    let run = test.exec(&["--allow", ALLOW], &["/no/such/command"]);
    assert!(run.code() == Some(127) && run.stderr.contains("/no/such/command"), "{run:?}");
    let run = test.exec(&[], &["true"]);
    assert!(run.code() == Some(2) && run.stderr.contains("--allow"), "{run:?}");
    test.assert_cgroups_go();
}

/// Section 4: another user, and its policy all the same.
#[test]
fn a_command_runs_as_another_user() {
    let test = test();
    let run = test.exec(&["--allow", ALLOW, "--user", "nobody"], &["id", "-un"]);
    assert_eq!(run.stdout, "nobody\n", "{run:?}");
    let to = ["203.0.113.10", "198.51.100.77"];
    let run = test.exec(&["-q", "--allow", ALLOW, "--user", "nobody"], &[python(), "-c", CONNECT, to[0], to[1]]);
    assert_eq!(run.stdout, "yes\nno\n", "{run:?}");
}

/// Section 4: the summary names what was blocked, and what to write to allow it; writing that does allow it.
#[test]
fn the_summary_says_what_to_allow() {
    let test = test();
    let ca = test.world.ca_file().to_string_lossy().into_owned();
    let url = "https://forbidden.example/";
    let curl = ["curl", "-sS", "--noproxy", "*", "--max-time", "4", "--cacert", &ca, url];
    let run = test.exec(&["--allow", ALLOW], &curl);
    assert!(!run.ok() && run.stderr.contains("--allow forbidden.example"), "{run:?}");
    assert!(test.world.dns.count("forbidden.example") == 0 && test.world.hits.all().is_empty());
    let run = test.exec(&["--allow", "forbidden.example"], &curl);
    assert!(run.stdout == "ok\n" && run.stderr.is_empty(), "{run:?}");

    let run = test.exec(&["--allow", ALLOW], &[python(), "-c", CONNECT, "198.51.100.77"]);
    assert!(run.stdout == "no\n" && run.stderr.contains("--allow 198.51.100.77:7000"), "{run:?}");
    let run = test.exec(&["--allow", "198.51.100.77:7000"], &[python(), "-c", CONNECT, "198.51.100.77"]);
    assert!(run.stdout == "yes\n" && run.stderr.is_empty(), "{run:?}");
    let run = test.exec(&["-q", "--allow", ALLOW], &[python(), "-c", CONNECT, "198.51.100.77"]);
    assert_eq!(run.stderr, "", "quiet");
    let run = test.exec(&["--json", "--allow", ALLOW], &[python(), "-c", CONNECT, "198.51.100.77"]);
    let json: serde_json::Value = serde_json::from_str(&run.stderr).unwrap();
    assert_eq!(json["blocked"][0]["allow"], "--allow 198.51.100.77:7000", "{json}");
}

/// P4: `--allow NAME` lets the clients of a name through, whatever resolver they bring.
#[test]
fn an_allowed_name_works_for_every_client() {
    let test = test();
    let ca = test.world.ca_file().to_string_lossy().into_owned();
    // As Go asks: A and AAAA at once, a connected socket each, EDNS with 1,232 bytes.
    let stub = "import socket, struct
def ask(kind, ident):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.connect(('203.0.113.53', 53)); s.settimeout(2)
    name = b''.join(bytes([len(l)]) + l for l in (b'www', b'example', b'com')) + b'\\0'
    s.send(struct.pack('!6H', ident, 0x100, 1, 0, 0, 1) + name + struct.pack('!2H', kind, 1) + b'\\0\\0\\x29\\x04\\xd0' + bytes(6))
    return s
a, b = ask(1, 7), ask(28, 8)
four, six = a.recv(1232)[:], b.recv(1232)[:]
assert bytes([203, 0, 113, 80]) in four, four
socket.create_connection(('203.0.113.80', 443), 2)
print('ok')
";
    let script = "import ssl, sys, urllib.request as u
c = ssl.create_default_context(cafile=sys.argv[1])
sys.stdout.write(u.urlopen('https://www.example.com/', timeout=3, context=c).read().decode())";
    let curl = |family| {
        vec!["curl", "-sS", family, "--noproxy", "*", "--max-time", "4", "--cacert", &ca, "https://www.example.com/"]
    };
    for command in [curl("-4"), curl("-6"), vec![python(), "-c", script, &ca], vec![python(), "-c", stub]] {
        let run = test.exec(&["--allow", "www.example.com"], &command);
        assert!(run.stdout == "ok\n" && run.stderr.is_empty(), "{}: {run:?}", command[0]);
    }
}

/// P1: what the command leaves running stays governed after it and `exec` have ended.
#[test]
fn a_background_child_stays_governed() {
    let test = test();
    let out = test.world.dir().join("late.txt");
    let (file, go) = (out.to_str().unwrap(), test.world.dir().join("go"));
    let script = format!(
        "(until [ -e {} ]; do sleep 0.02; done; {} -c \"$0\" 203.0.113.10 198.51.100.77 >{file}.part 2>&1; mv {file}.part {file}) >/dev/null 2>&1 &",
        go.display(),
        python()
    );
    let run = test.exec(&["--allow", ALLOW], &["sh", "-c", &script, CONNECT]);
    assert!(run.ok() && run.took < Duration::from_secs(2) && !out.exists(), "{run:?}");
    assert_eq!(test.cgroups().len(), 1);
    std::fs::write(&go, "").unwrap();
    let start = Instant::now();
    while !Path::new(file).exists() && start.elapsed() < Duration::from_secs(4) {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(std::fs::read_to_string(&out).unwrap(), "yes\nno\n");
    test.world.sniffer.assert_none("a late child", |f| f.destination == Some("198.51.100.77".parse().unwrap()));
    test.assert_cgroups_go();
}

/// A command that is a service manager, or a container's engine, makes cgroups of its own.
#[test]
fn cgroups_that_the_command_made_go_with_its_own() {
    let test = test();
    let script = "mkdir -p /sys/fs/cgroup$(sed -n s/^0:://p /proc/self/cgroup)/a/b && echo made";
    let run = test.exec(&["--allow", ALLOW], &["sh", "-c", script]);
    assert!(run.ok() && run.stdout == "made\n", "{run:?}");
    test.assert_cgroups_go();
}

/// P2: `kill -9` of `exec` ends its command and all that it started, and leaves nothing.
#[test]
fn a_killed_exec_takes_its_command_along() {
    let test = test();
    let mut child = test.start(&["--allow", ALLOW], "sleep 61 & echo ready; sleep 62");
    assert_eq!(test.cgroups().len(), 1);
    let procs = test.cgroup.path().join(&test.cgroups()[0]).join("cgroup.procs");
    let pids: Vec<i32> = std::fs::read_to_string(procs).unwrap().lines().map(|pid| pid.parse().unwrap()).collect();
    assert!(pids.len() >= 2, "{pids:?}");
    signal(&child, Signal::SIGKILL);
    child.wait().unwrap();
    test.assert_cgroups_go();
    let alive: Vec<_> = pids.iter().filter(|pid| kill(Pid::from_raw(**pid), None).is_ok()).collect();
    let zombies = |pid: &&&i32| std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|s| s.contains(") Z "));
    assert_eq!(alive.iter().filter(|pid| !zombies(pid)).count(), 0, "{alive:?}");
}

/// P1, P2: a command whose `exec` is killed while it starts runs under the policy or not at all; the next `exec` takes up what
/// is left.
#[test]
fn killed_while_it_starts_the_command_never_runs_ungoverned() {
    let test = test();
    // Bash itself sends the datagrams: at once, and with no program between it and the policy.
    let script = "echo > /dev/udp/203.0.113.10/7000; echo > /dev/udp/198.51.100.77/7000";
    // To the end of a start, as long as one takes here, and a little beyond.
    let whole = test.exec(&["-q", "--allow", "203.0.113.10:7000/udp"], &["true"]).took;
    for delay in (0..25).map(|part| whole * part / 20) {
        let mut command = test.place.command(&binary().unwrap().to_string_lossy());
        command
            .args(["exec", "--allow", "203.0.113.10:7000/udp", "--", "bash", "-c", script])
            .env("EGRESS_BPFFS", BPFFS);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(delay);
        signal(&child, Signal::SIGKILL);
        child.wait().unwrap();
    }
    let to = |address: &'static str| move |frame: &Frame| frame.destination == Some(address.parse().unwrap());
    let run = test.exec(&["-q", "--allow", "203.0.113.10:7000/udp"], &["bash", "-c", script]);
    test.world.sniffer.wait_for(LIMIT, to("203.0.113.10")).expect("the allowed datagram");
    test.world.sniffer.assert_none("a command without its policy", to("198.51.100.77"));
    assert!(!run.ok(), "{run:?}");
    test.assert_cgroups_go();
}

/// What ends `exec` before its command leaves nothing: no cgroup, no process that waits in it.
#[test]
fn a_command_that_is_not_started_leaves_nothing() {
    let test = test();
    let file = test.world.dir().join("wrong.yaml");
    std::fs::write(&file, "version: 1\nallow: [{names: a.example.com, port: 1}]\n").unwrap();
    let run = test.exec(&["--policy", file.to_str().unwrap()], &["true"]);
    assert!(run.code() == Some(2) && run.stderr.contains("wrong.yaml:2:"), "{run:?}");
    assert_eq!(test.cgroups(), [""; 0]);
    let run = test.exec(&["--allow", ALLOW, "--user", "nosuchuser"], &["true"]);
    assert!(run.code() == Some(2) && run.stderr.contains("`nosuchuser`"), "{run:?}");
    let run = test.exec(&["--allow", ALLOW], &[file.to_str().unwrap()]);
    assert!(run.code() == Some(126) && run.stderr.contains("must be executable"), "{run:?}");
    test.assert_cgroups_go();
}

/// Section 4: SIGTERM goes to the command, whose answer counts.
#[test]
fn sigterm_is_handed_on() {
    let test = test();
    let mut child = test.start(&["--allow", ALLOW], "trap 'exit 9' TERM; echo ready; while :; do sleep 0.02; done");
    signal(&child, Signal::SIGTERM);
    assert_eq!(child.wait().unwrap().code(), Some(9));
    test.assert_cgroups_go();
}

/// Section 4: five runs leave no cgroup and no pin, and each starts quickly. An unoptimised build is tested here: a
/// release build is quicker.
#[test]
fn runs_are_quick_and_leave_nothing() {
    let test = test();
    let mut best = Duration::MAX;
    for _ in 0..5 {
        let run = test.exec(&["--allow", ALLOW], &["true"]);
        assert!(run.ok(), "{run:?}");
        best = best.min(run.took);
        assert_eq!(test.cgroups(), [""; 0]);
    }
    println!(
        "the quickest of five runs of `true` took {best:?} (profile {})",
        if cfg!(debug_assertions) { "debug" } else { "release" }
    );
    assert!(best < Duration::from_secs(1), "{best:?}");
    let left = test.world.node().run("find", &[&format!("{BPFFS}/egress")], LIMIT).unwrap();
    assert_eq!(left.stdout, "", "pins of an exec");
}
