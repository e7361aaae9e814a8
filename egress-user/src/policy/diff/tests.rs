use super::*;
use crate::policy::{Sources, load};

fn policy(rules: &str) -> Compiled {
    let texts = vec![("p.yaml".to_owned(), format!("version: 1\n{rules}"))];
    load(&Sources { texts, ..Sources::default() }).unwrap_or_else(|error| panic!("{error:?}")).compiled
}

fn told(before: &str, after: &str) -> String {
    let (before, after) = (policy(before), policy(after));
    let (there, back) = (Diff::new(&before, &after), Diff::new(&after, &before));
    // The way back says the opposite.
    let places = |openings: &[Opening]| openings.iter().map(|o| (o.to.clone(), o.ports.clone())).collect::<Vec<_>>();
    assert_eq!((places(&there.gained), places(&there.lost)), (places(&back.lost), places(&back.gained)));
    assert_eq!((places(&there.denied), places(&there.undenied)), (places(&back.undenied), places(&back.denied)));
    there.to_string()
}

#[test]
fn other_words_with_one_meaning_are_no_difference() {
    let one = "rules:
  - {name: a, to: [a.example.com, '*.b.example'], ports: [443/tcp, 80/tcp]}
  - {name: n, to: [10.0.0.0/8], ports: [any]}
";
    let other = "dns: {grace: 15m}
rules:
  - {name: z, to: [10.0.0.0/8, 10.1.0.0/16], ports: [any/udp, 1-65535/tcp, icmp]}
  - {name: y, to: ['*.b.example', x.b.example], ports: [80/tcp, 443/tcp]}
  - {name: x, to: [A.example.com], ports: [443/tcp]}
  - {name: w, why: another, to: [a.example.com], ports: [80/tcp]}
";
    assert_eq!(told(one, other), "");
}

#[test]
fn what_is_gained_and_lost_is_told_to_the_port() {
    let before = "rules:
  - {name: web, to: [a.example.com], ports: [80-90/tcp]}
  - {name: net, to: [10.0.0.0/8], ports: [443/tcp]}
  - {name: shut, action: deny, to: [10.9.0.0/16]}
";
    let after = "mode: audit
rules:
  - {name: web, to: [a.example.com], ports: [80-84/tcp, 86-90/tcp, 53/udp]}
  - {name: net, to: [10.0.0.0/8, 10.1.1.1], ports: [443/tcp]}
  - {name: wild, to: ['*.example.com', 'md-*.store.example'], ports: [22/tcp]}
";
    let expected = "~ mode: enforce -> audit
+ allow *.example.com  22/tcp  (wild)
+ allow a.example.com  22/tcp, 53/udp  (web, wild)
+ allow md-*.store.example  22/tcp  (wild)
- allow a.example.com  85/tcp  (web)
- deny 10.9.0.0/16  any  (shut)
";
    assert_eq!(told(before, after), expected);
}

#[test]
fn what_a_wider_region_says_is_not_told_again() {
    let before = "rules:
  - {name: some, to: [192.0.2.1, 192.0.2.0/24, x.example.com], ports: [80/tcp]}
";
    let after = "rules:
  - {name: some, to: [192.0.2.1, 192.0.2.0/24, x.example.com], ports: [80/tcp]}
  - {name: all, to: [any], ports: [443/tcp]}
";
    let expected = "+ allow any IPv4 address  443/tcp  (all)\n+ allow any IPv6 address  443/tcp  (all)\n";
    assert_eq!(told(before, after), expected);
}

#[test]
fn settings_of_dns_and_builtins_are_compared_as_sets() {
    let before = "dns: {internal: [a.test, b.test], grace: 1m}\nbuiltins: {igmp: false}\n";
    let after = "dns: {internal: [b.test, a.test], grace: 2m}\n";
    assert_eq!(told(before, after), "~ dns.grace: 60s -> 120s\n~ builtins.igmp: false -> true\n");
}
