//! What learned addresses are called, and what was applied, over a restart; and what becomes of it where the state cannot be
//! kept: nothing is lost but names (P2, P6).

use std::{fs, time::Duration};

use egress_tests::{Fault, Governed, Service, World, probe::tcp};
use nix::sys::signal::Signal;
use serde_json::Value;

const POLICY: &str = "version: 1
rules:
  - {name: one, to: [203.0.113.10], ports: [7000/tcp]}
  - {name: wild, to: ['*.wild.example.com'], ports: [80/tcp]}
";
const DENIED: &str = "198.51.100.77:7000";
const NAME: &str = "some.wild.example.com";
const ADDRESS: &str = "203.0.113.30";

fn governed() -> Governed {
    let world = World::new().unwrap();
    world.serve(Service::TcpEcho, "0.0.0.0:7000").unwrap();
    world.serve(Service::Http, "0.0.0.0:80").unwrap();
    world.dns.set_text("*.wild.example.com", 30, &[ADDRESS]);
    Governed::over(world, POLICY).unwrap()
}

/// A process asks for a name; the daemon hears of it.
fn learn(test: &Governed) {
    let url = format!("http://{NAME}/");
    let run = test.inside.run("curl", &["-sS", "--max-time", "3", &url], Duration::from_secs(5)).unwrap();
    assert_eq!(run.stdout, "ok\n", "{run:?}");
    test.status_until(knows).unwrap();
}

fn knows(status: &Value) -> bool {
    let mut names = status["names"].as_array().into_iter().flatten();
    names.any(|name| name["name"] == NAME && name["addresses"][0]["address"] == ADDRESS)
}

fn warned(status: &Value) -> bool {
    status["warnings"].to_string().contains("names.json")
}

/// Whatever its state is: the address is open, nothing else is.
fn assert_enforced(test: &Governed) {
    let run = ["-sS", "--max-time", "3", &format!("http://{ADDRESS}/")];
    assert_eq!(test.inside.run("curl", &run, Duration::from_secs(5)).unwrap().stdout, "ok\n");
    assert!(tcp(&test.inside, "203.0.113.10:7000").unwrap().echoed);
    assert!(tcp(&test.inside, DENIED).unwrap().refused());
    assert!(!tcp(&test.beside, DENIED).unwrap().echoed);
}

#[test]
fn names_outlive_a_restart_and_a_crash() {
    let mut test = governed();
    learn(&test);
    let file = test.world.dir().join("state/names.json");
    assert!(test.daemon.stop().unwrap().success());
    test.restart().unwrap();
    let status = test.daemon.status().unwrap();
    assert!(knows(&status), "{status}");
    let explained = test.daemon.egress(&["explain", "--json", &format!("{ADDRESS}:80")]).unwrap();
    let explained: Value = serde_json::from_str(&explained.stdout).unwrap();
    assert_eq!((&explained["allowed"], &explained["via_name"]), (&Value::Bool(true), &Value::from(NAME)));
    assert_eq!(explained["learned_from"], "203.0.113.53:53");
    assert!(tcp(&test.inside, &format!("{ADDRESS}:81")).unwrap().refused());
    let told = test.event(|event| event["destination_port"] == 81 || event["port"] == 81).unwrap().unwrap();
    assert!(told.to_string().contains(NAME), "{told}");

    // Now and then, so that a crash loses little; and what the file says of others opens nothing and is not believed.
    fs::remove_file(&file).unwrap();
    test.world.dns.set_text("late.wild.example.com", 30, &["203.0.113.31"]);
    let run = ["-sS", "--max-time", "3", "http://late.wild.example.com/"];
    assert_eq!(test.inside.run("curl", &run, Duration::from_secs(5)).unwrap().stdout, "ok\n");
    let limit = std::time::Instant::now() + Duration::from_secs(12);
    while !file.exists() {
        assert!(std::time::Instant::now() < limit, "it is not written while the daemon runs");
        std::thread::sleep(Duration::from_millis(50));
    }
    test.daemon.kill().unwrap();
    let text = fs::read_to_string(&file).unwrap();
    let text =
        text.replace("\"names\":{", "\"names\":{\"evil.wild.example.com\":{\"203.0.113.66\":[\"203.0.113.53:53\",1]},");
    fs::write(&file, text).unwrap();
    test.restart().unwrap();
    let status = test.daemon.status().unwrap();
    assert!(knows(&status) && status.to_string().contains("late.wild"), "{status}");
    assert!(!status.to_string().contains("203.0.113.66"), "{status}");
    assert!(tcp(&test.inside, "203.0.113.66:80").unwrap().refused());
    assert_enforced(&test);
}

/// P2, P6: names.json and policy.json with nonsense in them are passed over and told; the address stays open.
#[test]
fn a_corrupt_state_loses_names_alone() {
    let mut test = governed();
    learn(&test);
    let more = test.world.dir().join("more.yaml");
    fs::write(&more, format!("{POLICY}  - {{name: more, to: [203.0.113.12], ports: [7000/tcp]}}\n")).unwrap();
    assert!(test.daemon.egress(&["apply", &more.to_string_lossy()]).unwrap().ok());
    assert!(tcp(&test.inside, "203.0.113.12:7000").unwrap().echoed);
    test.daemon.stop().unwrap();
    for name in ["names.json", "policy.json"] {
        let file = test.world.dir().join("state").join(name);
        let text = fs::read(&file).unwrap();
        fs::write(&file, &text[..text.len() / 2]).unwrap();
    }
    test.restart().unwrap();
    let status = test.daemon.status().unwrap();
    assert!(!knows(&status) && status["health"]["healthy"] == true, "{status}");
    // What was applied is not known any more: the files count.
    assert_eq!((&status["policy"]["applied"], &status["rules"][2]), (&Value::Bool(false), &Value::Null));
    let output = test.daemon.output();
    assert!(output.contains("names.json") && output.contains("policy.json"), "{output}");
    assert_enforced(&test);
    assert!(tcp(&test.inside, "203.0.113.12:7000").unwrap().refused());
    // And it is kept again.
    assert!(test.daemon.egress(&["apply", &more.to_string_lossy()]).unwrap().ok());
    test.daemon.kill().unwrap();
    test.restart().unwrap();
    assert!(tcp(&test.inside, "203.0.113.12:7000").unwrap().echoed);
}

/// P6: a full disk and one that cannot be written are told, and nothing else changes; with room the trouble ends.
#[test]
fn a_full_or_read_only_disk_loses_names_alone() {
    let mut test = governed();
    let state = test.world.dir().join("state");
    let at = state.to_string_lossy().into_owned();
    test.daemon.stop().unwrap();
    let node = test.world.node();
    let mount = |args: &[&str]| {
        let run = node.run("mount", &[args, &[at.as_str()]].concat(), Duration::from_secs(5)).unwrap();
        assert!(run.ok(), "{run:?}");
    };
    mount(&["-t", "tmpfs", "-o", "size=4k", "tmpfs"]);
    let fill = format!("{at}/fill");
    node.run("dd", &["if=/dev/zero", &format!("of={fill}"), "bs=4096", "count=1"], Duration::from_secs(5)).unwrap();
    test.restart().unwrap();
    learn(&test);
    let status = test.status_until(warned).unwrap();
    assert_eq!(status["health"]["healthy"], true);
    assert_enforced(&test);
    let more = test.world.dir().join("more.yaml");
    fs::write(&more, format!("{POLICY}  - {{name: more, to: [203.0.113.12], ports: [7000/tcp]}}\n")).unwrap();
    let run = test.daemon.egress(&["apply", &more.to_string_lossy()]).unwrap();
    assert!(run.ok() && format!("{run:?}").contains("a restart will not know of this change"), "{run:?}");
    assert!(tcp(&test.inside, "203.0.113.12:7000").unwrap().echoed);
    let untold = |status: &Value| status["health"].to_string().contains("a restart will not know of this change");
    assert!(untold(&test.daemon.status().unwrap()));

    mount(&["-o", "remount,size=1m"]);
    // With room it is written after all.
    test.status_until(|status| !untold(status)).unwrap();
    let kept = node.run("cat", &[&format!("{at}/policy.json")], Duration::from_secs(5)).unwrap();
    assert!(kept.stdout.contains("name: more"), "{kept:?}");
    mount(&["-o", "remount,ro"]);
    test.world.dns.set_text("late.wild.example.com", 30, &["203.0.113.31"]);
    test.daemon.kill().unwrap();
    test.restart().unwrap();
    assert_enforced(&test);
}

/// P7: the latest word stays the latest over a restart, though the disk was full when it came.
#[test]
fn a_reload_with_a_full_disk_is_told_and_kept_later() {
    let mut test = governed();
    let more = test.world.dir().join("more.yaml");
    fs::write(&more, format!("{POLICY}  - {{name: more, to: [203.0.113.12], ports: [7000/tcp]}}\n")).unwrap();
    assert!(test.daemon.egress(&["apply", &more.to_string_lossy()]).unwrap().ok());
    let kept = test.world.dir().join("state/policy.json");
    let applied = fs::read(&kept).unwrap();
    // In its place stands what cannot be written over: a folder with something in it.
    fs::remove_file(&kept).unwrap();
    fs::create_dir_all(kept.join("in the way")).unwrap();
    test.daemon.signal(Signal::SIGHUP).unwrap();
    let told = |status: &Value| status["health"]["problems"].to_string().contains("a restart will not know");
    let status = test.status_until(|status| status["policy"]["applied"] == false && told(status)).unwrap();
    assert_eq!(status["health"]["healthy"], false);
    assert!(test.daemon.output().contains("a restart will not know"), "{}", test.daemon.output());
    fs::remove_dir_all(&kept).unwrap();
    fs::write(&kept, applied).unwrap();
    test.status_until(|status| status["health"]["healthy"] == true).unwrap();
    test.daemon.kill().unwrap();
    test.restart().unwrap();
    assert_eq!(test.daemon.status().unwrap()["policy"]["applied"], false);
    assert!(!tcp(&test.inside, "203.0.113.12:7000").unwrap().echoed);
}

/// P7: a restart in the middle of an outage. What the daemon before it had resolved stays open past its TTL and grace, though
/// the new one never got an answer. (How long, by a test's clock: `resolve/tests/refresher.rs`.)
#[test]
fn an_outage_outlives_a_restart() {
    const LIFE: Duration = Duration::from_secs(16);
    let world = World::new().unwrap();
    world.serve(Service::TcpEcho, "0.0.0.0:7000").unwrap();
    world.dns.set_text("exact.example.com", 1, &[ADDRESS]);
    let policy = "version: 1
dns: {minTtl: 1s, grace: 15s}
rules:
  - {name: exact, to: [exact.example.com], ports: [7000/tcp]}
";
    let mut test = Governed::over(world, policy).unwrap();
    let known = |status: &Value| status["names"][0]["addresses"][0]["address"] == ADDRESS;
    test.status_until(known).unwrap();
    test.world.dns.fault_everywhere(Fault::ServFail);
    assert!(test.daemon.stop().unwrap().success());
    let stopped = std::time::Instant::now();
    test.restart().unwrap();
    assert!(stopped.elapsed() < LIFE, "the machine is too slow for this test's times");
    let open = |test: &Governed| tcp(&test.inside, &format!("{ADDRESS}:7000")).unwrap().echoed;
    while stopped.elapsed() < LIFE + Duration::from_secs(4) {
        assert!(open(&test), "closed after {:?}", stopped.elapsed());
        std::thread::sleep(Duration::from_millis(500));
    }
}
