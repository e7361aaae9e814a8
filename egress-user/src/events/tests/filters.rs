use super::*;

fn refusal(text: &str) -> Event {
    let mut enricher = nowhere();
    let Event { version, time, kind } = enricher.enrich_at(&RawEvent::Drop(Box::new(refused())), &Nothing, &CLOCK);
    let Kind::Dropped(mut refusal) = kind else { panic!() };
    refusal.names = vec![text.to_owned()];
    refusal.cgroup = Some("/system.slice/cron.service".to_owned());
    Event { version, time, kind: Kind::Dropped(refusal) }
}

fn to(text: &str) -> Filter {
    Filter { to: Some(text.parse().unwrap()), ..Filter::default() }
}

#[test]
fn a_destination_is_a_name_a_wildcard_an_address_or_a_prefix() {
    let event = refusal("api.example.com");
    let yes = [
        "api.example.com",
        "API.example.com",
        "*.example.com",
        "203.0.113.9",
        "203.0.113.0/24",
        "any",
        "api.example.com:443",
        "203.0.113.9:443/tcp",
    ];
    let no = [
        "example.com",
        "*.api.example.com",
        "203.0.113.8",
        "203.0.114.0/24",
        "2001:db8::/32",
        "api.example.com:80",
        "203.0.113.9:443/udp",
    ];
    assert_eq!(yes.map(|text| to(text).wants(&event)), [true; 8]);
    assert_eq!(no.map(|text| to(text).wants(&event)), [false; 7]);
}

#[test]
fn every_part_must_hold_and_what_was_lost_is_always_told() {
    let event = refusal("api.example.com");
    let wants = |filter: Filter| filter.wants(&event);
    assert!(wants(Filter { pid: Some(1234), dropped: true, ..to("203.0.113.9") }));
    assert!(!wants(Filter { pid: Some(1235), ..to("203.0.113.9") }));
    assert!(wants(Filter { reason: Some("no-rule".into()), ..Filter::default() }));
    assert!(!wants(Filter { reason: Some("expired".into()), ..Filter::default() }));
    for (path, wanted) in
        [("/system.slice", true), ("/system.slice/cron.service", true), ("/", true), ("/system", false)]
    {
        assert_eq!(wants(Filter { cgroup: Some(path.into()), ..Filter::default() }), wanted, "{path}");
    }
    let lost = Event::new(Timestamp(0), Kind::Lost(Lost { count: 1, place: LostWhere::Kernel }));
    let policy =
        PolicyChange { generation: 1, applied: true, mode: "enforce".into(), rules: 1, message: String::new() };
    let policy = Event::new(Timestamp(0), Kind::Policy(policy));
    let narrow = Filter { pid: Some(1), dropped: true, ..to("a.example") };
    assert_eq!((narrow.wants(&lost), narrow.wants(&policy)), (true, false));
    assert!(Filter::default().wants(&policy));
}

#[test]
fn what_is_no_reason_is_refused_with_those_there_are() {
    assert_eq!(Filter::reason("no-port").unwrap(), "no-port");
    let error = Filter::reason("no\u{1b}rule").unwrap_err();
    assert!(error.what.contains("u{1b}") && error.hint.unwrap().contains("no-rule"), "{}", error.what);
    // What passes is no event.
    assert!(Filter::reason("established").is_err());
    assert_eq!(Filter::cgroup("/sys/fs/cgroup/a/b/", "/sys/fs/cgroup"), "/a/b");
    assert_eq!(Filter::cgroup("a/b", "/sys/fs/cgroup"), "/a/b");
}
