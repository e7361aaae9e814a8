//! A packet's bytes, made from what a person wrote.

use std::net::{IpAddr, SocketAddr};

use egress_ebpf::{
    abi::{PROTO_ICMP, PROTO_ICMPV6, PROTO_TCP, PROTO_UDP},
    packet::{TCP_ACK, TCP_SYN},
};

use crate::policy::{DomainName, Proto};

/// An IP packet with a TCP segment without payload, a UDP datagram or an ICMP echo request. Checksums are 0: nothing that
/// judges packets reads them. Both ends are of one family, neither IPv4-mapped.
pub fn packet(
    proto: Proto,
    source: SocketAddr,
    destination: SocketAddr,
    ack: bool,
    query: Option<&DomainName>,
) -> Vec<u8> {
    let ports = |bytes: &mut Vec<u8>| {
        bytes.extend(source.port().to_be_bytes());
        bytes.extend(destination.port().to_be_bytes());
    };
    let mut payload = Vec::new();
    let number = match (proto, destination.is_ipv4()) {
        (Proto::Tcp, _) => {
            // RFC 9293, 3.1: 5 words of header.
            ports(&mut payload);
            payload.extend([0, 0, 0, 1, 0, 0, 0, u8::from(ack)]);
            payload.extend([5 << 4, if ack { TCP_ACK } else { TCP_SYN }, 0xff, 0xff, 0, 0, 0, 0]);
            PROTO_TCP
        }
        (Proto::Udp, _) => {
            let data = query.map(question).unwrap_or_default();
            ports(&mut payload);
            payload.extend(length(8 + data.len()));
            payload.extend([0, 0]);
            payload.extend(data);
            PROTO_UDP
        }
        (_, true) => {
            payload.extend([8, 0, 0, 0, 0, 1, 0, 1]);
            PROTO_ICMP
        }
        (_, false) => {
            payload.extend([128, 0, 0, 0, 0, 1, 0, 1]);
            PROTO_ICMPV6
        }
    };
    let mut bytes = Vec::new();
    match (source.ip(), destination.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            bytes.extend([0x45, 0]);
            bytes.extend(length(20 + payload.len()));
            bytes.extend([0, 0, 0x40, 0, 64, number, 0, 0]);
            bytes.extend(from.octets());
            bytes.extend(to.octets());
        }
        (from, to) => {
            let sixteen = |address: IpAddr| match address {
                IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
                IpAddr::V6(address) => address.octets(),
            };
            bytes.extend([0x60, 0, 0, 0]);
            bytes.extend(length(payload.len()));
            bytes.extend([number, 64]);
            bytes.extend(sixteen(from));
            bytes.extend(sixteen(to));
        }
    }
    bytes.extend(payload);
    bytes
}

/// At most a name's 255 bytes are added to headers: it fits.
fn length(bytes: usize) -> [u8; 2] {
    u16::try_from(bytes).unwrap_or(u16::MAX).to_be_bytes()
}

/// A query for the A records of a name (RFC 1035, 4.1).
fn question(name: &DomainName) -> Vec<u8> {
    let mut message = vec![0xe6, 0xe5, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.as_str().split('.') {
        // A label has at most 63 bytes.
        message.push(label.len() as u8);
        message.extend(label.as_bytes());
    }
    message.extend([0, 0, 1, 0, 1]);
    message
}

#[cfg(test)]
mod tests {
    use egress_ebpf::packet::parse;

    use super::*;

    #[test]
    fn packets_are_what_they_say() {
        for (from, to) in [("10.0.0.2:40000", "192.0.2.1:443"), ("[2001:db8::1]:40000", "[2001:db8::2]:443")] {
            let (from, to): (SocketAddr, SocketAddr) = (from.parse().unwrap(), to.parse().unwrap());
            for (proto, ack) in [(Proto::Tcp, false), (Proto::Tcp, true), (Proto::Udp, false), (Proto::Icmp, false)] {
                let name = DomainName::parse("a.example.com").unwrap();
                let bytes = packet(proto, from, to, ack, Some(&name));
                let parsed = parse(&bytes[..], 0).expect("it parses");
                assert_eq!((IpAddr::from(parsed.source), IpAddr::from(parsed.destination)), (from.ip(), to.ip()));
                assert_eq!(usize::from(parsed.end), bytes.len());
                assert_eq!(parsed.opens_tcp(), proto == Proto::Tcp && !ack);
                match proto {
                    Proto::Icmp => assert!(parsed.is_echo_request()),
                    _ => assert_eq!((parsed.source_port, parsed.destination_port), (40000, 443)),
                }
            }
        }
    }
}
