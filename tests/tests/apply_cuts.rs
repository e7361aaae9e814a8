//! `apply` says which traffic of the last minutes it would cut, before it does (P8).

use std::net::TcpStream;

use egress_tests::probe::{converse, tcp, udp};
use egress_tests::world::NODE_V4;
use egress_tests::{EchoServer, Governed, Held, Run, Service, World};
use serde_json::Value;

const OLD: &str = "version: 1
rules:
  - {name: one, to: [203.0.113.10], ports: [7000/tcp, 7000/udp]}
  - {name: two, to: [203.0.113.11], ports: [7000/tcp, 7000/udp]}
  - {name: named, to: [api.example.com], ports: [7000/tcp]}
  - {name: wide, to: [198.51.100.0/24], ports: [7000/tcp, 7000/udp]}
  - {name: unused, to: [203.0.113.99], ports: [any]}
";
/// Without `two` and `unused`, `api.example.com` by another port, and a part of `wide` denied.
const NEW: &str = "version: 1
rules:
  - {name: one, to: [203.0.113.10], ports: [7000/tcp, 7000/udp]}
  - {name: named, to: [api.example.com], ports: [7001/tcp]}
  - {name: wide, to: [198.51.100.0/24], ports: [7000/tcp, 7000/udp]}
  - {name: part, action: deny, to: [198.51.100.8/32]}
";

fn apply(test: &Governed, text: &str, args: &[&str]) -> Run {
    let file = test.world.dir().join("new.yaml");
    std::fs::write(&file, text).unwrap();
    test.daemon.egress(&[&["apply", &file.to_string_lossy()], args].concat()).unwrap()
}

/// Address, port and protocol of what is told, sorted.
fn told(cut: &Value) -> Vec<String> {
    let mut told: Vec<_> = cut["destinations"]
        .as_array()
        .unwrap()
        .iter()
        .map(|to| format!("{} {}/{}", to["address"].as_str().unwrap(), to["port"], to["protocol"].as_str().unwrap()))
        .collect();
    told.sort_unstable();
    told
}

/// P8: what is told is what was reached and then is not; what goes on is not told; nothing changes by asking.
#[test]
fn what_would_be_cut_is_told_and_then_is() {
    let world = World::new().unwrap();
    world.serve(Service::TcpEcho, "0.0.0.0:7000").unwrap();
    world.serve(Service::UdpEcho, "0.0.0.0:7000").unwrap();
    world.dns.set("api.example.com", 60, &["203.0.113.20".parse().unwrap()]);
    let test = Governed::over(world, OLD).unwrap();
    let _server = EchoServer::start(&test.beside, 2300).unwrap();
    let mut ssh = test.world.world_ns.run(|| TcpStream::connect(format!("{NODE_V4}:2300"))).unwrap();

    let reach = |place| {
        ["203.0.113.10", "203.0.113.11", "198.51.100.7", "198.51.100.8"].map(|to| {
            assert!(udp(place, &format!("{to}:7000"), 5).unwrap().echoed, "{to}");
        })
    };
    reach(&test.inside);
    let mut goes = Held::connect(&test.inside, "203.0.113.11", 7000).unwrap();
    let mut also_goes = Held::connect(&test.beside, "198.51.100.8", 7000).unwrap();
    let mut by_name = Held::connect(&test.inside, "api.example.com", 7000).unwrap();
    let mut stays = [
        Held::connect(&test.inside, "203.0.113.10", 7000).unwrap(),
        Held::connect(&test.beside, "198.51.100.7", 7000).unwrap(),
    ];
    // Reached, and closed again: of connections only open ones are told by destination, the others by their rule's item.
    assert!(tcp(&test.inside, "203.0.113.11:7000").unwrap().echoed);
    assert!(tcp(&test.inside, "203.0.113.99:7000").unwrap().echoed);
    // Not allowed now: nothing that would be cut.
    assert!(!udp(&test.inside, "203.0.113.66:7000", 5).unwrap().echoed);

    let run = apply(&test, NEW, &["--dry-run", "--json"]);
    let json: Value = serde_json::from_str(&run.stdout).unwrap_or_else(|error| panic!("{error}: {run:?}"));
    let cut = &json["cut"];
    assert_eq!(
        told(cut),
        [
            "198.51.100.8 7000/tcp",
            "198.51.100.8 7000/udp",
            "203.0.113.11 7000/tcp",
            "203.0.113.11 7000/udp",
            "203.0.113.20 7000/tcp",
        ],
        "{cut:#}"
    );
    let of = |address: &str, protocol: &str| {
        let all = cut["destinations"].as_array().unwrap();
        all.iter().find(|to| to["address"] == address && to["protocol"] == protocol).unwrap().clone()
    };
    let held = of("203.0.113.11", "tcp");
    assert_eq!((&held["open"], held["near"].as_array().unwrap().len()), (&Value::from(1), 1), "{held}");
    let process = held["processes"][0].as_str().unwrap_or_default();
    assert!(process.starts_with("python3") && process.ends_with(')'), "{held}");
    let datagrams = of("203.0.113.11", "udp");
    assert!(datagrams["open"] == 0 && datagrams["seconds_ago"].as_u64().is_some_and(|ago| ago < 60), "{datagrams}");
    assert_eq!(of("203.0.113.20", "tcp")["names"][0], "api.example.com");
    let warnings = json["warnings"].to_string();
    assert!(warnings.contains("`203.0.113.99` of rule `unused` goes") && warnings.contains("in the last 5"), "{json}");

    // Asked, not done: all go on. Then done, and what was told is what ends.
    let mut all = [&mut goes, &mut also_goes, &mut by_name];
    all.iter_mut().for_each(|held| assert_eq!(held.say("asked").unwrap(), "echo"));
    let run = apply(&test, NEW, &[]);
    assert!(run.ok(), "{run:?}");
    for line in [
        "5 destinations were reached in the last 5 minutes and would be cut off:",
        "203.0.113.11 7000/tcp, 1 open connection, by python3",
        "api.example.com (203.0.113.20) 7000/tcp, 1 open connection, by python3",
        "their open connections are cut at the next packet; all others go on",
    ] {
        assert!(run.stdout.contains(line), "{line}: {run:?}");
    }
    all.iter_mut().for_each(|held| assert_ne!(held.say("after").unwrap(), "echo"));
    stays.iter_mut().for_each(|held| assert_eq!(held.say("after").unwrap(), "echo"));
    assert!(converse(&mut ssh, b"after").unwrap());

    // What takes nothing away does not speak of it.
    let run = apply(&test, OLD, &["--dry-run"]);
    assert!(run.ok() && !run.stdout.contains("cut off"), "{run:?}");
}

/// P8: from audit to enforce, what only passed for lack of enforcement is told, with the process.
#[test]
fn what_audit_let_pass_is_told() {
    let world = World::new().unwrap();
    world.serve(Service::UdpEcho, "0.0.0.0:7000").unwrap();
    let test = Governed::over(world, &OLD.replace("version: 1", "version: 1\nmode: audit")).unwrap();
    for to in ["203.0.113.10:7000", "203.0.113.66:7000"] {
        assert!(udp(&test.inside, to, 5).unwrap().echoed, "{to}");
    }
    assert!(test.event(|event| event["kind"] == "would-drop").unwrap().is_some());
    let run = apply(&test, OLD, &["--dry-run", "--json"]);
    let json: Value = serde_json::from_str(&run.stdout).unwrap_or_else(|error| panic!("{error}: {run:?}"));
    assert_eq!(told(&json["cut"]), ["203.0.113.66 7000/udp"], "{json:#}");
    assert!(!json["cut"]["destinations"][0]["processes"][0].as_str().unwrap_or_default().is_empty(), "{json:#}");
}
