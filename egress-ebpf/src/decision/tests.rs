//! Flows and replies, on small tables. What rules say is compared with a model elsewhere.

mod rules;
mod tables;

use self::tables::*;
use super::*;
use crate::{
    abi::{Flow, ORIGIN_NONE, ORIGIN_OUT, PROTO_ICMP, PROTO_UDP, SocketState, ZONE_SOCKET},
    packet::{Fragment, TCP_ACK, TCP_SYN},
};

#[test]
fn a_connection_outlives_its_address() {
    let mut fake = Fake::new();
    let segment = tcp(EXPIRED, 443, TCP_ACK);
    assert_eq!(both(&mut fake, &segment, flow(ORIGIN_OUT, GENERATION, 0)), same(Reason::Established));
    // Not a new one on the same ports.
    let syn = tcp(EXPIRED, 443, TCP_SYN);
    assert_eq!(both(&mut fake, &syn, flow(ORIGIN_OUT, GENERATION, 0)), same(Reason::Expired));
    assert_eq!(both(&mut fake, &segment, Flow::default()), same(Reason::Expired));
}

#[test]
fn a_datagram_flow_ages_and_a_connection_does_not() {
    let mut fake = Fake::new();
    let datagram = udp(EXPIRED, 123);
    let at = |age| flow(ORIGIN_OUT, GENERATION, NOW - age);
    assert_eq!(both(&mut fake, &datagram, at(crate::abi::IDLE)), same(Reason::Established));
    assert_eq!(both(&mut fake, &datagram, at(crate::abi::IDLE + 1)), same(Reason::Expired));
    assert_eq!(both(&mut fake, &tcp(EXPIRED, 443, TCP_ACK), at(NOW)), same(Reason::Established));
    // The clock's number may wrap.
    let sender = Sender { kind: SocketKind::DATAGRAM, cookie: COOKIE, loopback: false };
    let wrapped = state(&datagram, flow(ORIGIN_OUT, GENERATION, u32::MAX - 2));
    let verdict = leaves_socket(&fake, &CONFIG, |_| false, &datagram, &sender, Some(&wrapped), 3);
    assert_eq!(verdict.reason, Reason::Established);
}

#[test]
fn after_a_reload_a_connection_goes_on_only_with_its_grant() {
    let mut fake = Fake::new();
    let segment = tcp(EXPIRED, 443, TCP_ACK);
    let before = flow(ORIGIN_OUT, GENERATION - 1, NOW);
    assert_eq!(both(&mut fake, &segment, before), same(Reason::Established));
    for (what, grant) in [
        ("gone with the reload", GrantEntry { key: 1, from: 1, until: GENERATION - 1 }),
        ("given to another since", GrantEntry { key: 1, from: GENERATION, until: u32::MAX }),
        ("free", GrantEntry::default()),
    ] {
        fake.grants = [(GRANT, grant)].into();
        assert_eq!(both(&mut fake, &segment, before), same(Reason::Expired), "{what}");
    }
    fake.grants.clear();
    assert_eq!(both(&mut fake, &segment, before), same(Reason::Expired));
    // What the new policy allows by another grant goes on by that one.
    assert_eq!(both(&mut fake, &tcp(ALLOWED, 443, TCP_ACK), before), same(Reason::Rule));
}

#[test]
fn a_new_deny_rule_ends_what_the_node_opened_and_no_reply() {
    let mut fake = Fake::new();
    let segment = tcp(DENIED, 443, TCP_ACK);
    assert_eq!(both(&mut fake, &segment, flow(ORIGIN_OUT, GENERATION - 1, NOW)), same(Reason::Denied));
    assert_eq!(both(&mut fake, &segment, flow(ORIGIN_IN, GENERATION - 1, NOW)), same(Reason::Reply));
}

#[test]
fn accepted_connections_are_answered_and_not_opened_anew() {
    let mut fake = Fake::new();
    let answer = tcp(STRANGER, 50_000, TCP_SYN | TCP_ACK);
    let key = |zone| outward_key(&answer, zone);
    fake.flows = [(key(ZONE_SOCKET), flow(ORIGIN_IN, 1, 0))].into();
    assert_eq!(fake.socket(SocketKind::STREAM, None, &answer), Reason::Reply);
    assert_eq!(fake.socket(SocketKind::STREAM, None, &tcp(STRANGER, 50_000, TCP_SYN)), Reason::NoRule);
    assert_eq!(fake.socket(SocketKind::STREAM, None, &tcp(STRANGER, 50_001, TCP_ACK)), Reason::NoRule);
    // What a workload's own namespace saw come in says nothing at the uplink.
    assert_eq!(fake.uplink(&answer), Reason::NoRule);
    fake.flows = [(key(ZONE_UPLINK), flow(ORIGIN_IN, 1, 0))].into();
    assert_eq!(fake.uplink(&answer), Reason::Reply);
    assert_eq!(fake.uplink(&tcp(STRANGER, 50_000, TCP_SYN)), Reason::NoRule);
    // To a listener that is called by another address or port: what leaves has those that the uplink saw.
    assert_eq!(fake.socket(SocketKind::STREAM, None, &answer), Reason::Reply);
    assert_eq!(fake.socket(SocketKind::STREAM, None, &tcp(STRANGER, 50_000, TCP_SYN)), Reason::NoRule);
}

/// P1: whoever makes a network namespace can have any address in it, and any connection arrive there.
#[test]
fn a_connection_is_accepted_in_its_own_namespace_alone() {
    let mut fake = Fake::new();
    let answer = tcp(STRANGER, 50_000, TCP_ACK);
    let of = |netns, origin| SocketState { netns, ..state(&answer, flow(origin, GENERATION - 1, NOW)) };
    let accepted = |state: &SocketState| accepted_flow(&CONFIG, Some(state), NOW);
    fake.flows = [(outward_key(&answer, ZONE_SOCKET), accepted(&of(7, ORIGIN_NONE)))].into();
    let reason = |state: SocketState| fake.socket(SocketKind::STREAM, Some(&state), &answer);
    assert_eq!(reason(of(7, ORIGIN_NONE)), Reason::Reply);
    assert_eq!(reason(of(0, ORIGIN_NONE)), Reason::Reply, "an accepted socket was made by no process");
    assert_eq!(reason(of(8, ORIGIN_NONE)), Reason::NoRule);
    // Nor does an arrival make a reply of what the socket opened by a rule that is gone.
    fake.grants.clear();
    for netns in [0, 7] {
        let state = of(netns, ORIGIN_OUT);
        assert_eq!(fake.socket(SocketKind::STREAM, Some(&state), &answer), Reason::NoRule);
    }
}

/// P3: an answer that this node makes up, for a neighbour to send back.
#[test]
fn no_resolvers_answer_leaves_by_an_uplink() {
    let fake = Fake::new();
    let forged = Packet { source: RESOLVER, source_port: 53, ..udp(ALLOWED, 123) };
    assert_eq!(fake.uplink(&forged), Reason::ForgedResolver);
    let forwarded = leaves_uplink(&fake, &CONFIG, |_| ORIGIN_NONE, &forged, false, NOW);
    assert_eq!(forwarded.reason, Reason::Rule, "this node may be its router");
    assert_eq!(fake.uplink(&Packet { source_port: 54, ..forged }), Reason::Rule);
}

/// P1: nobody tells which server is DHCP's, nor who is on the link.
#[test]
fn dhcp_and_neighbour_discovery_are_no_way_out() {
    let config = Config { builtins: u32::MAX, teaching_netns: 7, ..CONFIG };
    let fake = Fake::new();
    let dhcp = |to| Packet { version: 4, source_port: 68, ..udp(to, 67) };
    let (all, inside) = (Address::v4([255; 4]), Address::v4([10, 0, 0, 1]));
    for (to, own, passes) in [
        (all, true, true),
        (all, false, true),
        (inside, true, true),
        (inside, false, false),
        (Address::v4([224, 0, 0, 1]), true, false),
        (STRANGER, true, false),
        (STRANGER, false, false),
    ] {
        assert_eq!(builtin(&config, &dhcp(to), own), passes, "{to:?} {own}");
        let uplink = leaves_uplink(&fake, &config, |_| ORIGIN_NONE, &dhcp(to), own, NOW).reason;
        assert_eq!(uplink == Reason::Builtin, passes, "{to:?} {own}");
        let sender = Sender { kind: SocketKind::DATAGRAM, cookie: COOKIE, loopback: false };
        let state = SocketState { netns: if own { 7 } else { 8 }, ..SocketState::default() };
        let socket = leaves_socket(&fake, &config, |_| false, &dhcp(to), &sender, Some(&state), NOW).reason;
        assert_eq!(socket == Reason::Builtin, passes, "{to:?} {own}");
    }
    let v6 = |text: &str| Address::v6(text.parse::<std::net::Ipv6Addr>().unwrap().octets());
    let neighbour = |to: &str, kind: u16, bytes: u16| Packet {
        version: 6,
        hops: 255,
        transport: 40,
        end: 40 + bytes,
        ..packet(crate::abi::PROTO_ICMPV6, v6(to), kind << 8)
    };
    for (to, kind, bytes, passes) in [
        ("fe80::1", 135, 1000, true),
        ("ff02::1:ff00:1", 135, 32, true),
        ("ff02::2", 133, 16, true),
        ("2001:db8::77", 135, 32, true),
        ("2001:db8::77", 136, 73, false),
        ("2001:db8::77", 133, 16, false),
        ("2001:db8::77", 134, 16, false),
    ] {
        assert_eq!(builtin(&config, &neighbour(to, kind, bytes), true), passes, "{to} {kind} {bytes}");
    }
}

/// P1: with CAP_NET_RAW a workload can send itself a SYN from anywhere, over its own loopback.
#[test]
fn raw_sockets_cannot_claim_a_streams_replies() {
    let mut fake = Fake::new();
    let answer = tcp(STRANGER, 50_000, TCP_ACK);
    fake.flows = [(outward_key(&answer, ZONE_SOCKET), flow(ORIGIN_IN, 1, NOW))].into();
    assert_eq!(fake.socket(SocketKind::RAW, None, &answer), Reason::NoRule);
    assert_eq!(fake.socket(SocketKind::DATAGRAM, None, &answer), Reason::NoRule);
    fake.flows = [(outward_key(&answer, ZONE_UPLINK), flow(ORIGIN_IN, 1, NOW))].into();
    assert_eq!(fake.socket(SocketKind::RAW, None, &answer), Reason::Reply);
    assert_eq!(fake.socket(SocketKind::RAW, None, &tcp(STRANGER, 50_000, TCP_SYN)), Reason::NoRule);
    // Nor datagrams that another socket was sent.
    let datagram = udp(STRANGER, 50_000);
    fake.peers = [(peer_key(&datagram), flow(ORIGIN_IN, 1, NOW))].into();
    assert_eq!(fake.socket(SocketKind::RAW, None, &datagram), Reason::NoRule);
    assert_eq!(fake.socket(SocketKind::DATAGRAM, None, &datagram), Reason::Reply);
    // Nor a stream to a resolver, of which each segment was judged alone.
    assert_eq!(fake.socket(SocketKind::RAW, None, &tcp(RESOLVER, 53, TCP_ACK)), Reason::BadQuery);
    assert_eq!(fake.socket(SocketKind::STREAM, None, &tcp(RESOLVER, 53, TCP_ACK)), Reason::Dns);
}

#[test]
fn a_sockets_state_is_for_its_far_end_alone() {
    let fake = Fake::new();
    let known = state(&udp(STRANGER, 1000), flow(ORIGIN_IN, 1, NOW));
    let to = |packet: &Packet| fake.socket(SocketKind::DATAGRAM, Some(&known), packet);
    assert_eq!(to(&udp(STRANGER, 1000)), Reason::Reply);
    assert_eq!(to(&udp(STRANGER, 1001)), Reason::NoRule);
    assert_eq!(to(&udp(DENIED, 1000)), Reason::Denied);
    assert_eq!(to(&tcp(STRANGER, 1000, TCP_ACK)), Reason::NoRule);
}

#[test]
fn an_echo_reply_answers_and_a_request_does_not() {
    let mut fake = Fake::new();
    let echo = |kind: u16, to| packet(PROTO_ICMP, to, kind << 8);
    let (reply, request) = (echo(0, STRANGER), echo(8, STRANGER));
    fake.flows = [(outward_key(&reply, ZONE_UPLINK), flow(ORIGIN_IN, 1, NOW))].into();
    assert_eq!((fake.uplink(&reply), fake.uplink(&request)), (Reason::Reply, Reason::NoRule));
    assert_eq!(fake.socket(SocketKind::RAW, None, &reply), Reason::Reply);
    assert_eq!(fake.socket(SocketKind::RAW, None, &request), Reason::NoRule);
    let other = Packet { source_port: 1, ..reply };
    assert_eq!(fake.uplink(&other), Reason::NoRule, "another identifier");
    assert_eq!(fake.uplink(&echo(8, ALLOWED)), Reason::Rule);
}

#[test]
fn icmp_errors_pass_if_they_are_about_what_came_in() {
    let fake = Fake::new();
    let error = packet(PROTO_ICMP, STRANGER, 3 << 8);
    let denied = packet(PROTO_ICMP, DENIED, 3 << 8);
    for about in [ORIGIN_IN, ORIGIN_OUT, ORIGIN_NONE] {
        let reason = if about == ORIGIN_NONE { Reason::NoRule } else { Reason::Reply };
        assert_eq!(leaves_uplink(&fake, &CONFIG, |_| about, &error, true, NOW).reason, reason);
        let raw = Sender { kind: SocketKind::RAW, cookie: COOKIE, loopback: false };
        let to_denied = leaves_uplink(&fake, &CONFIG, |_| about, &denied, true, NOW).reason;
        assert_eq!(to_denied == Reason::Reply, about == ORIGIN_IN, "what the node opened a deny rule closes");
        let reason = if about == ORIGIN_IN { Reason::Reply } else { Reason::NoRule };
        let verdict = leaves_socket(&fake, &CONFIG, |_| about == ORIGIN_IN, &error, &raw, None, NOW);
        assert_eq!((verdict.reason, verdict.remember), (reason, ORIGIN_NONE));
    }
    // Redirects reroute: they are no errors.
    let redirect = packet(PROTO_ICMP, STRANGER, 5 << 8);
    assert_eq!(leaves_uplink(&fake, &CONFIG, |_| ORIGIN_IN, &redirect, true, NOW).reason, Reason::NoRule);
}

/// Who sends more than a link takes is told, for as long as the rule stands by which it was called.
#[test]
fn an_error_goes_back_along_a_flow_that_stands() {
    let mut fake = Fake::new();
    let quoted =
        [&[0x45, 0, 0, 28, 0, 0, 0, 0, 64, PROTO_UDP, 0, 0][..], &STRANGER.v4_bytes(), &HERE.v4_bytes()].concat();
    let bytes = [&[0; 28][..], &quoted, &[0, 123, 0x9c, 0x40, 0, 8, 0, 0]].concat();
    let error = Packet { transport: 20, ..packet(PROTO_ICMP, STRANGER, 3 << 8 | 4) };
    let of = |fake: &Fake, now| quoted_origin(fake, &CONFIG, &bytes[..], 0, &error, now);
    assert_eq!(of(&fake, NOW), ORIGIN_NONE);
    let key = inward_key(&crate::packet::parse(&bytes[..], 28).unwrap(), ZONE_UPLINK);
    for (origin, grant, found) in
        [(ORIGIN_IN, 0, ORIGIN_IN), (ORIGIN_OUT, GRANT, ORIGIN_OUT), (ORIGIN_OUT, 9, ORIGIN_NONE)]
    {
        fake.flows.insert(key, Flow { seen: NOW, generation: GENERATION, grant, origin });
        assert_eq!(of(&fake, NOW), found);
        assert_eq!(of(&fake, NOW + IDLE + 1), ORIGIN_NONE, "nothing was said for too long");
    }
    let elsewhere = Packet { destination: ALLOWED, ..error };
    assert_eq!(
        quoted_origin(&fake, &CONFIG, &bytes[..], 0, &elsewhere, NOW),
        ORIGIN_NONE,
        "to another than who sent it"
    );
}

#[test]
fn loopback_passes_from_sockets_unless_switched_off() {
    let fake = Fake::new();
    let off = Config { builtins: 0, ..CONFIG };
    for (loopback, config, reason) in
        [(true, CONFIG, Reason::Loopback), (false, CONFIG, Reason::Denied), (true, off, Reason::Denied)]
    {
        let sender = Sender { kind: SocketKind::STREAM, cookie: COOKIE, loopback };
        let verdict = leaves_socket(&fake, &config, |_| false, &tcp(DENIED, 443, TCP_SYN), &sender, None, NOW);
        assert_eq!(verdict, Verdict::plain(reason));
    }
}

#[test]
fn later_fragments_follow_their_first_one_in_their_zone_and_time() {
    let mut fake = Fake::new();
    let later = Packet { fragment: Fragment::Later, fragment_id: 9, ..udp(ALLOWED, 0) };
    assert_eq!(fake.uplink(&later), Reason::OrphanFragment, "though its address is allowed");
    fake.fragments = [(fragment_key(&later, ZONE_UPLINK), NOW - FRAGMENT_LIFE)].into();
    assert_eq!(fake.uplink(&later), Reason::Fragment);
    assert_eq!(fake.socket(SocketKind::RAW, None, &later), Reason::OrphanFragment);
    assert_eq!(fake.uplink(&Packet { fragment_id: 8, ..later }), Reason::OrphanFragment);
    assert_eq!(fake.uplink(&Packet { destination: STRANGER, ..later }), Reason::OrphanFragment);
    fake.fragments = [(fragment_key(&later, ZONE_SOCKET), NOW - FRAGMENT_LIFE - 1)].into();
    assert_eq!(fake.socket(SocketKind::RAW, None, &later), Reason::OrphanFragment);
}

#[test]
fn what_arrives_at_a_socket_is_remembered_unless_it_is_an_answer() {
    let mut fake = Fake::new();
    let sent = udp(ALLOWED, 123);
    let arrives = |fake: &Fake, packet: &Packet, loopback, state: Option<&SocketState>| {
        arrives_at_socket(fake, &CONFIG, packet, COOKIE, loopback, state, || NOW)
    };
    let answer = back(&sent);
    assert_eq!(arrives(&fake, &answer, false, None), ORIGIN_IN, "unsolicited");
    let own = state(&sent, flow(ORIGIN_OUT, GENERATION, NOW));
    assert_eq!(arrives(&fake, &answer, false, Some(&own)), ORIGIN_NONE);
    let other = Packet { source_port: 124, ..answer };
    assert_eq!(arrives(&fake, &other, false, Some(&own)), ORIGIN_IN, "from another port");
    fake.peers = [(peer_key(&sent), flow(ORIGIN_OUT, GENERATION, NOW))].into();
    assert_eq!(arrives(&fake, &answer, false, None), ORIGIN_NONE, "an unconnected socket's own flow");
    assert_eq!(
        arrives_at_socket(&fake, &CONFIG, &answer, COOKIE + 1, false, None, || NOW),
        ORIGIN_IN,
        "another socket's flow"
    );
    assert_eq!(arrives(&fake, &other, true, None), ORIGIN_NONE, "by loopback");
    let write = |flow| Fake { peers: [(peer_key(&back(&other)), flow)].into(), ..Fake::new() };
    assert_eq!(arrives(&write(flow(ORIGIN_IN, GENERATION, NOW)), &other, false, None), ORIGIN_NONE, "written already");
    assert_eq!(arrives(&write(flow(ORIGIN_IN, GENERATION, NOW - 1)), &other, false, None), ORIGIN_IN, "a tick ago");
    assert_eq!(
        arrives(&write(flow(ORIGIN_IN, GENERATION - 1, NOW)), &other, false, None),
        ORIGIN_IN,
        "before a reload"
    );
    let later = Packet { fragment: Fragment::Later, ..other };
    assert_eq!(arrives(&fake, &later, false, None), ORIGIN_NONE);
    let segment = |flags| back(&tcp(STRANGER, 443, flags));
    assert_eq!(arrives(&fake, &segment(TCP_SYN), false, None), ORIGIN_IN);
    assert_eq!(arrives(&fake, &segment(TCP_SYN | TCP_ACK), false, None), ORIGIN_NONE);
    assert_eq!(arrives(&fake, &segment(TCP_SYN), true, None), ORIGIN_NONE);
    assert_eq!(arrives(&fake, &packet(PROTO_ICMP, HERE, 8 << 8), false, None), ORIGIN_NONE);
}

/// P5: the next query must not pass as the reply to an answer.
#[test]
fn what_a_resolver_answers_is_nothing_to_reply_to() {
    let fake = Fake::new();
    let answer = back(&udp(RESOLVER, 53));
    assert_eq!(arrives_at_socket(&fake, &CONFIG, &answer, COOKIE, false, None, || NOW), ORIGIN_NONE);
    assert_eq!(arrives_at_uplink(&fake, &CONFIG, &answer, || NOW), ORIGIN_NONE);
    let other = back(&udp(STRANGER, 53));
    assert_eq!(arrives_at_socket(&fake, &CONFIG, &other, COOKIE, false, None, || NOW), ORIGIN_IN);
    assert_eq!(arrives_at_uplink(&fake, &CONFIG, &other, || NOW), ORIGIN_IN);
}

#[test]
fn what_arrives_on_an_uplink_is_remembered_unless_it_is_an_answer() {
    let mut fake = Fake::new();
    let sent = udp(ALLOWED, 123);
    assert_eq!(arrives_at_uplink(&fake, &CONFIG, &back(&sent), || NOW), ORIGIN_IN);
    fake.flows = [(outward_key(&sent, ZONE_UPLINK), flow(ORIGIN_OUT, GENERATION, NOW))].into();
    assert_eq!(arrives_at_uplink(&fake, &CONFIG, &back(&sent), || NOW), ORIGIN_NONE);
    assert_eq!(arrives_at_uplink(&fake, &CONFIG, &back(&tcp(STRANGER, 443, TCP_SYN)), || NOW), ORIGIN_IN);
    assert_eq!(arrives_at_uplink(&fake, &CONFIG, &back(&tcp(STRANGER, 443, TCP_ACK)), || NOW), ORIGIN_NONE);
    let echo = |kind: u16| packet(PROTO_ICMP, HERE, kind << 8);
    assert_eq!(
        (arrives_at_uplink(&fake, &CONFIG, &echo(8), || NOW), arrives_at_uplink(&fake, &CONFIG, &echo(0), || NOW)),
        (ORIGIN_IN, ORIGIN_NONE)
    );
    let later = Packet { fragment: Fragment::Later, ..back(&udp(STRANGER, 1)) };
    assert_eq!(arrives_at_uplink(&fake, &CONFIG, &later, || NOW), ORIGIN_NONE);
    // The request and its reply have one key, whichever way it is looked from.
    let (request, reply) = (back(&echo(8)), packet(PROTO_ICMP, STRANGER, 0));
    let request =
        Packet { source: STRANGER, destination: HERE, source_port: 40_000, destination_port: 8 << 8, ..request };
    assert_eq!(inward_key(&request, ZONE_UPLINK), outward_key(&reply, ZONE_UPLINK));
}

/// P5: a resolver that sent a datagram before it was one, from its own port, is asked no question that is not judged.
#[test]
fn a_query_is_no_reply() {
    let mut fake = Fake::new();
    let query = udp(RESOLVER, 53);
    for origin in [ORIGIN_IN, ORIGIN_OUT] {
        let known = flow(origin, GENERATION, NOW);
        assert_eq!(both(&mut fake, &query, known), same(Reason::Dns));
        fake.peers = [(peer_key(&query), known)].into();
        assert_eq!(fake.socket(SocketKind::DATAGRAM, None, &query), Reason::Dns);
    }
    // Of one that is no resolver what it says is answered.
    assert_eq!(both(&mut fake, &udp(STRANGER, 53), flow(ORIGIN_IN, GENERATION, NOW)), same(Reason::Reply));
}

/// What the short way passes over asks for nothing, whatever is known of it; what may be a resolver's it does not pass over.
#[test]
fn what_tells_nothing_is_not_remembered() {
    let fake = Fake::new();
    let mut passed_over = 0;
    for source_port in [443, 53, 5353] {
        for flags in [TCP_ACK, TCP_SYN, TCP_SYN | TCP_ACK, 0] {
            for proto in [PROTO_TCP, PROTO_UDP] {
                let packet = Packet { source_port, proto, tcp_flags: flags, ..tcp(STRANGER, 443, flags) };
                for resolver_ports in [0, Config::RESOLVER_PORTS] {
                    let config = Config { flags: CONFIG.flags | resolver_ports, ..CONFIG };
                    for loopback in [false, true] {
                        if !tells_nothing(&config, &packet, loopback) {
                            continue;
                        }
                        passed_over += 1;
                        assert!(source_port != 53 && resolver_ports == 0, "{packet:?}");
                        let origin = arrives_at_socket(&fake, &config, &packet, COOKIE, loopback, None, || NOW);
                        assert_eq!(origin, ORIGIN_NONE, "{packet:?}");
                        if !loopback {
                            assert_eq!(arrives_at_uplink(&fake, &config, &packet, || NOW), ORIGIN_NONE);
                        }
                    }
                }
            }
        }
    }
    // Of two ports: segments but the first by either way, and everything by loopback.
    assert_eq!(passed_over, 2 * (3 + 8));
}

/// The answer to what a socket sent is passed over; what another sent, what it sent first, and what may be a resolver's is not.
#[test]
fn answers_to_a_socket_are_not_remembered() {
    let fake = Fake::new();
    let state = |origin| SocketState {
        remote: STRANGER,
        remote_port: 443,
        proto: PROTO_UDP,
        flow: Flow { seen: NOW, generation: 5, grant: GRANT, origin },
        ..Default::default()
    };
    let arrives = |source, source_port| Packet { source, source_port, ..udp(STRANGER, 40_000) };
    let asked = state(ORIGIN_OUT);
    let answer = arrives(STRANGER, 443);
    assert!(tells_nothing_to(&CONFIG, &answer, &asked));
    assert_eq!(arrives_at_socket(&fake, &CONFIG, &answer, COOKIE, false, Some(&asked), || NOW), ORIGIN_NONE);
    for (config, packet, state) in [
        (CONFIG, arrives(STRANGER, 444), asked),
        (CONFIG, arrives(DENIED, 443), asked),
        (CONFIG, answer, state(ORIGIN_IN)),
        (CONFIG, answer, state(ORIGIN_NONE)),
        (CONFIG, arrives(STRANGER, 53), SocketState { remote_port: 53, ..asked }),
        (Config { flags: CONFIG.flags | Config::RESOLVER_PORTS, ..CONFIG }, answer, asked),
    ] {
        assert!(!tells_nothing_to(&config, &packet, &state), "{packet:?} {state:?}");
    }
}

/// Whatever the short way says of what leaves by loopback, the whole decision says too, of every kind of socket; what may be a query it leaves.
#[test]
fn the_short_way_by_loopback_agrees_with_the_whole_decision() {
    let fake = Fake::new();
    let mut short = 0;
    for (port, flags, builtins) in
        [(443, 0, u32::MAX), (53, 0, u32::MAX), (443, Config::RESOLVER_PORTS, u32::MAX), (443, 0, 0)]
    {
        let config = Config { flags: CONFIG.flags | flags, builtins, ..CONFIG };
        for packet in
            [tcp(STRANGER, port, TCP_SYN), tcp(RESOLVER, port, TCP_ACK), udp(RESOLVER, port), udp(DENIED, port)]
        {
            let Some(verdict) = by_loopback(&config, &packet) else { continue };
            short += 1;
            assert!(port != 53 && flags == 0 && builtins != 0);
            for kind in [SocketKind::STREAM, SocketKind::DATAGRAM, SocketKind::RAW] {
                let sender = Sender { kind, cookie: COOKIE, loopback: true };
                assert_eq!(
                    verdict,
                    leaves_socket(&fake, &config, |_| false, &packet, &sender, None, NOW),
                    "{packet:?}"
                );
            }
        }
    }
    assert_eq!(short, 4);
}

/// Whatever the short way says of a flow, the whole decision says too, and it asks for nothing else to be written down.
#[test]
fn the_short_way_agrees_with_the_whole_decision() {
    let mut short = 0;
    for proto in [PROTO_TCP, PROTO_UDP] {
        for flags in [TCP_ACK, TCP_SYN, TCP_SYN | TCP_ACK] {
            for origin in [ORIGIN_NONE, ORIGIN_IN, ORIGIN_OUT] {
                for (generation, seen, port) in
                    [(5, NOW, 443), (5, NOW - 1, 443), (4, NOW, 443), (5, NOW, 80), (5, 0, 443)]
                {
                    let tcp_flags = if proto == PROTO_TCP { flags } else { 0 };
                    let packet = Packet { proto, tcp_flags, ..tcp(STRANGER, 443, flags) };
                    let flow = Flow { seen, generation, grant: GRANT, origin };
                    let state = SocketState { remote: STRANGER, remote_port: port, proto, flow, ..Default::default() };
                    let mut fake = Fake::new();
                    let sender = Sender { kind: SocketKind::STREAM, cookie: COOKIE, loopback: false };
                    let whole = leaves_socket(&fake, &CONFIG, |_| false, &packet, &sender, Some(&state), NOW);
                    if let Some(verdict) = established_at_socket(&CONFIG, &packet, &state, || NOW) {
                        short += 1;
                        assert_eq!(verdict, whole, "{state:?} {packet:?}");
                        assert!(proto == PROTO_TCP || flow.seen == NOW);
                    }
                    fake.flows.insert(outward_key(&packet, ZONE_UPLINK), flow);
                    if let Some(verdict) = established_at_uplink(&CONFIG, &packet, &flow, || NOW) {
                        assert_eq!(verdict, leaves_uplink(&fake, &CONFIG, |_| ORIGIN_NONE, &packet, true, NOW));
                    }
                }
            }
        }
    }
    // TCP by two flags at three times, UDP (thrice the same packet) at one; both origins.
    assert_eq!(short, 2 * (2 * 3 + 3));
}
