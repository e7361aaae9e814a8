//! What a rule's verdict says, and what happens to an address while it is looked at.

use std::cell::Cell;

use crate::{abi::Slot, packet::EtherType};

use super::{tables::*, *};

/// What an address has when it is looked at again.
enum Again {
    Nothing,
    Other(AddressEntry),
    Same,
}

/// Tables out of which an address is taken as soon as it was looked at; its memory is another's then.
struct Reclaiming {
    fake: Fake,
    again: Again,
    looks: Cell<u64>,
    /// Removals that had begun, and not ended, before the first look.
    under_way: u64,
}

impl Tables for Reclaiming {
    fn address(&self, address: &Address, generation: u32) -> Option<&AddressEntry> {
        self.looks.set(self.looks.get() + 1);
        match &self.again {
            Again::Nothing if self.looks.get() > 1 => None,
            Again::Other(entry) if self.looks.get() > 1 => Some(entry),
            _ => self.fake.address(address, generation),
        }
    }
    fn removals_begun(&self) -> u64 {
        if self.under_way == 0 { self.looks.get() } else { self.under_way }
    }
    fn removals_ended(&self) -> u64 {
        0
    }
    fn prefix(&self, _address: &Address, _generation: u32) -> Option<u32> {
        None
    }
    fn deny(&self, _address: &Address, _generation: u32) -> Option<u32> {
        None
    }
    fn class(&self, index: u32) -> Option<&ClassChunk> {
        self.fake.class(index)
    }
    fn grant(&self, _index: u32) -> Option<GrantEntry> {
        None
    }
    fn resolver(&self, _key: &ResolverKey) -> Option<ResolverTrust> {
        None
    }
    fn flow(&self, _key: &FlowKey) -> Option<&Flow> {
        None
    }
    fn peer(&self, _key: &PeerKey) -> Option<&Flow> {
        None
    }
    fn fragment(&self, _key: &FragmentKey) -> Option<Ticks> {
        None
    }
}

#[test]
fn a_verdict_says_what_to_remember() {
    let fake = Fake::new();
    let rule = Verdict::by(Reason::Rule, GRANT, ORIGIN_OUT);
    assert_eq!(leaves_uplink(&fake, &CONFIG, |_| ORIGIN_NONE, &tcp(ALLOWED, 443, TCP_SYN), true, NOW), rule);
    let dropped = leaves_uplink(&fake, &CONFIG, |_| ORIGIN_NONE, &tcp(STRANGER, 443, TCP_SYN), true, NOW);
    assert_eq!(dropped, Verdict::plain(Reason::NoRule));
    for verdict in [rule, dropped, Verdict::by(Reason::Reply, u32::MAX, ORIGIN_IN)] {
        assert_eq!(Verdict::unpack(verdict.pack()), verdict);
    }
    assert_eq!(Verdict::unpack(15).reason, Reason::NoPolicy, "a number that is no reason fails closed");
}

/// Issue 3, 4: an address that is used after its TTL but inside the grace passes, and is told apart to be counted.
#[test]
fn what_passes_in_the_grace_is_told_apart() {
    let mut fake = Fake::new();
    let config = Config { grace: 10, ..CONFIG };
    for further in [false, true] {
        if further {
            // Where the first look at an address does not reach: by the walk over its slots.
            fake.class.ports.swap(0, 3);
        }
        for (expiry, reason) in [
            (crate::abi::NEVER, Reason::Rule),
            (NOW + 11, Reason::Rule),
            (NOW + 10, Reason::Grace),
            (NOW + 1, Reason::Grace),
            (NOW, Reason::Expired),
        ] {
            let class = Slot::unpack(fake.addresses[&ALLOWED].slots[0]).class;
            fake.addresses.get_mut(&ALLOWED).unwrap().slots[0] = Slot { class, expiry }.pack();
            let verdict = leaves_uplink(&fake, &config, |_| ORIGIN_NONE, &tcp(ALLOWED, 443, TCP_SYN), true, NOW);
            assert_eq!(verdict.reason, reason, "{} left", expiry.wrapping_sub(NOW));
            assert_eq!((verdict.grant == GRANT, verdict.remember == ORIGIN_OUT), (reason.passes(), reason.passes()));
            let strict = leaves_uplink(&fake, &CONFIG, |_| ORIGIN_NONE, &tcp(ALLOWED, 443, TCP_SYN), true, NOW);
            assert_ne!(strict.reason, Reason::Grace, "no grace, nothing in it");
        }
    }
}

/// P1: what was read of an entry that was taken out meanwhile opens nothing; one that is there still does.
#[test]
fn an_entry_that_is_reclaimed_meanwhile_opens_nothing() {
    let mut tables = Reclaiming { fake: Fake::new(), again: Again::Nothing, looks: Cell::new(0), under_way: 0 };
    let passes = |tables: &Reclaiming| {
        tables.looks.set(0);
        leaves_uplink(tables, &CONFIG, |_| ORIGIN_NONE, &tcp(ALLOWED, 443, TCP_SYN), true, NOW).reason.passes()
    };
    assert!(!passes(&tables));
    assert!(tables.looks.get() > 1, "it is looked at again");
    // Another entry, though it opens the same.
    tables.again = Again::Other(tables.fake.addresses[&ALLOWED]);
    assert!(!passes(&tables));
    // By the walk over further slots and ports, too.
    tables.fake.class.ports.swap(0, 3);
    assert!(!passes(&tables));
    // A removal that had begun before the look: nothing was counted since.
    tables.under_way = 1;
    assert!(!passes(&tables));
    tables.under_way = 0;
    // Others' entries were taken out: this one is there still.
    tables.again = Again::Same;
    assert!(passes(&tables));
}

#[test]
fn refusals_tell_the_nearest_cause() {
    let fake = Fake::new();
    for (packet, reason) in [
        (tcp(STRANGER, 443, TCP_SYN), Reason::NoRule),
        (tcp(ALLOWED, 444, TCP_SYN), Reason::NoPort),
        (udp(ALLOWED, 443), Reason::NoPort),
        (tcp(EXPIRED, 443, TCP_SYN), Reason::Expired),
        (tcp(DENIED, 443, TCP_SYN), Reason::Denied),
        (packet(47, DENIED, 0), Reason::Denied),
        (packet(47, ALLOWED, 0), Reason::Protocol),
        (udp(STRANGER, 53), Reason::UntrustedResolver),
        (tcp(ALLOWED, 53, TCP_SYN), Reason::UntrustedResolver),
        (udp(RESOLVER, 53), Reason::Dns),
        (udp(RESOLVER, 54), Reason::NoRule),
    ] {
        assert_eq!(fake.uplink(&packet), reason, "{packet:?}");
        assert_eq!(fake.socket(SocketKind::STREAM, None, &packet), reason, "{packet:?}");
    }
}

/// P1, P8: a frame by which the kernel keeps a link passes, the same of a process does not.
#[test]
fn the_kernels_own_frames_keep_their_links() {
    for (number, passes) in [(0x8809, true), (38, true), (0, false), (0x88e5, false), (0x8847, false)] {
        let frame = EtherType::Other(number);
        assert_eq!(ethertype(&CONFIG, frame, true).passes(), passes, "{number:#x}");
        assert_eq!(ethertype(&CONFIG, frame, false), Reason::EtherType, "{number:#x}");
    }
}
