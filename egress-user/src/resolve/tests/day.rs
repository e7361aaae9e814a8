//! The refresher over a day of a paused clock: names that rotate, and resolvers that are down, slow, flap and lie. The same by
//! the real daemon, in seconds: `tests/tests/rotation.rs`; what the kernel learns: `egress-ebpf/src/learn/tests.rs`.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::refresher::{bench, found, miss, only_v4, secs, soon};
use crate::resolve::{Family, Found, Outcome, Reason, Settings};

const NAME: &str = "www.example.com";
const DAY: u64 = 24 * 3600;

/// What S3 and CDNs do: 8 of 400 addresses each time, TTL 60 s. What was given counts for TTL and grace, and is forgotten then.
#[tokio::test(start_paused = true)]
async fn a_day_of_rotation_forgets_nothing_before_its_time() {
    let given: Arc<Mutex<Vec<(Instant, IpAddr)>>> = Arc::default();
    let written = given.clone();
    let script = only_v4(move |count| {
        let number = |n: usize| Ipv4Addr::from(0x1400_0000 + ((count * 8 + n) * 7919 % 400) as u32);
        let addresses: Vec<_> = (0..8).map(|n| (IpAddr::from(number(n)), secs(60))).collect();
        written.lock().unwrap().extend(addresses.iter().map(|(address, _)| (Instant::now(), *address)));
        Ok(Found { addresses, aliases: vec![], resolver: "203.0.113.53:53".parse().unwrap() })
    });
    let bench = bench(Settings::default(), script);
    bench.refresher.set_names([NAME]);
    let life = secs(60 + 15 * 60);
    let start = Instant::now();
    while start.elapsed() < secs(DAY) {
        sleep(secs(30)).await;
        let living = bench.refresher.addresses(NAME);
        let mut given = given.lock().unwrap();
        // An answer takes 5 ms from when it was given.
        given.retain(|(at, _)| at.elapsed() < life + secs(1));
        let counts = given.iter().filter(|(at, _)| (Duration::from_millis(10)..life).contains(&at.elapsed()));
        for (at, address) in counts {
            assert!(living.contains(address), "{address}, {:?} old, at {:?}", at.elapsed(), start.elapsed());
        }
        assert!(living.iter().all(|address| given.iter().any(|(_, known)| known == address)), "it lives too long");
    }
}

/// What a resolver does at a time of the day.
fn lies(second: u64, count: usize) -> (Duration, Outcome) {
    let good = || found(&["203.0.113.1"], 60);
    let odd = !count.is_multiple_of(2);
    // A quarter of an hour well, then three quarters each of:
    if second % 3600 < 900 {
        return soon(good());
    }
    match second / 3600 % 8 {
        0 => soon(miss(Reason::ServFail)),
        1 => (secs(8), miss(Reason::Timeout)),
        2 => soon(miss(Reason::Empty)),
        3 => soon(found(&["10.0.0.7", "127.0.0.1"], 60)),
        // As slow as an answer can be in the second round of questions.
        4 => (secs(7), good()),
        5 if odd => (secs(8), miss(Reason::Timeout)),
        6 if odd => soon(miss(Reason::NxDomain)),
        7 if odd => soon(found(&["10.0.0.7"], 60)),
        _ => soon(good()),
    }
}

#[tokio::test(start_paused = true)]
async fn a_day_of_bad_resolvers_keeps_the_last_good_answer() {
    let start = Instant::now();
    let bench = bench(Settings::default(), move |_, family, count| match family {
        Family::V4 => lies(start.elapsed().as_secs(), count),
        Family::V6 => soon(miss(Reason::Empty)),
    });
    bench.refresher.set_names([NAME]);
    let wanted = ["203.0.113.1".parse::<IpAddr>().unwrap()];
    let mut failed = 0;
    for second in (10..DAY).step_by(10) {
        sleep(start + secs(second) - Instant::now()).await;
        assert_eq!(bench.refresher.addresses(NAME), wanted, "at {second} s");
        failed += u64::from(bench.refresher.names()[0].failures > 0);
    }
    assert!(failed > DAY / 10 / 4, "it failed {failed} times of {}", DAY / 10);
}

/// Three outages: one that ends two minutes before `dns.maxStale` does, which nobody notices; one of just that hour; and one of
/// three. What is gone by then is back with the first question that is answered.
#[tokio::test(start_paused = true)]
async fn an_hours_outage_is_got_over() {
    const HOUR: u64 = 3600;
    // The longest backoff, and what a question takes to fail that was asked just before the end.
    const NEXT_QUESTION: u64 = 60 + 8;
    let start = Instant::now();
    let down = |second| {
        (2 * HOUR..3 * HOUR - 120).contains(&second)
            || (5 * HOUR..6 * HOUR).contains(&second)
            || (10 * HOUR..13 * HOUR).contains(&second)
    };
    let bench = bench(Settings::default(), move |_, _, _| {
        if down(start.elapsed().as_secs()) {
            (secs(8), miss(Reason::Timeout))
        } else {
            soon(found(&["203.0.113.1"], 60))
        }
    });
    bench.refresher.set_names([NAME]);
    let mut gone = 0;
    for second in (10..DAY).step_by(10) {
        sleep(start + secs(second) - Instant::now()).await;
        let known = !bench.refresher.addresses(NAME).is_empty();
        // The last good answer's TTL ends at most a minute into the outage, or with its begin.
        let after_an_hour = (6 * HOUR..=6 * HOUR + NEXT_QUESTION).contains(&second);
        let long_down = (11 * HOUR..=13 * HOUR + NEXT_QUESTION).contains(&second);
        assert!(known || after_an_hour || long_down, "at {second} s");
        gone += if long_down { u64::from(!known) * 10 } else { 0 };
    }
    // Three hours less the hour of `dns.maxStale`, and what it takes to ask again.
    assert!((7100..7300).contains(&gone), "gone for {gone} s");
}

/// An outage with so many names that each is asked for every three minutes (a question hangs for 8 s, and 160 are under way at a
/// time): each keeps its last good answer for `dns.maxStale`, whether its turn to be asked for came or not, and whoever writes the
/// addresses down is told in time.
#[tokio::test(start_paused = true)]
async fn an_outage_ends_none_of_thousands_of_names() {
    const NAMES: usize = 3000;
    const BEGIN: u64 = 600;
    let start = Instant::now();
    let bench = bench(Settings { grace: secs(0), ..Settings::default() }, move |_, _, _| {
        if start.elapsed() < secs(BEGIN) { soon(found(&["203.0.113.1"], 60)) } else { (secs(8), miss(Reason::Timeout)) }
    });
    bench.refresher.set_names((0..NAMES).map(|n| format!("n{n}.example.com")));
    let mut ends = HashMap::new();
    let mut known = || {
        bench.told(&mut ends);
        let told = ends.values().filter(|end| **end > Instant::now()).count();
        let names = bench.refresher.names();
        (names.iter().filter(|name| !name.addresses.is_empty()).count(), told)
    };
    for second in (60..BEGIN + 3600).step_by(15) {
        sleep(start + secs(second) - Instant::now()).await;
        assert_eq!(known(), (NAMES, NAMES), "at {second} s");
    }
    // The last good answer came right before the outage at the latest, and lives for its minute and an hour.
    sleep(start + secs(BEGIN + 60 + 3600 + 1) - Instant::now()).await;
    assert_eq!(known(), (0, 0), "maxStale is over");
}
