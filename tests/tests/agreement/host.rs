//! The decision on the host.

use std::{thread, time::Instant};

use egress_ebpf::{
    abi::{
        Config, FlowKey, NameValue, ORIGIN_IN, ORIGIN_OUT, PROTO_TCP, PROTO_UDP, PeerKey, SocketState, Ticks,
        ZONE_SOCKET,
    },
    decision::{Sender, SocketKind, leaves_socket, leaves_uplink, quoted_origin},
    dns::{self, Work},
    packet::{Packet, parse},
    reason::Reason,
};
use egress_tests::model::{Case, Policy, Transport, may_be_private, names_near};
use egress_user::datapath::{KnownClasses, Place, lower};

use crate::{
    Disagreements, Random, compile,
    given::{Given, Standing},
    seed, settings,
    tables::{INNER, Memory},
};

const CASES: usize = 100_000;
/// Compiling takes longer than deciding, so that a policy is asked this often.
const CASES_PER_POLICY: usize = 50;
const THREADS: usize = 4;
const GENERATION: u32 = 7;
const NOW: Ticks = 100_000;
const COOKIE: u64 = 99;

/// P1: 100,000 cases, each at an uplink and at a socket.
#[test]
fn the_decision_agrees_with_the_model() {
    let began = Instant::now();
    let work = |thread: usize| {
        let mut random = Random::new(seed(thread as u64));
        let (mut differ, mut full) = (Disagreements::default(), 0);
        let mut dns = zeroed();
        for _ in 0..CASES / CASES_PER_POLICY / THREADS {
            full += one_policy(&mut random, &mut dns, &mut differ);
        }
        (differ, full)
    };
    let results: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|thread| scope.spawn(move || work(thread))).collect();
        threads.into_iter().map(|thread| thread.join().expect("a thread ends")).collect()
    });
    let (mut differ, mut full) = (Disagreements::default(), 0);
    for (found, without_room) in results {
        differ.0.extend(found.0);
        full += without_room;
    }
    println!("{CASES} cases in {:.1} s, {full} left out since an address had no slot", began.elapsed().as_secs_f64());
    assert!(full < CASES / 1000, "{full} cases left out");
    differ.none(CASES);
}

fn zeroed() -> Box<Work> {
    // SAFETY: every field is an integer or an array of them, for which zeros are a value.
    unsafe { Box::new_zeroed().assume_init() }
}

/// Gives how many cases were left out.
fn one_policy(random: &mut Random, dns: &mut Work, differ: &mut Disagreements) -> usize {
    let policy = random.policy();
    let compiled = compile(&policy);
    let grants: Vec<u32> = (1..).take(compiled.grants.len()).collect();
    let classes = KnownClasses::empty(1 << 16).allot(&compiled, &grants, GENERATION).expect("they fit");
    let place = Place { generation: GENERATION, epoch: GENERATION, classes: &classes.index, inner: INNER };
    let mut tables = Memory::new(lower(&compiled, &settings(&policy), place), classes.fresh.iter().copied().collect());
    let standing =
        Standing { compiled: &compiled, grants: &grants, generation: GENERATION, epoch: GENERATION, now: NOW };
    private_names(&policy, &tables, differ);
    let mut left_out = 0;
    for (number, case) in random.cases(&policy, CASES_PER_POLICY).iter().enumerate() {
        let bytes = case.ip_packet();
        let parsed = parse(&bytes[..], 0);
        let given = Given::of(case, parsed.as_ref().ok(), &standing);
        tables.forget();
        if !given.learned.iter().all(|learned| tables.learn(learned, NOW)) {
            left_out += 1;
            continue;
        }
        tables.grants.extend(given.grants.iter().copied());
        tables.flows.extend(given.flow.into_iter().chain(given.arrival));
        tables.fragments.extend(given.fragment);
        if !case.packet.loopback {
            let reason = at_uplink(&tables, dns, &bytes, parsed);
            differ.compare("uplink", case, passes(&tables, reason), &reason);
        }
        let reason = at_socket(&mut tables, dns, case, &bytes, parsed, &given, number % 2 == 0);
        differ.compare("socket", case, passes(&tables, reason), &reason);
    }
    left_out
}

/// P3: of the names that a rule opens, those of `dns.allowPrivate` may have private addresses, and no others.
fn private_names(policy: &Policy, tables: &Memory, differ: &mut Disagreements) {
    for name in names_near(policy).iter().map(|name| name.to_ascii_lowercase()) {
        let found = tables.find(&name, NOW);
        let private = found.flags & NameValue::PRIVATE != 0;
        if found.count != 0 && private != may_be_private(policy, &name) {
            differ.0.push(format!("{name}: private addresses, says the product: {private}\n{}", policy.to_yaml()));
        }
    }
}

fn passes(tables: &Memory, reason: Reason) -> bool {
    reason.passes() || !tables.elements.config.has(Config::ENFORCE)
}

fn at_uplink(tables: &Memory, dns: &mut Work, bytes: &[u8], parsed: Result<Packet, Reason>) -> Reason {
    let packet = match parsed {
        Ok(packet) => packet,
        Err(reason) => return reason,
    };
    let config = &tables.elements.config;
    let about = |error: &Packet| quoted_origin(tables, config, bytes, 0, error, NOW);
    let verdict = leaves_uplink(tables, config, about, &packet, true, NOW);
    judge_query(tables, dns, &packet, bytes, verdict.reason)
}

/// `in_storage`: what is known of the flow is in the socket's own storage, else in the tables that outlive it.
fn at_socket(
    tables: &mut Memory,
    dns: &mut Work,
    case: &Case,
    bytes: &[u8],
    parsed: Result<Packet, Reason>,
    given: &Given,
    in_storage: bool,
) -> Reason {
    let packet = match parsed {
        Ok(packet) => packet,
        Err(reason) => return reason,
    };
    let kind = match case.packet.transport {
        Transport::Tcp { .. } => SocketKind::STREAM,
        Transport::Udp { .. } => SocketKind::DATAGRAM,
        _ => SocketKind::RAW,
    };
    let mut state = SocketState::default();
    if let Some((key, flow)) = given.flow {
        // What a stream socket's storage does not hold the table of accepted connections may, but of those only. DNS is
        // judged before that table is asked.
        let is_out = flow.origin == ORIGIN_OUT;
        let in_storage = match kind {
            SocketKind::STREAM => in_storage || is_out || packet.destination_port == 53,
            SocketKind::DATAGRAM => in_storage,
            _ => is_out,
        };
        if in_storage {
            let (remote, remote_port) = (packet.destination, packet.destination_port);
            state = SocketState { remote, remote_port, proto: packet.proto, flow, ..state };
        } else if packet.proto == PROTO_TCP {
            tables.flows.insert(FlowKey { zone: ZONE_SOCKET, ..key }, flow);
        } else if packet.proto == PROTO_UDP {
            let (remote, remote_port) = (packet.destination, packet.destination_port);
            let peer = PeerKey { cookie: COOKIE, remote, remote_port, proto: PROTO_UDP, pad: [0; 5] };
            tables.peers.insert(peer, flow);
        }
    }
    if let Some((mut key, passed)) = given.fragment {
        key.zone = ZONE_SOCKET;
        tables.fragments.insert(key, passed);
    }
    let sender = Sender { kind, cookie: COOKIE, loopback: case.packet.loopback };
    let tables = &*tables;
    let config = &tables.elements.config;
    let about_arrival = |error: &Packet| quoted_origin(tables, config, bytes, 0, error, NOW) == ORIGIN_IN;
    let verdict = leaves_socket(tables, config, about_arrival, &packet, &sender, Some(&state), NOW);
    judge_query(tables, dns, &packet, bytes, verdict.reason)
}

/// What the programs' `dns::query` does round the same parser and name table: a datagram is one query, a segment none or
/// one behind its length.
fn judge_query(tables: &Memory, dns: &mut Work, packet: &Packet, bytes: &[u8], reason: Reason) -> Reason {
    if reason != Reason::Dns {
        return reason;
    }
    let mut message = &bytes[usize::from(packet.payload)..usize::from(packet.end)];
    if packet.proto == PROTO_TCP {
        if message.is_empty() {
            return reason;
        }
        message = &message[2..];
    }
    dns.message.bytes[..message.len()].copy_from_slice(message);
    dns.message.len = message.len() as u64;
    if !dns::question(dns) {
        return Reason::BadQuery;
    }
    let Work { pending, matching, differ, .. } = dns;
    pending.key.set_epoch(GENERATION);
    dns::find(tables, &pending.key, GENERATION, NOW, matching, differ);
    let allowlisted = tables.elements.config.has(Config::QUERIES_ALLOWLISTED);
    if allowlisted && !matching.may_ask() { Reason::NameNotAllowed } else { reason }
}
