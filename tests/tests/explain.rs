//! `egress explain`: what it says is what happens, and the line that it writes is the one that helps. Needs root.

use std::{fs, time::Duration};

use egress_tests::{
    Governed, Service, World,
    probe::{tcp, udp},
};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(8);
const POLICY: &str = "version: 1
rules:
  - name: wild
    why: the pages
    to: ['*.wild.example.com']
    ports: [80/tcp]
  - {name: one, to: [203.0.113.10], ports: [7000/tcp]}
  - {name: private, to: [private.example.org], ports: [80/tcp]}
  - {name: no-metadata, action: deny, to: [169.254.169.254]}
";
const NAME: &str = "some.wild.example.com";
const ADDRESS: &str = "203.0.113.30";

fn governed() -> Governed {
    let world = World::new().unwrap();
    world.serve(Service::TcpEcho, "0.0.0.0:7000").unwrap();
    world.serve(Service::TcpEcho, "0.0.0.0:7001").unwrap();
    world.serve(Service::UdpEcho, "0.0.0.0:7002").unwrap();
    world.serve(Service::Http, "0.0.0.0:80").unwrap();
    world.dns.set_text("*.wild.example.com", 30, &[ADDRESS]);
    world.dns.set_text("www.example.org", 30, &["203.0.113.32"]);
    world.dns.set_text("private.example.org", 30, &["10.1.2.3"]);
    let test = Governed::over(world, POLICY).unwrap();
    let url = format!("http://{NAME}/");
    let run = test.inside.run("curl", &["-sS", "--max-time", "3", &url], LIMIT).unwrap();
    assert_eq!(run.stdout, "ok\n", "{run:?}");
    test.status_until(|status| status.to_string().contains(ADDRESS)).unwrap();
    test
}

fn explain(test: &Governed, to: &str) -> Value {
    let run = test.daemon.egress(&["explain", "--json", to]).unwrap();
    let said: Value = serde_json::from_str(&run.stdout).unwrap_or_else(|error| panic!("{to}: {error}: {run:?}"));
    assert_eq!(run.code(), Some(i32::from(said["allowed"] == false)), "{said}");
    said
}

/// Rule and place, name, resolver, how long ago, until when: by name, name and port, address, URL.
#[test]
fn an_allowed_destination_is_explained_whole() {
    let test = governed();
    let file = test.world.dir().join("policy-0.yaml");
    for to in [&format!("{NAME}:80"), &format!("{ADDRESS}:80"), &format!("http://{NAME}/some/path")] {
        let said = explain(&test, to);
        assert_eq!(said["allowed"], true, "{said}");
        assert_eq!(said["rule"], "wild");
        assert_eq!(said["rules"][0]["source"], format!("{}:3", file.display()));
        assert_eq!(
            (&said["rules"][0]["item"], &said["rules"][0]["why"]),
            (&"*.wild.example.com".into(), &"the pages".into())
        );
        assert_eq!((&said["via_name"], &said["learned_from"]), (&NAME.into(), &"203.0.113.53:53".into()), "{said}");
        assert!(said["learned_seconds_ago"].as_u64().unwrap() < 60, "{said}");
        // `minTtl` of 60 s and the grace of 15 min, in whole ticks.
        let left = said["seconds_left"].as_u64().unwrap();
        assert!((800..=965).contains(&left) && said["in_grace"] == false, "{said}");
        assert_eq!(said["addresses"][0]["address"], ADDRESS);
        assert!(said["generation"].as_u64().unwrap() >= 1 && said["mode"] == "enforce");
    }
    let written = explain(&test, "203.0.113.10:7000");
    assert!(written["rule"] == "one" && written["seconds_left"].is_null(), "{written}");
    assert_eq!(explain(&test, "127.0.0.1:9")["builtin"], "loopback");
    assert_eq!(explain(&test, "203.0.113.53:53/udp")["builtin"], "dns");
    let denied = explain(&test, "169.254.169.254:80");
    assert!(denied["rule"] == "no-metadata" && denied["add"].is_null(), "{denied}");
    // Refusals as the kernel tells them apart, and a name whose only address is refused.
    for (to, reason) in
        [("8.8.8.8:53/udp", "untrusted-resolver"), ("203.0.113.30:81", "no-port"), ("203.0.113.99:81", "no-rule")]
    {
        assert_eq!(explain(&test, to)["reason"], reason, "{to}");
    }
    test.status_until(|status| status.to_string().contains("(private)")).unwrap();
    let private = explain(&test, "private.example.org:80");
    assert!(private["notes"].to_string().contains("no address that counts, so nothing gets there now"), "{private}");
    let text = test.daemon.egress(&["explain", &format!("{NAME}:80")]).unwrap().stdout;
    assert!(text.contains("from 203.0.113.53:53") && text.contains("policy-0.yaml:3)"), "{text}");
}

/// A denial names the nearest rule and how near it is; its line, pasted and applied, opens the destination to real packets.
#[test]
fn the_line_to_add_works_when_pasted_and_applied() {
    let test = governed();
    let mut policy = POLICY.to_owned();
    let cases = [
        (format!("{NAME}:7001"), Some("other-port")),
        ("203.0.113.11:7000".to_owned(), Some("prefix")),
        ("203.0.113.40:7002/udp".to_owned(), Some("prefix")),
        ("wild.example.com:80".to_owned(), Some("apex")),
        ("www.example.org:80".to_owned(), Some("sibling")),
        ("www.elsewhere.net:80".to_owned(), None),
        (format!("{ADDRESS}:7000"), Some("other-port")),
    ];
    for (to, near) in &cases {
        let said = explain(&test, to);
        assert_eq!(said["nearest"]["near"].as_str(), *near, "{to}: {said}");
        let add = said["add"].as_str().unwrap();
        policy += &format!("  {add}\n");
    }
    assert!(tcp(&test.inside, "203.0.113.11:7000").unwrap().refused());
    let more = test.world.dir().join("more.yaml");
    fs::write(&more, &policy).unwrap();
    let applied = test.daemon.egress(&["apply", &more.to_string_lossy()]).unwrap();
    assert!(applied.ok(), "{policy}{applied:?}");
    for (to, _) in &cases {
        assert_eq!(explain(&test, to)["allowed"], true, "{to}");
    }
    for to in ["203.0.113.11:7000", &format!("{ADDRESS}:7000"), &format!("{ADDRESS}:7001")] {
        assert!(tcp(&test.inside, to).unwrap().echoed, "{to}");
    }
    assert!(udp(&test.inside, "203.0.113.40:7002", 10).unwrap().echoed);
    assert!(tcp(&test.inside, "203.0.113.12:7000").unwrap().refused(), "what was not asked for stays closed");
    let run = ["-sS", "--max-time", "3", "http://www.example.org/"];
    assert_eq!(test.inside.run("curl", &run, LIMIT).unwrap().stdout, "ok\n");
}

/// After a restart the time and the resolver are known still; where the file of names was lost, the kernel's own tables
/// answer, and what is not known is said to be so.
#[test]
fn what_a_restart_forgot_is_said_to_be_unknown() {
    let mut test = governed();
    let to = format!("{ADDRESS}:80");
    // Two ticks, so that a time which began anew shows.
    std::thread::sleep(Duration::from_millis(2300));
    test.daemon.stop().unwrap();
    test.restart().unwrap();
    let said = explain(&test, &to);
    assert_eq!((&said["via_name"], &said["learned_from"]), (&NAME.into(), &"203.0.113.53:53".into()), "{said}");
    assert!(said["learned_seconds_ago"].as_u64().unwrap() >= 1, "{said}");
    test.daemon.stop().unwrap();
    fs::remove_file(test.world.dir().join("state/names.json")).unwrap();
    test.restart().unwrap();
    let said = explain(&test, &to);
    assert_eq!((&said["allowed"], &said["rule"]), (&true.into(), &"wild".into()), "{said}");
    assert!(said["via_name"].is_null() && said["learned_from"].is_null(), "{said}");
    assert!(said["seconds_left"].as_u64().unwrap() > 600, "{said}");
    assert!(said["notes"].to_string().contains("not known any more"), "{said}");
    assert!(!tcp(&test.inside, &to).unwrap().refused());
    assert_eq!(explain(&test, &format!("{ADDRESS}:81"))["allowed"], false);
}

/// The grace is told, and what ended is told to have ended.
#[test]
fn the_grace_and_the_end_are_told() {
    let mut policy = POLICY.replace("rules:", "dns: {minTtl: 1s, grace: 4s}\nrules:");
    let world = World::new().unwrap();
    world.dns.set_text("*.wild.example.com", 1, &[ADDRESS]);
    policy.push('\n');
    let test = Governed::over(world, &policy).unwrap();
    let run = test.inside.run("dig", &["+short", "+tries=1", NAME], LIMIT).unwrap();
    assert!(run.stdout.contains(ADDRESS), "{run:?}");
    let to = format!("{ADDRESS}:80");
    let start = std::time::Instant::now();
    let (mut graced, mut ended) = (false, false);
    while !ended && start.elapsed() < LIMIT * 2 {
        let said = explain(&test, &to);
        graced |= said["in_grace"] == true && said["allowed"] == true;
        ended = said["notes"].to_string().contains(&format!("it was an address of {NAME} until"));
        assert!(!ended || said["allowed"] == false, "{said}");
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(graced && ended, "grace told: {graced}, end told: {ended}");
    // As docs/troubleshooting.md has it: the events name it too, until it is reclaimed.
    assert!(tcp(&test.inside, &to).unwrap().refused());
    let event = test.event(|event| event["destination_port"] == 80).unwrap().expect("its event");
    assert!(event["reason"] == "expired" || event["reason"] == "no-rule", "{event}");
    assert_eq!(event["names"][0], NAME, "{event}");
}

/// A new user's path: curl is refused, `explain` says why and what to write, the line is pasted, `apply`, curl works. What each
/// command says is in docs/troubleshooting.md.
#[test]
fn from_a_blocked_curl_to_the_right_rule_in_three_commands() {
    let world = World::new().unwrap();
    world.serve_everywhere(Service::Http, 80).unwrap();
    world.dns.set_text("api.example.com", 30, &["203.0.113.40"]);
    world.dns.set_text("www.example.com", 30, &["203.0.113.41"]);
    let policy = "version: 1\nrules:\n  - {name: web, to: [www.example.com], ports: [80/tcp]}\n";
    let test = Governed::over(world, policy).unwrap();
    let start = std::time::Instant::now();
    let curl = ["-sS", "--max-time", "5", "http://api.example.com/"];
    // 1. What is blocked says so at once.
    let blocked = test.inside.run("curl", &curl, LIMIT).unwrap();
    println!("# curl -sS http://api.example.com/\n{}", blocked.stderr);
    assert!(!blocked.ok() && blocked.took < Duration::from_secs(4), "{blocked:?}");
    // 2. Why, and what to write.
    let explained = test.daemon.egress(&["explain", "http://api.example.com/"]).unwrap();
    println!("# egress explain http://api.example.com/\n{}", explained.stdout);
    assert_eq!(explained.code(), Some(1), "{explained:?}");
    let line = explained.stdout.lines().find(|line| line.trim_start().starts_with("- {")).expect("a line to add");
    let file = test.world.dir().join("policy-0.yaml");
    let text = fs::read_to_string(&file).unwrap();
    // 3. As it is printed, indentation included.
    fs::write(test.world.dir().join("next.yaml"), format!("{text}{line}\n")).unwrap();
    let next = test.world.dir().join("next.yaml");
    let applied = test.daemon.egress(&["apply", &next.to_string_lossy()]).unwrap();
    println!("# egress apply policy.yaml\n{}{}", applied.stdout, applied.stderr);
    assert!(applied.ok(), "{applied:?}");
    let now = test.inside.run("curl", &curl, LIMIT).unwrap();
    println!("# curl -sS http://api.example.com/\n{}({} ms)", now.stdout, start.elapsed().as_millis());
    assert_eq!(now.stdout, "ok\n", "{now:?}");
}
