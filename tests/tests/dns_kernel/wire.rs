//! Packets and messages, written by hand or by hickory-proto.

use std::net::IpAddr;

use hickory_proto::{
    op::{Message, MessageType, OpCode, Query, ResponseCode},
    rr::{
        Name, RData, Record, RecordType,
        rdata::{A, AAAA, CNAME},
    },
    serialize::binary::BinEncodable,
};

pub fn udp(source: [u8; 4], source_port: u16, destination: [u8; 4], destination_port: u16, payload: &[u8]) -> Vec<u8> {
    let mut packet = ipv4(17, source, destination, 8 + payload.len());
    packet.extend_from_slice(&source_port.to_be_bytes());
    packet.extend_from_slice(&destination_port.to_be_bytes());
    packet.extend_from_slice(&(8 + payload.len() as u16).to_be_bytes());
    packet.extend_from_slice(&[0, 0]);
    packet.extend_from_slice(payload);
    packet
}

pub fn tcp(source: [u8; 4], source_port: u16, destination: [u8; 4], destination_port: u16, payload: &[u8]) -> Vec<u8> {
    segment((source, source_port), (destination, destination_port), 1, 0x18, payload)
}

/// A TCP segment with this sequence number and these flags.
pub fn segment(from: ([u8; 4], u16), to: ([u8; 4], u16), sequence: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
    let ((source, source_port), (destination, destination_port)) = (from, to);
    let mut packet = ipv4(6, source, destination, 20 + payload.len());
    packet.extend_from_slice(&source_port.to_be_bytes());
    packet.extend_from_slice(&destination_port.to_be_bytes());
    packet.extend_from_slice(&sequence.to_be_bytes());
    packet.extend_from_slice(&[0, 0, 0, 1, 5 << 4, flags, 0xff, 0xff, 0, 0, 0, 0]);
    packet.extend_from_slice(payload);
    packet
}

fn ipv4(proto: u8, source: [u8; 4], destination: [u8; 4], payload: usize) -> Vec<u8> {
    let [high, low] = (20 + payload as u16).to_be_bytes();
    let mut packet = vec![0x45, 0, high, low, 0, 1, 0, 0, 64, proto, 0, 0];
    packet.extend_from_slice(&source);
    packet.extend_from_slice(&destination);
    packet
}

/// A name's labels as they are, without checks.
pub fn raw_name(labels: &[&[u8]]) -> Vec<u8> {
    let mut wire = Vec::new();
    for label in labels {
        wire.push(label.len() as u8);
        wire.extend_from_slice(label);
    }
    wire.push(0);
    wire
}

pub fn wire_name(name: &str) -> Vec<u8> {
    raw_name(&name.split('.').filter(|label| !label.is_empty()).map(str::as_bytes).collect::<Vec<_>>())
}

/// A query with the counts, the question's name and the bytes after its class as they are said.
pub fn raw_query(id: u16, counts: [u16; 4], name: &[u8], kind: u16, class: u16, rest: &[u8]) -> Vec<u8> {
    let mut message = id.to_be_bytes().to_vec();
    message.extend_from_slice(&[1, 0]);
    for count in counts {
        message.extend_from_slice(&count.to_be_bytes());
    }
    message.extend_from_slice(name);
    message.extend_from_slice(&kind.to_be_bytes());
    message.extend_from_slice(&class.to_be_bytes());
    message.extend_from_slice(rest);
    message
}

pub fn query(id: u16, name: &str) -> Vec<u8> {
    raw_query(id, [1, 0, 0, 0], &wire_name(name), 1, 1, &[])
}

/// One record of an answer section, owner and data as they are.
pub fn record(owner: &[u8], kind: u16, class: u16, ttl: u32, data: &[u8]) -> Vec<u8> {
    let mut record = owner.to_vec();
    record.extend_from_slice(&kind.to_be_bytes());
    record.extend_from_slice(&class.to_be_bytes());
    record.extend_from_slice(&ttl.to_be_bytes());
    record.extend_from_slice(&(data.len() as u16).to_be_bytes());
    record.extend_from_slice(data);
    record
}

/// The answer to a query (its question copied), with these records and that many promised.
pub fn raw_answer(query: &[u8], records: &[Vec<u8>]) -> Vec<u8> {
    let mut message = query.to_vec();
    message[2] = 0x81;
    message[3] = 0x80;
    message[6..8].copy_from_slice(&(records.len() as u16).to_be_bytes());
    for record in records {
        message.extend_from_slice(record);
    }
    message
}

/// What a resolver's answer says: owner, TTL, and an address or a CNAME's target.
pub enum Data<'a> {
    Address(&'a str),
    Cname(&'a str),
}

/// An answer by hickory-proto, names compressed.
pub fn answer(id: u16, name: &str, records: &[(&str, u32, Data<'_>)]) -> Vec<u8> {
    let parse = |name: &str| Name::from_ascii(format!("{name}.")).unwrap();
    let mut message = Message::new(id, MessageType::Response, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.metadata.recursion_available = true;
    message.metadata.response_code = ResponseCode::NoError;
    message.add_query(Query::query(parse(name), RecordType::A));
    for (owner, ttl, data) in records {
        let data = match data {
            Data::Address(address) => match address.parse().unwrap() {
                IpAddr::V4(address) => RData::A(A(address)),
                IpAddr::V6(address) => RData::AAAA(AAAA(address)),
            },
            Data::Cname(target) => RData::CNAME(CNAME(parse(target))),
        };
        message.add_answer(Record::from_rdata(parse(owner), *ttl, data));
    }
    message.to_bytes().unwrap()
}
