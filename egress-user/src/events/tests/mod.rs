mod attribution;
mod broadcast;
mod containers;
mod filters;
mod output;
mod pods;

use std::net::{IpAddr, Ipv4Addr};

use egress_ebpf::{
    abi::{self, DropEvent, LearnedEvent, NAME_KEY, Process},
    reason::Reason,
};
use zerocopy::{FromZeros, IntoBytes};

use super::*;

/// 2026-03-01T12:03:44Z at 1,000 s after the boot, of which the machine slept 500 more.
const CLOCK: Clock =
    Clock { monotonic: 1_000_000_000_000, boot: 1_500_000_000_000, wall: Timestamp(1_772_366_624_000_000) };

fn comm(text: &[u8]) -> [u8; 16] {
    let mut comm = [0; 16];
    comm[..text.len()].copy_from_slice(text);
    comm
}

fn reversed(name: &str) -> ([u8; NAME_KEY], u16) {
    let mut bytes = [0; NAME_KEY];
    for (slot, byte) in bytes.iter_mut().zip(name.bytes().rev()) {
        *slot = byte;
    }
    (bytes, u16::try_from(name.len()).unwrap())
}

/// curl's connect to 203.0.113.9:443, refused, one second ago.
fn refused() -> DropEvent {
    DropEvent {
        kind: abi::EVENT_DROP,
        reason: Reason::NoRule as u8,
        hook: abi::HOOK_CONNECT,
        enforced: 1,
        proto: abi::PROTO_TCP,
        time: 999_000_000_000,
        destination: abi::Address::v4([203, 0, 113, 9]),
        destination_port: 443,
        netns: 7,
        generation: 3,
        process: Process { pid: 1234, uid: 1000, comm: comm(b"curl") },
        count: 1,
        ..DropEvent::new_zeroed()
    }
}

/// A resolver's answer for `name`: 203.0.113.9, for 60 s.
fn answered(text: &str) -> LearnedEvent {
    let (name, name_len) = reversed(text);
    let mut event = LearnedEvent {
        kind: abi::EVENT_LEARNED,
        generation: 3,
        time: 998_000_000_000,
        resolver: abi::Address::v4([10, 0, 0, 53]),
        resolver_port: 53,
        count: 1,
        refused: 2,
        answers: 4,
        ..LearnedEvent::new_zeroed()
    };
    event.key.name[..name.len()].copy_from_slice(&name);
    event.key.len = u64::from(name_len);
    event.addresses[0].address = abi::Address::v4([203, 0, 113, 9]);
    event.addresses[0].ttl = 60;
    event.addresses[0].expiry = 1000;
    event
}

/// Looks at nothing of this machine.
fn nowhere() -> Enricher {
    Enricher::new(Roots {
        proc: "/nonexistent".into(),
        cgroup: "/nonexistent".into(),
        pods: "/nonexistent".into(),
        interface: |_| None,
    })
}

fn enriched(event: DropEvent) -> Event {
    nowhere().enrich_at(&RawEvent::Drop(Box::new(event)), &Nothing, &CLOCK)
}

fn refusal(event: DropEvent) -> Refusal {
    enriched(event).refusal().unwrap().clone()
}

#[test]
fn records_are_read_back_and_later_fields_ignored() {
    let event = refused();
    let mut bytes = event.as_bytes().to_vec();
    assert_eq!(decode(&bytes), Ok(RawEvent::Drop(Box::new(event))));
    bytes.extend([0xaa; 64]);
    assert_eq!(decode(&bytes), Ok(RawEvent::Drop(Box::new(event))));
    // A ring buffer's record is aligned; a copy of one need not be.
    bytes.insert(0, 0);
    assert_eq!(decode(&bytes[1..]), Ok(RawEvent::Drop(Box::new(event))));
    let learned = answered("a.example");
    assert_eq!(decode(learned.as_bytes()), Ok(RawEvent::Learned(Box::new(learned))));
}

#[test]
fn truncated_records_are_refused_at_every_length() {
    let short = |bytes: &[u8], expected| {
        let kind = u32::from(bytes[0]);
        Err(DecodeError::Short { kind, expected, found: bytes.len() })
    };
    let (refused, answered) = (refused(), answered("a.example"));
    for bytes in [refused.as_bytes(), answered.as_bytes()] {
        for len in 0..4 {
            assert_eq!(decode(&bytes[..len]), Err(DecodeError::NoKind(len)));
        }
    }
    let bytes = refused.as_bytes();
    for len in 4..bytes.len() {
        assert_eq!(decode(&bytes[..len]), short(&bytes[..len], bytes.len()));
    }
    // An answer ends after the addresses that it has.
    let (bytes, head) = (answered.as_bytes(), LearnedEvent::HEAD);
    let whole = head + size_of::<abi::LearnedAddress>();
    for len in 4..whole {
        let expected = if len < head { head } else { whole };
        assert_eq!(decode(&bytes[..len]), short(&bytes[..len], expected));
    }
    assert_eq!(decode(&bytes[..whole]), Ok(RawEvent::Learned(Box::new(answered))));
    assert_eq!(decode(&[9, 0, 0, 0, 1]), Err(DecodeError::UnknownKind(9)));
}

#[test]
fn lengths_and_numbers_out_of_range_are_no_panic() {
    let event = refusal(DropEvent { reason: 255, hook: 255, proto: 200, name_len: u16::MAX, ..refused() });
    assert_eq!((event.reason.as_str(), event.hook, event.protocol.as_str()), ("reason-255", Hook::Unknown, "200"));
    assert_eq!(event.query.unwrap().matches("\\0").count(), NAME_KEY);
    let mut learned = LearnedEvent { count: 255, ..answered("a.example") };
    learned.key.len = u64::MAX;
    let event = nowhere().enrich_at(&RawEvent::Learned(Box::new(learned)), &Nothing, &CLOCK);
    let Kind::Learned(learned) = event.kind else { panic!("{event:?}") };
    assert_eq!(learned.addresses.len(), abi::ANSWER_MAX);
}

#[test]
fn what_a_process_names_itself_cannot_reach_the_terminal() {
    for (raw, escaped) in [
        (&b"curl"[..], "curl"),
        (b"\x1b[2J\x1b]0;x\x07", r"\u{1b}[2J\u{1b}]0;x\u{7}"),
        (b"a\nb\r\tc", r"a\nb\r\tc"),
        (b"\xff\xfeok\xc3", r"\xff\xfeok\xc3"),
        (b"back\\slash", r"back\\slash"),
        ("ümlaut 'q\"".as_bytes(), "ümlaut 'q\""),
        ("\u{202e}exe.gpj\u{200b}".as_bytes(), r"\u{202e}exe.gpj\u{200b}"),
        ("\u{9b}31m".as_bytes(), r"\u{9b}31m"),
    ] {
        assert_eq!(escape(raw), escaped);
    }
    let event = enriched(DropEvent {
        process: Process { pid: 1, uid: 0, comm: comm(b"\x1b[31m\xffx") },
        name: reversed("a\x1bb.example").0,
        name_len: 11,
        ..refused()
    });
    let text = line(&event, Style::default());
    assert!(text.contains(r"\u{1b}[31m\xffx[1]") && text.contains(r"asks a\u{1b}b.example"), "{text}");
    assert!(!text.contains('\x1b'), "{text}");
}

#[test]
fn time_follows_the_wall_clock_of_the_moment() {
    assert_eq!(enriched(refused()).time.to_string(), "2026-03-01T12:03:43.000000Z");
    let stepped = Clock { wall: Timestamp(CLOCK.wall.0 - 3_600_000_000), ..CLOCK };
    assert_eq!(stepped.wall(999_000_000_000).to_string(), "2026-03-01T11:03:43.000000Z");
    assert_eq!(CLOCK.wall(1_002_000_000_000).to_string(), "2026-03-01T12:03:46.000000Z");
    let now = Clock::now();
    assert!(now.boot >= now.monotonic && now.monotonic > 0);
    assert_eq!(Timestamp(u64::MAX).to_string(), "9999-12-31T23:59:59.999999Z");
}

#[test]
fn protocols_ports_and_addresses_say_what_they_are() {
    let icmp = refusal(DropEvent { proto: abi::PROTO_ICMP, destination_port: 0x0803, ..refused() });
    assert_eq!((icmp.icmp, icmp.destination_port), (Some(Icmp { kind: 8, code: 3 }), None));
    assert_eq!(icmp.source, None);
    let with_source =
        refusal(DropEvent { source: abi::Address::v4([10, 0, 0, 2]), source_port: 40_000, proto: 17, ..refused() });
    assert_eq!(with_source.source, Some(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2))));
    assert_eq!((with_source.source_port, with_source.protocol.as_str()), (Some(40_000), "udp"));
    let ptp = refusal(DropEvent { ethertype: 0x88f7, reason: Reason::EtherType as u8, ..refused() });
    assert_eq!((ptp.protocol.as_str(), ptp.destination), ("ethertype-0x88f7", None));
    let socket = refusal(DropEvent { hook: abi::HOOK_LSM, reason: Reason::Bypass as u8, ..refused() });
    assert_eq!((socket.protocol.as_str(), socket.destination), ("socket", None));
    assert_eq!(refusal(DropEvent { enforced: 0, ..refused() }).verdict, Verdict::Pass);
}
