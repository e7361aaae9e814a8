//! What the resolver tells the rest of the daemon.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

use super::private::Kind;

/// Takes what was learned and what failed. Called from the refresher's task, one call at a time, without any lock
/// held; an implementation that blocks delays the other names.
pub trait AnswerSink: Send + Sync {
    /// What came in at a time, at least one answer, in its order.
    fn learned(&self, answers: &[Answer]);
    fn failed(&self, failure: &Failure);
    /// Names whose addresses live longer: their questions are overdue, because too many others hang.
    fn held(&self, held: &[Held]);
}

/// A name and its addresses that live longer, with the life they have left.
pub type Held = (Arc<str>, Vec<(IpAddr, Duration)>);

/// One good answer to one query: A and AAAA are asked for, and answered, each on its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The name that was asked: lower case, A-labels, no trailing dot.
    pub name: Arc<str>,
    /// Address and life left from `at`: the TTL (the least of the CNAME chain's and the record's own), raised to
    /// `dns.minTtl`, plus `dns.grace`; where an earlier answer lives longer, that one's. IPv4-mapped addresses are
    /// given as IPv4. To be merged: a name's addresses that are not in here keep the life they have.
    pub addresses: Vec<(IpAddr, Duration)>,
    /// The CNAME chain's targets, in order, with the life counted the same way.
    pub aliases: Vec<(Arc<str>, Duration)>,
    /// Who answered.
    pub resolver: SocketAddr,
    /// When the answer was taken.
    pub at: Instant,
}

/// One failed lookup, and what stays of the name in spite of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub name: Arc<str>,
    /// Which of the two queries failed. A name that does not exist fails twice.
    pub family: Family,
    pub reason: Reason,
    /// The last resolver that was asked; `None` when there was none to ask.
    pub resolver: Option<SocketAddr>,
    pub at: Instant,
    /// The addresses of this family that stay, with the life that they have from `at`. The later end counts, as of
    /// two answers: a resolver's failure makes it longer (the last good answer stays), nothing makes it shorter.
    pub kept: Vec<(IpAddr, Duration)>,
    /// As `kept`, for the CNAME chain's targets.
    pub kept_aliases: Vec<(Arc<str>, Duration)>,
    /// When the query is sent again.
    pub retry_in: Duration,
}

/// Which addresses a query asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum Family {
    #[serde(rename = "A")]
    V4,
    #[serde(rename = "AAAA")]
    V6,
}

/// Why a lookup gave no address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Reason {
    /// RFC 1035 section 4.1.1, RCODE 3: the name does not exist.
    #[error("NXDOMAIN: the name does not exist")]
    NxDomain,
    /// RFC 2308 section 2.2: the name exists and has neither A nor AAAA records. (One of them alone is no failure.)
    #[error("empty answer: the name has no address")]
    Empty,
    /// RCODE 2.
    #[error("SERVFAIL: the resolver could not get an answer")]
    ServFail,
    /// RCODE 5.
    #[error("REFUSED: the resolver does not answer this node")]
    Refused,
    /// Any other error code.
    #[error("the resolver answered with error {code}")]
    Code { code: String },
    #[error("no answer in time")]
    Timeout,
    /// The resolver could not be reached at all.
    #[error("cannot reach the resolver: {error}")]
    Unreachable { error: String },
    /// Not to be parsed, for another question, still truncated over TCP, or a CNAME chain that loops or never ends.
    #[error("unusable answer: {problem}")]
    Unusable { problem: String },
    /// DNS rebinding: an address that no public name has. These addresses were left out, the others taken.
    #[error(
        "refused {count} address(es) that a public name must not have, {address} ({range}) first; list the name under dns.allowPrivate if that is right"
    )]
    Rebinding { address: IpAddr, range: Kind, count: usize },
    /// More addresses live at once than are kept for one name; those that expire first were let go.
    #[error("more than {limit} live addresses; the {dropped} that expire first were let go")]
    TooMany { limit: usize, dropped: usize },
    #[error("no resolver is configured")]
    NoResolver,
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "A",
            Self::V6 => "AAAA",
        })
    }
}

/// One name as `status` shows it. Times are whole seconds from now, or ago.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NameStatus {
    pub name: String,
    /// Living addresses, with seconds left, ordered by address.
    pub addresses: Vec<(IpAddr, u64)>,
    /// Living CNAME targets, with seconds left.
    pub aliases: Vec<(String, u64)>,
    /// Who gave the last answer, and seconds since then; `None` before the first.
    pub last_answer: Option<(SocketAddr, u64)>,
    /// The last failure since the last clean answer, and seconds since then.
    pub last_error: Option<(Reason, u64)>,
    /// Failures in a row.
    pub failures: u32,
    /// Seconds until the name is asked for again; `None` while its queries are under way.
    pub next_refresh: Option<u64>,
}
