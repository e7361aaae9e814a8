//! What each form of a `to` item, port and time is read as.

use std::time::Duration;

use super::{
    super::{
        duration,
        name::{DomainName, NamePattern},
        ports::{self, Ports},
        target::{Target, parse_destination},
    },
    item_error,
};

#[test]
fn names_have_one_form() {
    for (written, canonical) in [
        ("Example.COM.", "example.com"),
        ("münchen.example", "xn--mnchen-3ya.example"),
        ("MÜNCHEN.example.", "xn--mnchen-3ya.example"),
        ("XN--MNCHEN-3YA.example", "xn--mnchen-3ya.example"),
        ("_dmarc.example.com", "_dmarc.example.com"),
        ("localhost", "localhost"),
        ("*.Example.com", "*.example.com"),
        ("MD-*.blob.storage.azure.net", "md-*.blob.storage.azure.net"),
        ("a*b.example.com", "a*b.example.com"),
        ("*.bücher.example", "*.xn--bcher-kva.example"),
        ("10.0.0.0/8", "10.0.0.0/8"),
        ("192.0.2.1/32", "192.0.2.1"),
        ("::ffff:192.0.2.0/120", "192.0.2.0/24"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:DB8::/32", "2001:db8::/32"),
        ("ANY", "any"),
    ] {
        assert_eq!(Target::parse(written).unwrap().to_string(), canonical, "{written}");
    }
}

#[test]
fn lengths_end_where_dns_ends() {
    let label = "a".repeat(63);
    let longest = format!("{label}.{label}.{label}.{}", "b".repeat(61));
    assert_eq!(longest.len(), 253);
    assert!(DomainName::parse(&longest).is_ok());
    assert!(DomainName::parse(&format!("{longest}.")).is_ok());
    assert_eq!(item_error(&format!("{longest}b")).0, "a name of 254 bytes is too long");
    assert!(item_error(&format!("{label}a.com")).0.contains("of 64 bytes is too long"));
    assert!(item_error(&format!("*.{longest}")).0.contains("255 bytes"));
    assert!(item_error(&"x.".repeat(5_000_000)).0.contains("too long"));
    // 64 bytes as an A-label, fewer as letters.
    assert!(item_error(&format!("{}.com", "ü".repeat(60))).0.contains("too long"));
}

#[test]
fn other_dialects_get_a_hint() {
    for (written, hint) in [
        ("*", "`any`"),
        ("**.example.com", "write `*.example.com`"),
        ("*.*.example.com", "write `*.example.com`"),
        (".example.com", "write `*.example.com`"),
        ("foo.*.example.com", "write `*.example.com`"),
        ("foo.*", "leftmost label"),
        ("*a*.example.com", "one is allowed"),
        ("^.*\\.example\\.com$", "no regular expressions"),
        ("(a|b).example.com", "no regular expressions"),
        ("https://github.com/x", "`github.com`"),
        ("github.com:443", "`ports: [443/tcp]`"),
        ("[2001:db8::1]:443", "`2001:db8::1`"),
        ("10.0.0.1-10.0.0.9", "prefixes"),
        ("10.0.0.0/255.0.0.0", "`10.0.0.0/8`"),
        ("10.0.0.0/33", "0 to 32"),
        ("10.1.2.3/8", "write the network, `10.0.0.0/8`"),
        ("10.0.0.256", "192.0.2.1"),
        ("010.0.0.1", "leading zeros"),
        ("fe80::1%eth0", "`fe80::1`"),
        ("a..com", "one dot"),
        ("a b.com", "one item for each name"),
        ("!example.com", "action: deny"),
        ("xn--a.example", "A-label"),
        ("bü*.example.com", "no part of it can vary"),
        ("", "example.com"),
    ] {
        let (what, got) = item_error(written);
        assert!(got.contains(hint), "{written}: {what}; {got}");
    }
}

#[test]
fn ports_have_one_form() {
    let read = |items: &[&str]| {
        let mut ports: Vec<_> = items.iter().map(|item| Ports::parse(item).unwrap()).collect();
        ports::normalise(&mut ports);
        ports::list(&ports)
    };
    assert_eq!(read(&["443/tcp", "9000/tcp", "443/TCP"]), "443/tcp, 9000/tcp");
    assert_eq!(read(&["10-20/tcp", "21-30/tcp", "15/tcp"]), "10-30/tcp");
    assert_eq!(read(&["1-65535/udp"]), "any/udp");
    assert_eq!(read(&["any/tcp", "5/tcp", "icmp"]), "any/tcp, icmp");
    assert_eq!(read(&["any", "5/tcp"]), "any");
    assert_eq!(read(&["65535/tcp", "65534/tcp"]), "65534-65535/tcp");
}

#[test]
fn times_have_units() {
    for (text, seconds) in [("60s", 60), ("10m", 600), ("1h", 3600), ("0s", 0), ("0", 0), ("1h30m", 5400)] {
        assert_eq!(duration::parse(text).unwrap(), Duration::from_secs(seconds), "{text}");
    }
    for text in ["60", "-1s", "1 fortnight", "", "999999999999d"] {
        assert!(duration::parse(text).is_err(), "{text}");
    }
}

#[test]
fn destinations_of_the_command_line() {
    for (written, target, ports) in [
        ("github.com", "github.com", ""),
        ("github.com:22", "github.com", "22/tcp"),
        ("github.com:443/udp", "github.com", "443/udp"),
        ("*.github.com:1-5", "*.github.com", "1-5/tcp"),
        ("1.2.3.4:53/udp", "1.2.3.4", "53/udp"),
        ("1.2.3.4/icmp", "1.2.3.4", "icmp"),
        ("10.0.0.0/8", "10.0.0.0/8", ""),
        ("10.0.0.0/8:any", "10.0.0.0/8", "any"),
        ("2001:db8::1", "2001:db8::1", ""),
        ("2001:db8::/32", "2001:db8::/32", ""),
        ("[2001:db8::1]:443", "2001:db8::1", "443/tcp"),
        ("[2001:db8::/32]:53/udp", "2001:db8::/32", "53/udp"),
        ("[2001:db8::1]", "2001:db8::1", ""),
        ("any:123/udp", "any", "123/udp"),
    ] {
        let (got, got_ports) = parse_destination(written).unwrap_or_else(|error| panic!("{written}: {error}"));
        assert_eq!(
            (got.to_string(), ports::list(&got_ports.into_iter().collect::<Vec<_>>())),
            (target.into(), ports.into())
        );
    }
    for wrong in ["", "github.com:", "github.com:0", "https://github.com", "2001:db8::g:443", "[::1]x", "a.com:22/sctp"]
    {
        assert!(parse_destination(wrong).is_err(), "{wrong}");
    }
    for (url, hint) in
        [("http://a.com/x", "`a.com:80`"), ("https://u@a.com", "`a.com:443`"), ("x://a.com:22", "`a.com:22`")]
    {
        let error = parse_destination(url).unwrap_err();
        assert!(error.hint.as_ref().is_some_and(|told| told.ends_with(hint)), "{error:?}");
    }
}

#[test]
fn patterns_match_as_the_language_says() {
    let matches =
        |pattern: &str, name: &str| NamePattern::parse(pattern).unwrap().matches(&DomainName::parse(name).unwrap());
    assert!(matches("*.example.com", "a.example.com"));
    assert!(matches("*.example.com", "a.b.c.example.com"));
    assert!(!matches("*.example.com", "example.com"));
    assert!(!matches("*.example.com", "badexample.com"));
    assert!(matches("md-*.x.net", "md-1.x.net"));
    assert!(!matches("md-*.x.net", "md-.x.net"), "one character or more");
    assert!(!matches("md-*.x.net", "a.md-1.x.net"), "one label");
    assert!(!matches("md-*.x.net", "md-1.a.x.net"), "one label");
    assert!(!matches("ab*bc.x.net", "abc.x.net"), "prefix and suffix do not overlap");
}
