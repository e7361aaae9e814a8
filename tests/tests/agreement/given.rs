//! What a case's facts are in the product's tables.

use egress_ebpf::{
    abi::{Flow, FlowKey, FragmentKey, GrantEntry, ORIGIN_IN, ORIGIN_OUT, PROTO_UDP, TICK_SHIFT, Ticks, ZONE_UPLINK},
    decision::{fragment_key, inward_key, outward_key},
    packet::Packet,
};
use egress_tests::model::{Case, NOW, QUOTED_PORT, To, Transport, name_match};
use egress_user::{datapath::Learned, policy::Compiled};

/// The grant of a rule that is gone: its index, in no policy's use.
pub const GONE: u32 = 200;

/// Where a policy stands: the generation and epoch that are live, its clock, and the index of each grant.
pub struct Standing<'a> {
    pub compiled: &'a Compiled,
    pub grants: &'a [u32],
    pub generation: u32,
    pub epoch: u32,
    pub now: Ticks,
}

/// Elements of the maps of what is learned and seen, in the uplinks' zone.
#[derive(Default)]
pub struct Given {
    pub flow: Option<(FlowKey, Flow)>,
    /// The datagram that an ICMP error is about.
    pub arrival: Option<(FlowKey, Flow)>,
    pub fragment: Option<(FragmentKey, Ticks)>,
    pub learned: Vec<Learned>,
    /// Grants that have another life than from this generation on.
    pub grants: Vec<(u32, GrantEntry)>,
}

impl Given {
    pub fn of(case: &Case, packet: Option<&Packet>, standing: &Standing<'_>) -> Self {
        let mut given = Self { learned: learned(case, standing.now), ..Self::default() };
        // A packet that does not parse belongs to nothing.
        let Some(packet) = packet else { return given };
        if case.packet.transport == Transport::LaterFragment && case.facts.first_fragment_passed {
            given.fragment = Some((fragment_key(packet, ZONE_UPLINK), standing.now));
        }
        let key = outward_key(packet, ZONE_UPLINK);
        let arrived = Flow { seen: standing.now, generation: standing.generation, grant: 0, origin: ORIGIN_IN };
        if case.facts.reply && packet.is_icmp_error() {
            let mut quoted = Packet { proto: PROTO_UDP, source_port: 6000, destination_port: QUOTED_PORT, ..*packet };
            (quoted.source, quoted.destination) = (packet.destination, packet.source);
            given.arrival = Some((inward_key(&quoted, ZONE_UPLINK), arrived));
        } else if case.facts.reply {
            // Of an echo request too, which shares its flow's key with the reply, and must not pass by it.
            given.flow = Some((key, arrived));
        } else if case.facts.began.is_some() && packet.destination_port != 53 {
            // DNS leaves no flow behind: no connection to a resolver began by a rule.
            given.flow = Some((key, given.began(case, standing)));
        }
        given
    }

    /// A flow that the generation before judged: by a grant that still stands, or by one that is gone.
    fn began(&mut self, case: &Case, standing: &Standing<'_>) -> Flow {
        let before = standing.generation - 1;
        let index = item_of(case).map(|(rule, item)| {
            let is_it = |grant: &egress_user::policy::Grant| {
                standing.compiled.rules[grant.rule as usize].name == rule && *grant.item == *item
            };
            let grant = standing.compiled.grants.iter().position(is_it).expect("the item has a grant");
            standing.grants[grant]
        });
        let (index, until) = index.map_or((GONE, before), |index| (index, u32::MAX));
        self.grants.push((index, GrantEntry { key: u64::from(index), from: before, until }));
        Flow { seen: standing.now, generation: before, grant: index, origin: ORIGIN_OUT }
    }
}

/// The rule and item by which a connection began, if the policy still has them and they cover the packet.
fn item_of(case: &Case) -> Option<(String, String)> {
    let began = case.facts.began.as_ref()?;
    let rule = case.policy.rules.iter().find(|rule| rule.name == began.rule)?;
    if rule.action == egress_tests::model::Action::Deny || !egress_tests::model::ports_match(rule, &case.packet) {
        return None;
    }
    let item = rule.to.iter().find(|to| match (to, &began.name) {
        (To::Name(pattern), Some(name)) => name_match(pattern, name),
        (To::Name(_), None) => false,
        (To::Net(net), _) => net.contains(&case.packet.destination),
        (To::Any, _) => true,
    })?;
    Some((rule.name.clone(), item.to_string()))
}

/// The learned addresses, each until the tick that the model's seconds say.
fn learned(case: &Case, now: Ticks) -> Vec<Learned> {
    let dns = &case.policy.dns;
    let of = |learned: &egress_tests::model::Learned| {
        let end = learned.at + learned.ttl.max(dns.min_ttl) + dns.grace;
        let left = (end.saturating_sub(NOW) * 1_000_000_000).div_ceil(1 << TICK_SHIFT) as Ticks;
        // A second on top where it lives: a run must not outlast it.
        let expiry = if left == 0 { now } else { now + left + 1 };
        Learned { name: learned.name.to_ascii_lowercase(), addresses: vec![(learned.address, expiry)] }
    };
    case.facts.learned.iter().map(of).collect()
}
