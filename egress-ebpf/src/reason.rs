//! Why a packet passed or was dropped.

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $value:literal, $text:literal;)*) => {
        /// Why a verdict is what it is. The numbers cross the kernel boundary and index the map `COUNTERS`.
        #[repr(u8)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Reason { $($(#[$doc])* $name = $value,)* }

        impl Reason {
            /// Every reason, in the order of its number.
            pub const ALL: &'static [Reason] = &[$(Reason::$name,)*];

            /// The reason with this number.
            pub const fn from_number(number: u8) -> Option<Self> {
                match number { $($value => Some(Self::$name),)* _ => None }
            }

            /// The reason's stable name, as events and metrics print it.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

reasons! {
    /// A rule allows it.
    Rule = 0, "rule";
    /// Its flow was allowed when it began.
    Established = 1, "established";
    /// It answers what came in.
    Reply = 2, "reply";
    /// It leaves by the loopback interface.
    Loopback = 3, "loopback";
    /// A builtin other than loopback: ARP, neighbour discovery, DHCP and the like.
    Builtin = 4, "builtin";
    /// DNS to a trusted resolver.
    Dns = 5, "dns";
    /// A later fragment of a datagram whose first one passed.
    Fragment = 6, "fragment";
    /// The governed cgroup's hook has judged it already.
    Judged = 7, "judged";
    /// A rule allows it, by an address whose answer's TTL is over: it counts in the grace (`dns.grace`).
    Grace = 8, "grace";

    /// No rule allows the destination.
    NoRule = 16, "no-rule";
    /// A rule allows the address, but not on this port or protocol.
    NoPort = 17, "no-port";
    /// The address was learned from a name, and its answer's life is over.
    Expired = 18, "expired";
    /// A deny rule matches.
    Denied = 19, "denied";
    /// DNS asks for a name that no rule allows.
    NameNotAllowed = 20, "name-not-allowed";
    /// DNS to a trusted resolver that cannot be parsed, or carries more than one message in a send.
    BadQuery = 21, "bad-query";
    /// DNS to a resolver that is not trusted and that no rule allows.
    UntrustedResolver = 22, "untrusted-resolver";
    /// A later fragment whose first one did not pass, or was not seen.
    OrphanFragment = 23, "orphan-fragment";
    /// A header is cut short or contradicts itself.
    Malformed = 24, "malformed";
    /// An IPv4 option or IPv6 routing header that reroutes.
    SourceRoute = 25, "source-route";
    /// An EtherType that is neither IP nor a builtin.
    EtherType = 26, "ethertype";
    /// No policy is in force yet: fail closed.
    NoPolicy = 27, "no-policy";
    /// A socket that would skip every egress hook (AF_XDP, PACKET_QDISC_BYPASS).
    Bypass = 28, "bypass-socket";
    /// A workload sends with a resolver's address as its source.
    ForgedResolver = 29, "forged-resolver";
    /// An IP protocol other than TCP, UDP and ICMP, which no rule can open.
    Protocol = 30, "protocol";
    /// A workload writes headers of its own, and says that a packet for this node comes from outside.
    ForgedSource = 31, "forged-source";
}

/// Entries of the per-CPU map `COUNTERS`: one per reason number.
pub const REASONS: u32 = 32;

impl Reason {
    /// Whether the packet passes.
    #[inline(always)]
    pub const fn passes(self) -> bool {
        (self as u8) < 16
    }
}
