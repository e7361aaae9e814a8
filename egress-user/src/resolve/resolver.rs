//! Asks the trusted resolvers, and nobody else: no hosts file, no search domains, no special names, no cache.
//!
//! [`Udp`] does the wire, and hickory's pool where that is TCP (after a truncated answer, or one in another case) and
//! wherever messages are read. One of each per resolver, so that who answered is known and a resolver that hangs is asked
//! last; the CNAME chain is followed here, since its least TTL and its targets are wanted.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use hickory_proto::op::{DnsRequestOptions, DnsResponse, MessageType, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RecordType};
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverOpts};
use hickory_resolver::net::{DnsError, DnsHandle, NetError};
use hickory_resolver::{NameServerPool, PoolContext, TlsConfig};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::answer::{Family, Reason};
use super::chain::{Broken, Chain};
use super::port::Reply;
use super::provider::Provider;
use super::question::is_truncated;
use super::udp::Udp;

/// How long a resolver that failed is asked after the others.
const SUSPECT_FOR: Duration = Duration::from_secs(30);

/// The part of a question's time after which it is sent again.
const RESENDS_IN: u32 = 4;

/// Whatever answers for a name: the [`Resolver`], or a test's double.
pub trait Ask: Send + Sync + 'static {
    /// Asks for the addresses of one family. Always ends in bounded time.
    fn ask(&self, name: Arc<str>, family: Family) -> BoxFuture<'static, Outcome>;
}

pub type Outcome = Result<Found, Miss>;

/// At least one address of the family. TTLs are as on the wire, the least of the chain, at most 7 days.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    pub addresses: Vec<(IpAddr, Duration)>,
    pub aliases: Vec<(Arc<str>, Duration)>,
    pub resolver: SocketAddr,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Miss {
    pub reason: Reason,
    /// The last one asked.
    pub resolver: Option<SocketAddr>,
    /// For NXDOMAIN and empty answers: how long that holds (RFC 2308 section 5), where the answer says.
    pub negative_ttl: Option<Duration>,
}

/// Bounds of one lookup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// For one query to one resolver, TCP after a truncated answer included. UDP is retransmitted meanwhile.
    pub timeout: Duration,
    /// Rounds over all resolvers.
    pub attempts: usize,
    /// Queries under way over TCP to one resolver; they follow an answer over UDP, so that each is soon over.
    pub over_tcp: usize,
}

/// Queries at a time over one TCP connection. What is written before the earlier is acknowledged leaves as one segment, and the kernel part
/// lets none leave in which one is cut in two, however often it is sent again: so many of the longest (284 bytes) fit into 1,220, the least
/// that a segment has room for over IPv6 (RFC 9293, 3.7.1).
const SEGMENT: usize = 4;

impl Default for Limits {
    fn default() -> Self {
        Self { timeout: Duration::from_secs(2), attempts: 2, over_tcp: SEGMENT }
    }
}

/// Asks the configured resolvers. Cheap to clone; [`Self::set_resolvers`] counts for all clones.
#[derive(Clone)]
pub struct Resolver {
    servers: Arc<ArcSwap<Vec<Arc<Server>>>>,
    limits: Limits,
}

struct Server {
    address: SocketAddr,
    udp: Udp,
    /// When the same question is sent again.
    resend: Duration,
    tcp: NameServerPool<Provider>,
    tcp_places: Semaphore,
    /// Milliseconds since `epoch` until which this one is asked last.
    suspect_until: AtomicU64,
    epoch: Instant,
}

impl Resolver {
    /// `resolvers` in order of preference; a link-local one carries its scope. Needs a Tokio runtime when asked.
    pub fn new(resolvers: &[SocketAddr], limits: Limits) -> Self {
        let servers = resolvers.iter().map(|address| Arc::new(Server::new(*address, &limits))).collect();
        Self { servers: Arc::new(ArcSwap::from_pointee(servers)), limits }
    }

    /// Asks others from now on. Resolvers in both sets keep their connections; lookups under way end with the old.
    pub fn set_resolvers(&self, resolvers: &[SocketAddr]) {
        let old = self.servers.load_full();
        let keep = |address: &SocketAddr| old.iter().find(|server| server.address == *address).cloned();
        let servers = resolvers
            .iter()
            .map(|address| keep(address).unwrap_or_else(|| Arc::new(Server::new(*address, &self.limits))))
            .collect();
        self.servers.store(Arc::new(servers));
    }

    /// The resolvers that are asked, in order of preference.
    pub fn resolvers(&self) -> Vec<SocketAddr> {
        self.servers.load().iter().map(|server| server.address).collect()
    }

    /// Asks for the addresses of one family. `name` is an absolute name, with or without the trailing dot.
    pub async fn lookup(&self, name: &str, family: Family) -> Outcome {
        let mut name = Name::from_ascii(name)
            .map_err(|error| Miss::unusable(None, format!("{name:?} is not a domain name: {error}")))?;
        name.set_fqdn(true);
        let servers = self.servers.load_full();
        let mut last = Miss { reason: Reason::NoResolver, resolver: None, negative_ttl: None };
        for _ in 0..self.limits.attempts {
            for server in in_order(&servers) {
                // Each query has its own time; a chain that is dealt out link by link gets no more than a few.
                let whole = self.limits.timeout * 3;
                let lookup = tokio::time::timeout(whole, server.lookup(&name, family, self.limits.timeout));
                match lookup.await.unwrap_or_else(|_| Err(server.because(Reason::Timeout))) {
                    Err(miss) if miss.is_the_resolvers_fault() => {
                        server.suspect();
                        // An answer that says what is wrong tells more than silence.
                        if !matches!(miss.reason, Reason::Timeout) || matches!(last.reason, Reason::NoResolver) {
                            last = miss;
                        }
                    }
                    outcome => {
                        server.trust_again();
                        return outcome;
                    }
                }
            }
        }
        Err(last)
    }
}

impl Ask for Resolver {
    fn ask(&self, name: Arc<str>, family: Family) -> BoxFuture<'static, Outcome> {
        let resolver = self.clone();
        Box::pin(async move { resolver.lookup(&name, family).await })
    }
}

/// The configured order, those that failed lately last.
fn in_order(servers: &[Arc<Server>]) -> Vec<Arc<Server>> {
    let mut servers = servers.to_vec();
    servers.sort_by_key(|server| server.is_suspect());
    servers
}

impl Server {
    fn new(address: SocketAddr, limits: &Limits) -> Self {
        let mut options = ResolverOpts::default();
        options.timeout = limits.timeout;
        options.case_randomization = true;
        options.max_active_requests = limits.over_tcp;
        let (ip, scope_id) = match address {
            SocketAddr::V4(address) => (IpAddr::V4(*address.ip()), 0),
            SocketAddr::V6(address) => (IpAddr::V6(*address.ip()), address.scope_id()),
        };
        let mut connection = ConnectionConfig::tcp();
        connection.port = address.port();
        let config = NameServerConfig::new(ip, true, vec![connection]);
        let tls = TlsConfig::new().expect("without the TLS features there is nothing in it that can fail");
        let tcp =
            NameServerPool::from_config([config], Arc::new(PoolContext::new(options, tls)), Provider::new(scope_id));
        let tcp_places = Semaphore::new(limits.over_tcp);
        let (udp, resend) = (Udp::new(address), limits.timeout / RESENDS_IN);
        Self { address, udp, resend, tcp, tcp_places, suspect_until: AtomicU64::new(0), epoch: Instant::now() }
    }

    /// Follows the chain over as many answers as it takes; `timeout` is for each.
    async fn lookup(&self, name: &Name, family: Family, timeout: Duration) -> Outcome {
        let record_type = match family {
            Family::V4 => RecordType::A,
            Family::V6 => RecordType::AAAA,
        };
        let mut chain = Chain::new(name.clone());
        loop {
            let asked = chain.end.clone();
            let response = match tokio::time::timeout(timeout, self.query(asked.clone(), record_type)).await {
                Ok(Ok(response)) => response,
                Ok(Err(error)) => return Err(self.miss(&error)),
                Err(_) => return Err(self.because(Reason::Timeout)),
            };
            check(&response, &asked, record_type).map_err(|problem| Miss::unusable(Some(self.address), problem))?;
            chain.walk(&response.answers, family).map_err(|broken| {
                let problem = match broken {
                    Broken::Loop => format!("the CNAME chain of {name} loops"),
                    Broken::TooLong => format!("the CNAME chain of {name} is too long"),
                };
                Miss::unusable(Some(self.address), problem)
            })?;
            if !chain.addresses.is_empty() {
                return Ok(self.found(chain));
            }
            let negative_ttl = response.negative_ttl().map(seconds);
            if response.response_code == ResponseCode::NXDomain {
                return Err(Miss { negative_ttl, ..self.because(Reason::NxDomain) });
            }
            if chain.end == asked || response.soa().is_some() {
                return Err(Miss { negative_ttl, ..self.because(Reason::Empty) });
            }
        }
    }

    async fn query(&self, name: Name, record_type: RecordType) -> Result<DnsResponse, NetError> {
        match self.udp.ask(&name, record_type, self.resend).await? {
            Reply::Answer(answer) if !is_truncated(&answer) => vetted(DnsResponse::from_buffer(answer)?),
            // Where letters are not kept, who answers is shown by the connection instead.
            Reply::Answer(_) | Reply::InAnotherCase => self.query_by_tcp(name, record_type).await,
        }
    }

    async fn query_by_tcp(&self, name: Name, record_type: RecordType) -> Result<DnsResponse, NetError> {
        // `PoolContext` holds the rest; these three are read from the request.
        let mut options = DnsRequestOptions::default();
        options.use_edns = true;
        options.recursion_desired = true;
        options.case_randomization = true;
        // hickory would answer one too many with an error, and make a connection anew for each.
        let _place = self.tcp_places.acquire().await;
        let mut responses = self.tcp.lookup(Query::query(name, record_type), options);
        responses.next().await.unwrap_or(Err(NetError::NoConnections))
    }

    fn found(&self, chain: Chain) -> Found {
        Found {
            addresses: chain.addresses.into_iter().map(|(address, ttl)| (address, seconds(ttl))).collect(),
            aliases: chain.aliases.into_iter().map(|(alias, ttl)| (alias, seconds(ttl))).collect(),
            resolver: self.address,
        }
    }

    fn because(&self, reason: Reason) -> Miss {
        Miss { reason, resolver: Some(self.address), negative_ttl: None }
    }

    fn miss(&self, error: &NetError) -> Miss {
        let code = |code: &ResponseCode| match code {
            ResponseCode::ServFail => Reason::ServFail,
            ResponseCode::Refused => Reason::Refused,
            ResponseCode::NXDomain => Reason::NxDomain,
            ResponseCode::NoError => Reason::Empty,
            other => Reason::Code { code: other.to_string() },
        };
        match error {
            NetError::Dns(DnsError::NoRecordsFound(no_records)) => Miss {
                negative_ttl: no_records.negative_ttl.map(seconds),
                ..self.because(code(&no_records.response_code))
            },
            NetError::Dns(DnsError::ResponseCode(response_code)) => self.because(code(response_code)),
            NetError::Timeout => self.because(Reason::Timeout),
            NetError::Io(error) if error.kind() == std::io::ErrorKind::TimedOut => self.because(Reason::Timeout),
            NetError::Io(_) | NetError::NoConnections | NetError::Busy => {
                self.because(Reason::Unreachable { error: error.to_string() })
            }
            _ => Miss::unusable(Some(self.address), error.to_string()),
        }
    }

    fn is_suspect(&self) -> bool {
        self.suspect_until.load(Ordering::Relaxed) > self.millis(Instant::now())
    }

    fn suspect(&self) {
        self.suspect_until.store(self.millis(Instant::now() + SUSPECT_FOR), Ordering::Relaxed);
    }

    fn trust_again(&self) {
        self.suspect_until.store(0, Ordering::Relaxed);
    }

    fn millis(&self, at: Instant) -> u64 {
        at.saturating_duration_since(self.epoch).as_millis().try_into().unwrap_or(u64::MAX)
    }
}

impl Miss {
    fn unusable(resolver: Option<SocketAddr>, problem: String) -> Self {
        Self { reason: Reason::Unusable { problem }, resolver, negative_ttl: None }
    }

    /// Whether another resolver may know better.
    fn is_the_resolvers_fault(&self) -> bool {
        !matches!(self.reason, Reason::NxDomain | Reason::Empty)
    }
}

/// What hickory's pool looks at in answers over TCP.
fn vetted(response: DnsResponse) -> Result<DnsResponse, NetError> {
    let records = response.answers.iter().chain(&response.authorities).chain(&response.additionals);
    if let Some(foreign) = records.into_iter().find(|record| record.dns_class != DNSClass::IN) {
        return Err(NetError::ForeignClassRecord {
            record_name: foreign.name.clone(),
            record_class: foreign.dns_class,
            record_type: foreign.record_type(),
        });
    }
    Ok(DnsError::from_response(response)?)
}

/// Over UDP the question was compared to the letter; over TCP hickory looks at the transaction id alone.
fn check(response: &DnsResponse, asked: &Name, record_type: RecordType) -> Result<(), String> {
    if response.message_type != MessageType::Response {
        return Err("it is not a response".into());
    }
    if response.truncation {
        return Err("it is truncated".into());
    }
    match response.queries.as_slice() {
        [query]
            if query.name() == asked && query.query_type() == record_type && query.query_class() == DNSClass::IN =>
        {
            Ok(())
        }
        _ => Err(format!("it does not answer the question ({asked} {record_type})")),
    }
}

fn seconds(ttl: u32) -> Duration {
    Duration::from_secs(ttl.into())
}
