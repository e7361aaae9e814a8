//! Which events a reader wants.

use egress_ebpf::reason::Reason;
use ipnet::IpNet;

use super::{Event, Kind, Refusal};
use crate::policy::{DomainName, ItemError, NamePattern, Ports, Proto, Target, parse_destination};

/// Which events a reader wants: those for which every part that is set holds. Events of another kind than a part speaks
/// of are left out by it; what was lost is always told.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Only dropped and would-drop.
    pub dropped: bool,
    /// Of this process.
    pub pid: Option<u32>,
    /// Of this cgroup and those below it, by its path below the cgroup v2 root.
    pub cgroup: Option<String>,
    /// To this destination.
    pub to: Option<To>,
    /// With this reason, by its stable name.
    pub reason: Option<String>,
}

/// A destination that a reader asks for: a name, a wildcard, an address or a prefix, and perhaps a port.
#[derive(Clone, Debug)]
pub struct To {
    target: Target,
    ports: Option<Ports>,
}

impl std::str::FromStr for To {
    type Err = ItemError;

    fn from_str(text: &str) -> Result<Self, ItemError> {
        let (target, ports) = parse_destination(text)?;
        Ok(Self { target, ports })
    }
}

impl To {
    fn takes_name(&self, name: &str) -> bool {
        match &self.target {
            Target::Any => true,
            Target::Name(NamePattern::Exact(exact)) => exact.as_str().eq_ignore_ascii_case(name),
            Target::Name(pattern) => DomainName::parse(name).is_ok_and(|name| pattern.matches(&name)),
            Target::Net(_) => false,
        }
    }

    fn takes_address(&self, address: std::net::IpAddr) -> bool {
        match &self.target {
            Target::Any => true,
            Target::Net(net) => net.contains(&IpNet::from(address)),
            Target::Name(_) => false,
        }
    }

    fn takes(&self, refusal: &Refusal) -> bool {
        let port = self.ports.as_ref().is_none_or(|ports| {
            let proto = match refusal.protocol.as_str() {
                "tcp" => Proto::Tcp,
                "udp" => Proto::Udp,
                "icmp" | "icmpv6" => Proto::Icmp,
                _ => return false,
            };
            ports.matches(proto, refusal.destination_port.unwrap_or(0))
        });
        let names = refusal.names.iter().chain(&refusal.query);
        port && (refusal.destination.is_some_and(|address| self.takes_address(address))
            || names.into_iter().any(|name| self.takes_name(name)))
    }
}

impl Filter {
    /// Whether the reader wants this event.
    pub fn wants(&self, event: &Event) -> bool {
        match &event.kind {
            Kind::Lost(_) => true,
            Kind::Dropped(refusal) | Kind::WouldDrop(refusal) => self.wants_refusal(refusal),
            // No process, cgroup or reason of theirs is known.
            _ if self.dropped || self.pid.is_some() || self.cgroup.is_some() || self.reason.is_some() => false,
            Kind::Learned(learned) => self.to.as_ref().is_none_or(|to| {
                to.takes_name(&learned.name) || learned.addresses.iter().any(|entry| to.takes_address(entry.address))
            }),
            Kind::Resolver(trouble) => {
                self.to.as_ref().is_none_or(|to| trouble.name.as_deref().is_some_and(|name| to.takes_name(name)))
            }
            Kind::Policy(_) => self.to.is_none(),
        }
    }

    fn wants_refusal(&self, refusal: &Refusal) -> bool {
        let pid = |pid: u32| refusal.process.as_ref().is_some_and(|process| process.pid == pid);
        let cgroup = |wanted: &String| refusal.cgroup.as_deref().is_some_and(|path| is_below(path, wanted));
        self.pid.is_none_or(pid)
            && self.cgroup.as_ref().is_none_or(cgroup)
            && self.to.as_ref().is_none_or(|to| to.takes(refusal))
            && self.reason.as_ref().is_none_or(|reason| *reason == refusal.reason)
    }

    /// A reason's name as it was given, if it is one that refuses.
    ///
    /// # Errors
    /// The names that there are.
    pub fn reason(text: &str) -> Result<String, ItemError> {
        let refusing = || Reason::ALL.iter().filter(|reason| !reason.passes()).map(|reason| reason.name());
        if refusing().any(|name| name == text) {
            return Ok(text.to_owned());
        }
        let known = refusing().collect::<Vec<_>>().join(", ");
        Err(ItemError {
            what: format!("`{}` is no reason", text.escape_debug()),
            hint: Some(format!("write one of {known}")),
        })
    }

    /// A cgroup's path below the cgroup v2 root, given so or with the root before it.
    pub fn cgroup(text: &str, root: &str) -> String {
        let below = text.strip_prefix(root).filter(|rest| rest.is_empty() || rest.starts_with('/')).unwrap_or(text);
        format!("/{}", below.trim_matches('/'))
    }
}

fn is_below(path: &str, above: &str) -> bool {
    above == "/" || path.strip_prefix(above).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}
