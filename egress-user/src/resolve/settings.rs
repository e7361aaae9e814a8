//! What the refresher may do and for how long answers live. Plain values: the policy fills them in.

use std::time::Duration;

/// See section 1 of the design for `min_ttl`, `grace` and `max_stale`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// `dns.minTtl`: shorter TTLs are raised to this.
    pub min_ttl: Duration,
    /// `dns.grace`: added to every TTL.
    pub grace: Duration,
    /// `dns.maxStale`: how long past its TTL the last good answer stays while the resolver fails (RFC 8767 section 5,
    /// the "maximum stale timer"). The grace counts into it.
    pub max_stale: Duration,
    /// Queries (a name has two, A and AAAA) under way at once.
    pub max_in_flight: usize,
    /// The same for queries that failed last time: they get slots of their own, so that names whose servers hang do not
    /// hold up the others.
    pub max_retries_in_flight: usize,
    /// Queries started per second, at most. 10,000 names with a TTL of 60 s need about 400.
    pub per_second: u32,
    /// Queries that may start at once after a quiet time.
    pub burst: u32,
    /// The first retry after a failure; doubled on each further one, with jitter.
    pub backoff_min: Duration,
    pub backoff_max: Duration,
    /// How long NXDOMAIN and "no such record" are believed: the answer's own negative TTL (RFC 2308), within these. That a name
    /// has no address of one family while it has some of the other is believed for twice as long each time it is said again.
    pub negative_min: Duration,
    pub negative_max: Duration,
    /// Living addresses that are kept per name and family.
    pub max_addresses: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            min_ttl: Duration::from_secs(60),
            grace: Duration::from_secs(15 * 60),
            max_stale: Duration::from_secs(60 * 60),
            max_in_flight: 128,
            max_retries_in_flight: 32,
            per_second: 1000,
            burst: 64,
            backoff_min: Duration::from_secs(1),
            backoff_max: Duration::from_secs(60),
            negative_min: Duration::from_secs(60),
            negative_max: Duration::from_secs(15 * 60),
            max_addresses: 4096,
        }
    }
}
