//! Follows a CNAME chain through one answer section. Pure.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use hickory_proto::rr::{DNSClass, Name, RData, Record};

use super::answer::Family;

/// Links that are followed for one name, over all answers (unbound and BIND stop at 11 and 16).
pub const MAX_LINKS: usize = 16;

/// The highest TTL that is believed, 7 days (RFC 8767 section 4).
const MAX_TTL: u32 = 604_800;

/// A chain in the making: walk one answer after the other until `addresses` has some or `end` stays where it is.
#[derive(Debug)]
pub struct Chain {
    /// Where the chain stands: the name whose addresses are wanted.
    pub end: Name,
    /// Targets so far with the least TTL of the chain up to there, in seconds.
    pub aliases: Vec<(Arc<str>, u32)>,
    /// Addresses with the least TTL of the whole chain and their own.
    pub addresses: Vec<(IpAddr, u32)>,
    least_ttl: u32,
    visited: Vec<Name>,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Broken {
    Loop,
    TooLong,
}

impl Chain {
    pub fn new(name: Name) -> Self {
        Self { visited: vec![name.clone()], end: name, aliases: vec![], addresses: vec![], least_ttl: MAX_TTL }
    }

    /// Takes one answer section in. Records that are not on the chain count for nothing, in whatever order they come.
    pub fn walk(&mut self, answers: &[Record], family: Family) -> Result<(), Broken> {
        // RFC 2181 section 10.1: one CNAME to a name. Of several the first counts.
        let mut cnames: HashMap<&Name, (&Name, u32)> = HashMap::new();
        for record in answers.iter().filter(|record| record.dns_class == DNSClass::IN) {
            if let RData::CNAME(target) = &record.data {
                cnames.entry(&record.name).or_insert((&target.0, record.ttl));
            }
        }
        while let Some((target, ttl)) = cnames.get(&self.end) {
            if self.visited.contains(target) {
                return Err(Broken::Loop);
            }
            if self.aliases.len() == MAX_LINKS {
                return Err(Broken::TooLong);
            }
            self.least_ttl = self.least_ttl.min(believed(*ttl));
            self.end = (*target).clone();
            self.visited.push(self.end.clone());
            self.aliases.push((presentation(&self.end), self.least_ttl));
        }
        for record in answers.iter().filter(|record| record.dns_class == DNSClass::IN && record.name == self.end) {
            let address = match (&record.data, family) {
                (RData::A(address), Family::V4) => IpAddr::V4(address.0),
                // A mapped address goes out as IPv4, so it is allowed as what the packet will hold.
                (RData::AAAA(address), Family::V6) => IpAddr::V6(address.0).to_canonical(),
                _ => continue,
            };
            let ttl = self.least_ttl.min(believed(record.ttl));
            self.addresses.push((address, ttl));
        }
        // An address given twice has the longer of its TTLs.
        self.addresses.sort_unstable_by_key(|&(address, ttl)| (address, Reverse(ttl)));
        self.addresses.dedup_by_key(|(address, _)| *address);
        Ok(())
    }
}

/// A TTL with the top bit set counts as 0 (RFC 2181 section 8).
fn believed(ttl: u32) -> u32 {
    if ttl > i32::MAX as u32 { 0 } else { ttl.min(MAX_TTL) }
}

fn presentation(name: &Name) -> Arc<str> {
    let mut text = name.to_ascii().to_ascii_lowercase();
    if text.len() > 1 && text.ends_with('.') {
        text.pop();
    }
    text.into()
}
