//! What the daemon is told of answers: the first that says something at once, then one a tick.

use egress_ebpf::abi::{Address as Words, AnswerFold, LearnedAddress, LearnedEvent};

use crate::{
    kernel::{Kernel, LIVE, allow},
    wire::{self, Data::Address},
};

const ONE: &str = "198.51.100.1";
const OTHER: &str = "198.51.100.2";

fn kernel() -> Kernel {
    let mut kernel = Kernel::load();
    kernel.name(LIVE, "*.example.com", allow(7));
    kernel
}

/// A lookup of `name`; each of `addresses` has `ttl`. What was told of it.
fn look_up(kernel: &mut Kernel, name: &str, addresses: &[&str], ttl: u32) -> Vec<(LearnedEvent, Vec<LearnedAddress>)> {
    let records: Vec<_> = addresses.iter().map(|address| (name, ttl, Address(address))).collect();
    assert!(kernel.query(&wire::query(9, name)), "{name} may be asked");
    kernel.answer(&wire::answer(9, name, &records));
    kernel.events()
}

/// Runs `body` until it began and ended within one tick, on tables of its own each time.
fn within_a_tick(body: impl Fn(&mut Kernel)) {
    for _ in 0..20 {
        let mut kernel = kernel();
        let tick = egress_user::datapath::boot_ticks();
        // What does not hold across ticks may fail there, and is tried again.
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| body(&mut kernel)));
        if egress_user::datapath::boot_ticks() == tick {
            done.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            return;
        }
    }
    panic!("no run of twenty within a second");
}

#[test]
fn answers_that_say_the_same_are_told_once_a_tick() {
    let mut kernel = kernel();
    let (mut told, mut stand_for) = (0, 0);
    let (start, mut asked) = (egress_user::datapath::boot_ticks(), 0);
    // Through ends of ticks, so that what the first left untold is told with the next. The kernel's clock may lag behind this one.
    while egress_user::datapath::boot_ticks() < start + 3 {
        let order = if asked % 2 == 0 { [ONE, OTHER] } else { [OTHER, ONE] };
        for (event, addresses) in look_up(&mut kernel, "a.example.com", &order, 3600) {
            assert_eq!(addresses.len(), 2);
            told += 1;
            stand_for += event.answers;
        }
        asked += 1;
    }
    let untold: u32 = kernel.folds().iter().map(|(_, fold)| fold.untold).sum();
    assert!((2..=4).contains(&told), "of {asked} answers {told} were told");
    assert_eq!(stand_for + untold, asked, "and every one is counted");
}

#[test]
fn what_says_something_else_is_told_at_once() {
    within_a_tick(|kernel| {
        assert_eq!(look_up(kernel, "a.example.com", &[ONE], 60).len(), 1);
        assert_eq!(look_up(kernel, "a.example.com", &[ONE], 60).len(), 0);
        assert_eq!(look_up(kernel, "b.example.com", &[ONE], 60).len(), 1, "another name with the same address");
        assert_eq!(look_up(kernel, "a.example.com", &[ONE, OTHER], 60).len(), 1, "an address more");
        assert_eq!(look_up(kernel, "a.example.com", &["198.51.100.0", "198.51.100.3"], 60).len(), 1, "others");
        assert_eq!(look_up(kernel, "a.example.com", &[], 60).len(), 1, "none");
        let longer = look_up(kernel, "a.example.com", &[ONE], 7200);
        assert_eq!(longer[0].0.answers, 2, "it counts for longer now, and one was not told: {longer:?}");
        assert_eq!(look_up(kernel, "a.example.com", &[ONE], 60).len(), 0, "what was told counts for longer");
    });
}

/// Whoever runs a name's servers can make up addresses that come to the same sum: what opens something is told all the same.
#[test]
fn what_opens_something_is_told_though_it_sums_up_to_what_was_told() {
    let one = "2001:db8::1";
    let Words { high, low } = one.parse::<std::net::Ipv6Addr>().map(|one| Words::v6(one.octets())).unwrap();
    let same = |low_2: u64| Words {
        high: high.wrapping_sub(low_2.wrapping_sub(low).wrapping_mul(0x9e37_79b9_7f4a_7c15)),
        low: low_2,
    };
    let public = |found: &Words| found.high.to_ne_bytes()[0] >> 5 == 1 && !egress_ebpf::dns::is_private(found);
    let other = (1..).map(same).find(|found| public(found)).unwrap();
    assert_eq!(egress_ebpf::abi::address_sum(&other), egress_ebpf::abi::address_sum(&Words { high, low }));
    let other = std::net::IpAddr::from(other).to_string();
    within_a_tick(|kernel| {
        assert_eq!(look_up(kernel, "a.example.com", &[one], 60).len(), 1);
        assert_eq!(look_up(kernel, "a.example.com", &[&other], 60).len(), 1, "{other}");
        assert_eq!(look_up(kernel, "a.example.com", &[&other], 60).len(), 0);
    });
}

#[test]
fn names_with_the_same_hash_are_told_each() {
    within_a_tick(|kernel| {
        assert_eq!(look_up(kernel, "a.example.com", &[ONE], 60).len(), 1);
        let [(place, fold)] = kernel.folds()[..] else { panic!("one fold") };
        // As if it had been another name: whoever runs name servers below a wildcard can make two names of one hash.
        kernel.set("ANSWER_FOLDS", &place, &AnswerFold { name: [1; 8], ..fold });
        assert_eq!(look_up(kernel, "a.example.com", &[ONE], 60).len(), 1);
    });
}

#[test]
fn long_names_are_told_each_time() {
    let mut kernel = kernel();
    for (length, told) in [(63, false), (64, true)] {
        let name = format!("{}.example.com", "a".repeat(length - ".example.com".len()));
        look_up(&mut kernel, &name, &[ONE], 60);
        // In two of three lookups within a second a tick cannot end.
        let again: usize = (0..3).map(|_| look_up(&mut kernel, &name, &[ONE], 60).len()).sum();
        assert!(if told { again == 3 } else { again <= 1 }, "{length} characters: {again} of 3 told again");
    }
}
