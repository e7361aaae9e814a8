//! Which ports questions go out by, and what comes back to them.

use std::collections::HashMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket as StdSocket};
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::join_all;
use hickory_proto::op::{Message, MessageType, Query};
use hickory_proto::rr::RecordType;
use tokio::net::UdpSocket;

use super::server::{Server, address, answer, name};
use crate::resolve::{Family, Found, Limits, Miss, Reason, Resolver};

const NAME: &str = "www.example.com";
const TIMEOUT: Duration = Duration::from_millis(800);

fn resolver(address: SocketAddr) -> Resolver {
    Resolver::new(&[address], Limits { timeout: TIMEOUT, attempts: 1, ..Limits::default() })
}

async fn lookup(address: SocketAddr) -> Result<Found, Miss> {
    resolver(address).lookup(NAME, Family::V4).await
}

/// A response with one address to whatever was asked.
fn respond(query: &[u8]) -> Message {
    let query = Message::from_vec(query).unwrap();
    let mut response = Message::new(query.metadata.id, MessageType::Response, query.metadata.op_code);
    response.add_query(query.queries[0].clone());
    let asked = query.queries[0].name().to_ascii();
    response.add_answer(address(&asked, Ipv4Addr::new(203, 0, 113, 1), 60));
    response
}

#[tokio::test]
async fn questions_of_a_moment_share_ports_that_are_closed_with_them() {
    const QUESTIONS: usize = 40;
    let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let resolver = resolver(server.local_addr().unwrap());
    let names: Vec<_> = (0..QUESTIONS).map(|n| format!("n{n}.example.com")).collect();
    let answers = async {
        let mut asked = HashMap::<u16, Vec<u16>>::new();
        let mut buffer = [0; 512];
        for _ in 0..QUESTIONS {
            let (length, from) = server.recv_from(&mut buffer).await.unwrap();
            asked.entry(from.port()).or_default().push(u16::from_be_bytes([buffer[0], buffer[1]]));
            server.send_to(&respond(&buffer[..length]).to_vec().unwrap(), from).await.unwrap();
        }
        asked
    };
    let lookups = join_all(names.iter().map(|name| resolver.lookup(name, Family::V4)));
    let (found, asked) = tokio::join!(lookups, answers);
    assert!(found.iter().all(Result::is_ok), "{found:?}");
    let mut counts: Vec<_> = asked.values().map(Vec::len).collect();
    counts.sort_unstable();
    assert_eq!(counts, [8, 16, 16]);
    for (port, mut ids) in asked {
        ids.sort_unstable();
        assert!(ids.windows(2).all(|pair| pair[0] != pair[1]), "{ids:?}");
        assert!(port >= 1024);
        StdSocket::bind(("0.0.0.0", port)).expect("the port is closed");
    }
}

#[tokio::test]
async fn a_port_takes_no_question_that_comes_later() {
    let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let resolver = resolver(server.local_addr().unwrap());
    let later = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        resolver.lookup("b.example.com", Family::V4).await
    };
    let answers = async {
        let mut buffer = [0; 512];
        let (_, first) = server.recv_from(&mut buffer).await.unwrap();
        // The first one waits.
        let (_, second) = server.recv_from(&mut buffer).await.unwrap();
        (first, second)
    };
    let ports = tokio::select! {
        _ = async { tokio::join!(resolver.lookup("a.example.com", Family::V4), later) } => panic!("nobody answers"),
        ports = answers => ports,
    };
    assert_ne!(ports.0, ports.1);
}

#[tokio::test]
async fn p3_what_answers_another_question_ends_none() {
    let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let (to, stranger) = (server.local_addr().unwrap(), UdpSocket::bind("127.0.0.1:0").await.unwrap());
    let answers = async {
        let mut buffer = [0; 512];
        let (length, from) = server.recv_from(&mut buffer).await.unwrap();
        let good = respond(&buffer[..length]);
        let forged = |change: &dyn Fn(&mut Message)| {
            let mut forged = good.clone();
            forged.answers[0] = address(NAME, Ipv4Addr::new(203, 0, 113, 66), 60);
            change(&mut forged);
            forged.to_vec().unwrap()
        };
        let other = |of: &str, record_type| vec![Query::query(name(of), record_type)];
        stranger.send_to(&forged(&|_| {}), from).await.unwrap();
        for forged in [
            forged(&|message| message.metadata.id ^= 1),
            forged(&|message| message.metadata.message_type = MessageType::Query),
            forged(&|message| message.queries = other("xxx.example.com", RecordType::A)),
            forged(&|message| message.queries = other(NAME, RecordType::AAAA)),
            forged(&|message| message.queries.clear()),
            forged(&|message| message.queries.push(message.queries[0].clone())),
            buffer[..length].to_vec(),
            buffer[..2].to_vec(),
            vec![],
            vec![0xff; 600],
        ] {
            server.send_to(&forged, from).await.unwrap();
        }
        tokio::time::sleep(Duration::from_millis(30)).await;
        server.send_to(&good.to_vec().unwrap(), from).await.unwrap();
    };
    let (found, ()) = tokio::join!(lookup(to), answers);
    assert_eq!(found.unwrap().addresses, [("203.0.113.1".parse().unwrap(), Duration::from_secs(60))]);
}

#[tokio::test]
async fn p3_an_answer_in_other_letters_is_asked_for_over_tcp() {
    let server = Server::start(|query, mut response| {
        let other = |letter: char| if letter.is_alphabetic() { (letter as u8 ^ 0x20) as char } else { letter };
        response.queries[0].set_name(name(&query.name().to_ascii().chars().map(other).collect::<String>()));
        answer(query, response, vec![address(NAME, Ipv4Addr::new(203, 0, 113, 1), 60)])
    })
    .await;
    assert!(lookup(server.address).await.is_ok());
    let [udp, tcp] = [&server.udp_queries, &server.tcp_queries].map(|count| count.load(Ordering::SeqCst));
    assert_eq!((udp, tcp), (1, 1));
}

#[tokio::test]
async fn a_question_is_sent_three_times_at_most() {
    let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let to = server.local_addr().unwrap();
    let answers = async {
        let mut buffer = [0; 512];
        let mut same = vec![];
        for _ in 0..3 {
            let (length, from) = server.recv_from(&mut buffer).await.unwrap();
            same.push((buffer[..length].to_vec(), from));
        }
        assert!(same.windows(2).all(|pair| pair[0] == pair[1]), "{same:?}");
        server.send_to(&respond(&same[0].0).to_vec().unwrap(), same[0].1).await.unwrap();
    };
    let (found, ()) = tokio::join!(lookup(to), answers);
    assert!(found.is_ok(), "{found:?}");
    let silent = Server::start(|_, _| None).await;
    assert_eq!(lookup(silent.address).await.unwrap_err().reason, Reason::Timeout);
    assert_eq!(silent.udp_queries.load(Ordering::SeqCst), 3);
}

/// Its port is closed for a moment: the kernel hears of that by the first question, and tells whoever sends the second.
#[tokio::test]
async fn a_resolver_that_starts_anew_is_waited_for() {
    let to = StdSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let resolver = resolver(to);
    let names = ["a", "b", "c"].map(|name| format!("{name}.example.com"));
    let answers = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let server = UdpSocket::bind(to).await.unwrap();
        let mut buffer = [0; 512];
        for _ in &names {
            let (length, from) = server.recv_from(&mut buffer).await.unwrap();
            server.send_to(&respond(&buffer[..length]).to_vec().unwrap(), from).await.unwrap();
        }
    };
    let lookups = join_all(names.iter().map(|name| resolver.lookup(name, Family::V4)));
    let (found, answered) = tokio::join!(lookups, tokio::time::timeout(2 * TIMEOUT, answers));
    assert!(found.iter().all(Result::is_ok) && answered.is_ok(), "{found:?}");
}

#[tokio::test]
async fn a_resolver_without_a_route_is_said_at_once() {
    // RFC 1122 section 3.2.1.3: never a destination.
    let miss = lookup("255.255.255.255:53".parse().unwrap()).await.unwrap_err();
    assert!(matches!(miss.reason, Reason::Unreachable { .. }), "{miss:?}");
}

#[tokio::test]
async fn a_scope_is_the_interface_that_is_asked_through() {
    let server = UdpSocket::bind("[::1]:0").await.unwrap();
    let through = |interface| SocketAddr::V6(SocketAddrV6::new(Ipv6Addr::LOCALHOST, port(&server), 0, interface));
    let answers = async {
        let mut buffer = [0; 512];
        let (length, from) = server.recv_from(&mut buffer).await.unwrap();
        server.send_to(&respond(&buffer[..length]).to_vec().unwrap(), from).await.unwrap();
    };
    let loopback = nix::net::if_::if_nametoindex("lo").unwrap();
    let (found, ()) = tokio::join!(lookup(through(loopback)), answers);
    assert!(found.is_ok(), "{found:?}");
    let miss = lookup(through(u32::MAX)).await.unwrap_err();
    assert!(matches!(miss.reason, Reason::Unreachable { .. }), "{miss:?}");
}

fn port(socket: &UdpSocket) -> u16 {
    socket.local_addr().unwrap().port()
}
