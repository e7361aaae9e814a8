//! The decision's tables in memory, as the installer would fill the kernel's, looked up slowly.

use std::{collections::HashMap, net::IpAddr};

use egress_ebpf::{
    abi::{
        Address, AddressEntry, Alias, ClassChunk, Flow, FlowKey, FragmentKey, GrantEntry, InnerWildcard, KeyBuffer,
        NEVER, NameValue, PeerKey, PrefixKey4, PrefixKey6, ResolverKey, ResolverTrust, Slot, Ticks,
    },
    decision::Tables,
    dns::{self, NameTable},
};
use egress_user::datapath::{Elements, Learned};

/// Where the wildcards inside a label begin.
pub const INNER: u32 = 1;

pub struct Memory {
    pub elements: Elements,
    classes: HashMap<u32, ClassChunk>,
    addresses: HashMap<Address, AddressEntry>,
    pub grants: HashMap<u32, GrantEntry>,
    pub flows: HashMap<FlowKey, Flow>,
    pub peers: HashMap<PeerKey, Flow>,
    pub fragments: HashMap<FragmentKey, Ticks>,
}

impl Memory {
    pub fn new(elements: Elements, classes: HashMap<u32, ClassChunk>) -> Self {
        let mut memory = Self {
            elements,
            classes,
            addresses: HashMap::new(),
            grants: HashMap::new(),
            flows: HashMap::new(),
            peers: HashMap::new(),
            fragments: HashMap::new(),
        };
        memory.forget();
        memory
    }

    /// Back to what the policy itself says.
    pub fn forget(&mut self) {
        self.addresses.clear();
        self.grants.clear();
        self.flows.clear();
        self.peers.clear();
        self.fragments.clear();
        for (address, class) in self.elements.addresses.clone() {
            self.write(address, Slot { class, expiry: NEVER }, 0);
        }
    }

    /// Learns as the kernel does, the name looked up by the same code; `false` where an address has no slot left.
    pub fn learn(&mut self, learned: &Learned, now: Ticks) -> bool {
        let matching = self.find(&learned.name, now);
        let mut fits = true;
        for class in matching.classes.into_iter().filter(|class| *class != 0) {
            for &(address, expiry) in &learned.addresses {
                fits &= self.write(address, Slot { class, expiry }, now);
            }
        }
        fits
    }

    pub fn find(&self, name: &str, now: Ticks) -> dns::Matching {
        let mut key = KeyBuffer { len: name.len() as u64, plain: 1, ..KeyBuffer::EMPTY };
        for (slot, byte) in key.name.iter_mut().zip(name.bytes().rev()) {
            *slot = byte;
        }
        key.first = name.split('.').next().map_or(0, str::len) as u64;
        key.set_epoch(self.elements.config.epoch);
        let (mut matching, mut differ) = (dns::Matching::default(), 0);
        dns::find(self, &key, self.elements.config.generation, now, &mut matching, &mut differ);
        assert_eq!(matching.lost, 0, "{name} has too many classes");
        matching
    }

    fn write(&mut self, address: IpAddr, new: Slot, now: Ticks) -> bool {
        let ports = |class: u32| self.classes[&class].ports_id;
        let entry = self.addresses.entry(address.into()).or_default();
        let alike = |slot: Slot| slot.class == new.class || (slot.lives(now) && ports(slot.class) == ports(new.class));
        let found = entry.slots.iter_mut().find(|slot| **slot == 0 || alike(Slot::unpack(**slot)));
        let Some(found) = found else { return false };
        if *found == 0 || Slot::unpack(*found).expiry < new.expiry {
            *found = new.pack();
        }
        true
    }
}

/// Whether the first `bits` bits are equal.
fn covers(prefix: &[u8], bits: u32, whole: &[u8]) -> bool {
    (0..bits as usize).all(|bit| (prefix[bit / 8] ^ whole[bit / 8]) & (0x80 >> (bit % 8)) == 0)
}

fn longest(four: &[(PrefixKey4, u32)], six: &[(PrefixKey6, u32)], address: &Address) -> Option<u32> {
    let found = if address.is_v4() {
        let covering = four.iter().filter(|(key, _)| covers(&key.address, key.bits - 32, &address.v4_bytes()));
        covering.map(|(key, class)| (key.bits, *class)).max()
    } else {
        let covering = six.iter().filter(|(key, _)| covers(&key.address, key.bits - 32, &address.bytes()));
        covering.map(|(key, class)| (key.bits, *class)).max()
    };
    found.map(|(_, class)| class)
}

impl Tables for Memory {
    fn address(&self, address: &Address, _epoch: u32) -> Option<&AddressEntry> {
        self.addresses.get(address)
    }

    fn prefix(&self, address: &Address, _epoch: u32) -> Option<u32> {
        longest(&self.elements.prefixes_4, &self.elements.prefixes_6, address)
    }

    fn deny(&self, address: &Address, _epoch: u32) -> Option<u32> {
        longest(&self.elements.denies_4, &self.elements.denies_6, address)
    }

    fn class(&self, index: u32) -> Option<&ClassChunk> {
        self.classes.get(&index)
    }

    fn grant(&self, index: u32) -> Option<GrantEntry> {
        self.grants.get(&index).copied()
    }

    fn resolver(&self, key: &ResolverKey) -> Option<ResolverTrust> {
        self.elements.resolvers.iter().find(|(known, _)| known == key).map(|(_, trust)| *trust)
    }

    fn flow(&self, key: &FlowKey) -> Option<&Flow> {
        self.flows.get(key)
    }

    fn peer(&self, key: &PeerKey) -> Option<&Flow> {
        self.peers.get(key)
    }

    fn fragment(&self, key: &FragmentKey) -> Option<Ticks> {
        self.fragments.get(key).copied()
    }
}

impl NameTable for Memory {
    fn name(&self, key: &KeyBuffer, generation: u32) -> Option<NameValue> {
        let covering = self.elements.names.iter().filter(|(known, _)| {
            known.bits <= key.bits && known.epoch == key.epoch && covers(&known.name, known.bits - 16, &key.name)
        });
        covering.max_by_key(|(known, _)| known.bits).map(|(_, entry)| entry.value(generation))
    }

    fn inner(&self, index: u32) -> Option<&InnerWildcard> {
        self.elements.inner.get(index.checked_sub(INNER)? as usize)
    }

    fn alias(&self, _key: &KeyBuffer) -> Option<&Alias> {
        None
    }

    fn stands(&self, class: u32, generation: u32) -> bool {
        self.classes.get(&class).is_some_and(|chunk| chunk.stands(generation))
    }
}
