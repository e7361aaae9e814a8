//! One event as one line for a person.

use std::{fmt::Write, io::IsTerminal, net::IpAddr};

use super::{Event, Kind, LearnedName, LostWhere, PolicyChange, Refusal, ResolverTrouble};

/// How to write for a person.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Style {
    /// Use colours (SGR escape sequences).
    pub color: bool,
    /// Show times in the machine's zone instead of UTC.
    pub local: bool,
}

impl Style {
    /// Colours where `stream` is a terminal and `NO_COLOR` is not set (or empty); local time.
    pub fn detect(stream: &impl IsTerminal) -> Self {
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self { color: stream.is_terminal() && !no_color, local: true }
    }

    /// `text` in an SGR style (`1` bold, `31` red, ...).
    pub fn paint(self, text: &str, sgr: &str) -> String {
        if self.color { format!("\x1b[{sgr}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

const RED: &str = "31";
const YELLOW: &str = "33";
const GREEN: &str = "32";
const DIM: &str = "2";
const BOLD: &str = "1";

/// `12:03:44 dropped    tcp 203.0.113.9:443 (forbidden.example)  no-rule  curl[1234] uid 0  /demo.slice`, without a line feed.
pub fn line(event: &Event, style: Style) -> String {
    let (word, colour, rest) = match &event.kind {
        Kind::Dropped(refusal) => ("dropped", RED, refused(refusal, style)),
        Kind::WouldDrop(refusal) => ("would-drop", YELLOW, refused(refusal, style)),
        Kind::Learned(learned) => ("learned", GREEN, learned_line(learned)),
        Kind::Policy(change) => ("policy", if change.applied { GREEN } else { RED }, policy(change)),
        Kind::Resolver(trouble) => ("resolver", if trouble.recovered { GREEN } else { YELLOW }, resolver(trouble)),
        Kind::Lost(lost) => {
            let why = match lost.place {
                LostWhere::Kernel => "the kernel's event ring was full (verdicts are not affected)",
                LostWhere::Subscriber => "this reader was too slow",
            };
            ("lost", YELLOW, format!("{} events: {why}", lost.count))
        }
    };
    let time = style.paint(&event.time.time_of_day(style.local), DIM);
    format!("{time} {} {rest}", style.paint(&format!("{word:<10}"), colour))
}

fn refused(refusal: &Refusal, style: Style) -> String {
    let mut text = format!("{} {}", refusal.protocol, style.paint(&destination(refusal), BOLD));
    if let Some(query) = &refusal.query {
        let _ = write!(text, " asks {}", style.paint(query, BOLD));
    } else if let Some((first, more)) = refusal.names.split_first() {
        let more = if more.is_empty() { String::new() } else { format!(" +{}", more.len()) };
        let _ = write!(text, " ({first}{more})");
    }
    let _ = write!(text, "  {}", refusal.reason);
    if let Some(rule) = &refusal.rule {
        let _ = write!(text, " (rule {rule})");
    }
    match &refusal.process {
        Some(process) => {
            let _ = write!(text, "  {}[{}] uid {}", process.comm, process.pid, process.uid);
        }
        None => text.push_str("  no process"),
    }
    if let (Some(namespace), Some(name)) = (&refusal.pod_namespace, &refusal.pod_name) {
        let _ = write!(text, "  pod:{namespace}/{name}");
    }
    if let Some(container) = &refusal.container {
        let runtime = container.runtime.as_deref().unwrap_or("container");
        let _ = write!(text, "  {runtime}:{}", &container.id[..container.id.len().min(12)]);
    } else if let Some(cgroup) = &refusal.cgroup {
        let _ = write!(text, "  {cgroup}");
    }
    if let Some(interface) = &refusal.interface {
        let _ = write!(text, "  {interface}");
    }
    if refusal.count > 1 {
        let _ = write!(text, "  x{}", refusal.count);
    }
    text
}

fn destination(refusal: &Refusal) -> String {
    match (refusal.destination, refusal.destination_port, refusal.icmp) {
        (None, ..) => "-".to_owned(),
        (Some(IpAddr::V6(address)), Some(port), _) => format!("[{address}]:{port}"),
        (Some(address), Some(port), _) => format!("{address}:{port}"),
        (Some(address), None, Some(icmp)) => format!("{address} type {} code {}", icmp.kind, icmp.code),
        (Some(address), None, None) => address.to_string(),
    }
}

/// Addresses that a line shows.
const SHOWN: usize = 3;

fn learned_line(learned: &LearnedName) -> String {
    let mut text = learned.name.clone();
    if learned.addresses.is_empty() {
        let _ = write!(text, "  no address (rcode {})", learned.rcode);
    }
    for address in learned.addresses.iter().take(SHOWN) {
        let _ = write!(text, "  {}", address.address);
    }
    if learned.addresses.len() > SHOWN {
        let _ = write!(text, " +{}", learned.addresses.len() - SHOWN);
    }
    if let Some(seconds) = learned.addresses.iter().filter_map(|address| address.seconds_left).min() {
        let _ = write!(text, "  for {seconds}s");
    }
    let _ = write!(text, "  from {}", learned.resolver);
    if learned.refused > 0 {
        let _ = write!(text, "  {} records left out", learned.refused);
    }
    if learned.count > 1 {
        let _ = write!(text, "  x{}", learned.count);
    }
    text
}

fn policy(change: &PolicyChange) -> String {
    let what = if change.applied { "in force" } else { "refused, the old one stays" };
    format!("generation {} {what}: {} rules, {}: {}", change.generation, change.rules, change.mode, change.message)
}

fn resolver(trouble: &ResolverTrouble) -> String {
    let who = trouble.resolver.as_deref().unwrap_or("every resolver");
    let about = trouble.name.as_ref().map(|name| format!(" for {name}")).unwrap_or_default();
    let state = if trouble.recovered { "works again" } else { "fails" };
    format!("{who} {state}{about}: {}", trouble.message)
}
