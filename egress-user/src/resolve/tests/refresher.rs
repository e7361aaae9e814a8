//! The refresher under a paused clock, over a double that answers when and what a test says.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::time::{Instant, advance, sleep};

use crate::resolve::{
    AllowPrivate, Answer, AnswerSink, Ask, Failure, Family, Found, Held, Kind, Miss, Outcome, Reason, Refresher,
    Settings,
};

const RESOLVER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(203, 0, 113, 53)), 53);

type Script = dyn Fn(&str, Family, usize) -> (Duration, Outcome) + Send + Sync;

/// Answers by script: name, family and how many queries of that kind came before give a delay and the outcome.
struct Double {
    script: Box<Script>,
    asked: Mutex<Vec<(Instant, Arc<str>, Family)>>,
    counts: Mutex<HashMap<(Arc<str>, Family), usize>>,
    in_flight: Arc<AtomicUsize>,
    most_in_flight: Arc<AtomicUsize>,
}

impl Ask for Double {
    fn ask(&self, name: Arc<str>, family: Family) -> BoxFuture<'static, Outcome> {
        self.asked.lock().unwrap().push((Instant::now(), name.clone(), family));
        let mut counts = self.counts.lock().unwrap();
        let count = counts.entry((name.clone(), family)).or_default();
        let (delay, outcome) = (self.script)(&name, family, *count);
        *count += 1;
        let (in_flight, most) = (self.in_flight.clone(), self.most_in_flight.clone());
        most.fetch_max(in_flight.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        Box::pin(async move {
            sleep(delay).await;
            in_flight.fetch_sub(1, Ordering::SeqCst);
            outcome
        })
    }
}

#[derive(Default)]
struct Log {
    learned: Mutex<Vec<Answer>>,
    /// How often answers were told.
    told: AtomicUsize,
    failed: Mutex<Vec<Failure>>,
    held: Mutex<Vec<(Instant, Held)>>,
}

impl AnswerSink for Log {
    fn learned(&self, answers: &[Answer]) {
        assert!(!answers.is_empty());
        self.told.fetch_add(1, Ordering::SeqCst);
        self.learned.lock().unwrap().extend_from_slice(answers);
    }
    fn failed(&self, failure: &Failure) {
        self.failed.lock().unwrap().push(failure.clone());
    }
    fn held(&self, held: &[Held]) {
        self.held.lock().unwrap().extend(held.iter().map(|held| (Instant::now(), held.clone())));
    }
}

pub(super) struct Bench {
    double: Arc<Double>,
    log: Arc<Log>,
    pub(super) refresher: Refresher,
}

pub(super) fn bench(
    settings: Settings,
    script: impl Fn(&str, Family, usize) -> (Duration, Outcome) + Send + Sync + 'static,
) -> Bench {
    let double = Arc::new(Double {
        script: Box::new(script),
        asked: Mutex::default(),
        counts: Mutex::default(),
        in_flight: Arc::default(),
        most_in_flight: Arc::default(),
    });
    let log = Arc::new(Log::default());
    let never: AllowPrivate = Arc::new(|name| name == "inside.example.com");
    let refresher = Refresher::start(double.clone(), settings, never, log.clone());
    Bench { double, log, refresher }
}

impl Bench {
    fn asked_at(&self, family: Family) -> Vec<Instant> {
        self.double.asked.lock().unwrap().iter().filter(|(_, _, of)| *of == family).map(|(at, ..)| *at).collect()
    }
    /// Takes what the sink was told since the last call into what it knows: when a name's last address ends.
    pub(super) fn told(&self, ends: &mut HashMap<Arc<str>, Instant>) {
        let learned = std::mem::take(&mut *self.log.learned.lock().unwrap()).into_iter();
        let failed = std::mem::take(&mut *self.log.failed.lock().unwrap()).into_iter();
        let held = std::mem::take(&mut *self.log.held.lock().unwrap()).into_iter();
        let told = learned.map(|answer| (answer.at, answer.name, answer.addresses));
        let told = told.chain(failed.map(|failure| (failure.at, failure.name, failure.kept)));
        let told = told.chain(held.map(|(at, (name, addresses))| (at, name, addresses)));
        for (at, name, addresses) in told {
            let end = ends.entry(name).or_insert(at);
            *end = addresses.iter().map(|(_, left)| at + *left).fold(*end, Instant::max);
        }
    }
    fn last_failure(&self) -> Failure {
        self.log.failed.lock().unwrap().last().cloned().expect("a failure")
    }
}

pub(super) fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

pub(super) fn found(addresses: &[&str], ttl: u64) -> Outcome {
    let addresses = addresses.iter().map(|address| (address.parse().unwrap(), secs(ttl))).collect();
    Ok(Found { addresses, aliases: vec![("alias.example.net".into(), secs(ttl))], resolver: RESOLVER })
}

pub(super) fn miss(reason: Reason) -> Outcome {
    Err(Miss { reason, resolver: Some(RESOLVER), negative_ttl: None })
}

pub(super) fn soon(outcome: Outcome) -> (Duration, Outcome) {
    (Duration::from_millis(5), outcome)
}

/// A for the script's A queries, "no such record" for AAAA.
pub(super) fn only_v4(
    outcome: impl Fn(usize) -> Outcome + Send + Sync + 'static,
) -> impl Fn(&str, Family, usize) -> (Duration, Outcome) {
    move |_, family, count| soon(if family == Family::V4 { outcome(count) } else { miss(Reason::Empty) })
}

#[tokio::test(start_paused = true)]
async fn first_answer_at_once_then_ahead_of_the_ttl_with_jitter() {
    let bench = bench(Settings::default(), only_v4(|_| found(&["203.0.113.1"], 1000)));
    let start = Instant::now();
    bench.refresher.set_names(["www.example.com"]);
    sleep(secs(10_000)).await;
    let asked = bench.asked_at(Family::V4);
    assert!(asked[0] - start < Duration::from_millis(10), "{:?}", asked[0] - start);
    let gaps: Vec<_> = asked.windows(2).map(|pair| (pair[1] - pair[0]).as_secs()).collect();
    assert!(gaps.iter().all(|gap| (750..=901).contains(gap)), "{gaps:?}");
    assert!(gaps.iter().any(|gap| *gap != gaps[0]), "no jitter: {gaps:?}");
    let answer = bench.log.learned.lock().unwrap()[0].clone();
    assert_eq!(answer.addresses, [("203.0.113.1".parse().unwrap(), secs(1900))]);
    assert_eq!(answer.aliases, [("alias.example.net".into(), secs(1900))]);
    assert!(bench.log.failed.lock().unwrap().is_empty(), "a name without AAAA is no failure");
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_names_are_spread_and_bounded() {
    let settings = Settings { max_in_flight: 50, per_second: 500, burst: 20, ..Settings::default() };
    let bench = bench(settings, |_, _, _| (Duration::from_millis(20), found(&["203.0.113.1"], 3600)));
    let start = Instant::now();
    bench.refresher.set_names((0..10_000).map(|n| format!("n{n}.example.com")));
    sleep(secs(60)).await;
    let first: Vec<_> = bench.double.asked.lock().unwrap().iter().map(|(at, ..)| (*at - start).as_secs()).collect();
    assert_eq!(first.len(), 20_000);
    let mut per_second = HashMap::<u64, usize>::new();
    first.iter().for_each(|second| *per_second.entry(*second).or_default() += 1);
    assert!(per_second.values().all(|count| *count <= 500 + 20), "{per_second:?}");
    assert!(*first.last().unwrap() <= 41, "the limits are used: {:?}", first.last());
    assert!(bench.double.most_in_flight.load(Ordering::SeqCst) <= 50);
    sleep(secs(3600)).await;
    let mut per_second = HashMap::<u64, usize>::new();
    for (at, ..) in &bench.double.asked.lock().unwrap()[20_000..] {
        *per_second.entry((*at - start).as_secs()).or_default() += 1;
    }
    let most = per_second.values().max().unwrap();
    assert!(*most < 100, "refreshes are spread over the jitter's 540 s (37 a second on average): {most}");
}

#[tokio::test(start_paused = true)]
async fn names_are_refreshed_in_bunches() {
    let bench = bench(Settings::default(), only_v4(|_| found(&["203.0.113.1"], 60)));
    bench.refresher.set_names((0..1000).map(|n| format!("n{n}.example.com")));
    // They begin in a row, and are spread some refreshes later.
    sleep(secs(600)).await;
    bench.log.learned.lock().unwrap().clear();
    bench.log.told.store(0, Ordering::SeqCst);
    bench.double.asked.lock().unwrap().clear();
    sleep(secs(60)).await;
    let mut starts = bench.asked_at(Family::V4);
    let (asked, learned) = (starts.len(), bench.log.learned.lock().unwrap().len());
    starts.dedup();
    // A quarter of a second of 22 a second.
    assert!((1000..1700).contains(&asked) && starts.len() <= 4 * 60 + 1, "{asked} in {} bunches", starts.len());
    let told = bench.log.told.load(Ordering::SeqCst);
    assert!(told <= starts.len() + 1 && learned >= asked - 10, "{learned} told {told} times");
}

#[tokio::test(start_paused = true)]
async fn no_name_costs_nothing() {
    let bench = bench(Settings::default(), only_v4(|_| found(&["203.0.113.1"], 60)));
    bench.refresher.set_names(["www.example.com"]);
    sleep(secs(1)).await;
    bench.refresher.set_names([] as [&str; 0]);
    sleep(secs(100_000)).await;
    assert_eq!(bench.double.asked.lock().unwrap().len(), 2);
    assert!(bench.refresher.names().is_empty());
}

#[tokio::test(start_paused = true)]
async fn the_last_good_answer_stays_up_to_max_stale() {
    let script = only_v4(|count| if count == 0 { found(&["203.0.113.1"], 60) } else { miss(Reason::ServFail) });
    let bench = bench(Settings { grace: secs(0), ..Settings::default() }, script);
    bench.refresher.set_names(["www.example.com"]);
    let learned = Instant::now();
    sleep(secs(3600)).await;
    assert_eq!(bench.refresher.addresses("www.example.com").len(), 1, "an hour of failures does not end it");
    let failure = bench.last_failure();
    assert_eq!(failure.reason, Reason::ServFail);
    assert_eq!(failure.kept.len(), 1);
    assert!(failure.kept_aliases.len() == 1 && failure.kept[0].1 <= secs(121), "held to the next try: {failure:?}");
    sleep(secs(61)).await;
    assert!(learned.elapsed() > secs(3660));
    assert!(bench.refresher.addresses("www.example.com").is_empty(), "minTtl and maxStale are over");
}

/// A restart in the middle of an outage: what the process before it knew stays as long as it would have stayed there.
#[tokio::test(start_paused = true)]
async fn what_is_recalled_stays_up_to_max_stale_since_it_was_said() {
    let bench = bench(Settings::default(), only_v4(|_| miss(Reason::ServFail)));
    bench.refresher.set_names(["www.example.com"]);
    let known = "203.0.113.1".parse().unwrap();
    bench.refresher.recall("www.example.com", [(known, secs(10), secs(600))]);
    bench.refresher.recall("another.example.com", [(known, secs(10), secs(600))]);
    sleep(secs(2990)).await;
    assert_eq!(bench.refresher.addresses("www.example.com"), [known]);
    let mut ends = HashMap::new();
    bench.told(&mut ends);
    assert!(ends[&Arc::from("www.example.com")] > Instant::now(), "the sink was told");
    sleep(secs(20)).await;
    assert!(bench.refresher.addresses("www.example.com").is_empty());
    assert!(bench.refresher.addresses("another.example.com").is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_is_recalled_and_not_said_again_ends_when_it_would_have() {
    let bench = bench(Settings::default(), only_v4(|_| found(&["203.0.113.2"], 60)));
    bench.refresher.set_names(["www.example.com"]);
    bench.refresher.recall("www.example.com", [("203.0.113.1".parse().unwrap(), secs(100), secs(600))]);
    sleep(secs(99)).await;
    assert_eq!(bench.refresher.addresses("www.example.com").len(), 2);
    sleep(secs(2)).await;
    assert_eq!(bench.refresher.addresses("www.example.com"), ["203.0.113.2".parse::<IpAddr>().unwrap()]);
}

#[tokio::test(start_paused = true)]
async fn after_nxdomain_the_ttl_and_the_grace_are_served_out() {
    let script = || only_v4(|count| if count == 0 { found(&["203.0.113.1"], 600) } else { miss(Reason::NxDomain) });
    for grace in [secs(0), secs(100)] {
        let start = Instant::now();
        let bench = bench(Settings { grace, ..Settings::default() }, script());
        bench.refresher.set_names(["www.example.com"]);
        while bench.log.failed.lock().unwrap().is_empty() {
            sleep(secs(1)).await;
        }
        let (failure, end) = (bench.last_failure(), start + secs(600) + grace);
        assert_eq!(failure.reason, Reason::NxDomain);
        // The answer came a little after the start.
        let left = failure.kept[0].1;
        assert!(left >= end - failure.at && left < end - failure.at + secs(1), "a grace of {grace:?}: {left:?}");
        sleep(end - Instant::now() - secs(1)).await;
        assert_eq!(bench.refresher.addresses("www.example.com").len(), 1);
        sleep(secs(2)).await;
        assert!(bench.refresher.addresses("www.example.com").is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn failures_back_off_up_to_the_bound_and_recover() {
    let script = only_v4(|count| if count < 12 { miss(Reason::Timeout) } else { found(&["203.0.113.1"], 600) });
    let bench = bench(Settings::default(), script);
    bench.refresher.set_names(["www.example.com"]);
    sleep(secs(600)).await;
    let asked = bench.asked_at(Family::V4);
    let gaps: Vec<_> = asked.windows(2).take(12).map(|pair| (pair[1] - pair[0]).as_secs_f64()).collect();
    for (n, gap) in gaps.iter().enumerate() {
        let full = 2_f64.powi(n.try_into().unwrap()).min(60.0);
        assert!((full * 0.69..full + 0.1).contains(gap), "try {n}: {gaps:?}");
    }
    assert_eq!(bench.refresher.addresses("www.example.com").len(), 1);
    let status = &bench.refresher.names()[0];
    assert_eq!((status.failures, &status.last_error), (0, &None));
}

#[tokio::test(start_paused = true)]
async fn names_that_hang_do_not_hold_up_the_others() {
    let settings = Settings { max_in_flight: 10, max_retries_in_flight: 2, ..Settings::default() };
    let bench = bench(settings, |name, _, _| {
        if name.starts_with("hung") { (secs(8), miss(Reason::Timeout)) } else { soon(found(&["203.0.113.1"], 60)) }
    });
    bench.refresher.set_names((0..50).map(|n| format!("hung{n}.example.com")));
    sleep(secs(100)).await;
    bench.refresher.set_names((0..50).map(|n| format!("hung{n}.example.com")).chain(["www.example.com".into()]));
    sleep(Duration::from_millis(100)).await;
    assert_eq!(bench.refresher.addresses("www.example.com").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_family_that_fails_leaves_the_other_alone() {
    let bench = bench(Settings::default(), |_, family, count| match (family, count) {
        (Family::V4, _) => soon(found(&["203.0.113.1"], 60)),
        (Family::V6, 0) => soon(found(&["2001:db8::1"], 60)),
        (Family::V6, _) => (secs(8), miss(Reason::Timeout)),
    });
    bench.refresher.set_names(["www.example.com"]);
    sleep(secs(3000)).await;
    assert_eq!(bench.refresher.addresses("www.example.com").len(), 2, "an A answer never evicts AAAA");
    assert_eq!(bench.last_failure().family, Family::V6);
}

#[tokio::test(start_paused = true)]
async fn a_new_set_each_time_adds_up_and_expires() {
    let script = only_v4(|count| {
        let address = Ipv4Addr::new(203, 0, (count / 256).try_into().unwrap(), (count % 256).try_into().unwrap());
        Ok(Found { addresses: vec![(address.into(), secs(60))], aliases: vec![], resolver: RESOLVER })
    });
    let bench = bench(Settings::default(), script);
    bench.refresher.set_names(["www.example.com"]);
    sleep(secs(20_000)).await;
    let living = bench.refresher.addresses("www.example.com").len();
    assert!((17..=22).contains(&living), "960 s of life, one in 45 to 54 s: {living}");
}

#[tokio::test(start_paused = true)]
async fn rebinding_is_refused_unless_the_name_may() {
    let bench = bench(Settings::default(), only_v4(|_| found(&["203.0.113.1", "127.0.0.1", "0.0.0.0"], 60)));
    bench.refresher.set_names(["www.example.com"]);
    sleep(secs(1)).await;
    assert_eq!(bench.refresher.addresses("www.example.com"), ["203.0.113.1".parse::<IpAddr>().unwrap()]);
    let address = "127.0.0.1".parse().unwrap();
    assert_eq!(bench.last_failure().reason, Reason::Rebinding { address, range: Kind::Loopback, count: 2 });
    bench.refresher.set_names(["inside.example.com"]);
    sleep(secs(1)).await;
    assert_eq!(bench.refresher.addresses("inside.example.com").len(), 3);
}

#[tokio::test(start_paused = true)]
async fn an_answer_of_private_addresses_alone_teaches_nothing() {
    let bench = bench(Settings::default(), only_v4(|_| found(&["10.0.0.1"], 60)));
    bench.refresher.set_names(["www.example.com"]);
    sleep(secs(1)).await;
    assert!(bench.log.learned.lock().unwrap().is_empty());
    assert!(matches!(bench.last_failure().reason, Reason::Rebinding { range: Kind::Private, .. }));
}

#[tokio::test(start_paused = true)]
async fn a_family_without_records_is_asked_for_ever_more_rarely() {
    // A record comes with the tenth question, and is gone with the eleventh.
    let bench = bench(Settings::default(), |_, family, count| {
        let none = family == Family::V6 && count != 9;
        soon(if none { miss(Reason::Empty) } else { found(&["203.0.113.1"], 100) })
    });
    bench.refresher.set_names(["www.example.com"]);
    sleep(secs(4 * 60 * 60)).await;
    let asked = bench.asked_at(Family::V6);
    let gaps: Vec<_> = asked.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64()).collect();
    for (number, (gap, wanted)) in gaps.iter().zip([60.0, 120.0, 240.0, 480.0, 900.0, 900.0]).enumerate() {
        assert!((gap / wanted - 1.0).abs() < 0.11, "gap {number} is {gap}, not about {wanted}");
    }
    assert!((75.0..=90.1).contains(&gaps[9]), "ahead of the record's TTL: {}", gaps[9]);
    // The record lives for another 15 minutes and more, and its loss may be a mistake.
    for gap in &gaps[10..24] {
        assert!((54.0..=66.1).contains(gap), "while the record lives: {gap}");
    }
    let often = bench.asked_at(Family::V4).len();
    assert!(often > 100, "the other family is not asked for less often: {often}");
}

#[tokio::test(start_paused = true)]
async fn other_resolvers_are_asked_at_once_for_what_the_first_did_not_have() {
    // "No such name", "no such record", and what is found.
    let bench = bench(Settings::default(), |name, family, count| {
        soon(match (name, family, count) {
            ("found.example.com", Family::V4, _) | (_, _, 1..) => found(&["203.0.113.1"], 3600),
            ("gone.example.com", ..) => miss(Reason::NxDomain),
            _ => miss(Reason::Empty),
        })
    });
    bench.refresher.set_names(["gone.example.com", "empty.example.com", "found.example.com"]);
    sleep(Duration::from_millis(500)).await;
    assert_eq!(bench.double.asked.lock().unwrap().len(), 6);
    assert!(bench.refresher.addresses("gone.example.com").is_empty());
    bench.refresher.retry_now();
    sleep(Duration::from_millis(500)).await;
    for name in ["gone.example.com", "empty.example.com", "found.example.com"] {
        assert!(!bench.refresher.addresses(name).is_empty(), "{name}");
    }
    // All but the one that was found.
    assert_eq!(bench.double.asked.lock().unwrap().len(), 6 + 5);
}

#[tokio::test(start_paused = true)]
async fn an_empty_answer_of_both_families_is_a_failure() {
    let bench = bench(Settings::default(), |_, _, _| soon(miss(Reason::Empty)));
    bench.refresher.set_names(["www.example.com"]);
    sleep(Duration::from_millis(500)).await;
    assert_eq!(bench.log.failed.lock().unwrap().len(), 1, "once, not per family");
    assert_eq!(bench.last_failure().reason, Reason::Empty);
}

#[tokio::test(start_paused = true)]
async fn changing_the_set_keeps_what_lives_and_its_time() {
    let bench = bench(Settings::default(), only_v4(|_| found(&["203.0.113.1"], 1000)));
    bench.refresher.set_names(["a.example.com", "b.example.com"]);
    sleep(secs(100)).await;
    let before = bench.double.asked.lock().unwrap().len();
    bench.refresher.set_names(["b.example.com", "c.example.com"]);
    sleep(secs(1)).await;
    let names: Vec<_> = bench.refresher.names().into_iter().map(|status| status.name).collect();
    assert_eq!(names, ["b.example.com", "c.example.com"]);
    let asked: Vec<_> = bench.double.asked.lock().unwrap()[before..].iter().map(|(_, name, _)| name.clone()).collect();
    assert!(asked.iter().all(|name| **name == *"c.example.com"), "{asked:?}");
    let status = &bench.refresher.names()[0];
    assert_eq!(status.addresses, [("203.0.113.1".parse().unwrap(), 1799)]);
    assert_eq!(status.last_answer, Some((RESOLVER, 100)));
}

#[tokio::test(start_paused = true)]
async fn an_answer_for_a_name_taken_out_meanwhile_is_dropped() {
    let bench = bench(Settings::default(), |_, _, count| (secs(1 + 9 * count as u64), found(&["203.0.113.1"], 60)));
    bench.refresher.set_names(["www.example.com"]);
    advance(Duration::from_millis(500)).await;
    tokio::task::yield_now().await;
    bench.refresher.set_names([] as [&str; 0]);
    bench.refresher.set_names(["www.example.com"]);
    sleep(secs(3)).await;
    assert!(bench.log.learned.lock().unwrap().is_empty(), "the old lookup's answer is not the new name's");
    sleep(secs(10)).await;
    assert_eq!(bench.log.learned.lock().unwrap().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_lookup_that_panics_is_one_failure() {
    let bench = bench(Settings::default(), |_, _, _| soon(found(&["203.0.113.1"], 60)));
    struct Panics;
    impl Ask for Panics {
        fn ask(&self, _: Arc<str>, _: Family) -> BoxFuture<'static, Outcome> {
            Box::pin(async { panic!("on purpose") })
        }
    }
    let refresher = Refresher::start(Arc::new(Panics), Settings::default(), Arc::new(|_| false), bench.log.clone());
    refresher.set_names(["www.example.com"]);
    sleep(secs(5)).await;
    assert!(bench.log.failed.lock().unwrap().len() > 2, "it goes on trying");
    assert!(matches!(bench.last_failure().reason, Reason::Unusable { .. }));
}
