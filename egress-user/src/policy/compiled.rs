//! What a policy compiles to: plain tables that the datapath installs, the resolver works from, and `explain` reads.
//!
//! Everything here is data without positions in YAML; indices (`rule`, `grant`, `class`) point into the vectors of the
//! same [`Compiled`]. They change from one compile to the next; [`Grant::key`] is what stays.

use std::{fmt, net::SocketAddr, time::Duration};

use ipnet::IpNet;
use serde::Serialize;

use super::{
    compile::{OFFSET, fnv1a},
    name::{DomainName, NamePattern},
    ports::Ports,
};

/// A checked, merged policy as tables.
#[derive(Clone, Debug, Serialize)]
pub struct Compiled {
    pub mode: Mode,
    pub dns: Dns,
    pub builtins: Builtins,
    /// Allow and deny rules, in the order of the files.
    pub rules: Vec<CompiledRule>,
    /// One for each `to` item of each rule.
    pub grants: Vec<Grant>,
    /// Sets of grants, without duplicates; class 0 is the empty one.
    pub classes: Classes,
    /// Sorted by key. One longest match on the reversed name answers: exact beats suffix, longer beats shorter.
    pub names: Vec<NameEntry>,
    /// Allow prefixes, sorted. One longest-prefix match answers: each class holds the covering prefixes' grants too.
    pub addresses: Vec<PrefixEntry>,
    /// Deny prefixes, of the same form. A deny that matches wins over every allow.
    pub denies: Vec<PrefixEntry>,
    /// The exact names of allow rules, to resolve ahead; sorted, without duplicates.
    pub exact_names: Vec<DomainName>,
    /// FNV-1a (64 bit) of the policy's content: equal for two policies that mean and say the same, whatever their
    /// files, formatting and order of rules; stable between versions of this program for the same language version.
    pub hash: u64,
}

/// What happens to a packet that no rule allows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    #[default]
    Enforce,
    /// Everything passes; what would be dropped is reported.
    Audit,
}

/// `dns:` with its defaults filled in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Dns {
    pub resolvers: Resolvers,
    pub queries: Queries,
    /// Names (and all below them) that may be asked though no rule names them. The host's search domains join these.
    pub internal: Vec<DomainName>,
    /// A shorter TTL is raised to this. Default 60 s.
    pub min_ttl: Duration,
    /// How long an address counts past its TTL. Default 15 min; zero is strict.
    pub grace: Duration,
    /// How long the last good answer stays while resolvers fail. Default 1 h.
    pub max_stale: Duration,
    /// Names whose answers may be private, loopback or link-local addresses (refused otherwise: DNS rebinding).
    pub allow_private: Vec<NamePattern>,
}

/// The only resolvers that may be asked, or believed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Resolvers {
    /// Those of `/etc/resolv.conf`, followed as it changes.
    System,
    /// Port 53 where none was written.
    Addresses(Vec<SocketAddr>),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Queries {
    /// Only names that a rule allows, and internal ones.
    #[default]
    Allowlisted,
    Any,
}

/// What passes without a rule. All on by default.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[allow(clippy::struct_excessive_bools, reason = "these are nine switches of the language, each its own key")]
pub struct Builtins {
    pub loopback: bool,
    pub arp: bool,
    pub eapol: bool,
    pub lldp: bool,
    pub neighbour_discovery: bool,
    pub mld: bool,
    pub igmp: bool,
    pub dhcpv4: bool,
    pub dhcpv6: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CompiledRule {
    pub name: String,
    pub why: Option<String>,
    pub action: Action,
    /// Normalised: sorted, nothing overlaps or touches. Every item of the rule has them.
    pub ports: Vec<Ports>,
    /// Where the rule stands: `file:line`, `aks-required.yaml:12` for an embedded one, `--allow` for the command line.
    pub source: RuleSource,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RuleSource {
    pub file: String,
    /// From 1; 0 where there is no line (the command line).
    pub line: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    #[default]
    Allow,
    Deny,
}

/// One `to` item of one rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Grant {
    /// Index into [`Compiled::rules`].
    pub rule: u32,
    /// The item in canonical form: `api.example.com`, `*.example.com`, `10.0.0.0/8`, `any`.
    pub item: Box<str>,
    /// The same for the same grant in every compile: FNV-1a (64 bit) of rule name, item, canonical ports and action.
    pub key: u64,
}

/// Classes one behind the other: a large policy has as many as items, most of them of one grant.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Classes {
    grants: Vec<u32>,
    ports: Vec<PortRange>,
    /// Where each one ends in both, and its `ports_id`.
    ends: Vec<(u32, u32, u32)>,
}

/// What a set of grants opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Class<'a> {
    /// Sorted indices into [`Compiled::grants`].
    pub grants: &'a [u32],
    /// Sorted; the ranges of different grants may overlap.
    pub ports: &'a [PortRange],
    /// Equal for two classes that open the same ports, whichever grants do it. 0 for the empty class only.
    pub ports_id: u32,
}

impl Classes {
    /// Adds a class; its number is how many there were.
    pub(super) fn push(&mut self, class: Class<'_>) {
        self.grants.extend_from_slice(class.grants);
        self.ports.extend_from_slice(class.ports);
        // Bounded by the compiler's limit on what a policy multiplies out to.
        self.ends.push((self.grants.len() as u32, self.ports.len() as u32, class.ports_id));
    }

    /// How many there are, the empty one among them.
    #[allow(clippy::len_without_is_empty, reason = "there is always class 0")]
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// The class of this number.
    pub fn get(&self, class: u32) -> Option<Class<'_>> {
        let &(grants, ports, ports_id) = self.ends.get(class as usize)?;
        let before = class.checked_sub(1).map_or((0, 0, 0), |before| self.ends[before as usize]);
        let grants = &self.grants[before.0 as usize..grants as usize];
        Some(Class { grants, ports: &self.ports[before.1 as usize..ports as usize], ports_id })
    }

    /// [`Classes::get`] of one that is there, as all that the tables name are.
    ///
    /// # Panics
    /// Where it is not.
    pub fn of(&self, class: u32) -> Class<'_> {
        self.get(class).expect("the tables name classes that are there")
    }

    /// All, in the order of their numbers.
    pub fn iter(&self) -> impl Iterator<Item = Class<'_>> {
        (0..self.ends.len() as u32).map(|class| self.of(class))
    }
}

/// Ports of one protocol that a grant opens (or, in a deny, closes).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct PortRange {
    pub proto: Proto,
    /// Host byte order, inclusive on both ends. `0..=65535` where the protocol has no ports.
    pub from: u16,
    pub to: u16,
    /// Index into [`Compiled::grants`].
    pub grant: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Proto {
    Tcp,
    Udp,
    /// ICMP and ICMPv6.
    Icmp,
    /// TCP, UDP and ICMP, on every port. No rule opens other IP protocols.
    Any,
}

/// One row of the name table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NameEntry {
    pub key: NameKey,
    /// The union of the grants of every pattern that covers this key; 0 where only `ask` holds.
    pub class: u32,
    /// May be asked though no rule allows it (`dns.internal`).
    pub ask: bool,
    /// Every name that this entry answers for may have private addresses (`dns.allowPrivate`).
    pub private: bool,
    /// Patterns like `md-*` one label below this suffix. Where this entry is the longest match for a name that is
    /// exactly one label longer, the grants of each that fits count too. Empty for exact keys (already in `class`).
    pub inner: Vec<InnerWildcard>,
}

/// Sorts by the reversed labels, a suffix before what is below it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum NameKey {
    /// This name alone.
    Exact(DomainName),
    /// One or more labels below this name, not the name itself.
    Suffix(DomainName),
}

/// `prefix*suffix` as one whole label; the `*` stands for one byte or more.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct InnerWildcard {
    pub prefix: String,
    pub suffix: String,
    /// This pattern's own grants (add them to the entry's); 0 where only `private` holds.
    pub class: u32,
    /// Names that it fits may have private addresses (`dns.allowPrivate`).
    pub private: bool,
}

/// One row of a prefix table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct PrefixEntry {
    /// Host bits are zero. IPv4-mapped IPv6 prefixes appear as IPv4. `any` is `0.0.0.0/0` and `::/0`.
    pub net: IpNet,
    /// The grants of this prefix and of every prefix that covers it.
    pub class: u32,
}

impl Default for Dns {
    fn default() -> Self {
        Self {
            resolvers: Resolvers::System,
            queries: Queries::Allowlisted,
            internal: Vec::new(),
            min_ttl: Duration::from_secs(60),
            grace: Duration::from_secs(15 * 60),
            max_stale: Duration::from_secs(60 * 60),
            allow_private: Vec::new(),
        }
    }
}

impl Dns {
    /// A hash of [`Dns::allow_private`], by which two policies' lists are told apart.
    pub fn allow_private_hash(&self) -> u32 {
        let add = |hash, pattern: &NamePattern| fnv1a(hash, format!("{pattern}\n").as_bytes());
        let hash = self.allow_private.iter().fold(OFFSET, add);
        (hash ^ hash >> 32) as u32
    }
}

impl Builtins {
    /// The keys of `builtins:`, in the order in which they are documented.
    pub const NAMES: [&'static str; 9] =
        ["loopback", "arp", "eapol", "lldp", "neighbour-discovery", "mld", "igmp", "dhcpv4", "dhcpv6"];

    /// The switch with this key, or `None` for an unknown key.
    pub fn get_mut(&mut self, name: &str) -> Option<&mut bool> {
        Some(match name {
            "loopback" => &mut self.loopback,
            "arp" => &mut self.arp,
            "eapol" => &mut self.eapol,
            "lldp" => &mut self.lldp,
            "neighbour-discovery" => &mut self.neighbour_discovery,
            "mld" => &mut self.mld,
            "igmp" => &mut self.igmp,
            "dhcpv4" => &mut self.dhcpv4,
            "dhcpv6" => &mut self.dhcpv6,
            _ => return None,
        })
    }
}

impl Default for Builtins {
    fn default() -> Self {
        Self {
            loopback: true,
            arp: true,
            eapol: true,
            lldp: true,
            neighbour_discovery: true,
            mld: true,
            igmp: true,
            dhcpv4: true,
            dhcpv6: true,
        }
    }
}

impl NameKey {
    pub fn name(&self) -> &DomainName {
        match self {
            Self::Exact(name) | Self::Suffix(name) => name,
        }
    }
}

impl fmt::Display for Proto {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Icmp => "icmp",
            Self::Any => "any",
        })
    }
}

impl fmt::Display for RuleSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => f.write_str(&self.file),
            line => write!(f, "{}:{line}", self.file),
        }
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        super::ports::Ports { proto: self.proto, from: self.from, to: self.to }.fmt(f)
    }
}
