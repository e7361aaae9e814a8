//! Names that rotate through hundreds of addresses, and resolvers that fail for a while (P4, P7), in seconds: TTL, grace and
//! times are those of a policy that is in a hurry. A day by a test's clock is in `egress-user/src/resolve/tests/day.rs` and
//! `egress-ebpf/src/learn/tests.rs`.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use egress_tests::probe::{Attempt, converse, tcp};
use egress_tests::world::{DNS_V4, DNS_V6};
use egress_tests::{Cgroup, Daemon, Fault, Governed, Held, Service, World, learned};
use serde::{Deserialize, Serialize};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(60);
const PORT: u16 = 7000;

fn world() -> World {
    let world = World::new().unwrap();
    world.serve(Service::TcpEcho, "0.0.0.0:7000").unwrap();
    world
}

/// Packets that passed for a reason.
fn passed(status: &Value, reason: &str) -> u64 {
    let counters = status["counters"].as_array().unwrap();
    counters
        .iter()
        .find(|counter| counter["reason"] == reason)
        .map_or(0, |counter| counter["packets"].as_u64().unwrap())
}

/// The first address of a name, as a client that has no cache gets it.
fn resolve(asks: &UdpSocket, labels: &[&str]) -> io::Result<Ipv4Addr> {
    let mut query = vec![0x5a, 0xa5, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in labels {
        query.push(label.len() as u8);
        query.extend(label.as_bytes());
    }
    query.extend([0, 0, 1, 0, 1]);
    let mut buffer = [0; 512];
    for _ in 0..20 {
        asks.send(&query)?;
        if let Ok(length) = asks.recv(&mut buffer)
            && length > query.len() + 4
        {
            let octets: [u8; 4] = buffer[length - 4..length].try_into().expect("four bytes");
            return Ok(octets.into());
        }
    }
    Err(io::ErrorKind::TimedOut.into())
}

/// How a client fared.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Fared {
    addresses: usize,
    flows: u32,
    /// Of these, to addresses whose TTL was over for sure.
    late: u32,
    lost: Vec<String>,
}

/// The answers' TTL and `dns.minTtl`, in the policy below.
const TTL: Duration = Duration::from_secs(1);
/// Past this age an answer's TTL is over: a second is up to two ticks of 1.07 s, the tick that began when it came is one more,
/// and a second for a machine that is busy.
const OVER: Duration = Duration::from_millis(4300);
/// TTL and grace.
const COUNTS: Duration = Duration::from_secs(9);
const ROTATING: &str = "version: 1
dns: {minTtl: 1s, grace: 8s}
rules:
  - {name: objects, to: ['*.objects.example.com'], ports: [7000/tcp]}
";

/// Resolves, connects at once, and connects once more to what it resolved a few seconds before, over and over.
fn rotating_client() -> io::Result<Fared> {
    let asks = UdpSocket::bind("0.0.0.0:0")?;
    asks.connect((DNS_V4.parse::<IpAddr>().expect("an address"), 53))?;
    asks.set_read_timeout(Some(Duration::from_secs(1)))?;
    let mut fared = Fared::default();
    let mut known: Vec<(Ipv4Addr, Instant)> = Vec::new();
    let mut held = Vec::new();
    let connect = |to: Ipv4Addr, since: Instant, fared: &mut Fared| {
        let age = since.elapsed();
        let stream = TcpStream::connect_timeout(&SocketAddr::from((to, PORT)), Duration::from_secs(5));
        // A machine that was busy elsewhere meanwhile has taken the address' life.
        if stream.is_err() && since.elapsed() < COUNTS {
            fared.lost.push(format!("{to}, {age:?} old: {stream:?}"));
        } else if stream.is_ok() {
            fared.flows += 1;
            fared.late += u32::from(age > OVER);
        }
        stream.ok()
    };
    // As many as there are addresses: none comes twice, and so is fresh again.
    for n in 0..300 {
        thread::sleep(Duration::from_millis(20));
        let since = Instant::now();
        let address = resolve(&asks, &["bucket", "objects", "example", "com"])?;
        known.push((address, since));
        let stream = connect(address, since, &mut fared);
        if n < 5 {
            held.push((address, stream));
        }
        // What a client with a cache of its own, or one that never asks again, still has.
        let old = known.iter().find(|(_, since)| (OVER..COUNTS - TTL).contains(&since.elapsed()));
        if let Some((old, since)) = old.copied() {
            connect(old, since, &mut fared);
        }
    }
    for (address, stream) in held {
        let goes_on = stream.is_some_and(|mut stream| converse(&mut stream, b"still").unwrap_or(false));
        if !goes_on {
            fared.lost.push(format!("{address}, which was open from the first"));
        }
    }
    known.sort_unstable();
    known.dedup_by_key(|(address, _)| *address);
    fared.addresses = known.len();
    Ok(fared)
}

/// P4: what S3 and CDNs do. No flow is lost, at once or later within TTL and grace; what counts by the grace is counted.
#[test]
fn names_that_rotate_through_hundreds_of_addresses_lose_no_flow() {
    let world = world();
    let addresses: Vec<IpAddr> = (0..300).map(|n| Ipv4Addr::from(0x1400_0001 + n).into()).collect();
    world.dns.set("bucket.objects.example.com", 1, &addresses);
    world.dns.rotate("bucket.objects.example.com");
    let test = Governed::over(world, ROTATING).unwrap();
    let fared = test.inside.fork(LIMIT, || Ok(rotating_client()?)).unwrap();
    println!("{fared:?}");
    assert!(fared.lost.is_empty(), "{:?}", fared.lost);
    assert_eq!(fared.addresses, 300);
    assert!(fared.flows > 300 && fared.late > 0, "{fared:?}");
    let status = test.daemon.status().unwrap();
    assert!(passed(&status, "grace") >= u64::from(fared.late), "{} late flows: {:#}", fared.late, status["counters"]);
    assert!(passed(&status, "rule") > 0, "what is fresh is told apart: {:#}", status["counters"]);
}

/// An address that is used after its TTL but inside the grace passes and is counted; `status` says so.
#[test]
fn what_passes_in_the_grace_is_counted() {
    let world = world();
    world.dns.set_text("one.objects.example.com", 1, &["203.0.113.66"]);
    let test = Governed::over(world, &ROTATING.replace("8s", "5m")).unwrap();
    let mut held = Held::connect(&test.inside, "one.objects.example.com", PORT).unwrap();
    thread::sleep(OVER);
    let before = test.daemon.status().unwrap();
    assert_eq!(passed(&before, "grace"), 0, "an open connection is not a use of the address");
    assert!(!test.daemon.egress(&["status"]).unwrap().stdout.contains("in the grace"));
    assert_eq!(held.say("still").unwrap(), "echo");
    assert!(tcp(&test.inside, "203.0.113.66:7000").unwrap().echoed);
    // Also of packets without a governed socket.
    assert!(tcp(&test.beside, "203.0.113.66:7000").unwrap().echoed);
    let after = test.daemon.status().unwrap();
    assert_eq!(passed(&after, "grace"), 2, "{:#}", after["counters"]);
    let shown = test.daemon.egress(&["status"]).unwrap().stdout;
    assert!(shown.contains("2 packets passed in the grace"), "{shown}");
}

/// P7: exact names while their resolver fails, each in its own way, for longer than TTL and grace. The last good answer stays.
#[test]
fn a_resolver_that_fails_keeps_the_last_good_answers() {
    let world = world();
    let faults = [
        ("servfail", Some(Fault::ServFail)),
        ("refused", Some(Fault::Refused)),
        ("silent", Some(Fault::Silent)),
        ("empty", Some(Fault::Empty)),
        ("private", None),
        ("garbage", Some(Fault::Bytes(vec![0xff; 40]))),
        ("flapping", None),
        ("slow", None),
    ];
    let mut policy = String::from("version: 1\ndns: {minTtl: 1s, grace: 14s, maxStale: 10m}\nrules:\n");
    let mut at = Vec::new();
    for (n, (what, _)) in faults.iter().chain([&("gone", None)]).enumerate() {
        let (name, address) = (format!("{what}.example.com"), format!("203.0.113.{}", 100 + n));
        world.dns.set_text(&name, 1, &[&address]);
        policy += &format!("  - {{name: {what}, to: [{name}], ports: [7000/tcp]}}\n");
        at.push((*what, name, format!("{address}:7000")));
    }
    let test = Governed::over(world, &policy).unwrap();
    let connect = |to: &str| -> Attempt { tcp(&test.inside, to).unwrap() };
    let every = |status: &Value| {
        let names = status["names"].as_array().unwrap();
        names.len() == at.len() && names.iter().all(|name| !name["addresses"].as_array().unwrap().is_empty())
    };
    test.status_until(every).unwrap();
    for (what, fault) in &faults {
        test.world.dns.fault(&format!("{what}.example.com"), fault.clone());
    }
    test.world.dns.set_text("private.example.com", 1, &["10.0.0.7", "127.0.0.1"]);
    test.world.dns.delay("slow.example.com", Duration::from_millis(1500));
    test.world.dns.remove("gone.example.com");
    let start = Instant::now();
    // TTL and grace, as long as it takes to see that the resolver fails, and a tick for each.
    while start.elapsed() < Duration::from_secs(19) {
        let down = start.elapsed().as_secs().is_multiple_of(2);
        test.world.dns.fault("flapping.example.com", down.then_some(Fault::ServFail));
        for (what, _, to) in at.iter().filter(|(what, ..)| *what != "gone") {
            let got = connect(to);
            assert!(got.echoed, "{what} after {:?}: {got:?}", start.elapsed());
        }
        thread::sleep(Duration::from_millis(300));
    }
    let gone = at.iter().find(|(what, ..)| *what == "gone").unwrap();
    assert!(connect(&gone.2).refused(), "a name that does not exist any more ends after the grace");
    let known = learned::addresses(&test.world).unwrap();
    assert!(!known.contains(&"10.0.0.7".parse().unwrap()) && !known.contains(&"127.0.0.1".parse().unwrap()));
    let status = test.daemon.status().unwrap();
    let failing = |what: &str| {
        let names = status["names"].as_array().unwrap();
        !names.iter().find(|name| name["name"] == format!("{what}.example.com")).unwrap()["last_error"].is_null()
    };
    assert!(["servfail", "refused", "silent", "private", "gone"].into_iter().all(failing), "{status:#}");
    assert!(!failing("slow"), "{status:#}");
}

/// P4: a node whose only resolver has an IPv6 address.
#[test]
fn an_ipv6_only_resolver_is_enough() {
    let world = world();
    world.set_resolvers(&[DNS_V6]).unwrap();
    world.dns.set_text("exact.example.com", 30, &["203.0.113.70"]);
    world.dns.set_text("wild.objects.example.com", 30, &["203.0.113.71"]);
    let policy = format!("{ROTATING}  - {{name: exact, to: [exact.example.com], ports: [7000/tcp]}}\n");
    let cgroup = Cgroup::new("v6dns").unwrap();
    let daemon = Daemon::builder(&world).policy_text(&policy).cgroup(&cgroup).resolvers(&[DNS_V6]).start().unwrap();
    let (inside, beside) = (world.node().in_cgroup(&cgroup), world.node());
    let test = Governed { daemon, inside, beside, cgroup, world };
    test.status_until(|status| !status["names"].as_array().unwrap().is_empty()).unwrap();
    assert!(tcp(&test.inside, "203.0.113.70:7000").unwrap().echoed, "asked ahead by the daemon");
    assert!(tcp(&test.inside, "203.0.113.71:7000").unwrap().refused());
    assert!(Held::connect(&test.inside, "wild.objects.example.com", PORT).is_ok(), "learned by the kernel");
    test.world.sniffer.assert_none("a question by IPv4", |frame| frame.goes_to(DNS_V4.parse().unwrap(), 17, Some(53)));
}
