//! `GET /v1/packet`: a packet as people write it, and what the attached programs say of it.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use serde::{Deserialize, Serialize};

use super::ExplainedRule;
use crate::policy::{DomainName, ItemError, Proto};

/// A packet: `tcp 10.0.0.2:40000 > 192.0.2.1:443`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PacketSpec {
    /// TCP, UDP, or an ICMP echo request.
    pub proto: Proto,
    /// Where it comes from; `None` for the address that the node would use, and port 40000.
    pub source: Option<SocketAddr>,
    /// Where it goes; port 0 for ICMP.
    pub destination: SocketAddr,
    /// Of TCP: the segment belongs to a connection (ACK), and does not open one (SYN).
    pub ack: bool,
    /// Of UDP: the payload is a DNS query for the addresses of this name.
    pub query: Option<DomainName>,
}

const SHAPE: &str = "write it like 'tcp 10.0.0.2:40000 > 192.0.2.1:443', 'udp 192.0.2.53:53 query api.example.com', \
                     'icmp 192.0.2.1'; 'ack' at the end of a tcp packet makes it one of a connection";

impl FromStr for PacketSpec {
    type Err = ItemError;

    fn from_str(text: &str) -> Result<Self, ItemError> {
        let wrong = |what: String| ItemError { what, hint: Some(SHAPE.to_owned()) };
        let spaced = text.replace("->", " > ").replace('>', " > ");
        let mut words = spaced.split_whitespace().peekable();
        let proto = match words.next().map(str::to_ascii_lowercase).as_deref() {
            Some("tcp") => Proto::Tcp,
            Some("udp") => Proto::Udp,
            Some("icmp" | "icmpv6") => Proto::Icmp,
            Some(other) => return Err(wrong(format!("`{}` is not tcp, udp or icmp", other.escape_default()))),
            None => return Err(wrong("no packet".to_owned())),
        };
        let mut end = |what: &str| {
            let word = words.next().ok_or_else(|| wrong(format!("no {what}")))?;
            address(word, proto).ok_or_else(|| {
                let needs = if proto == Proto::Icmp { "an address" } else { "an address with a port" };
                wrong(format!("`{}` is not {needs}", word.escape_default()))
            })
        };
        let first = end("destination")?;
        let (source, destination) = if words.next_if(|word| matches!(*word, ">" | "to")).is_some() {
            let word = words.next().ok_or_else(|| wrong("no destination".to_owned()))?;
            let second = address(word, proto)
                .ok_or_else(|| wrong(format!("`{}` is not a destination", word.escape_default())))?;
            (Some(first), second)
        } else {
            (None, first)
        };
        if source.is_some_and(|source| source.is_ipv4() != destination.is_ipv4()) {
            return Err(wrong("the two addresses are of different families".to_owned()));
        }
        let mut spec = Self { proto, source, destination, ack: false, query: None };
        while let Some(word) = words.next() {
            match (word, proto) {
                ("syn", Proto::Tcp) => spec.ack = false,
                ("ack", Proto::Tcp) => spec.ack = true,
                ("query", Proto::Udp) => {
                    let name = words.next().ok_or_else(|| wrong("no name after `query`".to_owned()))?;
                    spec.query = Some(DomainName::parse(name)?);
                }
                _ => return Err(wrong(format!("`{}` is not expected there", word.escape_default()))),
            }
        }
        Ok(spec)
    }
}

/// An address, with a port where the protocol has them.
fn address(text: &str, proto: Proto) -> Option<SocketAddr> {
    let canonical = |ip: IpAddr, port| SocketAddr::new(ip.to_canonical(), port);
    if proto == Proto::Icmp {
        let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
        return bare.parse().ok().map(|ip| canonical(ip, 0));
    }
    text.parse::<SocketAddr>().ok().map(|address| canonical(address.ip(), address.port()))
}

impl fmt::Display for PacketSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = |address: SocketAddr| {
            if self.proto == Proto::Icmp { address.ip().to_string() } else { address.to_string() }
        };
        write!(f, "{} ", self.proto)?;
        if let Some(source) = self.source {
            write!(f, "{} > ", end(source))?;
        }
        f.write_str(&end(self.destination))?;
        if self.ack {
            f.write_str(" ack")?;
        }
        match &self.query {
            Some(name) => write!(f, " query {name}"),
            None => Ok(()),
        }
    }
}

/// What `GET /v1/packet` is asked with.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PacketQuestion {
    /// A [`PacketSpec`].
    pub packet: String,
    /// `socket` or `uplink`; both where it is left out and the cgroup does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hook: Option<String>,
    /// The sender's cgroup: one that is governed is judged at its sockets, another one at the uplinks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<String>,
}

/// What the attached programs, and the model, say of a packet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PacketExplanation {
    /// The packet, with the source that was chosen.
    pub packet: String,
    /// Whether every program lets it go on.
    pub goes_on: bool,
    /// Whether kernel and model say the same everywhere.
    pub agree: bool,
    /// `enforce` or `audit`.
    pub mode: String,
    /// The live generation.
    pub generation: u32,
    /// Each attach point that was asked.
    pub hooks: Vec<HookVerdict>,
    /// What else is worth knowing, a sentence each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// One attach point.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HookVerdict {
    /// `socket` or `uplink`.
    pub hook: String,
    /// The cgroup's path or the interface's name.
    pub at: String,
    /// What the attached program said, run by BPF_PROG_TEST_RUN.
    pub kernel: PacketVerdict,
    /// What the decision said on the host, over what the kernel's maps hold.
    pub model: PacketVerdict,
    /// Whether the two are the same.
    pub agree: bool,
}

/// One of the two verdicts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PacketVerdict {
    /// Whether the packet goes on; in audit mode everything does.
    pub goes_on: bool,
    /// The stable name of an [`egress_ebpf::reason::Reason`].
    pub reason: String,
    /// The rule that it passes by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<ExplainedRule>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> String {
        text.parse::<PacketSpec>().map_or_else(|error| format!("error: {error}"), |spec| spec.to_string())
    }

    #[test]
    fn packets_are_written_as_people_write_them() {
        for (text, meant) in [
            ("tcp 10.0.0.2:40000 > 1.2.3.4:443", "tcp 10.0.0.2:40000 > 1.2.3.4:443"),
            ("TCP 10.0.0.2:40000->1.2.3.4:443 ack", "tcp 10.0.0.2:40000 > 1.2.3.4:443 ack"),
            ("tcp 10.0.0.2:1 to 1.2.3.4:443 syn", "tcp 10.0.0.2:1 > 1.2.3.4:443"),
            ("tcp 1.2.3.4:443", "tcp 1.2.3.4:443"),
            (
                "udp [2001:db8::1]:5 > [2001:db8::2]:53 query API.example.com.",
                "udp [2001:db8::1]:5 > [2001:db8::2]:53 query api.example.com",
            ),
            ("icmp [::ffff:1.2.3.4]", "icmp 1.2.3.4"),
            ("icmpv6 2001:db8::1>2001:db8::2", "icmp 2001:db8::1 > 2001:db8::2"),
        ] {
            assert_eq!(read(text), meant);
            assert_eq!(read(meant), meant, "what is printed is read again");
        }
        for wrong in [
            "",
            "gre 1.2.3.4",
            "tcp",
            "tcp 1.2.3.4",
            "tcp 1.2.3.4:443 >",
            "tcp a.example:1",
            "udp 1.2.3.4:1 ack",
            "tcp 1.2.3.4:1 > [::1]:2",
            "udp 1.2.3.4:53 query",
            "icmp 1.2.3.4 query a.b",
            "tcp 1.2.3.4:1 \u{1b}[31m",
        ] {
            let said = read(wrong);
            assert!(said.starts_with("error: ") && !said.contains('\u{1b}'), "{wrong}: {said}");
        }
    }
}
