//! Every way a header can be, and be wrong.

use proptest::prelude::*;

use super::{EtherType, Fragment, Packet, TCP_ACK, TCP_FIN, TCP_SYN, link, parse, plain, quoted};
use crate::{abi::Address, reason::Reason};

const SOURCE: [u8; 4] = [192, 0, 2, 1];
const TARGET: [u8; 4] = [198, 51, 100, 7];
const SOURCE_6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
const TARGET_6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7];
const TCP: u8 = 6;
const UDP: u8 = 17;

/// `fragment` is the field of flags and offset, `options` a multiple of four bytes.
fn v4(proto: u8, fragment: u16, options: &[u8], body: &[u8]) -> Vec<u8> {
    let length = (20 + options.len() + body.len()) as u16;
    let mut packet = vec![0x45 + (options.len() / 4) as u8, 0];
    packet.extend(length.to_be_bytes());
    packet.extend([0xab, 0xcd]);
    packet.extend(fragment.to_be_bytes());
    packet.extend([64, proto, 0, 0]);
    packet.extend(SOURCE);
    packet.extend(TARGET);
    [&packet, options, body].concat()
}

/// A packet with these extension headers, each (type, what follows its next-header byte), before `proto`.
fn v6(extensions: &[(u8, Vec<u8>)], proto: u8, body: &[u8]) -> Vec<u8> {
    let mut rest = Vec::new();
    for (index, (_, data)) in extensions.iter().enumerate() {
        rest.push(extensions.get(index + 1).map_or(proto, |next| next.0));
        rest.extend(data);
    }
    rest.extend(body);
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend((rest.len() as u16).to_be_bytes());
    packet.extend([extensions.first().map_or(proto, |first| first.0), 64]);
    packet.extend(SOURCE_6);
    packet.extend(TARGET_6);
    [packet, rest].concat()
}

fn tcp(flags: u8) -> Vec<u8> {
    [&[0x9c, 0x40, 1, 0xbb, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, flags], &[0; 6][..]].concat()
}

const UDP_HEADER: [u8; 8] = [0x9c, 0x40, 0, 53, 0, 8, 0, 0];

/// Eight bytes of a hop-by-hop or destination options header, or of any other that is as long.
fn padding() -> Vec<u8> {
    vec![0, 1, 4, 0, 0, 0, 0]
}

/// A fragment header: the offset in units of 8 bytes.
fn fragment(offset: u16, more: bool) -> (u8, Vec<u8>) {
    let field = (offset << 3 | u16::from(more)).to_be_bytes();
    (44, vec![0, field[0], field[1], 0, 0, 0, 9])
}

fn read(bytes: &[u8]) -> Result<Packet, Reason> {
    parse(bytes, 0)
}

#[test]
fn a_plain_packet_of_each_family_and_transport_is_read() {
    let packet = read(&v4(TCP, 0x4000, &[], &tcp(TCP_SYN))).unwrap();
    let expected = Packet {
        source: Address::v4(SOURCE),
        destination: Address::v4(TARGET),
        source_port: 40_000,
        destination_port: 443,
        version: 4,
        proto: TCP,
        hops: 64,
        tcp_flags: TCP_SYN,
        fragment: Fragment::Whole,
        fragment_id: u32::from(0xabcd_u16).to_be(),
        transport: 20,
        payload: 40,
        end: 40,
    };
    assert_eq!(packet, expected);
    assert!(packet.opens_tcp() && packet.has_ports() && !packet.is_icmp());
    let packet = read(&v6(&[], UDP, &UDP_HEADER)).unwrap();
    assert_eq!((packet.source, packet.destination), (Address::v6(SOURCE_6), Address::v6(TARGET_6)));
    assert_eq!((packet.version, packet.proto, packet.hops), (6, UDP, 64));
    assert_eq!((packet.source_port, packet.destination_port), (40_000, 53));
    assert_eq!((packet.transport, packet.payload, packet.end), (40, 48, 48));
    for (flags, opens) in [(TCP_SYN, true), (TCP_SYN | TCP_ACK, false), (TCP_ACK, false), (TCP_FIN, false), (0, false)]
    {
        assert_eq!(read(&v4(TCP, 0, &[], &tcp(flags))).unwrap().opens_tcp(), opens, "{flags:#x}");
    }
}

#[test]
fn the_network_header_may_stand_anywhere() {
    let bytes = [&[0xff; 14][..], &v4(TCP, 0, &[], &tcp(TCP_SYN))].concat();
    assert_eq!(parse(&bytes[..], 14), parse(&bytes[14..], 0));
    let bytes = [&[0xff; 18][..], &v6(&[(0, padding())], UDP, &UDP_HEADER)].concat();
    assert_eq!(parse(&bytes[..], 18), parse(&bytes[18..], 0));
    let options = v4(TCP, 0, &[148, 4, 0, 0], &tcp(TCP_SYN));
    assert_eq!(parse(&[&[0xff; 14][..], &options].concat()[..], 14), parse(&options[..], 0));
}

#[test]
fn ports_of_icmp_are_its_type_and_code_and_an_echos_identifier() {
    let icmp = |kind| [kind, 5, 0, 0, 0x12, 0x34, 0, 1];
    for (kind, echo, error) in
        [(0, true, false), (8, true, false), (3, false, true), (11, false, true), (5, false, false)]
    {
        let packet = read(&v4(1, 0, &[], &icmp(kind))).unwrap();
        assert_eq!(packet.destination_port, u16::from_be_bytes([kind, 5]));
        assert_eq!(packet.source_port, if echo { 0x1234 } else { 0 }, "{kind}");
        assert_eq!((packet.is_icmp(), packet.is_icmp_error(), packet.icmp_type()), (true, error, kind));
    }
    for (kind, echo, error) in
        [(128, true, false), (129, true, false), (1, false, true), (4, false, true), (137, false, false)]
    {
        let packet = read(&v6(&[], 58, &icmp(kind))).unwrap();
        assert_eq!(packet.source_port, if echo { 0x1234 } else { 0 }, "{kind}");
        assert_eq!((packet.is_icmp(), packet.is_icmp_error(), packet.icmp_type()), (true, error, kind));
    }
    // The other family's ICMP is a protocol like any other.
    let packet = read(&v6(&[], 1, &icmp(8))).unwrap();
    assert_eq!((packet.is_icmp(), packet.icmp_type(), packet.destination_port), (false, 0, 0));
    assert!(!read(&v4(58, 0, &[], &icmp(128))).unwrap().is_icmp());
}

#[test]
fn every_header_cut_short_is_malformed() {
    for whole in [
        v4(TCP, 0, &[], &tcp(0)),
        v4(TCP, 0, &[1, 1, 148, 4, 0, 0, 1, 0], &tcp(0)),
        v4(UDP, 0, &[], &UDP_HEADER),
        v4(1, 0, &[], &[8, 0, 0, 0, 0, 0, 0, 0]),
        v6(&[], TCP, &tcp(0)),
        v6(&[], UDP, &UDP_HEADER),
        v6(&[], 58, &[128, 0, 0, 0, 0, 0, 0, 0]),
        v6(&[(0, padding()), (60, padding()), fragment(0, true)], UDP, &UDP_HEADER),
    ] {
        assert!(read(&whole).is_ok(), "{whole:x?}");
        for length in 0..whole.len() {
            assert_eq!(read(&whole[..length]), Err(Reason::Malformed), "{length} of {whole:x?}");
        }
    }
}

#[test]
fn headers_that_contradict_themselves_are_malformed() {
    for version in [0, 1, 5, 7, 15] {
        let mut packet = v4(TCP, 0, &[], &tcp(0));
        packet[0] = version << 4 | 5;
        assert_eq!(read(&packet), Err(Reason::Malformed), "version {version}");
    }
    for words in 0..5 {
        let mut packet = v4(TCP, 0, &[], &tcp(0));
        packet[0] = 0x40 | words;
        assert_eq!(read(&packet), Err(Reason::Malformed), "a header of {words} words");
        let mut packet = v4(TCP, 0, &[], &tcp(0));
        packet[32] = words << 4;
        assert_eq!(read(&packet), Err(Reason::Malformed), "a TCP header of {words} words");
    }
}

#[test]
fn options_that_reroute_are_refused_wherever_they_stand() {
    let option = |options: &[u8]| read(&v4(TCP, 0, options, &tcp(0))).map(|packet| packet.transport);
    assert_eq!(option(&[148, 4, 0, 0]), Ok(24), "router alert");
    assert_eq!(option(&[1, 1, 1, 1]), Ok(24), "padding");
    assert_eq!(option(&[7, 7, 4, 0, 0, 0, 0, 0]), Ok(28), "record route");
    // Nothing behind the end counts.
    assert_eq!(option(&[0, 131, 3, 4]), Ok(24));
    for kind in [131, 137] {
        assert_eq!(option(&[kind, 3, 4, 0]), Err(Reason::SourceRoute));
        assert_eq!(option(&[1, kind, 3, 4]), Err(Reason::SourceRoute));
        assert_eq!(option(&[148, 4, 0, 0, 1, 1, kind, 2]), Err(Reason::SourceRoute));
        let last = [&[1_u8; 39][..], &[kind]].concat();
        assert_eq!(option(&last), Err(Reason::SourceRoute), "as the fortieth byte");
    }
    for (what, options) in [
        ("a length of 0", [7, 0, 0, 0]),
        ("a length of 1", [7, 1, 0, 0]),
        ("a length past the header", [7, 5, 0, 0]),
        ("no length", [1, 1, 1, 7]),
    ] {
        // The byte behind the options is TCP's: it must not be taken for a length.
        assert_eq!(option(&options), Err(Reason::Malformed), "{what}");
    }
}

#[test]
fn ipv4_fragments_are_told_apart() {
    let of = |field, body: &[u8]| read(&v4(TCP, field, &[], body));
    assert_eq!(of(0x2000, &tcp(TCP_SYN)).unwrap().fragment, Fragment::First);
    assert_eq!(of(0x4000, &tcp(TCP_SYN)).unwrap().fragment, Fragment::Whole);
    // A first fragment without its whole TCP header could be completed by what was not judged.
    assert_eq!(of(0x2000, &tcp(0)[..16]), Err(Reason::Malformed));
    // What stands behind the packet's own end is not in it, and a header is whole with its options.
    let cut = |proto, body: &[u8], length: u16| {
        let mut packet = v4(proto, 0x2000, &[], body);
        packet[2..4].copy_from_slice(&(20 + length).to_be_bytes());
        read(&packet)
    };
    assert_eq!(cut(TCP, &tcp(0), 20).map(|packet| packet.fragment), Ok(Fragment::First));
    assert_eq!(cut(TCP, &tcp(0), 16), Err(Reason::Malformed));
    assert_eq!(cut(UDP, &UDP_HEADER, 0), Err(Reason::Malformed));
    assert_eq!(cut(1, &[8; 8], 0), Err(Reason::Malformed));
    let mut options = [tcp(0), vec![1; 20]].concat();
    options[12] = 10 << 4;
    assert_eq!(cut(TCP, &options, 40).map(|packet| packet.payload), Ok(60));
    assert_eq!(cut(TCP, &options, 39), Err(Reason::Malformed));
    // RFC 1858, RFC 3128: offsets of 8 and 16 bytes overwrite the flags, the checksum.
    for field in [1, 2, 0x2001, 0x2002] {
        assert_eq!(of(field, &tcp(0)), Err(Reason::Malformed));
    }
    for field in [3, 0x2003, 0x1fff] {
        let packet = of(field, &[0xee; 3]).unwrap();
        assert_eq!((packet.fragment, packet.source_port, packet.destination_port), (Fragment::Later, 0, 0));
        assert_eq!((packet.tcp_flags, packet.payload), (0, 0));
    }
    assert_eq!(read(&v4(UDP, 1, &[], &[0; 8])).unwrap().fragment, Fragment::Later);
}

#[test]
fn ipv6_extension_headers_are_walked() {
    let of = |extensions: &[(u8, Vec<u8>)]| read(&v6(extensions, UDP, &UDP_HEADER));
    let packet = of(&[(0, padding()), (60, padding())]).unwrap();
    assert_eq!((packet.proto, packet.transport, packet.destination_port), (UDP, 56, 53));
    let long = (60, [&[3_u8][..], &[0; 30]].concat());
    assert_eq!(of(&[long]).unwrap().transport, 40 + 32);
    let chain = |length| vec![(60, padding()); length];
    assert_eq!(of(&chain(8)).unwrap().transport, 40 + 64);
    assert_eq!(of(&chain(9)), Err(Reason::Malformed));
    for kind in 0..=4 {
        let routing = (43, vec![0, kind, 0, 0, 0, 0, 0]);
        assert_eq!(of(std::slice::from_ref(&routing)), Err(Reason::SourceRoute), "type {kind}");
        assert_eq!(of(&[(0, padding()), routing]), Err(Reason::SourceRoute));
    }
    // No next header, ESP, AH: protocols, which no rule opens.
    for proto in [59, 50, 51, 135] {
        let packet = read(&v6(&[(60, padding())], proto, &[0; 8])).unwrap();
        assert_eq!((packet.proto, packet.has_ports()), (proto, false));
    }
    // As far as direct packet access reaches, and some.
    let long = |last| {
        [
            vec![(60, [&[255_u8][..], &[0; 2046]].concat()); 3],
            vec![(60, [&[last][..], &vec![0; usize::from(last) * 8 + 6]].concat())],
        ]
        .concat()
    };
    assert_eq!(of(&long(250)).unwrap().transport, 8192);
    assert_eq!(of(&long(251)), Err(Reason::Malformed));
    // A length that leads out of the packet, and one so large that 16 bits would wrap.
    assert_eq!(of(&[(60, [&[255_u8][..], &padding()[1..]].concat())]), Err(Reason::Malformed));
}

#[test]
fn ipv6_fragments_are_told_apart() {
    let of = |extensions: &[(u8, Vec<u8>)], body: &[u8]| read(&v6(extensions, UDP, body));
    let first = of(&[fragment(0, true)], &UDP_HEADER).unwrap();
    assert_eq!((first.fragment, first.fragment_id, first.destination_port), (Fragment::First, 9_u32.to_be(), 53));
    // RFC 6946: an atomic fragment is a whole datagram.
    assert_eq!(of(&[fragment(0, false)], &UDP_HEADER).unwrap().fragment, Fragment::Whole);
    for more in [false, true] {
        let later = of(&[fragment(185, more)], &[0xee; 3]).unwrap();
        assert_eq!((later.fragment, later.destination_port, later.proto), (Fragment::Later, 0, UDP));
    }
    // What follows a later fragment's header is data, whatever it looks like.
    assert_eq!(read(&v6(&[fragment(185, false)], 43, &[0; 8])).unwrap().fragment, Fragment::Later);
    assert_eq!(of(&[fragment(0, true), fragment(0, true)], &UDP_HEADER), Err(Reason::Malformed));
    let of_nothing = (44, vec![0; 7]);
    assert_eq!(of(&[of_nothing, fragment(0, true)], &UDP_HEADER), Err(Reason::Malformed));
    // Extension headers before the fragment header are every fragment's, behind it the first one's alone.
    assert_eq!(of(&[(60, padding()), fragment(0, true)], &UDP_HEADER).unwrap().fragment, Fragment::First);
    assert_eq!(of(&[fragment(0, true), (60, padding())], &UDP_HEADER).unwrap().fragment, Fragment::FirstExtended);
    assert_eq!(of(&[fragment(0, false), (60, padding())], &UDP_HEADER).unwrap().fragment, Fragment::Whole);
    assert_eq!(of(&[fragment(0, true), (43, padding())], &UDP_HEADER), Err(Reason::SourceRoute));
    assert_eq!(read(&v6(&[fragment(1, false)], TCP, &tcp(0))), Err(Reason::Malformed));
}

#[test]
fn link_headers_and_vlan_tags_are_walked() {
    let frame = |numbers: &[u16]| {
        let mut frame = vec![2; 12];
        for (index, number) in numbers.iter().enumerate() {
            frame.extend(number.to_be_bytes());
            if index + 1 < numbers.len() {
                frame.extend([0, 7]);
            }
        }
        frame
    };
    for (numbers, expected) in [
        (&[0x0800][..], EtherType::Ip(14)),
        (&[0x86dd], EtherType::Ip(14)),
        (&[0x8100, 0x0800], EtherType::Ip(18)),
        (&[0x88a8, 0x8100, 0x86dd], EtherType::Ip(22)),
        (&[0x0806], EtherType::Arp),
        (&[0x8100, 0x0806], EtherType::Arp),
        (&[0x888e], EtherType::Eapol),
        (&[0x88cc], EtherType::Lldp),
        (&[0x8847], EtherType::Other(0x8847)),
        (&[0x8100, 0x8100, 0x8100, 0x0800], EtherType::Other(0x8100)),
        // IEEE 802.3: a length, not a type.
        (&[0x0026], EtherType::Other(0x0026)),
    ] {
        assert_eq!(link(&frame(numbers)[..]), expected, "{numbers:x?}");
    }
    for whole in [frame(&[0x0800]), frame(&[0x8100, 0x0800]), frame(&[0x88a8, 0x8100, 0x0800])] {
        assert_eq!(link(&whole[..whole.len() - 1]), EtherType::Other(0));
    }
}

#[test]
fn what_an_icmp_error_quotes_is_read_though_cut_short() {
    let error = |quote: &[u8]| {
        let bytes = v4(1, 0, &[], &[&[3, 1, 0, 0, 0, 0, 0, 0], quote].concat());
        let error = read(&bytes).unwrap();
        quoted(&bytes[..], 0, &error)
    };
    let inner = v4(TCP, 0, &[], &tcp(TCP_SYN));
    // RFC 792: the header and 8 bytes; the flags are not among them.
    let packet = error(&inner[..28]).unwrap();
    assert_eq!((packet.source_port, packet.destination_port, packet.tcp_flags), (40_000, 443, 0));
    assert_eq!(error(&inner).unwrap().tcp_flags, TCP_SYN);
    assert_eq!(error(&v4(UDP, 0, &[], &UDP_HEADER)).unwrap().destination_port, 53);
    for length in 0..28 {
        assert_eq!(error(&inner[..length]), None, "{length}");
    }
    let bytes = v6(&[(0, padding())], 58, &[&[1, 4, 0, 0, 0, 0, 0, 0], &v6(&[], UDP, &UDP_HEADER)[..]].concat());
    let packet = quoted(&bytes[..], 0, &read(&bytes).unwrap()).unwrap();
    assert_eq!((packet.version, packet.destination_port), (6, 53));
}

/// Whether a rule can open it: its transport header was read.
fn judged(packet: &Packet) -> bool {
    !matches!(packet.fragment, Fragment::Later) && (packet.has_ports() || packet.is_icmp())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4096, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_read_within_bounds(bytes in proptest::collection::vec(any::<u8>(), 0..200), offset in 0..40_usize) {
        let _ = link(&bytes[..]);
        if let Ok(packet) = parse(&bytes[..], offset) {
            // What was read was there.
            prop_assert!(!judged(&packet) || offset + usize::from(packet.transport) + 8 <= bytes.len());
            let _ = quoted(&bytes[..], offset, &packet);
        }
    }

    /// Random bytes rarely get past the first header: here only what follows it is random.
    #[test]
    fn any_bytes_behind_a_good_header_are_read_within_bounds(
        first in prop_oneof![0x45..=0x4f_u8, Just(0x60)],
        next in prop_oneof![Just(0_u8), Just(43), Just(44), Just(60), Just(6), Just(17), Just(1), Just(58), any::<u8>()],
        rest in proptest::collection::vec(prop_oneof![Just(0_u8), Just(44), Just(60), any::<u8>()], 39..160),
    ) {
        let mut bytes = [&[first], &rest[..]].concat();
        bytes[if first == 0x60 { 6 } else { 9 }] = next;
        if let Ok(packet) = parse(&bytes[..], 0) {
            prop_assert!(!judged(&packet) || usize::from(packet.transport) + 8 <= bytes.len());
            prop_assert_eq!(packet.has_ports(), packet.proto == TCP || packet.proto == UDP);
            if matches!(packet.fragment, Fragment::Later) {
                prop_assert_eq!((packet.source_port, packet.destination_port, packet.tcp_flags), (0, 0, 0));
            }
            let _ = quoted(&bytes[..], 0, &packet);
        }
    }
}

/// What the short way reads of a packet, the whole parser reads too; and it does read whole TCP and UDP behind bare headers.
#[test]
fn plain_packets_are_read_as_the_parser_reads_them() {
    let mut taken = 0;
    for body in [tcp(TCP_ACK), tcp(TCP_SYN), tcp(TCP_ACK)[..19].to_vec(), UDP_HEADER.to_vec(), UDP_HEADER[..7].to_vec()]
    {
        for proto in [TCP, UDP, 1, 44] {
            for packet in [
                v4(proto, 0, &[], &body),
                v4(proto, 0x4000, &[], &body),
                v4(proto, 0x2000, &[], &body),
                v4(proto, 1, &[], &body),
                v4(proto, 0, &[1; 4], &body),
                v6(&[], proto, &body),
                v6(&[(60, padding())], proto, &body),
                v6(&[fragment(0, true)], proto, &body),
            ] {
                let Some(plain) = plain(&packet[..], 0) else { continue };
                taken += 1;
                let parsed = parse(&packet[..], 0).expect("the parser takes it");
                assert_eq!(parsed.fragment, Fragment::Whole);
                assert_eq!(plain, parsed);
            }
        }
    }
    // As TCP the two whole bodies, as UDP every body of 8 bytes; behind 3 bare headers (two of IPv4, one of IPv6).
    assert_eq!(taken, 3 * (2 + 4));
}

proptest! {
    /// Of random headers too.
    #[test]
    fn plain_never_takes_what_the_parser_refuses(
        six in any::<bool>(),
        bytes in proptest::collection::vec(any::<u8>(), 0..80),
        proto in proptest::sample::select(vec![TCP, UDP]),
    ) {
        let mut packet = bytes;
        if let Some(first) = packet.first_mut() { *first = if six { 0x60 | *first & 15 } else { 0x45 }; }
        let at = if six { 6 } else { 9 };
        if let Some(next) = packet.get_mut(at) { *next = proto; }
        if !six && packet.len() > 7 && packet[7] & 1 == 0 { packet[6] = 0x40; packet[7] = 0; }
        if let Some(plain) = plain(&packet[..], 0) {
            prop_assert_eq!(Ok(plain), parse(&packet[..], 0));
            prop_assert_eq!(plain.fragment, Fragment::Whole);
        }
    }
}
