//! What only IPv6 has: extension headers, and a fragment header that is one of them (RFC 8200, 4.5).

use crate::cases::to_port;
use crate::made::Then::{Drops, Passes};
use crate::made::{Case, FRAGMENT, HOP_BY_HOP, Maker, OPTIONS, ROUTING, UDP, ends_after, padding, syn};

const ORPHAN: crate::made::Then = Drops("orphan-fragment");
const MALFORMED: crate::made::Then = Drops("malformed");

/// The datagram to a port in two, with these headers before the fragment header.
fn behind(make: &Maker, headers: &[(u8, Vec<u8>)], port: u16, then: [crate::made::Then; 2]) -> Vec<crate::made::Part> {
    let whole = to_port(port);
    let cut = |offset, more| [headers, &[(FRAGMENT, make.header(offset, more))]].concat();
    vec![
        make.chain(make.allowed(), &cut(0, true), UDP, &whole[..24], then[0]),
        make.chain(make.allowed(), &cut(24, false), UDP, &whole[24..], then[1]),
    ]
}

/// Routing header of type 4 with one segment left (RFC 8754), without its first byte.
fn routing() -> Vec<u8> {
    let far: std::net::Ipv6Addr = "2001:db8:77::77".parse().unwrap();
    [&[2, 4, 1, 0, 0, 0, 0][..], &far.octets()].concat()
}

pub const CASES: &[Case] = &[
    Case {
        // RFC 6946: it is a datagram by itself.
        name: "an atomic fragment that a rule allows",
        parts: |make| vec![make.cut(UDP, 0, false, &to_port(7000), Passes)],
        lies: false,
    },
    Case {
        name: "an atomic fragment to a forbidden port, and one that is to open the way for a later one",
        parts: |make| {
            vec![
                make.cut(UDP, 0, false, &to_port(7001), Drops("no-port")),
                make.cut(UDP, 0, false, &to_port(7000), Passes),
                make.cut(UDP, 24, false, &[1; 24], ORPHAN),
            ]
        },
        lies: false,
    },
    Case {
        name: "hop-by-hop and destination options before an allowed datagram",
        parts: |make| behind(make, &[(HOP_BY_HOP, padding()), (OPTIONS, padding())], 7000, [Passes; 2]),
        lies: false,
    },
    Case {
        name: "hop-by-hop and destination options before a forbidden one",
        parts: |make| {
            let headers = [(HOP_BY_HOP, padding()), (OPTIONS, padding())];
            behind(make, &headers, 7001, [Drops("no-port"), ORPHAN])
        },
        lies: false,
    },
    Case {
        name: "a routing header before the fragment header",
        parts: |make| behind(make, &[(ROUTING, routing())], 7000, [Drops("source-route"); 2]),
        lies: false,
    },
    Case {
        name: "a routing header behind the fragment header",
        parts: |make| {
            let whole = [routing(), to_port(7000)].concat();
            vec![make.cut(ROUTING, 0, true, &[&[UDP], &whole[..63]].concat(), Drops("source-route"))]
        },
        lies: false,
    },
    Case {
        // RFC 7112: the ports are in the second fragment, whatever that says of its own protocol.
        name: "a first fragment without its ports",
        parts: |make| {
            vec![
                make.cut(OPTIONS, 0, true, &[&[UDP][..], &padding()].concat(), MALFORMED),
                make.cut(UDP, 8, false, &to_port(7001), ORPHAN),
                make.cut(OPTIONS, 8, false, &to_port(7001), ORPHAN),
            ]
        },
        lies: false,
    },
    Case {
        // The same, and behind the packet's end stands what looks like its ports.
        name: "a first fragment with its ports behind its end",
        parts: |make| {
            let options = [&[UDP][..], &padding(), &to_port(7000)[..8]].concat();
            vec![
                ends_after(make.cut(OPTIONS, 0, true, &options, MALFORMED), 16),
                make.cut(UDP, 8, false, &to_port(7001), ORPHAN),
            ]
        },
        lies: true,
    },
    Case {
        // The second fragment would overwrite the ports that were judged; it may call its protocol as it likes.
        name: "options behind the fragment header, and a fragment over the ports",
        parts: |make| {
            let first = [&[UDP][..], &padding(), &to_port(7000)[..16]].concat();
            vec![
                make.cut(OPTIONS, 0, true, &first, MALFORMED),
                make.cut(UDP, 8, false, &to_port(7001), ORPHAN),
                make.cut(OPTIONS, 24, false, &[1; 32], ORPHAN),
                make.cut(UDP, 24, false, &[1; 32], ORPHAN),
            ]
        },
        lies: false,
    },
    Case {
        name: "options that lead out of the first fragment",
        parts: |make| {
            let long = [&[UDP, 3][..], &[0; 14], &to_port(7000)[..8]].concat();
            vec![make.cut(OPTIONS, 0, true, &long, MALFORMED), make.cut(UDP, 24, false, &[1; 8], ORPHAN)]
        },
        lies: false,
    },
    Case {
        name: "two fragment headers",
        parts: |make| {
            let nothing = vec![0; 7];
            let (first, whole) = ((FRAGMENT, make.header(0, true)), (FRAGMENT, make.header(0, false)));
            let tried = [[first.clone(), first.clone()], [whole, first.clone()], [(FRAGMENT, nothing), first]];
            tried.iter().map(|two| make.chain(make.allowed(), two, UDP, &to_port(7000), MALFORMED)).collect()
        },
        lies: false,
    },
    Case {
        name: "later fragments that call their protocol otherwise",
        parts: |make| {
            vec![
                make.cut(UDP, 0, true, &to_port(7000)[..24], Passes),
                make.cut(OPTIONS, 24, false, &[1; 24], ORPHAN),
                make.cut(FRAGMENT, 24, false, &[1; 24], ORPHAN),
                make.cut(UDP, 24, false, &[1; 24], Passes),
            ]
        },
        lies: false,
    },
    Case {
        name: "a TCP segment behind options, its flags cut off",
        parts: |make| {
            let headers = [(OPTIONS, padding()), (FRAGMENT, make.header(0, true))];
            vec![make.chain(make.allowed(), &headers, 6, &syn(5)[..8], MALFORMED)]
        },
        lies: false,
    },
];
