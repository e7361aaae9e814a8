//! A case's packet as bytes, for `BPF_PROG_TEST_RUN` and for raw sockets.

use std::net::IpAddr;

use super::{Case, Facts, Packet, Transport};

const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const SYN: u8 = 0x02;
const PSH_ACK: u8 = 0x18;

/// The local port of the datagram (from port 6000) that an ICMP error quotes which is a reply.
pub const QUOTED_PORT: u16 = 5000;

impl Case {
    /// The IP packet, from its first header byte, as `cgroup_skb` sees it. The IPv4 header checksum is right; those of
    /// TCP, UDP and ICMP are 0. TCP is a SYN, unless the connection began before, it is a
    /// reply, or the packet carries a question. An ICMP error that is a reply quotes a UDP datagram to the source's port 5000.
    #[must_use]
    pub fn ip_packet(&self) -> Vec<u8> {
        ip_packet(&self.packet, self.facts.question.as_deref(), &self.facts)
    }

    /// The same behind an Ethernet header with made-up addresses, as tc and a packet socket see it.
    #[must_use]
    pub fn ethernet_frame(&self) -> Vec<u8> {
        let ether_type: [u8; 2] = if self.packet.destination.is_ipv4() { [0x08, 0x00] } else { [0x86, 0xdd] };
        [&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2], &ether_type[..], &self.ip_packet()].concat()
    }
}

/// A DNS query for the A records of `name`, as RFC 1035 section 4.1 has it.
///
/// # Panics
/// When a label is longer than 63 bytes.
#[must_use]
pub fn dns_query(name: &str) -> Vec<u8> {
    let mut query = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00".to_vec();
    for label in name.trim_end_matches('.').split('.').filter(|label| !label.is_empty()) {
        assert!(label.len() < 64, "a label of {} bytes", label.len());
        query.push(label.len() as u8);
        query.extend(label.bytes());
    }
    query.extend([0, 0, 1, 0, 1]);
    query
}

fn ip_packet(packet: &Packet, question: Option<&str>, facts: &Facts) -> Vec<u8> {
    let query = question.map(dns_query);
    let v4 = packet.destination.is_ipv4();
    // What stands between the IP header and the transport (IPv6), or in the IPv4 header's options.
    let mut options: Vec<u8> = Vec::new();
    let mut fragment_offset = 0;
    let (protocol, body) = match packet.transport {
        Transport::Tcp { source, destination } => {
            let payload = query.filter(|_| destination == 53);
            // RFC 1035 section 4.2.2: over TCP the length comes first.
            let payload =
                payload.map_or(Vec::new(), |query| [&(query.len() as u16).to_be_bytes()[..], &query].concat());
            let flags = if facts.began.is_some() || facts.reply || !payload.is_empty() { PSH_ACK } else { SYN };
            (TCP, [tcp_header(source, destination, flags), payload].concat())
        }
        Transport::Udp { source, destination } => {
            let payload = query.filter(|_| destination == 53).unwrap_or_else(|| b"payload".to_vec());
            (UDP, udp(source, destination, &payload))
        }
        Transport::Icmp(kind) => {
            let mut body = vec![kind, 0, 0, 0, 0x12, 0x34, 0, 1];
            if facts.reply {
                let (source, destination) = (packet.destination, packet.source);
                let transport = Transport::Udp { source: 6000, destination: QUOTED_PORT };
                let arrived = Packet { source, destination, transport, hops: 64, loopback: false };
                body.extend(ip_packet(&arrived, None, &Facts::default()));
            } else {
                body.extend([1, 2, 3, 4]);
            }
            (if v4 { ICMP } else { ICMPV6 }, body)
        }
        Transport::Other(number) => (number, vec![0; 16]),
        Transport::LaterFragment => {
            fragment_offset = 185;
            (UDP, vec![0xee; 64])
        }
        Transport::Rerouted => {
            // Loose source route by one hop (RFC 791), padded to four bytes; routing header type 0 for IPv6.
            options = if v4 { vec![131, 7, 4, 20, 0, 0, 1, 0] } else { vec![TCP, 2, 0, 1, 0, 0, 0, 0] };
            if !v4 {
                options.extend([0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
            }
            (TCP, tcp_header(40_000, 443, SYN))
        }
        // A TCP header that ends within the ports.
        Transport::Unparsable => (TCP, vec![0x9c, 0x40, 0x01]),
    };
    match (packet.source, packet.destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let length = (20 + options.len() + body.len()) as u16;
            let header_words = 5 + (options.len() / 4) as u8;
            let mut header = vec![0x40 | header_words, 0];
            header.extend(length.to_be_bytes());
            header.extend([0x12, 0x34]);
            header.extend(u16::to_be_bytes(fragment_offset));
            header.extend([packet.hops, protocol, 0, 0]);
            header.extend(source.octets());
            header.extend(destination.octets());
            header.extend(&options);
            let sum = checksum(&header);
            header[10..12].copy_from_slice(&sum);
            [header, body].concat()
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let (next, middle) = match packet.transport {
                Transport::LaterFragment => {
                    let offset = (fragment_offset << 3).to_be_bytes();
                    (FRAGMENT, vec![protocol, 0, offset[0], offset[1], 0, 0, 0x12, 0x34])
                }
                Transport::Rerouted => (ROUTING, options),
                _ => (protocol, Vec::new()),
            };
            let mut header = vec![0x60, 0, 0, 0];
            header.extend(((middle.len() + body.len()) as u16).to_be_bytes());
            header.extend([next, packet.hops]);
            header.extend(source.octets());
            header.extend(destination.octets());
            [header, middle, body].concat()
        }
        _ => panic!("source and destination are of two families: {packet:?}"),
    }
}

fn tcp_header(source: u16, destination: u16, flags: u8) -> Vec<u8> {
    let mut header = [source.to_be_bytes(), destination.to_be_bytes()].concat();
    header.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    header
}

fn udp(source: u16, destination: u16, payload: &[u8]) -> Vec<u8> {
    let length = (8 + payload.len()) as u16;
    let fields = [source.to_be_bytes(), destination.to_be_bytes(), length.to_be_bytes(), [0, 0]].concat();
    [&fields, payload].concat()
}

/// RFC 1071, over an even number of bytes.
fn checksum(bytes: &[u8]) -> [u8; 2] {
    let mut sum: u32 = bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}
