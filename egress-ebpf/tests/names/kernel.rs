//! The object, loaded, with its maps.

use std::net::IpAddr;

use aya::{
    Ebpf, EbpfLoader,
    maps::{
        Array, HashMap, MapData, PerCpuArray, RingBuf,
        lpm_trie::{Key, LpmTrie},
    },
    programs::{CgroupSkb, SchedClassifier, TestRun, TestRunOptions},
};
use egress_ebpf::abi::{self, *};
use zerocopy::{FromBytes, IntoBytes};

pub const LIVE: u32 = 4;
pub const RESOLVER: [u8; 4] = [192, 0, 2, 53];
pub const CLIENT: [u8; 4] = [10, 1, 1, 1];
pub const PORT: u16 = 40000;

pub struct Kernel {
    pub bpf: Ebpf,
}

fn object() -> String {
    std::env::var("EGRESS_EBPF_OBJECT").unwrap_or_else(|_| {
        format!("{}/../target/ebpf/bpfel-unknown-none/release/egress-ebpf", env!("CARGO_MANIFEST_DIR"))
    })
}

pub fn reversed(name: &str) -> Vec<u8> {
    name.to_ascii_lowercase().into_bytes().into_iter().rev().collect()
}

impl Kernel {
    pub fn load() -> Self {
        let path = object();
        let bytes = std::fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}: build the object first"));
        let mut bpf = EbpfLoader::new().load(&bytes).expect("load the maps");
        for name in ["socket_egress", "socket_ingress", "empty"] {
            let program: &mut CgroupSkb = bpf.program_mut(name).unwrap().try_into().unwrap();
            if let Err(error) = program.load() {
                let text = format!("{error:?}").replace("\\n", "\n");
                let tail: Vec<_> = text.lines().rev().take(60).collect();
                panic!("{name}:\n{}", tail.into_iter().rev().collect::<Vec<_>>().join("\n"));
            }
        }
        let program: &mut SchedClassifier = bpf.program_mut("control").unwrap().try_into().unwrap();
        if let Err(error) = program.load() {
            let text = format!("{error:?}").replace("\\n", "\n");
            let tail: Vec<_> = text.lines().rev().take(60).collect();
            panic!("control:\n{}", tail.into_iter().rev().collect::<Vec<_>>().join("\n"));
        }
        let mut kernel = Self { bpf };
        let flags = Config::ENFORCE | Config::QUERIES_ALLOWLISTED;
        kernel.config(Config { generation: LIVE, flags, min_ttl: 56, grace: 838, ..Config::default() });
        let result = kernel.control(CONTROL_FLIP, LIVE, &[]);
        assert_eq!(result.0, 0);
        kernel
    }

    pub fn config(&mut self, config: Config) {
        let mut map: Array<_, [u8; size_of::<Config>()]> = self.bpf.map_mut("CONFIG").unwrap().try_into().unwrap();
        map.set(config.generation & 1, <[u8; size_of::<Config>()]>::try_from(config.as_bytes()).unwrap(), 0).unwrap();
    }

    pub fn class(&mut self, index: u32, ports_id: u32) {
        const N: usize = size_of::<ClassChunk>();
        let mut map: Array<_, [u8; N]> = self.bpf.map_mut("CLASSES").unwrap().try_into().unwrap();
        let chunk = ClassChunk { ports_id, ..ClassChunk::default() };
        map.set(index, <[u8; N]>::try_from(chunk.as_bytes()).unwrap(), 0).unwrap();
    }

    /// `name` as a policy writes it: exact, or `*.suffix`.
    pub fn name(&mut self, generation: u32, name: &str, value: NameValue) {
        let mut key = [0; 256];
        key[..2].copy_from_slice(&(generation as u16).to_ne_bytes());
        let (text, end) = match name.strip_prefix('*') {
            Some(suffix) => (reversed(suffix), 0),
            None => (reversed(name), 1),
        };
        key[2..2 + text.len()].copy_from_slice(&text);
        let bits = 16 + 8 * (text.len() + end) as u32;
        let value = NameValue { len: (text.len() + end) as u16, ..value };
        let mut map: LpmTrie<_, [u8; 256], [u8; 16]> = self.bpf.map_mut("NAMES").unwrap().try_into().unwrap();
        map.insert(&Key::new(bits, key), <[u8; 16]>::try_from(value.as_bytes()).unwrap(), 0).unwrap();
    }

    pub fn inner(&mut self, index: u32, class: u32, prefix: &str, suffix: &str) {
        const N: usize = size_of::<InnerWildcard>();
        let mut inner = InnerWildcard {
            class,
            prefix_len: prefix.len() as u8,
            suffix_len: suffix.len() as u8,
            pad: 0,
            prefix: [0; 64],
            suffix: [0; 64],
        };
        inner.prefix[..prefix.len()].copy_from_slice(&reversed(prefix));
        inner.suffix[..suffix.len()].copy_from_slice(&reversed(suffix));
        let mut map: Array<_, [u8; N]> = self.bpf.map_mut("INNER_WILDCARDS").unwrap().try_into().unwrap();
        map.set(index, <[u8; N]>::try_from(inner.as_bytes()).unwrap(), 0).unwrap();
    }

    /// What the egress (or ingress) program returns for this packet, and how long one run takes, in nanoseconds.
    pub fn run(&self, program: &str, packet: &[u8], repeat: u32) -> (u32, u32) {
        let program: &CgroupSkb = self.bpf.program(program).unwrap().try_into().unwrap();
        let mut frame = vec![0; 12];
        frame.extend_from_slice(if packet[0] >> 4 == 4 { &[8, 0] } else { &[0x86, 0xdd] });
        frame.extend_from_slice(packet);
        let mut options = TestRunOptions::new();
        options.data_in = Some(&frame);
        options.repeat = repeat;
        let result = program.test_run(options).unwrap();
        (result.return_value, result.duration.as_nanos() as u32)
    }

    pub fn query(&self, message: &[u8]) -> bool {
        self.run("socket_egress", &crate::wire::udp(CLIENT, PORT, RESOLVER, 53, message), 1).0 == 1
    }

    pub fn answer(&self, message: &[u8]) {
        let (result, _) = self.run("socket_ingress", &crate::wire::udp(RESOLVER, 53, CLIENT, PORT, message), 1);
        assert_eq!(result, 1);
    }

    pub fn control(&self, command: u32, generation: u32, records: &[ControlRecord]) -> (u32, [u32; 6]) {
        let program: &SchedClassifier = self.bpf.program("control").unwrap().try_into().unwrap();
        let header = ControlHeader { command, generation, count: records.len() as u32, ..ControlHeader::default() };
        let mut data = header.as_bytes().to_vec();
        data.extend_from_slice(records.as_bytes());
        let mut out = vec![0; data.len()];
        let mut options = TestRunOptions::new();
        options.data_in = Some(&data);
        options.data_out = Some(&mut out);
        let result = program.test_run(options).unwrap();
        (result.return_value, ControlHeader::read_from_prefix(&out).unwrap().0.results)
    }

    pub fn slots(&self, generation: u32, address: IpAddr) -> Vec<Slot> {
        const N: usize = size_of::<AddressEntry>();
        let entry = match address {
            IpAddr::V4(address) => {
                let map: HashMap<_, [u8; 8], [u8; N]> = self.bpf.map("ADDRESSES_4").unwrap().try_into().unwrap();
                let key = AddressKey4 { address: address.octets(), generation };
                map.get(&key.as_bytes().try_into().unwrap(), 0).ok()
            }
            IpAddr::V6(address) => {
                let map: HashMap<_, [u8; 20], [u8; N]> = self.bpf.map("ADDRESSES_6").unwrap().try_into().unwrap();
                let key = AddressKey6 { address: address.octets(), generation };
                map.get(&key.as_bytes().try_into().unwrap(), 0).ok()
            }
        };
        entry.map_or(vec![], |entry| {
            let entry = AddressEntry::read_from_bytes(&entry).unwrap();
            entry.slots.into_iter().filter(|slot| *slot != 0).map(Slot::unpack).collect()
        })
    }

    pub fn classes(&self, generation: u32, address: &str) -> Vec<u32> {
        self.slots(generation, address.parse().unwrap()).into_iter().map(|slot| slot.class).collect()
    }

    /// Every address that any generation has: what must not grow when an attack fails.
    pub fn addresses(&self) -> usize {
        const N: usize = size_of::<AddressEntry>();
        let four: HashMap<_, [u8; 8], [u8; N]> = self.bpf.map("ADDRESSES_4").unwrap().try_into().unwrap();
        let six: HashMap<_, [u8; 20], [u8; N]> = self.bpf.map("ADDRESSES_6").unwrap().try_into().unwrap();
        four.keys().count() + six.keys().count()
    }

    pub fn count(&self, what: LearnCount) -> u64 {
        let map: PerCpuArray<_, u64> = self.bpf.map("LEARN_COUNTERS").unwrap().try_into().unwrap();
        map.get(&(what as u32), 0).unwrap().iter().sum()
    }

    pub fn pending(&self) -> usize {
        const N: usize = size_of::<Pending>();
        let map: HashMap<_, [u8; 48], [u8; N]> = self.bpf.map("PENDING").unwrap().try_into().unwrap();
        map.keys().count()
    }

    /// The events since the last call.
    pub fn events(&mut self) -> Vec<(LearnedEvent, Vec<LearnedAddress>)> {
        let mut ring: RingBuf<&mut MapData> = self.bpf.map_mut("EVENTS").unwrap().try_into().unwrap();
        let mut events = Vec::new();
        while let Some(item) = ring.next() {
            let mut whole = vec![0; size_of::<LearnedEvent>()];
            whole[..item.len()].copy_from_slice(&item);
            let event = LearnedEvent::read_from_bytes(&whole).unwrap();
            assert_eq!(item.len(), LearnedEvent::HEAD + usize::from(event.count) * size_of::<LearnedAddress>());
            let addresses = event.addresses[..usize::from(event.count)].to_vec();
            events.push((event, addresses));
        }
        events
    }

    pub fn verified(&self, program: &str) -> u32 {
        let info = match program {
            "control" => {
                let program: &SchedClassifier = self.bpf.program(program).unwrap().try_into().unwrap();
                program.info().unwrap()
            }
            _ => {
                let program: &CgroupSkb = self.bpf.program(program).unwrap().try_into().unwrap();
                program.info().unwrap()
            }
        };
        info.verified_instruction_count().unwrap()
    }
}

pub fn allow(class: u32) -> NameValue {
    NameValue { class, ..NameValue::default() }
}

pub fn mapped(address: &str) -> abi::Address {
    match address.parse().unwrap() {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}
