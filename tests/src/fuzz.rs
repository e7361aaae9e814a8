//! What fuzzing checks of the parsers: that they stay within bounds, and that what they take says the same to another
//! parser (hickory-proto). Used by the fuzz targets (`tests/fuzz`), and by the test that replays their corpus.

use std::net::IpAddr;

use egress_ebpf::abi::{ANSWER_MAX, CHAIN_MAX};
use egress_ebpf::dns::{HEADER, MESSAGE_MAX, Work, answer_id, parse_answer, question, same_question};
use egress_ebpf::packet::{self, Packet};
use egress_ebpf::reason::Reason;
use hickory_proto::op::Message;
use hickory_proto::rr::{DNSClass, Name, RData};

fn work(message: &[u8]) -> Option<Box<Work>> {
    // SAFETY: every field is an integer or an array of them, for which zeros are a value.
    let mut work: Box<Work> = unsafe { Box::new_zeroed().assume_init() };
    load(&mut work, message)?;
    Some(work)
}

fn load(work: &mut Work, message: &[u8]) -> Option<()> {
    if message.is_empty() || message.len() > MESSAGE_MAX {
        return None;
    }
    work.message.bytes[..message.len()].copy_from_slice(message);
    work.message.len = message.len() as u64;
    Some(())
}

/// A name whose labels hold letters, digits, `-` and `_` alone, as it is compared: lower case, no trailing dot.
fn plain(name: &Name) -> Option<String> {
    let mut text = String::new();
    for label in name.iter() {
        if !label.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_')) {
            return None;
        }
        if !text.is_empty() {
            text.push('.');
        }
        text.extend(label.iter().map(|byte| char::from(byte.to_ascii_lowercase())));
    }
    (!text.is_empty()).then_some(text)
}

/// Reads a query. `None`: refused; `Some(None)`: well-formed, for a name that no rule can have; else the name.
///
/// # Panics
/// When what is taken says something else to the other parser.
pub fn dns_query(message: &[u8]) -> Option<Option<String>> {
    let mut work = work(message)?;
    if !question(&mut work) {
        return None;
    }
    let key = &work.pending.key;
    let name = (key.plain != 0).then(|| key.reversed().iter().rev().map(|byte| char::from(*byte)).collect::<String>());
    assert!(message.len() <= 512, "a query over 512 bytes");
    // What the options of an OPT record hold may be nonsense, which is not read here.
    if let Ok(other) = Message::from_vec(message) {
        assert_eq!((other.queries.len(), other.answers.len(), other.authorities.len()), (1, 0, 0));
        assert_eq!(other.queries[0].query_class(), DNSClass::IN);
        assert_eq!(name, plain(other.queries[0].name()), "{other:?}");
    }
    Some(name)
}

/// The query that an answer's question was taken from.
#[must_use]
pub fn query_of(answer: &[u8]) -> Option<Vec<u8>> {
    let mut at = HEADER as usize;
    loop {
        let length = usize::from(*answer.get(at)?);
        at += 1 + length;
        match length {
            0 => break,
            1..64 => {}
            _ => return None,
        }
    }
    let mut query = answer.get(..at + 4)?.to_vec();
    query[2..12].copy_from_slice(&[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    Some(query)
}

/// What an answer teaches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taught {
    /// The name that was asked.
    pub name: String,
    /// Address and TTL in seconds, in the answer's order; private ones left out.
    pub addresses: Vec<(IpAddr, u32)>,
}

/// Reads an answer to its own question. `None`: nothing is taken of it.
///
/// # Panics
/// When it teaches an address that, by the other parser, is not at the end of the name's chain.
pub fn dns_answer(message: &[u8]) -> Option<Taught> {
    let query = query_of(message)?;
    let name = dns_query(&query)??;
    let mut work = work(&query)?;
    assert!(question(&mut work));
    work.event.key = work.pending.key;
    load(&mut work, message)?;
    answer_id(&work.message)?;
    let Work { message: read, pending, differ, .. } = &mut *work;
    assert!(same_question(read, pending, differ), "its own question");
    let wire_len = u64::from(work.pending.wire_len);
    if !parse_answer((), &mut work, wire_len, 0) {
        return None;
    }
    let count = if message[3] & 0xf == 0 { work.answer.count as usize } else { 0 };
    let addresses: Vec<_> =
        work.event.addresses[..count].iter().map(|found| (IpAddr::from(found.address), found.ttl)).collect();
    if let Ok(other) = Message::from_vec(message) {
        for address in &addresses {
            assert!(at_the_end(&other, &name).contains(address), "{address:?} of {other:?}");
        }
    }
    Some(Taught { name, addresses })
}

/// The addresses on the chain, as the other parser has it: walked until it grows no more.
fn at_the_end(message: &Message, name: &str) -> Vec<(IpAddr, u32)> {
    let (mut target, mut least, mut links) = (Some(name.to_owned()), u32::MAX, 0);
    loop {
        let (before, mut found) = (links, Vec::new());
        for record in message.answers.iter().take(ANSWER_MAX) {
            if record.dns_class != DNSClass::IN || plain(&record.name) != target {
                continue;
            }
            // RFC 2181, 8: a TTL with its top bit set is 0.
            let ttl = if record.ttl > 0x7fff_ffff { 0 } else { record.ttl };
            match &record.data {
                RData::CNAME(to) => {
                    target = plain(to);
                    least = least.min(ttl);
                    links += 1;
                }
                RData::A(address) => found.push((IpAddr::V4(address.0), ttl.min(least))),
                RData::AAAA(address) => found.push((IpAddr::V6(address.0), ttl.min(least))),
                _ => {}
            }
        }
        if links == before || links > CHAIN_MAX {
            return found;
        }
    }
}

/// Reads a packet's headers.
///
/// # Errors
/// Why it would be dropped unseen.
///
/// # Panics
/// When what was read contradicts itself.
pub fn packet(bytes: &[u8]) -> Result<Packet, Reason> {
    let packet = packet::parse(bytes, 0)?;
    assert!(packet.transport >= 20, "{packet:?}");
    assert!(packet.payload == 0 || packet.payload > packet.transport, "{packet:?}");
    assert_eq!(packet.version == 4, packet.source.is_v4() && packet.destination.is_v4(), "{packet:?}");
    Ok(packet)
}
