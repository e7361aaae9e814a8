use insta::assert_snapshot;

use super::*;

/// One of each kind, every field in use.
fn samples() -> Vec<Event> {
    let mut enricher = nowhere();
    let learned = enricher.enrich_at(&RawEvent::Learned(Box::new(answered("forbidden.example"))), &Nothing, &CLOCK);
    let mut dropped = enricher.enrich_at(&RawEvent::Drop(Box::new(refused())), &Nothing, &CLOCK);
    let Kind::Dropped(refusal) = &mut dropped.kind else { panic!("{dropped:?}") };
    **refusal = Refusal {
        source: Some("10.0.0.2".parse().unwrap()),
        source_port: Some(40_000),
        rule: Some("no-metadata".into()),
        cgroup: Some("/demo.slice".into()),
        cgroup_id: Some(42),
        container: Some(Container { runtime: Some("docker".into()), id: "ab".repeat(32) }),
        pod_uid: Some("1b2c3d4e-0000-4000-8000-0123456789ab".into()),
        pod_namespace: Some("shop".into()),
        pod_name: Some("cart-5d78c9869d-abcde".into()),
        interface: Some("eth0".into()),
        interface_index: Some(2),
        process: refusal.process.clone().map(|process| ProcessInfo {
            exe: Some("/usr/bin/curl".into()),
            ppid: Some(1),
            ..process
        }),
        ..(**refusal).clone()
    };
    let (name, name_len) = reversed("forbidden.example");
    let query = DropEvent {
        reason: Reason::NameNotAllowed as u8,
        hook: abi::HOOK_CGROUP_EGRESS,
        proto: abi::PROTO_UDP,
        destination: abi::Address::v4([10, 0, 0, 53]),
        destination_port: 53,
        name,
        name_len,
        enforced: 0,
        count: 4,
        process: Process::default(),
        ..refused()
    };
    let at = |kind| Event::new(CLOCK.wall, kind);
    vec![
        dropped,
        enriched(query),
        enriched(DropEvent { proto: abi::PROTO_ICMP, destination_port: 0x0800, ..refused() }),
        learned,
        at(Kind::Policy(PolicyChange {
            generation: 4,
            applied: true,
            mode: "enforce".into(),
            rules: 12,
            message: "loaded 2 files".into(),
        })),
        at(Kind::Resolver(ResolverTrouble {
            resolver: Some("10.0.0.53:53".into()),
            name: Some("mcr.microsoft.com".into()),
            recovered: false,
            message: "no answer within 5s".into(),
        })),
        at(Kind::Lost(Lost { count: 17, place: LostWhere::Kernel })),
    ]
}

#[test]
fn the_schema_is_what_it_was() {
    let json: Vec<_> = samples().iter().map(|event| serde_json::to_string_pretty(event).unwrap()).collect();
    assert_snapshot!(json.join("\n"));
    for (event, json) in samples().iter().zip(json) {
        assert_eq!(&serde_json::from_str::<Event>(&json).unwrap(), event);
    }
}

#[test]
fn lines_for_a_person() {
    let lines = |style| samples().iter().map(|event| line(event, style)).collect::<Vec<_>>().join("\n");
    assert_snapshot!(lines(Style::default()));
    let painted = lines(Style { color: true, local: false });
    assert!(painted.contains("\x1b[31mdropped   \x1b[0m"), "{painted}");
}

#[test]
fn a_summary_folds_what_was_blocked_and_says_how_to_allow_it() {
    let mut enricher = nowhere();
    let mut summary = Summary::new();
    let mut add = |raw| summary.add(&enricher.enrich_at(&raw, &Nothing, &CLOCK));
    add(RawEvent::Learned(Box::new(answered("known.example"))));
    for pid in [1234, 1234, 1235] {
        let process = Process { pid, ..refused().process };
        add(RawEvent::Drop(Box::new(DropEvent {
            reason: Reason::NoPort as u8,
            destination_port: 80,
            process,
            ..refused()
        })));
    }
    let (name, name_len) = reversed("forbidden.example");
    let dns = DropEvent {
        reason: Reason::NameNotAllowed as u8,
        proto: 17,
        destination: abi::Address::v4([10, 0, 0, 53]),
        destination_port: 53,
        name,
        name_len,
        count: 3,
        ..refused()
    };
    add(RawEvent::Drop(Box::new(dns)));
    let to = |address, proto, port| DropEvent {
        destination: abi::Address::v4(address),
        proto,
        destination_port: port,
        ..refused()
    };
    add(RawEvent::Drop(Box::new(to([198, 51, 100, 1], 6, 443))));
    add(RawEvent::Drop(Box::new(to([198, 51, 100, 1], 17, 123))));
    add(RawEvent::Drop(Box::new(to([198, 51, 100, 1], 1, 0x0800))));
    let mut v6 = to([0; 4], 6, 22);
    v6.destination = abi::Address::v6("2001:db8::1".parse::<std::net::Ipv6Addr>().unwrap().octets());
    add(RawEvent::Drop(Box::new(v6)));
    add(RawEvent::Drop(Box::new(DropEvent { reason: Reason::UntrustedResolver as u8, ..to([8, 8, 8, 8], 17, 53) })));
    add(RawEvent::Drop(Box::new(DropEvent { enforced: 0, ..to([198, 51, 100, 2], 6, 443) })));
    summary.add(&Event::new(CLOCK.wall, Kind::Lost(Lost { count: 2, place: LostWhere::Kernel })));
    assert_snapshot!(summary.render(Style::default()));
    assert_snapshot!("summary_json", serde_json::to_string_pretty(&summary).unwrap());
}

#[test]
fn a_summary_of_nothing_blocked_is_nothing() {
    let mut summary = Summary::new();
    summary.add(&samples()[3]);
    summary.add(&samples()[4]);
    assert!(summary.is_empty());
    assert_eq!(summary.render(Style::default()), "");
}

#[test]
fn a_summary_stays_small_under_a_million_destinations() {
    let mut summary = Summary::new();
    for number in 0..3000_u32 {
        summary.add(&enriched(DropEvent { destination: abi::Address::v4(number.to_be_bytes()), ..refused() }));
    }
    assert_eq!((summary.blocked.len(), summary.more), (1000, 2000));
    assert!(summary.render(Style::default()).lines().count() < 50);
}
