//! `egress explain --packet`: the attached programs' word, the model's, and what real packets do, side by side; and that
//! asking leaves no trace. Needs root.

use std::{
    collections::HashSet,
    io,
    net::{SocketAddr, UdpSocket},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use egress_tests::{
    Cgroup, Daemon, Governed, Place, World,
    place::Run,
    probe::{any, open},
};
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, SockaddrStorage, connect, socket};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(20);
const POLICY: &str = "version: 1
rules:
  - {name: wild, to: ['*.wild.example.com'], ports: [443/tcp, 7000-7100/udp]}
  - {name: net, to: [198.51.100.0/25, '2001:db8:1::/48'], ports: [any]}
  - {name: one, to: [203.0.113.10], ports: [80/tcp, icmp]}
  - {name: time, to: [any], ports: [123/udp]}
  - {name: closed, action: deny, to: [198.51.100.64/28], ports: [80/tcp]}
  - {name: no-metadata, action: deny, to: [169.254.169.254]}
";
const NAME: &str = "some.wild.example.com";
const LEARNED: [&str; 2] = ["203.0.113.30", "2001:db8::30"];
const PACKETS: usize = 60;

fn governed() -> Governed {
    let world = World::new().unwrap();
    world.dns.set_text("*.wild.example.com", 60, &LEARNED);
    let test = Governed::over(world, POLICY).unwrap();
    for kind in ["A", "AAAA"] {
        let run = test.inside.run("dig", &["+short", "+tries=1", NAME, kind], LIMIT).unwrap();
        assert!(LEARNED.iter().any(|address| run.stdout.contains(address)), "{run:?}");
    }
    test
}

fn ask(test: &Governed, args: &[&str]) -> Run {
    test.daemon.egress(&[&["explain", "--json", "--packet"][..], args].concat()).unwrap()
}

fn said(test: &Governed, args: &[&str]) -> Value {
    let run = ask(test, args);
    let said: Value = serde_json::from_str(&run.stdout).unwrap_or_else(|error| panic!("{args:?}: {error}: {run:?}"));
    assert_eq!(said["agree"], true, "kernel and model disagree: {said:#}");
    assert_eq!(run.code(), Some(i32::from(said["goes_on"] == false)), "{said}");
    said
}

/// Numbers that look random; the seed is printed with a failure.
struct Dice(u64);

impl Dice {
    fn new() -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos();
        println!("seed {now}");
        Self(now as u64 | 1)
    }

    fn roll(&mut self, sides: usize) -> usize {
        // Knuth's MMIX multiplier; the low bits of such a sequence are poor.
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % sides
    }

    fn of<'a>(&mut self, all: &[&'a str]) -> &'a str {
        all[self.roll(all.len())]
    }

    fn port(&mut self) -> u16 {
        [80, 443, 22, 53, 123, 7000, 7100, 7101, 65535][self.roll(9)]
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Sample {
    proto: &'static str,
    to: SocketAddr,
}

impl Sample {
    fn random(dice: &mut Dice) -> Self {
        let address = match dice.roll(8) {
            0 => dice.of(&LEARNED).to_owned(),
            1 => format!("198.51.100.{}", dice.roll(256)),
            2 => format!("198.51.100.{}", 60 + dice.roll(24)),
            3 => format!("203.0.113.{}", 1 + dice.roll(40)),
            4 => format!("2001:db8:{}::{:x}", dice.roll(3), 1 + dice.roll(999)),
            5 => dice.of(&["169.254.169.254", "203.0.113.53", "2001:db8::53", "203.0.113.10"]).to_owned(),
            6 => format!("20.{}.{}.{}", dice.roll(256), dice.roll(256), dice.roll(256)),
            _ => "203.0.113.30".to_owned(),
        };
        let proto = dice.of(&["tcp", "tcp", "udp", "udp", "icmp"]);
        let port = if proto == "icmp" { 0 } else { dice.port() };
        Self { proto, to: SocketAddr::new(address.parse().unwrap(), port) }
    }

    fn text(&self) -> String {
        let to = if self.proto == "icmp" { self.to.ip().to_string() } else { self.to.to_string() };
        format!("{} {to}", self.proto)
    }

    fn number(&self) -> u8 {
        match (self.proto, self.to.is_ipv4()) {
            ("tcp", _) => 6,
            ("udp", _) => 17,
            (_, true) => 1,
            (_, false) => 58,
        }
    }

    /// Sends it, and does not wait for an answer. That it is refused is an outcome like others.
    fn send(&self) -> io::Result<()> {
        match self.proto {
            "tcp" => {
                let family = if self.to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
                let flags = SockFlag::SOCK_NONBLOCK;
                let fd = socket(family, SockType::Stream, flags, SockProtocol::Tcp)?;
                let _ = connect(std::os::fd::AsRawFd::as_raw_fd(&fd), &SockaddrStorage::from(self.to));
            }
            "udp" => {
                let _ = UdpSocket::bind(any(self.to))?.send_to(b"hello", self.to);
            }
            _ => {
                let (family, kind) = if self.to.is_ipv4() { (libc::AF_INET, 8) } else { (libc::AF_INET6, 128) };
                let raw = open(family, libc::SOCK_RAW, i32::from(self.number()))?;
                let _ = egress_tests::probe::send(&raw, &[kind, 0, 0xf7, 0xff, 0, 0, 0, 0], self.to, 0);
            }
        }
        Ok(())
    }
}

/// The samples of which a packet came to the world when they were sent from `place`.
fn arrived(test: &Governed, place: &Place, samples: &[Sample]) -> HashSet<Sample> {
    test.world.sniffer.clear();
    place
        .fork(LIMIT, || Ok(samples.iter().try_for_each(Sample::send).map_err(|error| error.to_string())))
        .unwrap()
        .unwrap();
    let here = |sample: Sample| {
        let port = (sample.proto != "icmp").then_some(sample.to.port());
        move |frame: &egress_tests::sniffer::Frame| {
            // Neighbour discovery goes to other addresses than a sample's, or is no echo request.
            let echo = frame.protocol != Some(58) || frame.bytes.get(54) == Some(&128);
            echo && frame.goes_to(sample.to.ip(), sample.number(), port)
        }
    };
    std::thread::sleep(Duration::from_millis(300));
    let frames = test.world.sniffer.frames();
    samples.iter().filter(|sample| frames.iter().any(here(**sample))).copied().collect()
}

/// P1: at sockets and at uplinks the programs' own verdict is the model's, and what real packets do.
#[test]
fn kernel_model_and_reality_agree() {
    let test = governed();
    let mut dice = Dice::new();
    let mut samples: Vec<Sample> = Vec::new();
    while samples.len() < PACKETS {
        let sample = Sample::random(&mut dice);
        if !samples.contains(&sample) {
            samples.push(sample);
        }
    }
    // Asked before anything is sent: a flow that is known is judged by what is known of it.
    let verdicts: Vec<Value> = samples.iter().map(|sample| said(&test, &[&sample.text()])).collect();
    let mut passed = 0;
    for (place, hook) in [(&test.beside, "uplink"), (&test.inside, "socket")] {
        // Twice: the first may wait for the neighbour's address too long to be seen.
        let mut there = arrived(&test, place, &samples);
        there.extend(arrived(&test, place, &samples));
        for (sample, said) in samples.iter().zip(&verdicts) {
            let asked = said["hooks"].as_array().unwrap().iter().find(|asked| asked["hook"] == hook).unwrap();
            assert_eq!(asked["kernel"], asked["model"], "{asked}");
            assert_eq!(asked["kernel"]["goes_on"], there.contains(sample), "{hook} {sample:?}: {said:#}");
            passed += usize::from(there.contains(sample));
        }
    }
    assert!((10..PACKETS * 2 - 10).contains(&passed), "{passed} passed: the sample tells little");
}

/// Rule, place and reason are told of each; a question, a connection's segment, a loopback address, IPv6.
#[test]
fn verdicts_name_their_rules() {
    let test = governed();
    let at = |said: &Value, hook: &str| {
        said["hooks"].as_array().unwrap().iter().find(|asked| asked["hook"] == hook).unwrap()["kernel"].clone()
    };
    let by_name = said(&test, &["tcp 192.0.2.10:41000 > 203.0.113.30:443"]);
    for hook in ["socket", "uplink"] {
        let verdict = at(&by_name, hook);
        assert_eq!((&verdict["reason"], &verdict["rule"]["name"]), (&"rule".into(), &"wild".into()), "{by_name}");
        assert!(verdict["rule"]["source"].as_str().unwrap().ends_with("policy-0.yaml:3"), "{verdict}");
    }
    assert_eq!(said(&test, &["tcp 203.0.113.30:443"])["packet"], "tcp 192.0.2.10:40000 > 203.0.113.30:443");
    for (packet, socket, uplink) in [
        ("tcp 203.0.113.30:80", "no-port", "no-port"),
        ("tcp 198.51.100.70:80", "denied", "denied"),
        ("udp 203.0.113.53:53 query other.wild.example.com", "dns", "dns"),
        ("udp 203.0.113.53:53 query example.org", "name-not-allowed", "name-not-allowed"),
        ("udp 203.0.113.53:53", "bad-query", "bad-query"),
        ("tcp 203.0.113.53:53", "dns", "dns"),
        ("udp 203.0.113.54:53 query example.org", "untrusted-resolver", "untrusted-resolver"),
        ("tcp 203.0.113.30:444 ack", "no-port", "no-port"),
        ("icmp 203.0.113.10", "rule", "rule"),
        ("icmp 2001:db8:1::1", "rule", "rule"),
        ("udp 0.0.0.0:68 > 255.255.255.255:67", "builtin", "builtin"),
    ] {
        let told = said(&test, &[packet]);
        assert_eq!(at(&told, "socket")["reason"], socket, "{packet}: {told}");
        assert_eq!(at(&told, "uplink")["reason"], uplink, "{packet}: {told}");
    }
    assert_eq!(at(&said(&test, &["tcp 127.0.0.1:80"]), "socket")["reason"], "loopback");
    let text = test.daemon.egress(&["explain", "--packet", "tcp 203.0.113.31:443"]).unwrap();
    assert!(text.code() == Some(1) && text.stdout.contains("dropped, no-port\n    model     the same"), "{text:?}");
}

/// The sender's cgroup tells which hook judges; wrong input is told, with what to write.
#[test]
fn a_cgroup_chooses_the_hook() {
    let test = governed();
    let governed = test.cgroup.path().to_string_lossy().into_owned();
    let inside = said(&test, &["tcp 203.0.113.30:443", "--cgroup", &governed]);
    assert!(inside["hooks"].as_array().unwrap().len() == 1 && inside["hooks"][0]["hook"] == "socket", "{inside}");
    let below = test.cgroup.path().file_name().unwrap().to_string_lossy().into_owned();
    assert_eq!(said(&test, &["tcp 203.0.113.30:443", "--cgroup", &below])["hooks"][0]["hook"], "socket");
    let outside = said(&test, &["tcp 203.0.113.30:443", "--cgroup", "/"]);
    assert!(
        outside["hooks"][0]["hook"] == "uplink" && outside["notes"].to_string().contains("not governed"),
        "{outside}"
    );
    let only = said(&test, &["tcp 203.0.113.30:443", "--hook", "uplink"]);
    assert!(only["hooks"].as_array().unwrap().len() == 1 && only["hooks"][0]["at"] == "up0", "{only}");
    for (args, part) in [
        (&["tcp 203.0.113.30:443", "--cgroup", "/no/such"][..], "is no cgroup"),
        (&["tcp 203.0.113.30:443", "--cgroup", "/", "--hook", "socket"], "leave `--hook` or `--cgroup` out"),
        (&["tcp 203.0.113.30"], "an address with a port"),
        (&["tcp example.com:443"], "write it like"),
    ] {
        let run = ask(&test, args);
        assert!(run.code() == Some(2) && run.stderr.contains(part), "{args:?}: {run:?}");
    }
}

/// Counters, rules' hits, tables, events and names are after many questions what they were before: they differ by what was
/// really sent, and a packet that is refused right after is told and counted.
#[test]
fn asking_leaves_no_trace() {
    let test = governed();
    // What the start left on its way: neighbour discovery, the learned event.
    std::thread::sleep(Duration::from_millis(300));
    let state = || {
        let status = test.daemon.status().unwrap();
        let quiet = |reason: &Value| matches!(reason.as_str(), Some("builtin" | "judged"));
        let counters: Vec<Value> = status["counters"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|counter| !quiet(&counter["reason"]))
            .cloned()
            .collect();
        let maps: Vec<String> = status["maps"]
            .as_array()
            .unwrap()
            .iter()
            .map(|map| format!("{} {}", map["name"], map["entries"]))
            .collect();
        (counters, status["rules"].clone(), status["learning"].clone(), maps, test.daemon.events(false).unwrap().len())
    };
    let before = state();
    for packet in [
        "tcp 203.0.113.30:443",
        "udp 203.0.113.30:7000",
        "tcp 203.0.113.31:443",
        "udp 203.0.113.31:9",
        "icmp 203.0.113.10",
        "udp 203.0.113.53:53 query another.wild.example.com",
        "udp 203.0.113.53:53 query example.org",
        "udp [2001:db8::9]:123",
        "udp 192.0.2.10:5000 > 198.51.100.1:5000",
    ] {
        for _ in 0..3 {
            said(&test, &[packet]);
        }
    }
    assert_eq!(state(), before);
    let sent = Sample { proto: "udp", to: "203.0.113.31:9".parse().unwrap() };
    test.inside.fork(LIMIT, || Ok(sent.send().is_ok())).unwrap();
    let told = test.event(|event| event["destination_port"] == 9).unwrap().expect("a real refusal is told");
    assert_eq!(told["count"], 1, "{told}");
    let (after, ..) = state();
    let refused = |counters: &[Value]| {
        let found = counters.iter().find(|counter| counter["reason"] == "no-port");
        found.map_or(0, |counter| counter["packets"].as_u64().unwrap())
    };
    assert_eq!(refused(&after), refused(&before.0) + 1, "{told} {after:?}");
}

/// In audit mode what no rule allows goes on, and both say why; without an uplink the sockets' program is asked alone.
#[test]
fn audit_mode_and_no_uplink_are_told() {
    let world = World::new().unwrap();
    let cgroup = Cgroup::new("governed").unwrap();
    let builder = Daemon::builder(&world).policy_text(&POLICY.replace("version: 1", "version: 1\nmode: audit"));
    let daemon = builder.cgroup(&cgroup).interfaces(&[]).start().unwrap();
    let (inside, beside) = (world.node().in_cgroup(&cgroup), world.node());
    let test = Governed { daemon, inside, beside, cgroup, world };
    let told = said(&test, &["tcp 8.8.8.8:443"]);
    assert_eq!((&told["mode"], &told["goes_on"]), (&"audit".into(), &true.into()), "{told}");
    let hooks = told["hooks"].as_array().unwrap();
    assert!(hooks.len() == 1 && hooks[0]["kernel"]["reason"] == "no-port", "{told}");
    let run = ask(&test, &["tcp 8.8.8.8:443", "--hook", "uplink"]);
    assert!(run.code() == Some(2) && run.stderr.contains("no uplink is governed"), "{run:?}");
}

/// An uplink without a link header has a program of its own.
#[test]
fn an_uplink_without_link_header_is_asked_as_well() {
    let world = World::new().unwrap();
    // Made so, it stays though nobody holds it.
    let made = world.node().run("ip", &["tuntap", "add", "dev", "tun0", "mode", "tun"], LIMIT).unwrap();
    assert!(made.ok(), "{made:?}");
    assert!(world.node().run("ip", &["link", "set", "tun0", "up"], LIMIT).unwrap().ok());
    let cgroup = Cgroup::new("governed").unwrap();
    let builder = Daemon::builder(&world).policy_text(POLICY).cgroup(&cgroup).interfaces(&["up0", "tun0"]);
    let daemon = builder.start().unwrap();
    let (inside, beside) = (world.node().in_cgroup(&cgroup), world.node());
    let test = Governed { daemon, inside, beside, cgroup, world };
    for (packet, reason) in [
        ("tcp 198.51.100.1:443", "rule"),
        ("udp [2001:db8:1::7]:9", "rule"),
        ("tcp 169.254.169.254:80", "denied"),
        ("udp 203.0.113.53:53 query example.org", "name-not-allowed"),
    ] {
        let told = said(&test, &[packet, "--hook", "uplink"]);
        let at: Vec<_> =
            told["hooks"].as_array().unwrap().iter().map(|asked| (&asked["at"], &asked["kernel"]["reason"])).collect();
        assert_eq!(at, [(&"up0".into(), &reason.into()), (&"tun0".into(), &reason.into())], "{packet}: {told}");
    }
}
