//! How long what one name gave lives. Pure: the time comes in.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::Duration;

use tokio::time::Instant;

use super::settings::Settings;

/// Addresses (or CNAME targets) of one name, each with its own life.
#[derive(Debug)]
pub struct Lives<K> {
    lives: HashMap<K, Life>,
}

#[derive(Clone, Copy, Debug)]
struct Life {
    expires: Instant,
    /// How far failures can move `expires`: the end of the TTL plus `max_stale`, or no further once NXDOMAIN ended it.
    stale_until: Instant,
}

impl<K> Default for Lives<K> {
    fn default() -> Self {
        Self { lives: HashMap::new() }
    }
}

impl<K: Eq + Hash + Clone + Ord> Lives<K> {
    /// Takes one answer's entry in and gives its life left: the later of the old expiry and the new.
    pub fn learn(&mut self, key: K, ttl: Duration, now: Instant, settings: &Settings) -> Duration {
        let ttl_end = now + ttl.max(settings.min_ttl);
        let new = Life { expires: ttl_end + settings.grace, stale_until: ttl_end + settings.max_stale };
        let life = self.lives.entry(key).or_insert(new);
        life.stale_until = life.stale_until.max(new.stale_until);
        life.expires = life.expires.max(new.expires);
        life.expires - now
    }

    /// Takes in what an earlier process knew: said last `ago`, it lives `left` (RFC 8767's timer counts from then on).
    pub fn recall(&mut self, key: K, left: Duration, ago: Duration, now: Instant, settings: &Settings) {
        let expires = now + left;
        let stale_until = (now + settings.max_stale).checked_sub(ago).unwrap_or(now).max(expires);
        let life = self.lives.entry(key).or_insert(Life { expires, stale_until });
        life.stale_until = life.stale_until.max(stale_until);
        life.expires = life.expires.max(expires);
    }

    /// Keeps what lives until `until`, as far as `max_stale` lets it: the resolver has failed.
    pub fn hold(&mut self, until: Instant, now: Instant) {
        for life in self.living(now) {
            life.expires = life.expires.max(until.min(life.stale_until));
        }
    }

    /// When the first of what lives expires.
    pub fn first_end(&self, now: Instant) -> Option<Instant> {
        self.lives.values().map(|life| life.expires).filter(|expires| *expires > now).min()
    }

    /// Lets what lives end when it would: the name does not exist any more, and no failure holds it. Nothing is cut short: the resolver said
    /// how long its answer may be used, whoever keeps it does (RFC 1035 section 3.2.1), and so does the kernel.
    pub fn end(&mut self, now: Instant) {
        for life in self.living(now) {
            life.stale_until = life.expires;
        }
    }

    /// Forgets what has expired, then what expires first beyond `limit`; says how many the latter were.
    pub fn prune(&mut self, limit: usize, now: Instant) -> usize {
        self.lives.retain(|_, life| life.expires > now);
        let excess = self.lives.len().saturating_sub(limit);
        if excess > 0 {
            let mut by_expiry: Vec<_> = self.lives.iter().map(|(key, life)| (life.expires, key.clone())).collect();
            by_expiry.select_nth_unstable(excess - 1);
            for (_, key) in &by_expiry[..excess] {
                self.lives.remove(key);
            }
        }
        excess
    }

    /// What lives, with the life left, ordered by key.
    pub fn left(&self, now: Instant) -> Vec<(K, Duration)> {
        let mut left: Vec<_> = self
            .lives
            .iter()
            .filter(|(_, life)| life.expires > now)
            .map(|(key, life)| (key.clone(), life.expires - now))
            .collect();
        left.sort_unstable();
        left
    }

    /// When this one expires, if it is known.
    pub fn expires(&self, key: &K) -> Option<Instant> {
        self.lives.get(key).map(|life| life.expires)
    }

    fn living(&mut self, now: Instant) -> impl Iterator<Item = &mut Life> {
        self.lives.values_mut().filter(move |life| life.expires > now)
    }
}
