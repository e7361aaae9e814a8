//! Changing the policy of a running daemon: whole or not at all, on trial, and back (P2, P7, P8).

use std::{
    io::{ErrorKind, Read as _, Write as _},
    os::unix::net::UnixStream,
    thread::sleep,
    time::{Duration, Instant},
};

use egress_tests::{Governed, Held, Run, Service, World, daemon::patient, probe::tcp};
use serde_json::{Value, json};

const OLD: &str = "version: 1
rules:
  - {name: one, to: [203.0.113.10], ports: [7000/tcp]}
  - {name: two, to: [203.0.113.11], ports: [7000/tcp]}
";
/// Without `two`, with `three`.
const NEW: &str = "version: 1
rules:
  - {name: one, to: [203.0.113.10], ports: [7000/tcp]}
  - {name: three, to: [203.0.113.12], ports: [7000/tcp]}
";
const ONE: &str = "203.0.113.10:7000";
const TWO: &str = "203.0.113.11:7000";
const THREE: &str = "203.0.113.12:7000";

fn governed() -> Governed {
    let world = World::new().unwrap();
    world.serve(Service::TcpEcho, "0.0.0.0:7000").unwrap();
    Governed::over(world, OLD).unwrap()
}

/// `egress apply` of `text`, with these arguments.
fn apply(test: &Governed, text: &str, args: &[&str]) -> Run {
    let file = test.world.dir().join("new.yaml");
    std::fs::write(&file, text).unwrap();
    test.daemon.egress(&[&["apply", &file.to_string_lossy()], args].concat()).unwrap()
}

/// Which of the three destinations are reached, from inside and beside the cgroup.
fn reached(test: &Governed) -> Vec<bool> {
    let inside = [ONE, TWO, THREE].map(|to| tcp(&test.inside, to).unwrap().echoed);
    let beside = [ONE, TWO, THREE].map(|to| tcp(&test.beside, to).unwrap().echoed);
    assert_eq!(inside, beside);
    inside.to_vec()
}

fn left(status: &Value) -> Option<u64> {
    status["policy"]["confirm_seconds_left"].as_u64()
}

/// P7: says what changes before it does; a dry run and a wrong policy change nothing.
#[test]
fn apply_says_what_changes_and_does_it_whole() {
    let test = governed();
    assert_eq!(reached(&test), [true, true, false]);
    let mut held = Held::connect(&test.inside, "203.0.113.11", 7000).unwrap();
    let run = apply(&test, NEW, &["--dry-run"]);
    assert!(run.ok() && run.stdout.contains("+ allow 203.0.113.12  7000/tcp  (three)"), "{run:?}");
    assert!(run.stdout.contains("- allow 203.0.113.11  7000/tcp  (two)"), "{run:?}");
    assert!(run.stdout.contains("warning: `203.0.113.11` of rule `two` goes"), "{run:?}");
    let run = apply(&test, &NEW.replace("ports", "prots"), &[]);
    assert!(run.code() == Some(2) && run.stderr.contains("new.yaml:3"), "{run:?}");
    assert_eq!((reached(&test), held.say("still").unwrap()), (vec![true, true, false], "echo".to_owned()));
    let run = test.daemon.egress(&["diff", &test.world.dir().join("policy-0.yaml").to_string_lossy()]).unwrap();
    assert!(run.ok() && run.stdout.is_empty(), "{run:?}");

    let run = apply(&test, NEW, &[]);
    assert!(run.ok() && run.stdout.contains("in force as generation"), "{run:?}");
    assert_eq!(reached(&test), [true, false, true]);
    assert_ne!(held.say("after").unwrap(), "echo");
    let status = test.daemon.status().unwrap();
    assert_eq!((&status["policy"]["applied"], left(&status)), (&Value::Bool(true), None));
    let run = test.daemon.egress(&["diff", &test.world.dir().join("policy-0.yaml").to_string_lossy()]).unwrap();
    assert!(run.code() == Some(1) && run.stdout.contains("+ allow 203.0.113.11"), "{run:?}");

    let run = test.daemon.egress(&["rollback"]).unwrap();
    assert!(run.ok(), "{run:?}");
    assert_eq!(reached(&test), [true, true, false]);
    assert_eq!(test.daemon.egress(&["confirm"]).unwrap().code(), Some(1));
}

/// P8: what nobody confirms goes by itself, with the daemon killed; its connections too, while the others live.
#[test]
fn an_unconfirmed_policy_goes_without_the_daemon() {
    let mut test = governed();
    let before = test.daemon.status().unwrap()["policy"]["hash"].clone();
    let mut stays = Held::connect(&test.inside, "203.0.113.10", 7000).unwrap();
    let start = Instant::now();
    let run = apply(&test, NEW, &["--confirm", "4s"]);
    assert!(run.ok(), "{run:?}");
    test.daemon.kill().unwrap();
    let mut goes = Held::connect(&test.inside, "203.0.113.12", 7000).unwrap();
    assert_eq!(goes.say("on trial").unwrap(), "echo");
    assert!(!tcp(&test.inside, TWO).unwrap().echoed);
    // It stays as long as was said, and a tick (1.07 s) longer at the most.
    sleep(Duration::from_millis(3500).saturating_sub(start.elapsed()));
    let mut three = start.elapsed();
    while tcp(&test.inside, THREE).unwrap().echoed {
        three = start.elapsed();
        sleep(Duration::from_millis(20));
    }
    assert!((3.5..6.5).contains(&three.as_secs_f64()), "last reached after {three:?}");
    test.world.sniffer.clear();
    assert_ne!(goes.say("after").unwrap(), "echo");
    test.world
        .sniffer
        .assert_none("a flow of the policy that went", |frame| frame.goes_to("203.0.113.12".parse().unwrap(), 6, None));
    assert_eq!(stays.say("after").unwrap(), "echo");
    assert_eq!(reached(&test), [true, true, false]);
    test.restart().unwrap();
    let status = test.daemon.status().unwrap();
    assert_eq!((&status["policy"]["hash"], left(&status)), (&before, None));
    assert_eq!((reached(&test), stays.say("restarted").unwrap()), (vec![true, true, false], "echo".to_owned()));
    // The next policy's generation is none that had verdicts before.
    assert!(apply(&test, NEW, &[]).ok());
    assert_eq!(reached(&test), [true, false, true]);
}

/// P8: with the daemon alive too, and then it follows.
#[test]
fn an_unconfirmed_policy_goes_under_the_daemon() {
    let test = governed();
    let trial = patient(Duration::from_secs(3));
    assert!(apply(&test, NEW, &["--confirm", &format!("{}s", trial.as_secs())]).ok());
    assert_eq!(reached(&test), [true, false, true]);
    test.status_until(|status| left(status).is_none() && status["policy"]["applied"] == false).unwrap();
    assert_eq!(reached(&test), [true, true, false]);
    let said = test.event(|event| event.to_string().contains("not confirmed in time")).unwrap();
    assert!(said.is_some());
}

/// P8: a restarted daemon goes on counting; a second change waits; what was confirmed stays, over the deadline and a restart.
#[test]
fn a_restarted_daemon_goes_on_counting_and_can_be_told() {
    let mut test = governed();
    let start = Instant::now();
    let trial = patient(Duration::from_secs(8));
    assert!(apply(&test, NEW, &["--confirm", &format!("{}s", trial.as_secs())]).ok());
    test.daemon.kill().unwrap();
    test.restart().unwrap();
    let status = test.daemon.status().unwrap();
    assert!(left(&status).is_some_and(|left| left <= trial.as_secs() + 2), "{status}");
    assert_eq!(reached(&test), [true, false, true]);
    let run = apply(&test, OLD, &[]);
    assert!(run.code() == Some(1) && run.stderr.contains("egress confirm"), "{run:?}");
    let run = test.daemon.egress(&["confirm"]).unwrap();
    assert!(run.ok() && start.elapsed() < trial, "{run:?}");
    sleep((trial + Duration::from_millis(1500)).saturating_sub(start.elapsed()));
    assert_eq!(reached(&test), [true, false, true]);
    test.daemon.kill().unwrap();
    test.restart().unwrap();
    assert_eq!(reached(&test), [true, false, true]);
    assert_eq!(test.daemon.status().unwrap()["policy"]["applied"], true);
    // The files changed after it was applied: they are the latest word.
    test.daemon.kill().unwrap();
    test.write_policy(&format!("# another\n{OLD}")).unwrap();
    test.restart().unwrap();
    assert_eq!(reached(&test), [true, true, false]);
}

/// P8: a daemon that dies between the kernel's confirmation and its own note of it has confirmed all the same.
#[test]
fn a_confirmation_that_was_not_written_down_holds() {
    let mut test = governed();
    assert!(apply(&test, NEW, &["--confirm", "60s"]).ok());
    let state = test.world.dir().join("state/policy.json");
    let on_trial = std::fs::read(&state).unwrap();
    assert!(test.daemon.egress(&["confirm"]).unwrap().ok());
    test.daemon.kill().unwrap();
    assert_ne!(std::fs::read(&state).unwrap(), on_trial);
    // What the disk has where the daemon was killed a moment earlier.
    std::fs::write(&state, on_trial).unwrap();
    for _ in 0..2 {
        test.restart().unwrap();
        let status = test.daemon.status().unwrap();
        assert_eq!((&status["policy"]["applied"], left(&status)), (&Value::Bool(true), None));
        assert_eq!(reached(&test), [true, false, true]);
        test.daemon.kill().unwrap();
    }
}

/// P8: `rollback` ends a policy on trial at once.
#[test]
fn rollback_ends_a_trial() {
    let test = governed();
    let mut held = Held::connect(&test.inside, "203.0.113.10", 7000).unwrap();
    assert!(apply(&test, NEW, &["--confirm", "60s"]).ok());
    assert_eq!(reached(&test), [true, false, true]);
    assert!(test.daemon.egress(&["rollback"]).unwrap().ok());
    assert_eq!((reached(&test), held.say("still").unwrap()), (vec![true, true, false], "echo".to_owned()));
    assert_eq!(left(&test.daemon.status().unwrap()), None);
    let run = test.daemon.egress(&["rollback"]).unwrap();
    assert_eq!(run.code(), Some(1), "{run:?}");
}

/// The thread that waits for the end of a trial ends with it, however that ends, and does not wake up before.
#[test]
fn nobody_waits_for_a_trial_that_ended() {
    let test = governed();
    let threads = || std::fs::read_dir(format!("/proc/{}/task", test.daemon.pid())).unwrap().flatten();
    let waiting = || {
        threads().find(|task| std::fs::read_to_string(task.path().join("comm")).is_ok_and(|name| name == "changes\n"))
    };
    for end in ["confirm", "rollback", "confirm"] {
        assert!(apply(&test, if end == "confirm" { NEW } else { OLD }, &["--confirm", "1h"]).ok());
        let switches = || {
            let status = std::fs::read_to_string(waiting().expect("somebody waits").path().join("status")).unwrap();
            status.lines().find(|line| line.starts_with("voluntary_ctxt_switches")).unwrap().to_owned()
        };
        sleep(Duration::from_millis(300));
        let before = switches();
        sleep(Duration::from_millis(700));
        assert_eq!(switches(), before, "it wakes up");
        assert!(test.daemon.egress(&[end]).unwrap().ok());
        let start = Instant::now();
        while waiting().is_some() {
            assert!(start.elapsed() < Duration::from_secs(5), "it waits after `{end}`");
            sleep(Duration::from_millis(20));
        }
    }
}

/// P8: `confirm` does not wait for a question what another policy would change, however large that is.
#[test]
fn a_dry_run_does_not_hold_up_a_confirmation() {
    let test = governed();
    assert!(apply(&test, NEW, &["--confirm", "60s"]).ok());
    let names: String =
        (0..60_000).map(|n| format!("  - {{name: r{n}, to: [n{n}.example.com], ports: [443/tcp]}}\n")).collect();
    let texts = json!({"files": [["large.yaml", format!("version: 1\nrules:\n{names}")]]});
    let body = json!({"texts": texts, "dry_run": true}).to_string();
    let mut asking = UnixStream::connect(test.daemon.socket()).unwrap();
    let head = "POST /v1/policy HTTP/1.1\r\nhost: egress\r\ncontent-type: application/json";
    write!(asking, "{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len()).unwrap();
    // The last of it is read as soon as there is room for more; then it is compiled.
    sleep(Duration::from_secs(1));
    let run = test.daemon.egress(&["confirm"]).unwrap();
    assert!(run.ok(), "{run:?}");
    asking.set_nonblocking(true).unwrap();
    let early = asking.read(&mut [0]).map_err(|error| error.kind());
    assert_eq!(early, Err(ErrorKind::WouldBlock), "the dry run was done first");
    assert_eq!(reached(&test), [true, false, true]);
}

/// A rule that is new begins with no hits, whatever passed by the one whose place in the kernel's tables it takes.
#[test]
fn a_new_rule_begins_without_the_hits_of_one_that_went() {
    let test = governed();
    assert_eq!(reached(&test), [true, true, false]);
    let hits = |name: &str| {
        let status = test.daemon.status().unwrap();
        let rules = status["rules"].as_array().unwrap().clone();
        rules.iter().find(|rule| rule["name"] == name).map(|rule| rule["packets"].as_u64().unwrap())
    };
    assert!(hits("two") > Some(0));
    for number in 20..23 {
        let name = format!("new{number}");
        let text = format!("{OLD}  - {{name: {name}, to: [203.0.113.{number}], ports: [any]}}\n");
        assert!(apply(&test, &text.replace("{name: two", &format!("{{name: two{number}")), &[]).ok());
        assert_eq!((hits(&name), hits(&format!("two{number}"))), (Some(0), Some(0)));
    }
    assert!(hits("one") > Some(0));
}
