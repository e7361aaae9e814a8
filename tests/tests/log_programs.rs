//! `egress run --log-programs`: the eBPF programs' own debug lines, by aya-log.

use std::time::{Duration, Instant};

use egress_tests::probe::{tcp, udp};
use egress_tests::{Cgroup, Daemon, Governed, Service, World};

const POLICY: &str = "version: 1
rules:
  - {name: echo, to: [203.0.113.10], ports: [7000/tcp, 7000/udp]}
  - {name: web, to: [www.example.com], ports: [443/tcp]}
";
const ALLOWED: &str = "203.0.113.10:7000";
const DENIED: &str = "198.51.100.77:7000";
const LIMIT: Duration = Duration::from_secs(8);

fn start(world: &World, cgroup: &Cgroup, tells: bool) -> Daemon {
    let builder = Daemon::builder(world).policy_text(POLICY).cgroup(cgroup);
    if tells { builder.arg("--log-programs") } else { builder }.start().unwrap()
}

fn governed(tells: bool) -> Governed {
    let world = World::new().unwrap();
    world.serve_echoes(&[ALLOWED, DENIED]).unwrap();
    world.serve_everywhere(Service::Https, 443).unwrap();
    world.dns.set_text("www.example.com", 60, &["203.0.113.80"]);
    let cgroup = Cgroup::new("governed").unwrap();
    let daemon = start(&world, &cgroup, tells);
    let (inside, beside) = (world.node().in_cgroup(&cgroup), world.node());
    Governed { daemon, inside, beside, cgroup, world }
}

fn traffic(test: &Governed) {
    assert!(tcp(&test.inside, ALLOWED).unwrap().echoed && udp(&test.inside, ALLOWED, 5).unwrap().echoed);
    assert!(tcp(&test.inside, DENIED).unwrap().refused() && udp(&test.inside, DENIED, 5).unwrap().refused());
    assert!(!udp(&test.beside, DENIED, 5).unwrap().echoed);
    let ca = test.world.ca_file().to_string_lossy().into_owned();
    let args = ["-sS", "-4", "--noproxy", "*", "--max-time", "4", "--cacert", &ca, "https://www.example.com/"];
    assert_eq!(test.inside.run("curl", &args, LIMIT).unwrap().stdout, "ok\n");
}

/// The lines of the programs so far.
fn lines(daemon: &Daemon) -> Vec<String> {
    daemon.output().lines().filter(|line| line.contains("programs: ")).map(str::to_owned).collect()
}

#[track_caller]
fn assert_told(daemon: &Daemon, words: &[&str]) {
    let start = Instant::now();
    while !lines(daemon).iter().any(|line| words.iter().all(|word| line.contains(word))) {
        assert!(start.elapsed() < LIMIT, "no line has {words:?}:\n{}", daemon.output());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What passes and what does not, at the socket's hooks and the uplink's, and what became of an answer.
#[test]
fn every_decision_is_told_when_asked() {
    let test = governed(true);
    traffic(&test);
    assert_told(&test.daemon, &["hook=cgroup-egress reason=rule protocol=6", "to=203.0.113.10 to-port=7000 item="]);
    assert_told(&test.daemon, &["hook=cgroup-egress reason=dns protocol=17", "to=203.0.113.53 to-port=53"]);
    assert_told(&test.daemon, &["hook=connect reason=no-rule protocol=6", "to=198.51.100.77 to-port=7000"]);
    assert_told(&test.daemon, &["hook=sendmsg reason=no-rule protocol=17", "to=198.51.100.77 to-port=7000"]);
    assert_told(&test.daemon, &["hook=uplink-egress reason=no-rule protocol=17", "to=198.51.100.77 to-port=7000"]);
    assert_told(&test.daemon, &["answer=asked"]);
    assert_told(&test.daemon, &["answer=answers"]);
    assert!(!test.daemon.output().contains('\u{1b}'), "colours, though it is no terminal");
}

/// P2: a daemon with the lines and one without take over from each other, and nothing gets out meanwhile.
#[test]
fn the_lines_come_and_go_with_a_restart() {
    let mut test = governed(false);
    traffic(&test);
    assert_eq!(lines(&test.daemon), [""; 0]);
    for tells in [true, false] {
        test.daemon.kill().unwrap();
        assert!(udp(&test.inside, DENIED, 5).unwrap().refused());
        let next = start(&test.world, &test.cgroup, tells);
        test.follow(next);
        traffic(&test);
        if tells {
            assert_told(&test.daemon, &["hook=connect reason=no-rule"]);
        } else {
            assert_eq!(lines(&test.daemon), [""; 0]);
        }
    }
    let denied = "198.51.100.77".parse().ok();
    test.world.sniffer.assert_none("a forbidden packet", |frame| frame.destination == denied);
}
