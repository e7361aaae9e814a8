//! Start, reload, restart, crash and detach: no gap, no half policy, always a way back (P2, P6, P7, P8).

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use egress_ebpf::abi::{AddressEntry, AddressKey4};
use egress_tests::daemon::egress;
use egress_tests::held::{FLOOD, python};
use egress_tests::mntns::BPFFS;
use egress_tests::probe::{tcp, udp};
use egress_tests::{Cgroup, Daemon, Fault, Governed, Held, Place, Run, Service, World};
use egress_user::datapath::{Pins, Table, sys};
use nix::sys::signal::Signal;

const POLICY: &str = "version: 1
rules:
  - {name: one, to: [203.0.113.10], ports: [7000/tcp]}
  - {name: two, to: [203.0.113.11], ports: [7000/tcp]}
  - {name: wild, to: ['*.wild.example.com'], ports: [80/tcp]}
";
const ONE: &str = "203.0.113.10:7000";
const TWO: &str = "203.0.113.11:7000";
const DENIED: &str = "198.51.100.77:7000";
const LIMIT: Duration = Duration::from_secs(5);

fn world() -> World {
    let world = World::new().unwrap();
    world.serve(Service::TcpEcho, "0.0.0.0:7000").unwrap();
    world.serve(Service::UdpEcho, DENIED).unwrap();
    world.serve(Service::Http, "0.0.0.0:80").unwrap();
    world.dns.set_text("*.wild.example.com", 30, &["203.0.113.30"]);
    world
}

fn curl(place: &Place, url: &str) -> Run {
    place.run("curl", &["-sS", "--noproxy", "*", "--max-time", "3", url], LIMIT).unwrap()
}

fn assert_enforced(test: &Governed, when: &str) {
    test.world.sniffer.clear();
    assert!(tcp(&test.inside, ONE).unwrap().echoed, "{when}: an allowed address");
    assert!(tcp(&test.inside, DENIED).unwrap().refused(), "{when}: a denied address");
    assert!(!tcp(&test.beside, DENIED).unwrap().echoed, "{when}: a denied address, beside the cgroup");
    assert!(udp(&test.inside, DENIED, 5).unwrap().refused(), "{when}: a denied datagram");
    let denied = DENIED.parse::<SocketAddr>().unwrap().ip();
    test.world.sniffer.assert_none(when, |frame| frame.destination == Some(denied));
}

/// P2, P8: the daemon's end, by SIGTERM or SIGKILL, leaves enforcement on, and the kernel goes on learning names.
/// `detach` then removes everything.
#[test]
fn enforcement_outlives_the_daemon_until_detach() {
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let mut test = Governed::over(world(), POLICY).unwrap();
        assert_enforced(&test, "before");
        let status = if signal == Signal::SIGTERM { test.daemon.stop() } else { test.daemon.kill() }.unwrap();
        assert_eq!(status.success(), signal == Signal::SIGTERM, "{status}: {}", test.daemon.output());
        assert_enforced(&test, signal.as_str());
        let run = curl(&test.inside, &format!("http://fresh-{}.wild.example.com/", signal as i32));
        assert!(run.stdout == "ok\n", "a new name with the daemon dead: {run:?}");
        assert!(!curl(&test.inside, "http://elsewhere.example.com/").ok());
        let run = test.daemon.detach().unwrap();
        assert!(run.ok(), "{run:?}");
        assert!(tcp(&test.inside, DENIED).unwrap().echoed && tcp(&test.beside, DENIED).unwrap().echoed, "{run:?}");
        let left = test.world.node().run("find", &[&format!("{BPFFS}/egress")], LIMIT).unwrap();
        assert_eq!(left.stdout, "", "left in bpffs");
    }
}

/// P2: over a crash and a restart no denied packet leaves, and connections of rules that stand go on.
#[test]
fn a_restart_takes_over_without_a_gap() {
    let mut test = Governed::over(world(), POLICY).unwrap();
    let mut held = Held::connect(&test.inside, "203.0.113.10", 7000).unwrap();
    // Tries as often as it can, from inside and beside the cgroup, until it is killed.
    test.world.sniffer.clear();
    let mut pumps: Vec<_> = [&test.inside, &test.beside]
        .iter()
        .map(|place| place.command(python()).args(["-c", FLOOD]).stdin(Stdio::null()).spawn().unwrap())
        .collect();
    for _ in 0..2 {
        test.daemon.kill().unwrap();
        assert_eq!(held.say("daemon dead").unwrap(), "echo");
        test.restart().unwrap();
        assert_eq!(held.say("daemon back").unwrap(), "echo");
    }
    let alive = pumps.iter_mut().all(|pump| pump.try_wait().unwrap().is_none());
    pumps.iter_mut().for_each(|pump| drop((pump.kill(), pump.wait())));
    assert!(alive, "a pump ended early");
    let denied = "198.51.100.77".parse().unwrap();
    test.world.sniffer.assert_none("a packet in the gap", |frame| frame.destination == Some(denied));
    assert_enforced(&test, "after two restarts");
    assert_eq!(test.daemon.status().unwrap()["health"]["healthy"], true);
}

/// P2: a restart with a smaller policy cuts the flows of the rule that went, those of before the crash included.
#[test]
fn a_restart_with_less_cuts_what_went() {
    let mut test = Governed::over(world(), POLICY).unwrap();
    let mut flows = Vec::new();
    for place in [&test.inside, &test.beside] {
        flows.push((true, Held::connect(place, "203.0.113.10", 7000).unwrap()));
        flows.push((false, Held::connect(place, "203.0.113.11", 7000).unwrap()));
    }
    test.daemon.kill().unwrap();
    for (_, flow) in &mut flows {
        assert_eq!(flow.say("daemon dead").unwrap(), "echo");
    }
    test.write_policy(&POLICY.replace("  - {name: two, to: [203.0.113.11], ports: [7000/tcp]}\n", "")).unwrap();
    test.restart().unwrap();
    test.world.sniffer.clear();
    for (stays, flow) in &mut flows {
        assert_eq!(flow.say("after").unwrap() == "echo", *stays);
    }
    let cut = "203.0.113.11".parse().unwrap();
    test.world.sniffer.assert_none("a removed rule's flow", |frame| frame.goes_to(cut, 6, None));
}

/// P6, section 1: with a dead resolver the last good answer stays over a restart (`dns.maxStale`).
#[test]
fn exact_names_outlive_a_restart_with_a_dead_resolver() {
    let world = world();
    world.dns.set_text("api.example.com", 30, &["203.0.113.40"]);
    let mut test = Governed::over(world, NAMED).unwrap();
    let count = |status: &serde_json::Value| status["names"][0]["addresses"].as_array().map_or(0, Vec::len);
    test.status_until(|status| count(status) == 1).unwrap();
    assert!(tcp(&test.inside, "203.0.113.40:7000").unwrap().echoed);
    test.daemon.kill().unwrap();
    test.world.dns.fault_everywhere(Fault::ServFail);
    test.restart().unwrap();
    let got = tcp(&test.inside, "203.0.113.40:7000").unwrap();
    assert!(got.echoed, "{got:?}");
}

/// P2, P4: names learned before a crash, and while no daemon ran, count after the restart: a process that resolved one may
/// connect without asking again.
#[test]
fn learned_names_outlive_a_restart() {
    let mut test = Governed::over(world(), POLICY).unwrap();
    test.world.dns.set_text("late.wild.example.com", 30, &["203.0.113.31"]);
    assert_eq!(curl(&test.inside, "http://early.wild.example.com/").stdout, "ok\n");
    test.daemon.kill().unwrap();
    assert_eq!(curl(&test.inside, "http://late.wild.example.com/").stdout, "ok\n");
    test.restart().unwrap();
    for url in ["http://203.0.113.30/", "http://203.0.113.31/"] {
        let run = curl(&test.inside, url);
        assert_eq!(run.stdout, "ok\n", "{url}: {run:?}");
    }
}

/// P4, section 1: a reload that keeps a rule keeps what its names taught.
#[test]
fn learned_names_outlive_a_reload() {
    let test = Governed::over(world(), POLICY).unwrap();
    assert_eq!(curl(&test.inside, "http://early.wild.example.com/").stdout, "ok\n");
    let generation = test.daemon.status().unwrap()["generation"].clone();
    let more = format!("{POLICY}  - {{name: more, to: [203.0.113.12], ports: [7000/tcp]}}\n");
    test.reload(&more, |status| status["generation"] != generation).unwrap();
    let run = curl(&test.inside, "http://203.0.113.30/");
    assert_eq!(run.stdout, "ok\n", "{run:?}");
    assert!(tcp(&test.inside, "203.0.113.12:7000").unwrap().echoed);
}

/// P7: a policy with a mistake changes nothing, and the daemon says what is wrong and where.
#[test]
fn a_broken_policy_changes_nothing() {
    let test = Governed::over(world(), POLICY).unwrap();
    let before = test.daemon.status().unwrap();
    let mut held = Held::connect(&test.inside, "203.0.113.10", 7000).unwrap();
    let unhealthy = |status: &serde_json::Value| status["health"]["healthy"] == false;
    let broken = "version: 1\nrules:\n  - {name: all, to: [any], ports: [any], prots: [1]}\n";
    let after = test.reload(broken, unhealthy).unwrap();
    let problems = after["health"]["problems"].to_string();
    assert!(problems.contains("policy"), "{problems}");
    let output = test.daemon.output();
    assert!(output.contains("prots") && output.contains("policy-0.yaml:3"), "{output}");
    assert_eq!((&after["generation"], &after["policy"]["hash"]), (&before["generation"], &before["policy"]["hash"]));
    assert_eq!(held.say("still").unwrap(), "echo");
    assert_enforced(&test, "after a broken reload");
    test.reload(POLICY, |status| status["health"]["healthy"] == true).unwrap();
    assert_enforced(&test, "after it was mended");
}

/// Section 1: when a reload takes a rule away, its flows end with their next packet; flows of rules that stay go on.
#[test]
fn a_removed_rule_cuts_its_flows_alone() {
    let test = Governed::over(world(), POLICY).unwrap();
    let mut flows = Vec::new();
    for place in [&test.inside, &test.beside] {
        flows.push((true, Held::connect(place, "203.0.113.10", 7000).unwrap()));
        flows.push((false, Held::connect(place, "203.0.113.11", 7000).unwrap()));
    }
    for (_, flow) in &mut flows {
        assert_eq!(flow.say("before").unwrap(), "echo");
    }
    let generation = test.daemon.status().unwrap()["generation"].clone();
    let less = POLICY.replace("  - {name: two, to: [203.0.113.11], ports: [7000/tcp]}\n", "");
    test.reload(&less, |status| status["generation"] != generation).unwrap();
    test.world.sniffer.clear();
    for (stays, flow) in &mut flows {
        assert_eq!(flow.say("after").unwrap() == "echo", *stays);
    }
    let cut = "203.0.113.11".parse().unwrap();
    test.world.sniffer.assert_none("a removed rule's flow", |frame| frame.goes_to(cut, 6, None));
    assert!(tcp(&test.inside, TWO).unwrap().refused());
}

/// Files that say what is in force are read, and nothing more: the policy is not compiled again, and no table is written. Where what is in
/// force is not what they say any more, it is put right.
#[test]
fn a_reload_that_changes_nothing_compiles_nothing() {
    const NOTHING: &str = "nothing was changed";
    const CHANGED: &str = "a policy was put in force";
    let test = Governed::over(world(), POLICY).unwrap();
    let generation = || test.daemon.status().unwrap()["generation"].as_u64().unwrap();
    let said = |what: &str| test.daemon.output().matches(what).count();
    let reloaded = |nothing: usize, changed: usize| {
        test.daemon.signal(Signal::SIGHUP).unwrap();
        let start = std::time::Instant::now();
        while said(NOTHING) + said(CHANGED) < nothing + changed {
            assert!(start.elapsed() < LIMIT, "{}", test.daemon.output());
            std::thread::sleep(Duration::from_millis(10));
        }
        assert_eq!((said(NOTHING), said(CHANGED)), (nothing, changed), "{}", test.daemon.output());
    };
    let first = generation();
    reloaded(1, 0);
    reloaded(2, 0);
    assert_eq!(generation(), first);
    // Somebody takes an element away: the files are compiled and written.
    test.world.mounts.run(|| {
        let map = sys::open_pin(&Pins::new(Path::new(BPFFS)).map("ADDRESSES_4")).unwrap();
        Table::<AddressKey4, AddressEntry>::new("ADDRESSES_4", map).unwrap().remove_where(|_| true).unwrap();
    });
    reloaded(2, 1);
    assert_enforced(&test, "after it was put right");
}

/// P2: a second daemon at the same socket is refused, says why, and disturbs nothing.
#[test]
fn a_second_daemon_is_refused() {
    let test = Governed::over(world(), POLICY).unwrap();
    let open = "version: 1\nrules:\n  - {name: all, to: [any], ports: [any]}\n";
    let file = test.world.dir().join("open.yaml");
    std::fs::write(&file, open).unwrap();
    let run = Daemon::builder(&test.world).policy(file).cgroup(&test.cgroup).run_to_end(LIMIT).unwrap();
    assert!(run.code().is_some_and(|code| code != 0), "{run:?}");
    assert!(run.stderr.contains("another egress daemon"), "{run:?}");
    assert_enforced(&test, "after the second daemon");
}

/// P2, P7: nor does a socket of its own let it take over what the first one pinned.
#[test]
fn a_second_daemon_at_another_socket_changes_nothing() {
    let test = Governed::over(world(), POLICY).unwrap();
    let file = test.world.dir().join("open.yaml");
    std::fs::write(&file, "version: 1\nrules:\n  - {name: all, to: [any], ports: [any]}\n").unwrap();
    let (file, socket) = (file.to_string_lossy().into_owned(), test.world.dir().join("second.sock"));
    let (cgroup, socket) = (test.cgroup.path().to_string_lossy(), socket.to_string_lossy());
    let args = ["run", "--cgroup", &cgroup, "--socket", &socket, "--policy", &file, "--interface", "up0"];
    let run = egress(&test.beside, &[&args[..], &["--resolver", "203.0.113.53"]].concat(), Duration::from_secs(2));
    assert!(run.as_ref().unwrap().code().is_some_and(|code| code != 0), "{run:?}");
    assert_enforced(&test, "after the second daemon");
}

/// P1: several policies govern one process by nested cgroups: a packet leaves only if each allows it.
#[test]
fn exec_inside_a_governed_cgroup_adds_its_policy() {
    let test = Governed::over(world(), POLICY).unwrap();
    let script = "import socket, sys\nfor a in sys.argv[1:]:\n try: socket.create_connection((a, 7000), 1); print('yes')\n except PermissionError: print('no')\n";
    let mut args = vec!["exec", "-q", "--allow", ONE, "--allow", DENIED, "--", python(), "-c", script];
    args.extend(["203.0.113.10", "203.0.113.11", "198.51.100.77"]);
    let run = egress(&test.inside, &args, LIMIT).unwrap();
    assert_eq!(run.stdout, "yes\nno\nno\n", "{run:?}");
    assert_enforced(&test, "after exec");
}

/// Section 4: what is not there is named, with what to do.
#[test]
fn what_is_missing_is_named() {
    let world = world();
    let cgroup = Cgroup::new("governed").unwrap();
    let start = || Daemon::builder(&world).policy_text(POLICY);
    let gone = Cgroup::new("gone").unwrap();
    std::fs::remove_dir(gone.path()).unwrap();
    let run = start().cgroup(&gone).run_to_end(LIMIT).unwrap();
    let path = gone.path().to_string_lossy().into_owned();
    assert!(matches!(run.code(), Some(2 | 3)) && run.stderr.contains(&path), "{run:?}");
    // It left nothing in force.
    assert!(tcp(&world.node().in_cgroup(&cgroup), DENIED).unwrap().echoed);
}

const NAMED: &str = "version: 1
rules:
  - {name: one, to: [203.0.113.10], ports: [7000/tcp]}
  - {name: named, to: [api.example.com], ports: [7000/tcp]}
";

/// P6: a resolver that fails in whatever way neither holds up the start nor opens the gate; it is reported, and the name
/// works as soon as the resolver does.
fn survives(fault: Fault) {
    let world = world();
    world.dns.set_text("api.example.com", 30, &["203.0.113.40"]);
    world.dns.fault_everywhere(fault);
    let test = Governed::over(world, NAMED).unwrap();
    assert_enforced(&test, "with a failing resolver");
    assert!(tcp(&test.inside, "203.0.113.40:7000").unwrap().refused());
    let said = |status: &serde_json::Value| {
        let mut names = status["names"].as_array().into_iter().flatten();
        names.any(|name| name["name"] == "api.example.com" && name["last_error"].is_string())
    };
    test.status_until(said).unwrap();
    test.world.dns.fault_everywhere(None);
    let script = "import socket\nsocket.create_connection(('api.example.com', 7000), 2)\nprint('yes')";
    let run = test.inside.run(python(), &["-c", script], LIMIT).unwrap();
    assert_eq!(run.stdout, "yes\n", "{run:?}");
}

#[test]
fn a_silent_resolver_is_reported_and_survived() {
    survives(Fault::Silent);
}

#[test]
fn servfail_is_reported_and_survived() {
    survives(Fault::ServFail);
}

#[test]
fn nxdomain_is_reported_and_survived() {
    survives(Fault::NxDomain);
}

#[test]
fn an_empty_answer_is_reported_and_survived() {
    survives(Fault::Empty);
}

/// Section 1: a name may have a thousand addresses, known before anything asks for it.
#[test]
fn a_thousand_addresses_are_let_through() {
    let world = world();
    let many: Vec<IpAddr> = (0..1000_u32).map(|n| Ipv4Addr::from(0x1400_0001 + n).into()).collect();
    world.dns.set("api.example.com", 60, &many);
    let test = Governed::over(world, NAMED).unwrap();
    let count = |status: &serde_json::Value| status["names"][0]["addresses"].as_array().map_or(0, Vec::len);
    test.status_until(|status| count(status) == 1000).unwrap();
    for to in ["20.0.0.1:7000", "20.0.1.244:7000", "20.0.3.232:7000"] {
        assert!(tcp(&test.inside, to).unwrap().echoed, "{to}");
    }
    assert!(tcp(&test.inside, "20.0.3.233:7000").unwrap().refused());
}

/// P3, section 1: addresses that no public name has are refused in an answer, unless the policy says otherwise.
#[test]
fn private_and_unspecified_addresses_are_refused_for_public_names() {
    for (allowed, policy) in
        [(false, NAMED.to_owned()), (true, NAMED.replace("rules:", "dns: {allowPrivate: [api.example.com]}\nrules:"))]
    {
        let world = world();
        world.dns.set_text("api.example.com", 30, &["169.254.169.254", "0.0.0.0", "127.0.0.1", "203.0.113.41"]);
        let test = Governed::over(world, &policy).unwrap();
        let ask = ["+short", "+time=1", "+tries=1", "api.example.com"];
        assert!(test.inside.run("dig", &ask, LIMIT).unwrap().stdout.contains("169.254.169.254"));
        assert!(tcp(&test.inside, "203.0.113.41:7000").unwrap().echoed, "the public one, allowPrivate: {allowed}");
        let got = tcp(&test.inside, "169.254.169.254:7000").unwrap();
        assert_eq!((got.echoed, got.refused()), (allowed, !allowed), "{got:?}");
    }
}
