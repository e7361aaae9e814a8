//! What reading DNS costs, over an empty program. It fails on what no machine may make of it; the figures are printed.

use egress_ebpf::abi::{LearnCount, Pending};

use crate::{
    kernel::{CLIENT, Kernel, LIVE, PORT, RESOLVER, allow},
    wire::{self, Data::Address},
};

const RUNS: u32 = 100_000;

#[test]
fn cost_over_an_empty_program() {
    let mut kernel = Kernel::load();
    kernel.name(LIVE, "*.example.com", allow(7));
    for program in ["socket_egress", "socket_ingress", "control"] {
        println!("{program}: {} instructions verified", kernel.verified(program));
    }
    println!("a pending query takes {} bytes", size_of::<Pending>());
    let query = wire::udp(CLIENT, PORT, RESOLVER, 53, &wire::query(1, "www.shop.example.com"));
    let empty = kernel.run("empty", &query, RUNS).1.max(1);
    println!("empty: {empty} ns");
    let show =
        |what: &str, nanos: u32| println!("{what}: {nanos} ns, {:.1} times", f64::from(nanos) / f64::from(empty));
    show("allowed query", kernel.run("socket_egress", &query, RUNS).1);
    let refused = wire::udp(CLIENT, PORT, RESOLVER, 53, &wire::query(1, "www.shop.example.net"));
    show("refused query", kernel.run("socket_egress", &refused, RUNS).1);
    let other = wire::udp(CLIENT, PORT, RESOLVER, 4433, &wire::query(1, "www.shop.example.com"));
    show("other UDP", kernel.run("socket_egress", &other, RUNS).1);
    for count in [1, 8, 60] {
        let texts: Vec<_> = (0..count).map(|n| format!("198.51.100.{n}")).collect();
        let records: Vec<_> = texts.iter().map(|text| ("www.shop.example.com", 30, Address(text))).collect();
        let message = wire::answer(1, "www.shop.example.com", &records);
        let packet = wire::udp(RESOLVER, 53, CLIENT, PORT, &message);
        // Events wait unread meanwhile: waking the daemon costs more than all the rest, and comes once for many answers.
        // An answer counts once, so each run needs a query of its own; BPF_PROG_TEST_RUN times single runs coarsely, and
        // the least of many is taken.
        let mut times = Vec::new();
        for _ in 0..2000 {
            kernel.run("socket_egress", &query, 1);
            times.push(kernel.run("socket_ingress", &packet, 1).1);
        }
        kernel.events();
        times.sort_unstable();
        show(&format!("answer with {count} (median of single runs)"), times[times.len() / 2]);
    }
    let mut single: Vec<_> = (0..2000).map(|_| kernel.run("empty", &query, 1).1).collect();
    single.sort_unstable();
    println!("empty, median of single runs: {} ns", single[single.len() / 2]);
    assert_eq!(kernel.count(LearnCount::Malformed) + kernel.count(LearnCount::Unasked), 0);
}
