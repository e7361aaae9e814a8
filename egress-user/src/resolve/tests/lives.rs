use std::time::Duration;

use tokio::time::Instant;

use crate::resolve::Settings;
use crate::resolve::lives::Lives;

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn settings() -> Settings {
    Settings { min_ttl: secs(60), grace: secs(900), max_stale: secs(3600), ..Settings::default() }
}

#[test]
fn ttl_is_raised_to_the_minimum_and_the_grace_added() {
    let now = Instant::now();
    let mut lives = Lives::default();
    assert_eq!(lives.learn('a', secs(5), now, &settings()), secs(960));
    assert_eq!(lives.learn('b', secs(300), now, &settings()), secs(1200));
    let strict = Settings { grace: secs(0), ..settings() };
    assert_eq!(lives.learn('c', secs(300), now, &strict), secs(300));
}

#[test]
fn of_two_answers_the_later_expiry_counts() {
    let now = Instant::now();
    let mut lives = Lives::default();
    lives.learn('a', secs(3000), now, &settings());
    assert_eq!(lives.learn('a', secs(60), now + secs(100), &settings()), secs(3800));
    assert_eq!(lives.left(now + secs(3899)), [('a', secs(1))]);
    assert_eq!(lives.left(now + secs(3900)), []);
}

#[test]
fn holding_ends_at_max_stale_past_the_ttl() {
    let now = Instant::now();
    let mut lives = Lives::default();
    lives.learn('a', secs(60), now, &settings());
    lives.hold(now + secs(2000), now + secs(900));
    assert_eq!(lives.left(now), [('a', secs(2000))]);
    lives.hold(now + secs(9000), now + secs(1900));
    assert_eq!(lives.left(now), [('a', secs(3660))]);
}

#[test]
fn nothing_that_expired_is_held() {
    let now = Instant::now();
    let mut lives = Lives::default();
    lives.learn('a', secs(60), now, &settings());
    lives.hold(now + secs(2000), now + secs(961));
    assert_eq!(lives.left(now + secs(961)), []);
}

#[test]
fn nxdomain_lets_it_end_when_it_would_and_for_good() {
    let now = Instant::now();
    let mut lives = Lives::default();
    lives.learn('a', secs(600), now, &settings());
    lives.end(now);
    assert_eq!(lives.left(now), [('a', secs(1500))]);
    lives.hold(now + secs(3000), now);
    assert_eq!(lives.left(now), [('a', secs(1500))], "a failure after NXDOMAIN must not bring it back");
    lives.learn('a', secs(60), now, &settings());
    lives.hold(now + secs(3000), now);
    assert_eq!(lives.left(now), [('a', secs(3000))], "a fresh answer does");
}

#[test]
fn what_expires_first_goes_when_there_are_too_many() {
    let now = Instant::now();
    let mut lives = Lives::default();
    for key in 0..10_u64 {
        lives.learn(key, secs(100 + key), now, &settings());
    }
    assert_eq!(lives.prune(8, now), 2);
    let keys: Vec<_> = lives.left(now).into_iter().map(|(key, _)| key).collect();
    assert_eq!(keys, (2..10).collect::<Vec<_>>());
    assert_eq!(lives.prune(8, now), 0);
}
