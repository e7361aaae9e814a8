//! What was blocked in one run, folded for a person, with what to write to allow it.

use std::{
    collections::{BTreeSet, HashMap},
    fmt::Write,
    net::IpAddr,
};

use serde::Serialize;

use super::{Event, Kind, Refusal, Style, Verdict};

/// Destinations that are told apart; a run with more counts the rest together.
const CAPACITY: usize = 1000;
/// Destinations that are printed.
const SHOWN: usize = 20;
/// Processes that one row names.
const PROCESSES: usize = 3;

/// Takes a run's events and tells at its end what was blocked. Serialised, it is `{"blocked": [...], "more": 0, "lost": 0}`.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Summary {
    /// What was blocked, in the order of its first event.
    pub blocked: Vec<Blocked>,
    /// Attempts at destinations beyond those in `blocked`.
    pub more: u64,
    /// Events that were lost before they got here.
    pub lost: u64,
    #[serde(skip)]
    rows: HashMap<(String, String, Verdict), usize>,
}

/// One destination, name or kind of packet that was blocked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Blocked {
    /// The name with port and protocol where a name is known, else the address; a name alone for a refused DNS query.
    pub destination: String,
    /// Addresses behind the name.
    pub addresses: BTreeSet<IpAddr>,
    /// The reason's stable name.
    pub reason: String,
    /// Whether it was dropped; `false` in audit mode.
    pub dropped: bool,
    /// The deny rule that matched.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// Packets and system calls.
    pub count: u64,
    /// `COMM[PID]` of those who tried, at most three.
    pub processes: Vec<String>,
    /// The argument that allows it, such as `--allow example.com:80`; absent where none does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow: Option<String>,
}

impl Summary {
    /// A run without events.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes an event.
    pub fn add(&mut self, event: &Event) {
        match &event.kind {
            Kind::Dropped(refusal) | Kind::WouldDrop(refusal) => self.refused(refusal),
            Kind::Lost(lost) => self.lost += lost.count,
            Kind::Learned(_) | Kind::Policy(_) | Kind::Resolver(_) => {}
        }
    }

    /// Whether nothing was blocked, and nothing may have been missed.
    pub fn is_empty(&self) -> bool {
        self.blocked.is_empty() && self.more == 0 && self.lost == 0
    }

    fn refused(&mut self, refusal: &Refusal) {
        let key = (destination(refusal), refusal.reason.clone(), refusal.verdict);
        let index = match self.rows.get(&key) {
            Some(index) => *index,
            None if self.blocked.len() >= CAPACITY => {
                self.more += u64::from(refusal.count);
                return;
            }
            None => {
                self.blocked.push(Blocked {
                    destination: key.0.clone(),
                    addresses: BTreeSet::new(),
                    reason: refusal.reason.clone(),
                    dropped: refusal.verdict == Verdict::Drop,
                    rule: refusal.rule.clone(),
                    count: 0,
                    processes: Vec::new(),
                    allow: allow(refusal),
                });
                self.rows.insert(key, self.blocked.len() - 1);
                self.blocked.len() - 1
            }
        };
        let row = &mut self.blocked[index];
        row.count += u64::from(refusal.count);
        if !refusal.names.is_empty() && refusal.query.is_none() {
            row.addresses.extend(refusal.destination);
        }
        if let Some(process) = &refusal.process {
            let process = format!("{}[{}]", process.comm, process.pid);
            if row.processes.len() < PROCESSES && !row.processes.contains(&process) {
                row.processes.push(process);
            }
        }
    }

    /// The summary as text, lines ended; empty where nothing was blocked.
    pub fn render(&self, style: Style) -> String {
        let mut text = String::new();
        for (dropped, verb) in [(true, "blocked"), (false, "would have blocked (audit)")] {
            self.section(dropped, verb, style, &mut text);
        }
        if self.more > 0 {
            let _ = writeln!(text, "egress: {} more attempts at further destinations", self.more);
        }
        if self.lost > 0 {
            let _ = writeln!(text, "egress: {} events were lost: there may be more than this", self.lost);
        }
        text
    }

    fn section(&self, dropped: bool, verb: &str, style: Style, text: &mut String) {
        let rows: Vec<&Blocked> = self.blocked.iter().filter(|row| row.dropped == dropped).collect();
        if rows.is_empty() {
            return;
        }
        let plural = if rows.len() == 1 { "" } else { "s" };
        let head = format!("egress: {verb} {} destination{plural}:", rows.len());
        let _ = writeln!(text, "{}", style.paint(&head, "1"));
        for row in rows.iter().take(SHOWN) {
            row.render(style, text);
        }
        if rows.len() > SHOWN {
            let _ = writeln!(text, "  ... and {} more", rows.len() - SHOWN);
        }
    }
}

impl Blocked {
    fn render(&self, style: Style, text: &mut String) {
        let mut destination = self.destination.clone();
        let mut addresses = self.addresses.iter();
        if let Some(first) = addresses.next() {
            let more = addresses.count();
            let more = if more == 0 { String::new() } else { format!(" +{more}") };
            let _ = write!(destination, " ({first}{more})");
        }
        let _ = write!(text, "  {}  {}", style.paint(&destination, "31"), why(&self.reason));
        if let Some(rule) = &self.rule {
            let _ = write!(text, " `{rule}`");
        }
        if self.count > 1 {
            let _ = write!(text, ", {} times", self.count);
        }
        if !self.processes.is_empty() {
            let _ = write!(text, ", by {}", self.processes.join(", "));
        }
        text.push('\n');
        if let Some(allow) = &self.allow {
            let _ = writeln!(text, "      to allow it: {}", style.paint(allow, "1"));
        }
    }
}

fn destination(refusal: &Refusal) -> String {
    if let Some(query) = &refusal.query {
        return format!("{query} (DNS)");
    }
    match host(refusal) {
        Some(host) => match refusal.destination_port {
            Some(port) => format!("{host}:{port}/{}", refusal.protocol),
            None => format!("{}/{}", host.trim_matches(['[', ']']), refusal.protocol),
        },
        None => refusal.protocol.clone(),
    }
}

/// The name learned last, else the address, in brackets where a port can follow.
fn host(refusal: &Refusal) -> Option<String> {
    refusal.names.first().cloned().or_else(|| match refusal.destination? {
        IpAddr::V6(address) => Some(format!("[{address}]")),
        address => Some(address.to_string()),
    })
}

/// The argument that would allow it, in the short form where that means the same.
fn allow(refusal: &Refusal) -> Option<String> {
    // Names with escapes in them are no destinations that could be written.
    let written = |host: String| (!host.contains('\\')).then(|| format!("--allow {host}"));
    match refusal.reason.as_str() {
        // The port is not known yet; 443/tcp is what a bare name means.
        "name-not-allowed" => written(refusal.query.clone()?),
        "no-rule" | "no-port" | "expired" => {
            let host = host(refusal)?;
            match (refusal.protocol.as_str(), refusal.destination_port) {
                ("tcp", Some(443)) => written(host.trim_matches(['[', ']']).to_owned()),
                ("tcp", Some(port)) => written(format!("{host}:{port}")),
                ("udp", Some(port)) => written(format!("{host}:{port}/udp")),
                ("icmp" | "icmpv6", None) => written(format!("{host}:icmp")),
                _ => None,
            }
        }
        _ => None,
    }
}

/// A reason in words.
fn why(reason: &str) -> &str {
    match reason {
        "no-rule" => "no rule allows it",
        "no-port" => "no rule allows this port",
        "expired" => "its name's answer has expired",
        "denied" => "denied by rule",
        "name-not-allowed" => "no rule allows the name",
        "bad-query" => "not a query that can be read",
        "untrusted-resolver" => "not a trusted resolver",
        "bypass-socket" => "a socket that skips the egress hooks",
        "forged-resolver" => "a resolver's address as its source",
        "forged-source" => "an address outside as its source",
        "no-policy" => "no policy is in force yet",
        other => other,
    }
}
