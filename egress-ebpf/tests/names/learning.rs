//! Names learned by the kernel: what an answer opens, and what none does.

use crate::{
    kernel::{Kernel, LIVE, allow},
    wire::{self, Data::Address},
};

#[test]
fn answer_to_an_allowed_query_is_learned_once() {
    let mut kernel = Kernel::load();
    kernel.name(LIVE, "www.example.com", allow(7));
    assert!(kernel.query(&wire::query(1, "www.example.com")));
    assert_eq!(kernel.pending(), 1);
    kernel.answer(&wire::answer(1, "www.example.com", &[("www.example.com", 30, Address("198.51.100.1"))]));
    assert_eq!(kernel.classes(LIVE, "198.51.100.1"), [7]);
    assert_eq!(kernel.pending(), 0);
    let events = kernel.events();
    assert_eq!(events.len(), 1);
    assert_eq!(events[0].0.key.reversed(), b"moc.elpmaxe.www");
    assert_eq!(events[0].1[0].ttl, 30);
}

#[test]
fn what_the_verifier_reads() {
    let kernel = Kernel::load();
    for program in ["socket_egress", "socket_ingress", "control"] {
        println!("{program}: {} instructions verified", kernel.verified(program));
    }
}
