//! What `explain` answers.

use super::{
    super::{Context, Destination, Near, Reason, Via},
    compiled,
};

const POLICY: &str = "
dns: {resolvers: [192.0.2.53], internal: [cluster.local]}
rules:
  - {name: web, to: [\"*.example.com\", api.example.net], ports: [443/tcp]}
  - {name: time, to: [any], ports: [123/udp]}
  - {name: lan, to: [10.0.0.0/8], ports: [any]}
  - {name: no-metadata, action: deny, to: [169.254.169.254, 10.9.0.0/16]}
";

fn explain(destination: &str) -> super::super::Explanation {
    compiled(POLICY).decide(&destination.parse().unwrap())
}

#[test]
fn each_reason_is_named() {
    let reason = |destination: &str| explain(destination).reason;
    assert!(matches!(reason("a.b.example.com"), Reason::Allow { via: Via::Name(_), .. }));
    assert!(matches!(reason("10.1.2.3:22"), Reason::Allow { via: Via::Address(_), .. }));
    assert!(matches!(reason("10.9.2.3:22"), Reason::Deny { .. }));
    assert!(matches!(reason("169.254.169.254:80"), Reason::Deny { .. }));
    assert_eq!(reason("127.0.0.1:80"), Reason::Builtin { builtin: "loopback" });
    assert_eq!(reason("[::1]:80"), Reason::Builtin { builtin: "loopback" });
    assert_eq!(reason("192.0.2.53:53/udp"), Reason::Builtin { builtin: "dns" });
    assert_eq!(reason("192.0.2.54:53/udp"), Reason::NoRule);
    assert_eq!(reason("255.255.255.255:67/udp"), Reason::Builtin { builtin: "dhcpv4" });
    assert_eq!(reason("192.168.1.1:67/udp"), Reason::Builtin { builtin: "dhcpv4" });
    assert_eq!(reason("198.51.100.77:67/udp"), Reason::NoRule);
    assert_eq!(reason("224.0.0.1:67/udp"), Reason::NoRule);
    assert!(matches!(reason("pool.ntp.org:123/udp"), Reason::NotAsked { .. }));
    assert!(matches!(reason("x.cluster.local:123/udp"), Reason::Allow { via: Via::Everything, .. }));
    assert_eq!(reason("x.cluster.local:80"), Reason::NoRule);
}

#[test]
fn the_nearest_rule_is_named() {
    let nearest = |destination: &str| explain(destination).nearest.map(|nearest| nearest.text).unwrap_or_default();
    assert!(nearest("a.example.com:80").contains("`web` allows it, but on 443/tcp only"));
    assert!(nearest("example.com").contains("never matches `example.com` itself"));
    assert!(nearest("apl.example.net").contains("`api.example.net`"));
    assert_eq!(nearest("elsewhere.org"), "");
    assert!(
        nearest("cdn.static.example.net").contains("`web` allows `api.example.net`, which is in `example.net` too")
    );
    assert_eq!(nearest("other.net"), "", "a top-level domain in common says nothing");
    assert!(nearest("11.1.2.3:22").is_empty());
}

#[test]
fn prefixes_are_near_by_the_bits_they_share() {
    let policy = compiled(
        "rules:\n  - {name: a, to: [192.0.2.0/25], ports: [22/tcp]}\n  - {name: b, to: ['2001:db8:1::/48', 192.168.0.0/16], ports: [22/tcp]}\n",
    );
    let near = |to: &str| policy.decide(&to.parse().unwrap()).nearest.map(|near| (near.near, near.text));
    let (kind, text) = near("192.0.2.200:22").unwrap();
    assert!(kind == Near::Prefix && text.contains("rule `a` allows `192.0.2.0/25`, whose first 24 bits"), "{text}");
    assert!(near("[2001:db8:2::1]:22").unwrap().1.contains("first 46 bits"));
    assert_eq!(near("198.51.100.1:22").map(|near| near.1), None);
    assert_eq!(near("192.0.2.1:80").unwrap().0, Near::OtherPort);
}

/// The line to add is YAML as it stands, names a rule that is not there yet, opens the destination, and nothing beside it.
#[test]
fn the_line_to_add_allows_the_destination_when_pasted() {
    let taken = "  - {name: allow-www-example-org-443-tcp, to: [192.0.2.1], ports: [1/tcp]}\n";
    let names = ["www.example.org".parse().unwrap()];
    for to in [
        "www.example.org",
        "a.example.com:8443",
        "api.example.net:54/udp",
        "_srv.1e2:5/udp",
        "198.51.100.7",
        "198.51.100.7:9/udp",
        "198.51.100.7/icmp",
        "[2001:db8::7]:22",
        "[2001:db8::7]/icmp",
        "https://www.example.org:8080/x",
        "pool.ntp.org:123/udp",
    ] {
        let policy = POLICY.replace("resolvers: [192.0.2.53], ", "") + taken;
        let destination: Destination = to.parse().unwrap();
        let before = compiled(&policy).decide(&destination);
        assert!(!before.allowed, "{to}");
        let after = compiled(&format!("{policy}  {}\n", before.add.unwrap()));
        let said = after.decide(&destination);
        assert!(said.allowed, "{to}: {said:?}");
        let mut other = destination.clone();
        other.port ^= 1;
        assert!(other.port == 1 || !after.decide(&other).allowed, "{to}");
    }
    // By its name, where an address has one.
    let live = Context { names: &names, live: true, ..Context::default() };
    let by_name = compiled(POLICY).decide_with(&"198.51.100.7:443".parse().unwrap(), &live);
    assert!(by_name.add.unwrap().contains("[\"www.example.org\"], ports: [443/tcp]"));
    // Where no rule helps there is none: a deny rule, an unknown resolver, what is allowed.
    for to in ["10.9.2.3:22", "192.0.2.54:53/udp", "a.example.com"] {
        assert_eq!(explain(to).add, None, "{to}");
    }
}

/// The kernel drops it before it looks at a rule.
#[test]
fn no_rule_opens_port_53() {
    let rules = "rules:\n  - {name: a, to: [8.8.8.8, example.com], ports: [53/udp, 53/tcp]}\n";
    for (resolvers, told) in [("system", "one of the system's"), ("[192.0.2.53]", "add it to `dns.resolvers`")] {
        let policy = compiled(&format!("dns: {{resolvers: {resolvers}}}\n{rules}"));
        for to in ["8.8.8.8:53/udp", "8.8.8.8:53/tcp", "example.com:53/udp"] {
            let said = policy.decide(&to.parse().unwrap());
            assert_eq!((said.allowed, &said.reason, &said.add, &said.nearest), (false, &Reason::NoRule, &None, &None));
            assert!(said.notes.len() == 1 && said.notes[0].contains(told), "{said:?}");
        }
    }
}

#[test]
fn a_url_is_a_destination() {
    for (url, meant) in [
        ("https://user:secret@API.example.com/v1?x=a@b#c", "api.example.com:443/tcp"),
        ("http://[2001:db8::1]/x", "[2001:db8::1]:80/tcp"),
        ("https://192.0.2.1:8443", "192.0.2.1:8443/tcp"),
        ("SSH://git@github.com/x.git", "github.com:22/tcp"),
        ("foo://example.com:99/", "example.com:99/tcp"),
    ] {
        assert_eq!(url.parse::<Destination>().unwrap().to_string(), meant);
    }
    for wrong in ["foo://example.com/", "https:///x", "https://", "https://exa mple/", "https://a.com:99999/"] {
        assert!(wrong.parse::<Destination>().is_err(), "{wrong}");
    }
}

#[test]
fn what_the_daemon_knows_counts() {
    let compiled = compiled(POLICY);
    let names = ["a.example.com".parse().unwrap()];
    let live = Context { names: &names, live: true, ..Context::default() };
    let by_address = compiled.decide_with(&"198.51.100.7:443".parse().unwrap(), &live);
    assert!(matches!(by_address.reason, Reason::Allow { via: Via::Name(_), .. }));
    let addresses = ["10.9.0.1".parse().unwrap()];
    let live = Context { addresses: &addresses, live: true, ..Context::default() };
    let by_name = compiled.decide_with(&"a.example.com".parse().unwrap(), &live);
    assert!(matches!(by_name.reason, Reason::Deny { .. }), "{by_name:?}");
}

#[test]
fn builtins_can_be_switched_off() {
    let compiled = compiled("builtins: {loopback: false, dhcpv4: false}\n");
    assert!(!compiled.decide(&"127.0.0.1:80".parse().unwrap()).allowed);
    assert!(!compiled.decide(&"255.255.255.255:67/udp".parse().unwrap()).allowed);
    assert!(compiled.decide(&"[ff02::1:2]:547/udp".parse().unwrap()).allowed);
}
