//! `ports` items: `443/tcp`, `30000-32767/udp`, `any/tcp`, `icmp`, `any`.

use std::fmt;

use super::{compiled::Proto, name::ItemError};

/// Ports of one protocol, both ends included, host byte order. Sorts by protocol, then by port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ports {
    pub proto: Proto,
    pub from: u16,
    pub to: u16,
}

impl Ports {
    /// TCP, UDP and ICMP: no rule opens other IP protocols.
    pub const ANY: Self = Self { proto: Proto::Any, from: 0, to: u16::MAX };

    pub fn parse(text: &str) -> Result<Self, ItemError> {
        let text = text.trim();
        let lower = text.to_ascii_lowercase();
        let whole = |proto| Ok(Self { proto, from: 0, to: u16::MAX });
        match lower.as_str() {
            "any" => return Ok(Self::ANY),
            "icmp" => return whole(Proto::Icmp),
            "" => {
                return Err(error("an empty port", "write a port with its protocol, like `443/tcp`, or `any`"));
            }
            "icmpv6" | "icmp6" | "ping" => {
                return Err(error(
                    &format!("`{text}` is not a protocol here"),
                    "write `icmp`: it stands for both ICMP and ICMPv6",
                ));
            }
            "all" | "*" => {
                return Err(error(
                    &format!("`{text}` is not a port"),
                    "write `any` for TCP and UDP on every port and ICMP",
                ));
            }
            "tcp" | "udp" => {
                return Err(error(
                    &format!("`{text}` has no port"),
                    &format!("write `any/{lower}` for all its ports, or one like `443/{lower}`"),
                ));
            }
            "https" | "http" | "ssh" | "dns" | "ntp" => {
                let port = match lower.as_str() {
                    "https" => "443/tcp",
                    "http" => "80/tcp",
                    "ssh" => "22/tcp",
                    "dns" => "53/udp",
                    _ => "123/udp",
                };
                return Err(error(&format!("`{text}` is a service's name"), &format!("write its port: `{port}`")));
            }
            _ => {}
        }
        let Some((range, proto)) = lower.split_once('/') else {
            let hint = match lower.split_once('-').map_or(lower.as_str(), |(from, _)| from).parse::<u16>() {
                Ok(_) => format!("write `{text}/tcp` or `{text}/udp`"),
                Err(_) => "write a port with its protocol, like `443/tcp`, or `icmp`, or `any`".to_owned(),
            };
            return Err(error(&format!("`{text}` says no protocol"), &hint));
        };
        // People who know other tools write it the other way round.
        if matches!(range, "tcp" | "udp") && proto.bytes().all(|b| b.is_ascii_digit() || b == b'-') {
            return Err(error(&format!("`{text}` has the protocol first"), &format!("write `{proto}/{range}`")));
        }
        let proto = match proto {
            "tcp" => Proto::Tcp,
            "udp" => Proto::Udp,
            "icmp" | "icmpv6" if range == "any" => return whole(Proto::Icmp),
            "any" if range == "any" => return Ok(Self::ANY),
            "icmp" | "icmpv6" => return Err(error("ICMP has no ports", "write `icmp`")),
            "any" => {
                return Err(error(
                    &format!("`{text}` mixes protocols"),
                    &format!("write two items: `{range}/tcp` and `{range}/udp`"),
                ));
            }
            other => {
                return Err(error(
                    &format!("unknown protocol `{other}`"),
                    "write `tcp` or `udp`; `icmp` and `any` stand alone; other IP protocols pass only by `any`",
                ));
            }
        };
        if range == "any" || range == "*" {
            return if range == "any" {
                whole(proto)
            } else {
                Err(error(&format!("`{text}` is not a port"), &format!("write `any/{proto}`")))
            };
        }
        let (from, to) = range.split_once('-').unwrap_or((range, range));
        let (from, to) = (port(from.trim())?, port(to.trim())?);
        if from > to {
            return Err(error(&format!("the range {from}-{to} is reversed"), &format!("write `{to}-{from}/{proto}`")));
        }
        Ok(Self { proto, from, to })
    }

    pub fn covers(&self, other: &Self) -> bool {
        self.proto == Proto::Any || (self.proto == other.proto && self.from <= other.from && other.to <= self.to)
    }

    /// Whether a packet of this protocol and port is meant. `port` is not looked at for protocols without ports.
    pub fn matches(&self, proto: Proto, port: u16) -> bool {
        self.proto == Proto::Any
            || (self.proto == proto && (proto == Proto::Icmp || (self.from..=self.to).contains(&port)))
    }
}

fn port(text: &str) -> Result<u16, ItemError> {
    match text.parse::<u64>() {
        Ok(0) => Err(error("port 0 does not exist", "ports go from 1 to 65535; write `any/tcp` for all of them")),
        Ok(port) => {
            u16::try_from(port).map_err(|_| error(&format!("port {port} is too large"), "ports go from 1 to 65535"))
        }
        Err(_) if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) => {
            Err(error(&format!("port {text} is too large"), "ports go from 1 to 65535"))
        }
        Err(_) => {
            Err(error(&format!("`{text}` is not a port number"), "write a number from 1 to 65535, like `443/tcp`"))
        }
    }
}

fn error(what: &str, hint: &str) -> ItemError {
    ItemError { what: what.to_owned(), hint: Some(hint.to_owned()) }
}

/// Sorts, joins what overlaps or touches, and drops what `any` covers: one form for each set of ports.
pub fn normalise(ports: &mut Vec<Ports>) {
    ports.sort_unstable();
    if ports.iter().any(|ports| ports.proto == Proto::Any) {
        *ports = vec![Ports::ANY];
        return;
    }
    ports.dedup_by(|next, before| {
        let join = next.proto == before.proto && u32::from(next.from) <= u32::from(before.to) + 1;
        if join {
            before.to = before.to.max(next.to);
        }
        join
    });
    for ports in ports {
        // Port 0 cannot be written, so "all ports" and 1-65535 are the same.
        if ports.from == 1 && ports.to == u16::MAX {
            ports.from = 0;
        }
    }
}

/// Whether every packet of `inner` is one of `outer`; both normalised.
pub fn cover(outer: &[Ports], inner: &[Ports]) -> bool {
    inner.iter().all(|inner| outer.iter().any(|outer| outer.covers(inner)))
}

impl serde::Serialize for Ports {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.proto, self.from, self.to) {
            (Proto::Any | Proto::Icmp, ..) => write!(f, "{}", self.proto),
            (proto, 0, u16::MAX) => write!(f, "any/{proto}"),
            (proto, from, to) if from == to => write!(f, "{from}/{proto}"),
            (proto, from, to) => write!(f, "{from}-{to}/{proto}"),
        }
    }
}

/// `443/tcp, 9000/tcp`.
pub fn list(ports: &[Ports]) -> String {
    ports.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
