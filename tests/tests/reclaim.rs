//! The address tables over time: expired addresses leave them, those in use stay (P6), and CNAME targets outlive a reload.

use std::net::TcpStream;
use std::time::Duration;

use egress_tests::probe::{converse, tcp};
use egress_tests::{Fault, Governed, Service, World, learned};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(8);
const POLICY: &str = "version: 1
dns: {minTtl: 1s, grace: 0s}
rules:
  - {name: wild, to: ['*.wild.example.com'], ports: [7000/tcp]}
  - {name: exact, to: [www.example.com], ports: [7000/tcp]}
  - {name: fixed, to: [203.0.113.9], ports: [7000/tcp]}
";

fn entries(status: &Value, name: &str) -> u64 {
    let maps = status["maps"].as_array().unwrap();
    maps.iter().find(|map| map["name"] == name).unwrap()["entries"].as_u64().unwrap()
}

fn world() -> World {
    let world = World::new().unwrap();
    world.serve(Service::TcpEcho, "0.0.0.0:7000").unwrap();
    world.dns.set_text("www.example.com", 600, &["203.0.113.80"]);
    for n in 0..60 {
        world.dns.set_text(&format!("n{n}.wild.example.com"), 1, &[&format!("198.51.100.{n}"), "2001:db8::77"]);
    }
    world
}

/// P6: what expired goes, without a reload; the policy's own addresses and an exact name's stay, and names are learned anew.
#[test]
fn expired_addresses_leave_the_tables() {
    let test = Governed::over(world(), POLICY).unwrap();
    let ask = |n: u8| test.inside.run("getent", &["ahosts", &format!("n{n}.wild.example.com")], LIMIT).unwrap();
    assert!((0..60).all(|n| ask(n).ok()));
    let learned_before = learned::addresses(&test.world).unwrap();
    assert!(learned_before.contains(&"198.51.100.59".parse().unwrap()));
    assert!(learned_before.contains(&"2001:db8::77".parse().unwrap()));
    // The exact name and the policy's own address.
    let status = test.status_until(|status| entries(status, "ADDRESSES_4") == 2).unwrap();
    assert_eq!(entries(&status, "ADDRESSES_6"), 0, "{status:#}");
    for to in ["203.0.113.80:7000", "203.0.113.9:7000"] {
        assert!(tcp(&test.inside, to).unwrap().echoed, "{to}");
    }
    assert!(!tcp(&test.inside, "198.51.100.7:7000").unwrap().echoed, "an expired address");
    assert!(ask(7).ok());
    assert!(tcp(&test.inside, "198.51.100.7:7000").unwrap().echoed, "learned anew");
}

/// A connection outlives its name's address, to the last packet: that the client resets it is no refusal.
#[test]
fn a_connection_outlives_its_address() {
    let test = Governed::over(world(), POLICY).unwrap();
    assert!(test.inside.run("getent", &["ahosts", "n1.wild.example.com"], LIMIT).unwrap().ok());
    let reset = test.inside.fork(LIMIT, || {
        let mut stream = TcpStream::connect("198.51.100.1:7000")?;
        std::thread::sleep(Duration::from_millis(3500));
        assert!(TcpStream::connect("198.51.100.1:7000").is_err(), "the address has not expired");
        assert!(converse(&mut stream, b"still")?);
        let linger = libc::linger { l_onoff: 1, l_linger: 0 };
        nix::sys::socket::setsockopt(&stream, nix::sys::socket::sockopt::Linger, &linger)?;
        Ok(())
    });
    reset.unwrap();
    let status = test.daemon.status().unwrap();
    let told = status["counters"].as_array().unwrap().iter().filter(|counter| counter["passes"] == false);
    // The attempt above, by connect alone.
    let refused: u64 = told.map(|counter| counter["packets"].as_u64().unwrap()).sum();
    assert_eq!(refused, 1, "{:#}", status["counters"]);
}

/// What the kernel did not learn is told, and why.
#[test]
fn status_tells_what_was_not_learned() {
    let test = Governed::over(world(), POLICY).unwrap();
    test.world.dns.set_text("inside.wild.example.com", 60, &["10.0.0.7"]);
    test.world.dns.fault("cut.wild.example.com", Fault::WrongQuestion("other.wild.example.com".to_owned()));
    for name in ["inside.wild.example.com", "cut.wild.example.com"] {
        test.inside.run("dig", &["+time=1", "+tries=1", name], LIMIT).unwrap();
    }
    let status = test.daemon.status().unwrap();
    let count = |what: &str| {
        let learning = status["learning"].as_array().unwrap();
        learning.iter().find(|counter| counter["what"] == what).map(|counter| counter["count"].as_u64().unwrap())
    };
    assert_eq!((count("private"), count("other-question")), (Some(1), Some(1)), "{status:#}");
    let shown = test.daemon.egress(&["status"]).unwrap().stdout;
    assert!(shown.contains("not learned from DNS") && shown.contains("other-question"), "{shown}");
}

/// P4: a client that asks link by link goes on after a reload where it was.
#[test]
fn cname_targets_outlive_a_reload() {
    let test = Governed::over(world(), &POLICY.replace("minTtl: 1s", "minTtl: 60s")).unwrap();
    test.world.dns.cname("alias.wild.example.com", 60, "target.elsewhere.test");
    test.world.dns.set_text("target.elsewhere.test", 60, &["198.51.100.90"]);
    test.world.dns.fault("alias.wild.example.com", Fault::NoChase);
    let dig = |name: &str| test.inside.run("dig", &["+short", "+time=1", "+tries=1", name], LIMIT).unwrap().stdout;
    assert!(!dig("target.elsewhere.test").contains("198.51.100.90"), "asked for by nobody yet");
    assert!(dig("alias.wild.example.com").contains("target.elsewhere.test"));
    let generation = test.daemon.status().unwrap()["generation"].as_u64().unwrap();
    let more = format!(
        "{}  - {{name: more, to: [more.example.com], ports: [443/tcp]}}\n",
        POLICY.replace("minTtl: 1s", "minTtl: 60s")
    );
    test.reload(&more, |status| status["generation"].as_u64() > Some(generation)).unwrap();
    assert!(dig("target.elsewhere.test").contains("198.51.100.90"), "refused after the reload");
    assert!(tcp(&test.inside, "198.51.100.90:7000").unwrap().echoed);
    // Where the rule goes, its targets go.
    let generation = test.daemon.status().unwrap()["generation"].as_u64().unwrap();
    let less = more.replace("'*.wild.example.com'", "'*.other.example.com'");
    test.reload(&less, |status| status["generation"].as_u64() > Some(generation)).unwrap();
    assert!(!dig("target.elsewhere.test").contains("198.51.100.90"));
}
