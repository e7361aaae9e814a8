//! The loaded program, by BPF_PROG_TEST_RUN. Nothing is attached, nothing is pinned. Needs root.

use std::{
    collections::HashMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use egress_ebpf::{
    abi::{
        Address, AddressEntry, AddressKey4, AddressKey6, Flow, FlowKey, FragmentKey, GrantEntry, TICK_SHIFT, Ticks,
        ZONE_SOCKET, ZONE_UPLINK,
    },
    decision::outward_key,
    packet::parse,
};
use egress_tests::{
    NetNs,
    bench::programs,
    model::{Case, Transport},
};
use egress_user::datapath::{Datapath, Object, Sizes, Table, boot_ticks, sys};

use crate::{
    Disagreements, Random, compile,
    given::{GONE, Given, Standing},
    seed, settings,
};

const POLICIES: usize = 200;
const CASES_PER_POLICY: usize = 25;

const TC_ACT_REDIRECT: u32 = 7;

/// A program under test, and what a test run of it can show.
struct Program {
    name: &'static str,
    /// What it returns for a packet that passes, and for one that does not.
    pass: u32,
    drop: u32,
    /// Where its fragments are remembered.
    zone: u8,
    /// Whether a test run of it knows the facts of this case.
    comparable: fn(&Case) -> bool,
}

/// `TC_ACT_UNSPEC` and `TC_ACT_SHOT` (`include/uapi/linux/pkt_cls.h`). What leaves by a loopback is no uplink's.
const UPLINK: Program = Program {
    name: "uplink_egress",
    pass: u32::MAX,
    drop: 2,
    zone: ZONE_UPLINK,
    comparable: |case| !case.packet.loopback,
};

/// A test run's socket is new in each run, made by no process, and of no type (`bpf_prog_test_run_skb`): the program takes it for a raw one
/// of the kernel's, whose ICMP errors pass. So what it knows of connections and of datagrams' far ends, and queries over TCP, are left to the host's comparison
/// and to the tests with real sockets.
const SOCKET: Program = Program {
    name: "socket_egress",
    pass: 1,
    drop: 0,
    zone: ZONE_SOCKET,
    comparable: |case| match case.packet.transport {
        Transport::Tcp { destination: 53, .. } => false,
        Transport::Icmp(3 | 11 | 12) if case.packet.destination.is_ipv4() => false,
        Transport::Icmp(1..=4) if case.packet.destination.is_ipv6() => false,
        Transport::Udp { .. } => !case.facts.reply && case.facts.began.is_none(),
        _ => case.facts.began.is_none(),
    },
};

struct Maps {
    addresses_4: Table<AddressKey4, AddressEntry>,
    addresses_6: Table<AddressKey6, AddressEntry>,
    flows: Table<FlowKey, Flow>,
    fragments: Table<FragmentKey, Ticks>,
    grants: Table<u32, GrantEntry>,
}

impl Maps {
    fn of(object: &Object) -> Self {
        Self {
            addresses_4: object.table("ADDRESSES_4").expect("a map"),
            addresses_6: object.table("ADDRESSES_6").expect("a map"),
            flows: object.table("FLOWS").expect("a map"),
            fragments: object.table("FRAGMENTS").expect("a map"),
            grants: object.table("GRANTS").expect("a map"),
        }
    }

    fn swap_address(&self, address: IpAddr, epoch: u32, with: Option<AddressEntry>) -> Option<AddressEntry> {
        fn swap<K: egress_user::datapath::Plain>(
            table: &Table<K, AddressEntry>,
            key: &K,
            with: Option<AddressEntry>,
        ) -> Option<AddressEntry> {
            let was = table.get(key).expect("read");
            match with {
                Some(entry) => table.set(key, &entry, sys::ANY).expect("write"),
                None => drop(table.remove(key).expect("delete")),
            }
            was
        }
        match address {
            IpAddr::V4(address) => swap(&self.addresses_4, &AddressKey4 { address: address.octets(), epoch }, with),
            IpAddr::V6(address) => {
                let address = Address::v6(address.octets());
                swap(&self.addresses_6, &AddressKey6 { address, epoch, pad: 0 }, with)
            }
        }
    }

    fn entry(&self, address: IpAddr, epoch: u32) -> Option<AddressEntry> {
        let was = self.swap_address(address, epoch, None);
        if was.is_some() {
            self.swap_address(address, epoch, was);
        }
        was
    }
}

/// The verifier takes every program: the stack of one that calls deeper than before is the first thing to run out.
#[test]
fn every_program_loads() {
    let sizes = Sizes { addresses: 16, prefixes: 16, classes: 16, grants: 16, names: 16, inner: 16, flows: 65536 };
    let object = Object::load(&sizes, None).expect("the object loads: needs root");
    for name in programs::ALL {
        object.program(name).unwrap_or_else(|error| panic!("{name}: {error:?}"));
    }
}

/// P1: the uplinks' program, a new policy installed for every few cases.
#[test]
fn the_uplinks_program_agrees_with_the_model() {
    agrees(&UPLINK, 100);
}

/// P1: the sockets' program, the same way.
#[test]
fn the_sockets_program_agrees_with_the_model() {
    agrees(&SOCKET, 101);
}

fn agrees(program: &Program, thread: u64) {
    // Packets leave by an interface that is no loopback; nothing is sent.
    let node = NetNs::new("agreement").expect("needs root");
    node.ip("link add out type veth peer name far").expect("an interface");
    let ifindex = node.ifindex("out").expect("it has an index");
    node.run(|| agrees_at(program, thread, ifindex));
}

fn agrees_at(program: &Program, thread: u64, ifindex: u32) {
    let began = Instant::now();
    let sizes =
        Sizes { addresses: 1024, prefixes: 512, classes: 512, grants: 256, names: 512, inner: 64, flows: 65536 };
    let object = Object::load(&sizes, None).expect("the object loads: needs root");
    let mut datapath = Datapath::new(object).expect("the maps are there");
    let maps = Maps::of(datapath.object());
    let mut random = Random::new(seed(thread));
    let mut differ = Disagreements::default();
    // A generation to have been judged by.
    let first = random.policy();
    datapath.install(&compile(&first), &settings(&first), &[]).expect("installs");
    let mut reasons = HashMap::<bool, usize>::new();
    for _ in 0..POLICIES {
        let policy = random.policy();
        let compiled = compile(&policy);
        let installed = datapath.install(&compiled, &settings(&policy), &[]).expect("installs");
        assert!(installed.grants.iter().all(|index| *index < GONE));
        for case in random.cases(&policy, CASES_PER_POLICY).iter().filter(|case| (program.comparable)(case)) {
            let ifindex = if case.packet.loopback { 0 } else { ifindex };
            // Expiries are in ticks of a second: a case during which one passed is tried again.
            let returned = loop {
                settle();
                let standing = Standing {
                    compiled: &compiled,
                    grants: &installed.grants,
                    generation: installed.generation,
                    epoch: installed.epoch,
                    now: boot_ticks(),
                };
                let returned = run(&mut datapath, &maps, program, case, ifindex, &standing);
                if boot_ticks() == standing.now {
                    break returned;
                }
            };
            // A refused query is turned into its own answer and sent back.
            let returned = if returned == TC_ACT_REDIRECT { program.drop } else { returned };
            assert!(returned == program.pass || returned == program.drop, "returned {returned}");
            let passes = returned == program.pass;
            *reasons.entry(passes).or_default() += 1;
            differ.compare(program.name, case, passes, &returned);
        }
    }
    let cases = reasons.values().sum();
    println!("{cases} cases in {:.1} s: {reasons:?} passed", began.elapsed().as_secs_f64());
    assert!(reasons[&true] > cases / 10 && reasons[&false] > cases / 10, "nearly all the same: {reasons:?}");
    differ.none(cases);
}

/// Waits until the kernel's coarse clock, a few milliseconds behind, has entered this tick too.
fn settle() {
    const BEHIND: Duration = Duration::from_millis(20);
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).expect("a clock");
    let into_tick = Duration::from(now).as_nanos() & ((1 << TICK_SHIFT) - 1);
    if into_tick < BEHIND.as_nanos() {
        std::thread::sleep(BEHIND);
    }
}

/// Writes the case's facts down, runs the program once, and takes all of it back.
fn run(
    datapath: &mut Datapath,
    maps: &Maps,
    program: &Program,
    case: &Case,
    ifindex: u32,
    standing: &Standing<'_>,
) -> u32 {
    let parsed = parse(&case.ip_packet()[..], 0).ok();
    let mut given = Given::of(case, parsed.as_ref(), standing);
    if let Some((key, _)) = &mut given.fragment {
        key.zone = program.zone;
    }
    let addresses: Vec<IpAddr> =
        given.learned.iter().flat_map(|learned| learned.addresses.iter().map(|(address, _)| *address)).collect();
    let before: HashMap<IpAddr, Option<AddressEntry>> =
        addresses.iter().map(|address| (*address, maps.entry(*address, standing.epoch))).collect();
    for learned in &given.learned {
        datapath.learn(standing.compiled, std::slice::from_ref(learned)).expect("learns");
    }
    let grants: Vec<_> = given
        .grants
        .iter()
        .map(|(index, _)| (*index, maps.grants.get(index).expect("read").unwrap_or_default()))
        .collect();
    maps.grants.set_all(&given.grants).expect("write");
    for (key, flow) in given.flow.iter().chain(&given.arrival) {
        maps.flows.set(key, flow, sys::ANY).expect("write");
    }
    if let Some((key, passed)) = &given.fragment {
        maps.fragments.set(key, passed, sys::ANY).expect("write");
    }
    let loaded = datapath.object().program(program.name).expect("the program loads");
    let input = sys::TestInput { packet: &case.ethernet_frame(), ifindex, ..Default::default() };
    let returned = sys::test_run(loaded, input).expect("runs").returned;
    let written = parsed.iter().map(|packet| outward_key(packet, ZONE_UPLINK));
    for key in given.arrival.map(|(key, _)| key).into_iter().chain(written) {
        maps.flows.remove(&key).expect("delete");
    }
    if let Some((key, _)) = &given.fragment {
        maps.fragments.remove(key).expect("delete");
    }
    maps.grants.set_all(&grants).expect("write");
    for (address, entry) in before {
        maps.swap_address(address, standing.epoch, entry);
    }
    returned
}
