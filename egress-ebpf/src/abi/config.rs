//! The scalars of a policy, one set per generation.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{Address, Ticks};

/// A policy's scalar settings: map `CONFIG`, an array of two, entry `generation & 1`.
///
/// The live generation is in map `LIVE` ([`Live`]); a flip writes that one word, after everything of the new generation is
/// in place.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Config {
    /// The generation that this entry describes; the programs drop everything when it is not the live one.
    pub generation: u32,
    /// The epoch whose elements it has: they stay from one generation to the next, as far as they do not change. The lowest bit
    /// is the half of map `INNER_WILDCARDS` that the epoch's wildcards stand in.
    pub epoch: u32,
    /// [`Config::ENFORCE`] and the other flag bits.
    pub flags: u32,
    /// The builtins that are on, a bit each (`BUILTIN_*`).
    pub builtins: u32,
    /// The shortest life of a learned address, before the grace (`dns.minTtl`).
    pub min_ttl: Ticks,
    /// How long a learned address outlives its TTL (`dns.grace`).
    pub grace: Ticks,
    /// The depth of the governed cgroup below the cgroup v2 root, which has depth 0; or [`Config::LEVEL_UNKNOWN`].
    pub cgroup_level: u32,
    /// A hash of `dns.allowPrivate`. The programs do not read it.
    pub allow_private: u32,
    /// The id of the governed cgroup (its directory's inode number), or 0 where no cgroup is governed.
    pub cgroup_id: u64,
    /// The cookie of the network namespace whose sockets may teach names at the cgroup hook, or 0 for any.
    pub teaching_netns: u64,
    /// The policy's hash, by which a daemon that starts knows it again. The programs do not read it.
    pub policy: u64,
}

/// Element 0 of map `LIVE`, one aligned 64-bit word, so that it changes at once: which generation counts, and until when.
///
/// A generation with a deadline is not confirmed yet. From the deadline on the programs take the other entry of `CONFIG`, the
/// generation before it, whether or not any daemon runs: `egress apply --confirm`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Live {
    /// The generation; 0 is none yet, and everything is dropped.
    pub generation: u32,
    /// The first tick at which it no longer counts; 0 for a generation that stays.
    pub deadline: Ticks,
}

impl Live {
    /// Element 1 of map `LIVE`: the last generation that was ever given out. A generation that was rolled back has verdicts to
    /// its name, so that its number is not used again.
    pub const LAST: u32 = 1;

    /// The word.
    #[inline(always)]
    pub const fn pack(self) -> u64 {
        (self.deadline as u64) << 32 | self.generation as u64
    }

    /// What the word says.
    #[inline(always)]
    pub const fn unpack(word: u64) -> Self {
        Self { generation: word as u32, deadline: (word >> 32) as u32 }
    }

    /// Whether its time has run out.
    #[inline(always)]
    pub const fn expired(self, now: Ticks) -> bool {
        self.deadline != 0 && now >= self.deadline
    }
}

impl Config {
    /// In `cgroup_level`: a cgroup namespace hides how deep the governed cgroup is.
    pub const LEVEL_UNKNOWN: u32 = u32::MAX;
    /// Drop what no rule allows; without it (audit) everything passes and what would be dropped is reported.
    pub const ENFORCE: u32 = 1 << 0;
    /// Only names in the name table may be asked (`dns.queries: allowlisted`).
    pub const QUERIES_ALLOWLISTED: u32 = 1 << 1;
    /// There are deny prefixes for IPv4.
    pub const DENIES_4: u32 = 1 << 2;
    /// There are deny prefixes for IPv6.
    pub const DENIES_6: u32 = 1 << 3;
    /// There are allow prefixes for IPv4.
    pub const PREFIXES_4: u32 = 1 << 4;
    /// There are allow prefixes for IPv6.
    pub const PREFIXES_6: u32 = 1 << 5;

    /// A trusted resolver listens on a port other than 53.
    pub const RESOLVER_PORTS: u32 = 1 << 6;
    /// Tell of every answer of a trusted resolver, also for names that no rule allows and with private addresses (audit).
    /// What is told so opens nothing: it has no class.
    pub const TELL_ANSWERS: u32 = 1 << 7;
    /// A rehearsal may be under way: see [`super::Rehearsal`].
    pub const REHEARSAL: u32 = 1 << 8;

    /// Whether every bit of `flag` is set.
    #[inline(always)]
    pub const fn has(&self, flag: u32) -> bool {
        self.flags & flag == flag
    }
}

/// Packets that leave by the loopback interface.
pub const BUILTIN_LOOPBACK: u32 = 1 << 0;
/// ARP (EtherType 0x0806), at the uplinks.
pub const BUILTIN_ARP: u32 = 1 << 1;
/// EAPOL (EtherType 0x888e), at the uplinks.
pub const BUILTIN_EAPOL: u32 = 1 << 2;
/// LLDP (EtherType 0x88cc), at the uplinks.
pub const BUILTIN_LLDP: u32 = 1 << 3;
/// IPv6 neighbour discovery (RFC 4861: ICMPv6 133 to 136, hop limit 255).
pub const BUILTIN_NEIGHBOUR_DISCOVERY: u32 = 1 << 4;
/// IPv6 multicast listener discovery (RFC 3810: ICMPv6 130 to 132 and 143, hop limit 1).
pub const BUILTIN_MLD: u32 = 1 << 5;
/// IGMP (IP protocol 2, RFC 3376, to multicast groups).
pub const BUILTIN_IGMP: u32 = 1 << 6;
/// The DHCPv4 client (RFC 2131: UDP 68 to 67).
pub const BUILTIN_DHCPV4: u32 = 1 << 7;
/// The DHCPv6 client (RFC 8415: UDP 546 to 547).
pub const BUILTIN_DHCPV6: u32 = 1 << 8;

/// Key of map `RESOLVERS`: a trusted resolver's address and port.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ResolverKey {
    /// The resolver's address.
    pub address: Address,
    /// The generation that trusts it.
    pub generation: u32,
    /// The resolver's port.
    pub port: u16,
    /// Zero.
    pub pad: u16,
}

/// Value of map `RESOLVERS`: where answers of this resolver are believed, as bits.
pub type ResolverTrust = u32;

/// Answers are believed at the governed cgroup's ingress.
pub const LEARN_AT_CGROUP: ResolverTrust = 1 << 0;
/// Answers are believed where they arrive on an uplink, which no workload on the node can forge.
pub const LEARN_AT_UPLINK: ResolverTrust = 1 << 1;
/// The resolver runs on this node (a stub such as 127.0.0.53), so that its answers arrive by loopback.
pub const LEARN_BY_LOOPBACK: ResolverTrust = 1 << 2;

/// Interfaces of workloads that map `WORKLOADS` can hold: veths and their bridges.
pub const WORKLOADS_MAX: u32 = 8192;
