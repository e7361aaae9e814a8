//! A DNS question judged on the host, by the code of the programs over the maps' name tables.

use std::mem::offset_of;

use egress_ebpf::{
    abi::{
        Alias, AliasKey, ClassChunk, Config, InnerWildcard, KeyBuffer, NameEntry, NameKey, NameValue, PROTO_UDP, SLOTS,
        Slot, Ticks,
    },
    dns::{self, NameTable, QUERY_MAX, Work},
    packet::Packet,
    reason::Reason,
};
use zerocopy::{FromBytes as _, IntoBytes as _};

use super::super::{Datapath, Error};

/// What the name tables say of one name.
#[derive(Default)]
pub(in super::super) struct Found {
    name: Option<NameEntry>,
    inner: Vec<(u32, InnerWildcard)>,
    alias: Option<Alias>,
    classes: Vec<(u32, ClassChunk)>,
}

impl NameTable for Found {
    fn name(&self, _key: &KeyBuffer, generation: u32) -> Option<NameValue> {
        self.name.map(|entry| entry.value(generation))
    }

    fn stands(&self, class: u32, generation: u32) -> bool {
        self.classes.iter().any(|(known, chunk)| *known == class && chunk.count != 0 && chunk.stands(generation))
    }

    fn inner(&self, index: u32) -> Option<&InnerWildcard> {
        self.inner.iter().find(|(known, _)| *known == index).map(|(_, wildcard)| wildcard)
    }

    fn alias(&self, _key: &KeyBuffer) -> Option<&Alias> {
        self.alias.as_ref()
    }
}

impl Datapath {
    /// Whether a packet to a trusted resolver may leave, by its question: [`Reason::Dns`] or why not. Of TCP a segment
    /// without payload is judged, or one message.
    pub(super) fn question(&self, config: &Config, bytes: &[u8], packet: &Packet, now: Ticks) -> Result<Reason, Error> {
        let message = bytes.get(usize::from(packet.payload)..usize::from(packet.end)).unwrap_or_default();
        let message = if packet.proto == PROTO_UDP {
            message
        } else if message.is_empty() {
            return Ok(Reason::Dns);
        } else {
            message.get(2..).unwrap_or_default()
        };
        if message.is_empty() || message.len() as u64 > QUERY_MAX {
            return Ok(Reason::BadQuery);
        }
        // SAFETY: every field is an integer or an array of them, for which zeros are a value.
        let mut work: Box<Work> = unsafe { Box::new_zeroed().assume_init() };
        work.message.bytes[..message.len()].copy_from_slice(message);
        work.message.len = message.len() as u64;
        if !dns::question(&mut work) {
            return Ok(Reason::BadQuery);
        }
        let key = &mut work.pending.key;
        if key.plain != 0 {
            key.set_epoch(config.epoch);
            let found = self.found(key, config.generation)?;
            let Work { pending, matching, differ, .. } = &mut *work;
            dns::find(&found, &pending.key, config.generation, now, matching, differ);
        }
        let refused = config.has(Config::QUERIES_ALLOWLISTED) && !work.matching.may_ask();
        Ok(if refused { Reason::NameNotAllowed } else { Reason::Dns })
    }

    pub(in super::super) fn found(&self, key: &KeyBuffer, generation: u32) -> Result<Found, Error> {
        // A `KeyBuffer` starts as the key of the names, and from its epoch on as that of the aliases.
        let bytes = key.as_bytes();
        let mut found = Found::default();
        if let Ok((key, _)) = NameKey::read_from_prefix(bytes) {
            found.name = self.names.get(&key)?;
        }
        if let Ok((key, _)) = AliasKey::read_from_prefix(&bytes[offset_of!(KeyBuffer, epoch)..]) {
            found.alias = self.aliases.get(&key)?;
        }
        for slot in found.alias.map_or([0; SLOTS], |alias| alias.entry.slots) {
            let class = Slot::unpack(slot).class;
            found.classes.extend(self.classes.get(&class)?.map(|chunk| (class, chunk)));
        }
        let value = found.name.unwrap_or_default().value(generation);
        for index in value.inner_first..value.inner_first + u32::from(value.inner_count) {
            found.inner.extend(self.inner.get(&index)?.map(|wildcard| (index, wildcard)));
        }
        Ok(found)
    }
}
