//! Frames to run the programs on.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const SYN: u8 = 0x02;
pub const ACK: u8 = 0x10;

/// An Ethernet frame of a TCP or UDP packet; `flags` are TCP's.
pub fn frame(proto: u8, source: SocketAddr, destination: SocketAddr, flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut transport = [source.port().to_be_bytes(), destination.port().to_be_bytes()].concat();
    if proto == TCP {
        transport.extend([0, 0, 0, 1, 0, 0, 0, 1, 5 << 4, flags, 0xff, 0xff, 0, 0, 0, 0]);
    } else {
        transport.extend((8 + payload.len() as u16).to_be_bytes());
        transport.extend([0, 0]);
    }
    transport.extend(payload);
    let len = transport.len() as u16;
    let mut frame = vec![2; 12];
    match (source.ip(), destination.ip()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            frame.extend([8, 0, 0x45, 0]);
            frame.extend((20 + len).to_be_bytes());
            frame.extend([0, 1, 0, 0, 64, proto, 0, 0]);
            frame.extend(source.octets());
            frame.extend(destination.octets());
        }
        (source, destination) => {
            let octets = |address| match address {
                IpAddr::V4(address) => Ipv4Addr::to_ipv6_mapped(&address),
                IpAddr::V6(address) => address,
            };
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            frame.extend(len.to_be_bytes());
            frame.extend([proto, 64]);
            frame.extend(Ipv6Addr::octets(&octets(source)));
            frame.extend(Ipv6Addr::octets(&octets(destination)));
        }
    }
    frame.extend(transport);
    frame
}

/// A query for an A record, as a stub resolver sends it: with an EDNS record.
pub fn query(id: u16, name: &str) -> Vec<u8> {
    let mut message = header(id, [1, 0], [1, 0, 0, 1]);
    question(&mut message, name);
    message.extend([0, 0, 41, 0x04, 0xd0, 0, 0, 0, 0, 0, 0]);
    message
}

/// The answer to [`query`] with `addresses` A records.
pub fn answer(id: u16, name: &str, addresses: u16) -> Vec<u8> {
    let mut message = header(id, [0x81, 0x80], [1, addresses, 0, 0]);
    question(&mut message, name);
    for number in 0..addresses {
        message.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 198, 18]);
        message.extend(number.to_be_bytes());
    }
    message
}

fn header(id: u16, flags: [u8; 2], counts: [u16; 4]) -> Vec<u8> {
    let mut header = id.to_be_bytes().to_vec();
    header.extend(flags);
    header.extend(counts.into_iter().flat_map(u16::to_be_bytes));
    header
}

fn question(message: &mut Vec<u8>, name: &str) {
    for label in name.split('.') {
        message.push(label.len() as u8);
        message.extend(label.bytes());
    }
    message.extend([0, 0, 1, 0, 1]);
}
