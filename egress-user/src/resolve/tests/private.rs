use crate::resolve::{Kind, is_private};

#[test]
fn every_range_at_both_ends_and_just_outside() {
    let table = [
        // (first, last, outside, kind); RFCs stand at `Kind`.
        ("0.0.0.0", "0.255.255.255", "1.0.0.0", Kind::Unspecified),
        ("127.0.0.0", "127.255.255.255", "128.0.0.0", Kind::Loopback),
        ("10.0.0.0", "10.255.255.255", "11.0.0.0", Kind::Private),
        ("172.16.0.0", "172.31.255.255", "172.32.0.0", Kind::Private),
        ("172.16.0.0", "172.31.255.255", "172.15.255.255", Kind::Private),
        ("192.168.0.0", "192.168.255.255", "192.169.0.0", Kind::Private),
        ("192.168.0.0", "192.168.255.255", "192.167.255.255", Kind::Private),
        ("100.64.0.0", "100.127.255.255", "100.128.0.0", Kind::SharedAddressSpace),
        ("100.64.0.0", "100.127.255.255", "100.63.255.255", Kind::SharedAddressSpace),
        ("169.254.0.0", "169.254.255.255", "169.255.0.0", Kind::LinkLocal),
        ("169.254.169.254", "169.254.169.254", "169.253.255.255", Kind::LinkLocal),
        ("224.0.0.0", "239.255.255.255", "223.255.255.255", Kind::Multicast),
        ("240.0.0.0", "255.255.255.254", "223.255.255.255", Kind::Reserved),
        ("255.255.255.255", "255.255.255.255", "223.255.255.255", Kind::Broadcast),
        ("::", "::", "2000::", Kind::Unspecified),
        ("::1", "::1", "1::1", Kind::Loopback),
        ("fe80::", "febf:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "fe7f::", Kind::LinkLocal),
        ("fec0::", "feff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "fe00::", Kind::SiteLocal),
        ("fc00::", "fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "fbff::", Kind::UniqueLocal),
        ("ff00::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "f000::", Kind::Multicast),
        ("64:ff9b:1::", "64:ff9b:1:ffff:ffff:ffff:ffff:ffff", "64:ff9b:2::", Kind::LocalNat64),
        ("::ffff:127.0.0.1", "::ffff:127.255.255.255", "::ffff:8.8.8.8", Kind::Loopback),
        ("::ffff:0.0.0.0", "::ffff:0.255.255.255", "::ffff:1.0.0.0", Kind::Unspecified),
        ("::ffff:10.0.0.1", "::ffff:192.168.1.1", "::ffff:11.0.0.0", Kind::Private),
        ("::10.0.0.1", "::192.168.0.1", "::1:0:0:1", Kind::Private),
        ("::11.0.0.1", "::8.8.8.8", "::1:0:0:1", Kind::Reserved),
        ("64:ff9b::10.0.0.1", "64:ff9b::192.168.0.1", "64:ff9b::8.8.8.8", Kind::Private),
        ("2002:a00::", "2002:c0a8:101::1", "2002:808:808::1", Kind::Private),
    ];
    for (first, last, outside, kind) in table {
        for inside in [first, last] {
            assert_eq!(is_private(inside.parse().unwrap()), Some(kind), "{inside}");
        }
        assert_eq!(is_private(outside.parse().unwrap()), None, "{outside}");
    }
}

#[test]
fn public_addresses_pass_documentation_and_the_cloud_platform_too() {
    for public in
        ["168.63.129.16", "203.0.113.7", "198.51.100.1", "192.0.2.1", "2001:db8::1", "1.1.1.1", "2606:4700::1"]
    {
        assert_eq!(is_private(public.parse().unwrap()), None, "{public}");
    }
}
