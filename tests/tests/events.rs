//! What is told of what happens: whole, once, in time, and by whom. Needs root.

use std::time::{Duration, Instant};

use egress_tests::{
    Fault, Governed, World,
    probe::{tcp, udp},
};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(8);
const POLICY: &str = "version: 1
rules:
  - {name: named, to: [api.example.com], ports: [443/tcp]}
  - {name: no-metadata, action: deny, to: [169.254.169.254]}
";
const NOWHERE: &str = "198.51.100.9";

fn wait<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < LIMIT, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn told(test: &Governed, args: &[&str]) -> Vec<Value> {
    let run = test.daemon.egress(&[&["events", "--json"][..], args].concat()).unwrap();
    assert!(run.ok(), "{run:?}");
    run.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A flood's count is told in full soon after its end, with nothing like it following: P6.
#[test]
fn folded_drops_are_told_though_none_like_them_follows() {
    let test = Governed::new(POLICY).unwrap();
    let sent = 500;
    let script = format!(
        "import socket\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\nfor _ in range({sent}):\n try: s.sendto(b'x', ('{NOWHERE}', 9999))\n except PermissionError: pass"
    );
    assert!(test.inside.run("/usr/bin/python3", &["-c", &script], LIMIT).unwrap().ok());
    let all = wait("all counts", || {
        let events = told(&test, &["--to", "198.51.100.9:9999/udp"]);
        let sum: u64 = events.iter().map(|event| event["count"].as_u64().unwrap()).sum();
        assert!(sum <= sent, "{sum} of {sent} were told: {events:?}");
        (sum == sent).then_some(events)
    });
    assert!(all.len() < 10, "folded: {}", all.len());
    let process = &all.last().unwrap()["process"];
    assert!(process["comm"].as_str().unwrap().starts_with("python3"), "{process}");
    let counted = test.daemon.status().unwrap();
    let counted =
        counted["counters"].as_array().unwrap().iter().find(|counter| counter["reason"] == "no-rule").cloned();
    assert!(counted.unwrap()["packets"].as_u64().unwrap() >= sent);
}

/// Folded refusals of DNS questions are told by their names too: daemon and kernel hash names alike.
#[test]
fn folded_questions_are_told_by_their_names() {
    let test = Governed::new(POLICY).unwrap();
    let name = "a-rather-long-label.of-a-name.example.net";
    for _ in 0..3 {
        let _ = test.inside.run("dig", &["+tries=1", "+time=1", "+retry=0", name], LIMIT).unwrap();
    }
    let script = "import socket,sys\nq = bytes.fromhex(sys.argv[1])\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\nfor _ in range(50):\n try: s.sendto(q, ('203.0.113.53', 53))\n except PermissionError: pass";
    let mut question = "abcd01000001000000000000".to_owned();
    for label in name.split('.') {
        question += &format!("{:02x}", label.len());
        question.extend(label.bytes().map(|byte| format!("{byte:02x}")));
    }
    question += "0000010001";
    assert!(test.inside.run("/usr/bin/python3", &["-c", script, &question], LIMIT).unwrap().ok());
    wait("50 questions", || {
        let events = told(&test, &["--to", name, "--reason", "name-not-allowed"]);
        let of_python = events
            .iter()
            .filter(|event| event["process"]["comm"].as_str().is_some_and(|comm| comm.starts_with("python3")));
        let sum: u64 = of_python.map(|event| event["count"].as_u64().unwrap()).sum();
        (sum == 50).then_some(())
    });
}

/// The daemon's own questions: trouble is told once, and its end once.
#[test]
fn a_resolver_that_fails_and_works_again_is_told() {
    let world = World::new().unwrap();
    world.dns.set_text("api.example.com", 30, &["203.0.113.40"]);
    world.dns.fault_everywhere(Fault::ServFail);
    let test = Governed::over(world, POLICY).unwrap();
    let of_name = |recovered: bool| {
        let want = |event: &Value| event["kind"] == "resolver" && event["recovered"] == recovered;
        told(&test, &["--to", "api.example.com"]).into_iter().filter(want).collect::<Vec<_>>()
    };
    let failed = wait("the trouble", || of_name(false).pop());
    assert!(failed["message"].as_str().unwrap().contains("SERVFAIL"), "{failed}");
    assert!(failed["resolver"].as_str().unwrap().contains(":53"), "{failed}");
    test.world.dns.fault_everywhere(None);
    // Told to read its policy again, the daemon asks again at once.
    test.reload(POLICY, |status| !status["names"][0]["addresses"].as_array().unwrap().is_empty()).unwrap();
    wait("the end of the trouble", || of_name(true).pop());
    assert_eq!((of_name(false).len(), of_name(true).len()), (1, 1));
}

/// Who sent a packet, by what is left of it: a command that ended at once, and a forwarded packet, which nobody here sent.
#[test]
fn a_short_lived_process_is_named_and_a_forwarded_packet_has_none() {
    let test = Governed::new(POLICY).unwrap();
    let run = test.inside.run("curl", &["-sS", "--max-time", "2", "http://198.51.100.9/"], LIMIT).unwrap();
    assert!(!run.ok());
    let event = test.event(|event| event["process"]["comm"] == "curl").unwrap().expect("curl's event");
    assert_eq!(event["hook"], "connect", "{event}");
    assert_eq!(event["destination_port"], 80);
    assert_eq!(event["reason"], "no-rule");
    assert!(event["cgroup"].as_str().unwrap().contains("governed"), "{event}");
    assert!(event["netns"].is_u64() && event["cgroup_id"].is_u64(), "{event}");
    // The uplink sees what has no governed socket; it cannot say whose it is, and does not guess.
    let _ = udp(&test.beside, "198.51.100.9:7001", 10).unwrap();
    let event = test.event(|event| event["destination_port"] == 7001).unwrap().expect("the uplink's event");
    assert_eq!(event["hook"], "uplink-egress", "{event}");
    assert!(event["process"].is_null() && event["interface"] == "up0", "{event}");
    let text = test.daemon.egress(&["events", "--to", "198.51.100.9:7001/udp"]).unwrap();
    assert!(text.stdout.contains("no process"), "{text:?}");
}

/// Filters work at the daemon, join by and, and say so where nothing matches.
#[test]
fn filters_leave_out_what_is_not_asked_for() {
    let test = Governed::new(POLICY).unwrap();
    let _ = tcp(&test.inside, "198.51.100.9:81").unwrap();
    let _ = tcp(&test.inside, "169.254.169.254:80").unwrap();
    test.event(|event| event["reason"] == "denied").unwrap().expect("the denied one");
    let denied = told(&test, &["--reason", "denied"]);
    assert!(!denied.is_empty() && denied.iter().all(|event| event["rule"] == "no-metadata"), "{denied:?}");
    let pid = denied[0]["process"]["pid"].to_string();
    assert_eq!(told(&test, &["--pid", &pid, "--to", "169.254.0.0/16"]).len(), denied.len());
    assert!(told(&test, &["--pid", &pid, "--to", "198.51.100.9"]).is_empty());
    let path = denied[0]["cgroup"].as_str().unwrap().to_owned();
    assert_eq!(told(&test, &["--cgroup", &path, "--dropped"]).len(), told(&test, &["--dropped"]).len());
    let none = test.daemon.egress(&["events", "--to", "nothing.example"]).unwrap();
    assert!(none.ok() && none.stdout.is_empty() && none.stderr.contains("no event matches"), "{none:?}");
    let wrong = test.daemon.egress(&["events", "--reason", "because"]).unwrap();
    assert!(wrong.code() == Some(2) && wrong.stderr.contains("name-not-allowed"), "{wrong:?}");
}

/// A command's name goes to a terminal and into a log escaped, whatever bytes it has.
#[test]
fn a_hostile_command_name_is_never_raw() {
    let test = Governed::new(POLICY).unwrap();
    let script = "import ctypes, socket\nctypes.CDLL(None).prctl(15, b'\\x1b[31m\\xff\\nx', 0, 0, 0)\ntry: socket.create_connection(('198.51.100.9', 82), 1)\nexcept PermissionError: pass";
    assert!(test.inside.run("/usr/bin/python3", &["-c", script], LIMIT).unwrap().ok());
    test.event(|event| event["destination_port"] == 82).unwrap().expect("its event");
    for args in [&["events"][..], &["events", "--json"]] {
        let text = test.daemon.egress(args).unwrap().stdout;
        let line = text.lines().find(|line| line.contains(":82") || line.contains("\":82")).expect("its line");
        assert!(!text.contains('\u{1b}') && line.contains("u{1b}"), "{line:?}");
    }
}
