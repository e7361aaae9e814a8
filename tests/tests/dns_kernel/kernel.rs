//! The object, loaded, with its maps.

use std::net::IpAddr;

use aya::maps::{MapData, RingBuf};
use egress_ebpf::abi::*;
use egress_ebpf::reason::{REASONS, Reason};
use egress_user::datapath::{Object, Plain, Sizes, Table, sys};
use zerocopy::{FromBytes, FromZeros as _, IntoBytes};

pub const LIVE: u32 = 4;
pub const RESOLVER: [u8; 4] = [192, 0, 2, 53];
pub const CLIENT: [u8; 4] = [10, 1, 1, 1];
pub const PORT: u16 = 40000;

/// TC_ACT_UNSPEC: the packet goes on.
pub const PASS: u32 = u32::MAX;
/// TC_ACT_SHOT.
pub const DROP: u32 = 2;
/// TC_ACT_REDIRECT: a query for a name that no rule allows, sent back as its own answer.
pub const ANSWERED: u32 = 7;

pub struct Kernel {
    object: Object,
    events: RingBuf<MapData>,
}

pub fn reversed(name: &str) -> Vec<u8> {
    name.to_ascii_lowercase().into_bytes().into_iter().rev().collect()
}

impl Kernel {
    pub fn load() -> Self {
        let sizes =
            Sizes { addresses: 1024, prefixes: 64, classes: 64, grants: 64, names: 64, inner: 64, flows: 65536 };
        let object = Object::load(&sizes, None).expect("the object loads: needs root, see `cargo xtask test`");
        let events = object.events().expect("a ring buffer");
        let mut kernel = Self { object, events };
        for generation in LIVE..LIVE + 3 {
            let key = ResolverKey { generation, address: Address::v4(RESOLVER), port: 53, pad: 0 };
            kernel.set("RESOLVERS", &key, &LEARN_AT_UPLINK);
        }
        let flags = Config::ENFORCE | Config::QUERIES_ALLOWLISTED;
        kernel.config(Config { generation: LIVE, epoch: LIVE, flags, min_ttl: 56, grace: 838, ..Config::default() });
        assert_eq!(kernel.control(CONTROL_FLIP, LIVE, &[]).0, 0);
        kernel
    }

    fn table<K: Plain, V: Plain>(&self, name: &'static str) -> Table<K, V> {
        self.object.table(name).expect("a map of this shape")
    }

    pub fn set<K: Plain, V: Plain>(&self, name: &'static str, key: &K, value: &V) {
        self.table(name).set(key, value, sys::ANY).expect("an element is written");
    }

    pub fn config(&mut self, config: Config) {
        self.set("CONFIG", &(config.generation & 1), &config);
    }

    pub fn class(&mut self, index: u32, ports_id: u32) {
        self.set("CLASSES", &index, &ClassChunk { ports_id, count: 1, ..ClassChunk::default() });
    }

    /// `name` as a policy writes it: exact, or `*.suffix`.
    pub fn name(&mut self, epoch: u32, name: &str, value: NameValue) {
        let (text, end) = match name.strip_prefix('*') {
            Some(suffix) => (reversed(suffix), 0),
            None => (reversed(name), 1),
        };
        let len = text.len() + end;
        let mut key = NameKey { bits: 16 + 8 * len as u32, epoch: epoch as u16, name: [0; NAME_KEY] };
        key.name[..text.len()].copy_from_slice(&text);
        self.set("NAMES", &key, &NameEntry::new(NameValue { len: len as u16, ..value }));
    }

    pub fn inner(&mut self, index: u32, class: u32, prefix: &str, suffix: &str) {
        let mut inner = InnerWildcard {
            class,
            prefix_len: prefix.len() as u8,
            suffix_len: suffix.len() as u8,
            flags: 0,
            prefix: [0; 64],
            suffix: [0; 64],
        };
        inner.prefix[..prefix.len()].copy_from_slice(&reversed(prefix));
        inner.suffix[..suffix.len()].copy_from_slice(&reversed(suffix));
        self.set("INNER_WILDCARDS", &index, &inner);
    }

    pub fn inner_flags(&mut self, index: u32, flags: u16) {
        let table = self.table::<u32, InnerWildcard>("INNER_WILDCARDS");
        let inner = table.get(&index).expect("read").expect("an array's entry");
        self.set("INNER_WILDCARDS", &index, &InnerWildcard { flags, ..inner });
    }

    /// What a program returns for this packet: IPv6 by its first bits, else IPv4.
    pub fn run(&mut self, program: &'static str, packet: &[u8]) -> u32 {
        let six = packet.first().is_some_and(|byte| byte >> 4 == 6);
        let ether_type: &[u8] = if six { &[0x86, 0xdd] } else { &[8, 0] };
        let frame = [&[2; 12][..], ether_type, packet].concat();
        let program = self.object.program(program).expect("the program loads");
        sys::test_run(program, sys::TestInput { packet: &frame, ..Default::default() }).expect("runs").returned
    }

    pub fn query(&mut self, message: &[u8]) -> bool {
        match self.run("uplink_egress", &crate::wire::udp(CLIENT, PORT, RESOLVER, 53, message)) {
            PASS => true,
            DROP | ANSWERED => false,
            other => panic!("returned {other}"),
        }
    }

    pub fn answer(&mut self, message: &[u8]) {
        let returned = self.run("uplink_ingress", &crate::wire::udp(RESOLVER, 53, CLIENT, PORT, message));
        assert_eq!(returned, PASS);
    }

    pub fn control(&mut self, command: u32, of: u32, records: &[ControlRecord]) -> (u32, [u32; 6]) {
        let header = ControlHeader { command, of, count: records.len() as u32, ..ControlHeader::default() };
        let data = [header.as_bytes(), records.as_bytes()].concat();
        let mut out = vec![0; data.len()];
        let program = self.object.program("control").expect("the program loads");
        let returned =
            sys::test_run(program, sys::TestInput { packet: &data, output: Some(&mut out), ..Default::default() })
                .expect("runs")
                .returned;
        (returned, ControlHeader::read_from_prefix(&out).expect("a header").0.results)
    }

    fn slots(&self, epoch: u32, address: IpAddr) -> Vec<Slot> {
        let entry: Option<AddressEntry> = match address {
            IpAddr::V4(address) => self.table("ADDRESSES_4").get(&AddressKey4 { address: address.octets(), epoch }),
            IpAddr::V6(address) => {
                let address = Address::v6(address.octets());
                self.table("ADDRESSES_6").get(&AddressKey6 { address, epoch, pad: 0 })
            }
        }
        .expect("read");
        entry.into_iter().flat_map(|entry| entry.slots).filter(|slot| *slot != 0).map(Slot::unpack).collect()
    }

    pub fn classes(&self, epoch: u32, address: &str) -> Vec<u32> {
        self.slots(epoch, address.parse().unwrap()).into_iter().map(|slot| slot.class).collect()
    }

    /// When an address' class stops counting.
    pub fn expiry(&self, epoch: u32, address: &str, class: u32) -> Ticks {
        let slots = self.slots(epoch, address.parse().unwrap());
        slots.into_iter().find(|slot| slot.class == class).expect("a class that it has").expiry
    }

    /// Every address that any epoch has: what must not grow when an attack fails.
    pub fn addresses(&self) -> usize {
        let four = self.table::<AddressKey4, AddressEntry>("ADDRESSES_4").keys().expect("keys").len();
        four + self.table::<AddressKey6, AddressEntry>("ADDRESSES_6").keys().expect("keys").len()
    }

    pub fn count(&self, what: LearnCount) -> u64 {
        self.table::<u32, u64>("LEARN_COUNTERS").sum(what as u32).expect("read")
    }

    /// Packets and bytes by verdict.
    pub fn counters(&self) -> Vec<(Reason, Hits)> {
        let table = self.table::<u32, Hits>("COUNTERS");
        let all = (0..REASONS).filter_map(|number| Some((Reason::from_number(number as u8)?, number)));
        all.map(|(reason, number)| (reason, table.sum(number).expect("read"))).collect()
    }

    pub fn pending(&self) -> usize {
        self.table::<PendingKey, Pending>("PENDING").keys().expect("keys").len()
    }

    /// Answers that were told of.
    pub fn folds(&self) -> Vec<(u32, AnswerFold)> {
        let (table, mut folds) = (self.table::<u32, AnswerFold>("ANSWER_FOLDS"), Vec::new());
        let take = |place: &u32, fold: &AnswerFold| {
            folds.extend((fold.told != 0).then_some((*place, *fold)));
            true
        };
        table.each(take).expect("read");
        folds
    }

    /// Forgets what was told: the next answer is told whatever it says.
    pub fn forget_told(&self) {
        for (place, _) in self.folds() {
            self.set("ANSWER_FOLDS", &place, &AnswerFold::new_zeroed());
        }
    }

    /// How many slots of the askers' rings hold a query.
    pub fn waiting(&self) -> usize {
        let mut held = 0;
        let count = |_: &u32, slot: &RingSlot| {
            held += usize::from(slot.ticket != 0);
            true
        };
        self.table::<u32, RingSlot>("PENDING_RINGS").each(count).expect("read");
        held
    }

    /// What was learned since the last call.
    pub fn events(&mut self) -> Vec<(LearnedEvent, Vec<LearnedAddress>)> {
        let mut events = Vec::new();
        while let Some(item) = self.events.next() {
            if item[..4] != EVENT_LEARNED.to_ne_bytes() {
                continue;
            }
            let mut whole = vec![0; size_of::<LearnedEvent>()];
            whole[..item.len()].copy_from_slice(&item);
            let event = LearnedEvent::read_from_bytes(&whole).unwrap();
            assert_eq!(item.len(), LearnedEvent::HEAD + usize::from(event.count) * size_of::<LearnedAddress>());
            let addresses = event.addresses[..usize::from(event.count)].to_vec();
            events.push((event, addresses));
        }
        events
    }
}

pub fn allow(class: u32) -> NameValue {
    NameValue { class, ..NameValue::default() }
}

pub fn mapped(address: &str) -> Address {
    address.parse::<IpAddr>().unwrap().into()
}
