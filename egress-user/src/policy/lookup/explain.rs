//! What the policy does to one destination, and why, from the tables alone or with what the daemon has learned.

mod line;
mod nearest;
mod url;

use std::{
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use egress_ebpf::decision::is_dhcp_server;
use serde::Serialize;

pub use self::nearest::{Near, Nearest};

use super::super::{
    compiled::{Compiled, Proto, Resolvers},
    name::{DomainName, ItemError, NamePattern},
    target::{self, Target},
};

/// `NAME-or-ADDRESS[:PORT][/PROTO]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination {
    pub host: Host,
    pub proto: Proto,
    /// 0 where the protocol has none.
    pub port: u16,
    /// Nothing was written after the host, so 443/tcp is meant.
    pub assumed: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    Name(DomainName),
    Address(IpAddr),
}

/// What the running daemon knows besides the policy; all empty offline.
#[derive(Clone, Copy, Debug, Default)]
pub struct Context<'a> {
    /// The names under which the destination's address was learned.
    pub names: &'a [DomainName],
    /// The addresses that the destination's name has now.
    pub addresses: &'a [IpAddr],
    /// The resolvers in use where the policy says `system`.
    pub resolvers: &'a [SocketAddr],
    /// There is a daemon, so the slices above are the truth and not unknown.
    pub live: bool,
}

/// The answer. Indices point into [`Compiled::grants`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// The destination as it was understood: `api.example.com:443/tcp`.
    pub destination: String,
    pub allowed: bool,
    pub reason: Reason,
    /// A rule that almost allows it.
    pub nearest: Option<Nearest>,
    /// Of what no rule allows, the rule that would: one item of `rules:`, to be pasted there.
    pub add: Option<String>,
    pub notes: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum Reason {
    /// `loopback`, `dhcpv4`, ..., or `dns` for a trusted resolver.
    Builtin {
        builtin: &'static str,
    },
    /// The allow grants that open it.
    Allow {
        grants: Vec<u32>,
        via: Via,
    },
    /// The deny grants that close it.
    Deny {
        grants: Vec<u32>,
    },
    /// Grants of addresses would let the packet pass, but the name may not be asked for.
    NotAsked {
        grants: Vec<u32>,
    },
    NoRule,
}

/// What the allow grants matched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Via {
    Name(DomainName),
    Address(IpAddr),
    /// `any`, whatever the name resolves to.
    Everything,
}

impl FromStr for Destination {
    type Err = ItemError;

    fn from_str(text: &str) -> Result<Self, ItemError> {
        let (target, ports) = match url::destination(text)? {
            Some(of_url) => of_url,
            None => target::parse_destination(text)?,
        };
        let host = match target {
            Target::Name(NamePattern::Exact(name)) => Host::Name(name),
            Target::Net(net) if net.prefix_len() == net.max_prefix_len() => Host::Address(net.addr()),
            other => {
                return Err(ItemError::new(
                    format!("`{other}` is not one destination"),
                    "write one name or address, like `api.example.com:443` or `192.0.2.1:123/udp`",
                ));
            }
        };
        let Some(ports) = ports else {
            return Ok(Self { host, proto: Proto::Tcp, port: 443, assumed: true });
        };
        match ports.proto {
            Proto::Any => Err(ItemError::new("`any` is not one protocol", "write `tcp`, `udp` or `icmp`")),
            Proto::Icmp => Ok(Self { host, proto: Proto::Icmp, port: 0, assumed: false }),
            proto if ports.from == ports.to => Ok(Self { host, proto, port: ports.from, assumed: false }),
            proto => Err(ItemError::new(
                "a destination has one port",
                format!("write it before the protocol, like `:443/{proto}`"),
            )),
        }
    }
}

impl std::fmt::Display for Destination {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (&self.host, self.proto) {
            (Host::Name(name), Proto::Icmp | Proto::Any) => write!(f, "{name}/{}", self.proto),
            (Host::Address(address), Proto::Icmp | Proto::Any) => {
                write!(f, "{address}/{}", self.proto)
            }
            (Host::Name(name), _) => write!(f, "{name}:{}/{}", self.port, self.proto),
            (Host::Address(address), _) => {
                write!(f, "{}/{}", SocketAddr::new(*address, self.port), self.proto)
            }
        }
    }
}

impl Compiled {
    /// What the policy says by itself.
    pub fn decide(&self, destination: &Destination) -> Explanation {
        self.decide_with(destination, &Context::default())
    }

    /// What the policy says, given what the daemon knows.
    pub fn decide_with(&self, destination: &Destination, context: &Context<'_>) -> Explanation {
        let mut notes = Vec::new();
        if destination.assumed {
            notes.push("no port was given: 443/tcp is meant".to_owned());
        }
        let reason = match &destination.host {
            Host::Name(name) => self.decide_name(name, destination, context, &mut notes),
            Host::Address(address) => self.decide_address(*address, destination, context, &mut notes),
        };
        let allowed = matches!(reason, Reason::Builtin { .. } | Reason::Allow { .. });
        let nearest = match reason {
            Reason::NoRule if !is_dns(destination) => self.nearest(destination, context),
            _ => None,
        };
        // Where a resolver is missing no rule helps: the note says what does.
        let rule_helps = matches!(reason, Reason::NoRule | Reason::NotAsked { .. }) && !is_dns(destination);
        let add = rule_helps.then(|| self.line(destination, context));
        Explanation { destination: destination.to_string(), allowed, reason, nearest, add, notes }
    }

    /// All grants of these classes that open the destination's port.
    fn opening(&self, classes: &[u32], destination: &Destination) -> Vec<u32> {
        let ranges = classes.iter().flat_map(|class| self.classes.of(*class).ports);
        let mut grants: Vec<u32> = ranges
            .filter(|range| super::range_matches(range, destination.proto, destination.port))
            .map(|range| range.grant)
            .collect();
        grants.sort_unstable();
        grants.dedup();
        grants
    }

    fn denying(&self, address: IpAddr, destination: &Destination) -> Vec<u32> {
        self.opening(&[self.match_deny(address)], destination)
    }

    fn decide_name(
        &self,
        name: &DomainName,
        destination: &Destination,
        context: &Context<'_>,
        notes: &mut Vec<String>,
    ) -> Reason {
        let is_localhost = name.as_str() == "localhost" || name.as_str().ends_with(".localhost");
        if is_localhost && self.builtins.loopback {
            return Reason::Builtin { builtin: "loopback" };
        }
        if is_dns(destination) {
            notes.push(self.only_resolvers(context).to_owned());
            return Reason::NoRule;
        }
        let found = self.match_name(name.as_str());
        let by_name = self.opening(&found.classes, destination);
        if !by_name.is_empty() {
            let denied: Vec<_> = context
                .addresses
                .iter()
                .map(|address| (address, self.denying(*address, destination)))
                .filter(|(_, denies)| !denies.is_empty())
                .collect();
            if !denied.is_empty() && denied.len() == context.addresses.len() {
                let mut grants: Vec<u32> = denied.into_iter().flat_map(|(_, denies)| denies).collect();
                grants.sort_unstable();
                grants.dedup();
                notes.push("a rule allows the name, but all its addresses are denied".to_owned());
                return Reason::Deny { grants };
            }
            for (address, _) in denied {
                notes.push(format!("its address {address} is denied"));
            }
            if !context.live && !self.denies.is_empty() {
                notes.push("deny rules come first: an address of it that one of them closes stays closed".to_owned());
            }
            return Reason::Allow { grants: by_name, via: Via::Name(name.clone()) };
        }
        let (reachable, via) = self.reachable_by_address(destination, context);
        match (reachable.is_empty(), found.ask) {
            (true, _) => Reason::NoRule,
            (false, true) => Reason::Allow { grants: reachable, via },
            (false, false) => Reason::NotAsked { grants: reachable },
        }
    }

    /// Grants of prefixes that open a name whose own rules do not: by its addresses, or, offline, by `any`.
    fn reachable_by_address(&self, destination: &Destination, context: &Context<'_>) -> (Vec<u32>, Via) {
        for address in context.addresses {
            let grants = self.opening(&[self.match_address(*address)], destination);
            if !grants.is_empty() && self.denying(*address, destination).is_empty() {
                return (grants, Via::Address(*address));
            }
        }
        if context.live {
            return (Vec::new(), Via::Everything);
        }
        // The unspecified addresses lie in no prefix that a policy has reason to name but the whole space.
        let whole = |text: &str| self.addresses.iter().find(|entry| entry.net.to_string() == text);
        let grants = whole("0.0.0.0/0").map(|entry| self.opening(&[entry.class], destination)).unwrap_or_default();
        (grants, Via::Everything)
    }

    fn decide_address(
        &self,
        address: IpAddr,
        destination: &Destination,
        context: &Context<'_>,
        notes: &mut Vec<String>,
    ) -> Reason {
        if address.is_loopback() && self.builtins.loopback {
            return Reason::Builtin { builtin: "loopback" };
        }
        // As the data plane has it: what keeps the link alive, then deny rules, then DNS, then allow rules.
        let builtin = self.builtin(address, destination, context, notes);
        if let Some(builtin) = builtin.filter(|builtin| *builtin != "dns") {
            return Reason::Builtin { builtin };
        }
        let denies = self.denying(address, destination);
        if !denies.is_empty() {
            return Reason::Deny { grants: denies };
        }
        if let Some(builtin) = builtin {
            return Reason::Builtin { builtin };
        }
        if is_dns(destination) {
            notes.push(self.only_resolvers(context).to_owned());
            return Reason::NoRule;
        }
        for name in context.names {
            let grants = self.opening(&self.match_name(name.as_str()).classes, destination);
            if !grants.is_empty() {
                return Reason::Allow { grants, via: Via::Name(name.clone()) };
            }
        }
        let grants = self.opening(&[self.match_address(address)], destination);
        if !grants.is_empty() {
            return Reason::Allow { grants, via: Via::Address(address) };
        }
        if !context.live && !self.names.is_empty() {
            notes.push(
                "names are not resolved here: a rule for a name may allow this address (the daemon knows: leave \
                 `--policy` out)"
                    .to_owned(),
            );
        }
        Reason::NoRule
    }

    /// What is said of port 53 elsewhere than at a resolver that is known to be trusted: offline, those of the system are not
    /// known.
    fn only_resolvers(&self, context: &Context<'_>) -> &'static str {
        if context.live || matches!(self.dns.resolvers, Resolvers::Addresses(_)) {
            "port 53 passes to trusted resolvers only, whatever the rules say: add it to `dns.resolvers` by its address"
        } else {
            "port 53 passes to trusted resolvers only, whatever the rules say: this passes only if it is one of the system's \
             resolvers (`dns.resolvers: system`), which are not known here; else add it to `dns.resolvers` by its address"
        }
    }

    fn builtin(
        &self,
        address: IpAddr,
        destination: &Destination,
        context: &Context<'_>,
        notes: &mut Vec<String>,
    ) -> Option<&'static str> {
        let here = SocketAddr::new(address, destination.port);
        let resolvers = match &self.dns.resolvers {
            Resolvers::Addresses(addresses) => addresses.as_slice(),
            Resolvers::System => context.resolvers,
        };
        match destination.proto {
            Proto::Udp | Proto::Tcp if resolvers.contains(&here) => Some("dns"),
            Proto::Udp
                if destination.port == 67
                    && address.is_ipv4()
                    && is_dhcp_server(&address.into(), true)
                    && self.builtins.dhcpv4 =>
            {
                notes.push("from port 68 (a DHCP client), to one address from the node itself only".to_owned());
                Some("dhcpv4")
            }
            Proto::Udp if destination.port == 547 && address.is_ipv6() && self.builtins.dhcpv6 => {
                notes.push("from port 546 (a DHCPv6 client) only".to_owned());
                Some("dhcpv6")
            }
            Proto::Icmp if address.is_ipv6() && self.builtins.neighbour_discovery => {
                notes.push("neighbour discovery passes all the same (builtin neighbour-discovery)".to_owned());
                None
            }
            _ => None,
        }
    }
}

fn is_dns(destination: &Destination) -> bool {
    matches!(destination.proto, Proto::Udp | Proto::Tcp) && destination.port == 53
}
