//! What `explain` answers.

use super::{
    super::{Context, Reason, Via},
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
    assert!(matches!(reason("pool.ntp.org:123/udp"), Reason::NotAsked { .. }));
    assert!(matches!(reason("x.cluster.local:123/udp"), Reason::Allow { via: Via::Everything, .. }));
    assert_eq!(reason("x.cluster.local:80"), Reason::NoRule);
}

#[test]
fn the_nearest_rule_is_named() {
    let nearest = |destination: &str| explain(destination).nearest.unwrap_or_default();
    assert!(nearest("a.example.com:80").contains("`web` allows it, but on 443/tcp only"));
    assert!(nearest("example.com").contains("never matches `example.com` itself"));
    assert!(nearest("apl.example.net").contains("`api.example.net`"));
    assert_eq!(nearest("elsewhere.org"), "");
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
