//! The resolver over real sockets on loopback.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use hickory_proto::op::{Query, ResponseCode};
use hickory_proto::rr::RecordType;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};

use super::server::{Server, address, answer, cname, code, name, respond};
use crate::resolve::{Family, Kind, Limits, Reason, Resolver, resolve_once};

fn resolver(servers: &[&Server]) -> Resolver {
    let addresses: Vec<_> = servers.iter().map(|server| server.address).collect();
    Resolver::new(&addresses, Limits { timeout: Duration::from_millis(400), attempts: 1, ..Limits::default() })
}

fn ip(address: &str) -> IpAddr {
    address.parse().unwrap()
}

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

async fn reason(server: &Server) -> Reason {
    resolver(&[server]).lookup("www.example.com", Family::V4).await.unwrap_err().reason
}

#[tokio::test]
async fn both_families_with_their_own_ttls() {
    let server = Server::start(|query, response| {
        let records =
            vec![address("www.example.com", ip("203.0.113.1"), 30), address("www.example.com", ip("2001:db8::1"), 70)];
        answer(query, response, records)
    })
    .await;
    let resolver = resolver(&[&server]);
    let v4 = resolver.lookup("www.example.com", Family::V4).await.unwrap();
    let v6 = resolver.lookup("www.example.com", Family::V6).await.unwrap();
    assert_eq!(v4.addresses, [(ip("203.0.113.1"), secs(30))]);
    assert_eq!(v6.addresses, [(ip("2001:db8::1"), secs(70))]);
    assert_eq!(v4.resolver, server.address);
    assert!(v4.aliases.is_empty());
}

#[tokio::test]
async fn a_chain_has_its_least_ttl_in_any_order_and_case() {
    let server = Server::start(|query, response| {
        let records = vec![
            address("C.example.org", ip("203.0.113.1"), 300),
            cname("b.Example.net", "c.example.ORG", 20),
            cname("www.example.com", "b.example.net", 100),
            address("stray.example.com", ip("203.0.113.99"), 300),
        ];
        answer(query, response, records)
    })
    .await;
    let found = resolver(&[&server]).lookup("www.example.com", Family::V4).await.unwrap();
    assert_eq!(found.addresses, [(ip("203.0.113.1"), secs(20))], "least TTL of the chain, stray record left out");
    assert_eq!(found.aliases, [("b.example.net".into(), secs(100)), ("c.example.org".into(), secs(20))]);
}

#[tokio::test]
async fn a_chain_dealt_out_link_by_link_is_followed() {
    let server = Server::start(|query, response| {
        let at = |wanted: &str| *query.name() == name(wanted);
        let record = if at("www.example.com") {
            cname("www.example.com", "b.example.net", 9)
        } else {
            assert!(at("b.example.net"));
            address("b.example.net", ip("203.0.113.1"), 300)
        };
        answer(query, response, vec![record])
    })
    .await;
    let found = resolver(&[&server]).lookup("www.example.com", Family::V4).await.unwrap();
    assert_eq!(found.addresses, [(ip("203.0.113.1"), secs(9))]);
}

#[tokio::test]
async fn a_loop_and_an_endless_chain_end() {
    let looped = Server::start(|query, response| {
        let records = vec![cname("www.example.com", "b.example.com", 9), cname("b.example.com", "www.example.com", 9)];
        answer(query, response, records)
    })
    .await;
    assert_eq!(reason(&looped).await, Reason::Unusable { problem: "the CNAME chain of www.example.com. loops".into() });
    let next = AtomicUsize::new(0);
    let endless = Server::start(move |query, response| {
        let target = format!("n{}.example.com", next.fetch_add(1, Ordering::SeqCst));
        answer(query, response, vec![cname(&query.name().to_ascii(), &target, 9)])
    })
    .await;
    let problem = "the CNAME chain of www.example.com. is too long".into();
    assert_eq!(reason(&endless).await, Reason::Unusable { problem });
    assert!(endless.udp_queries.load(Ordering::SeqCst) <= 20);
}

#[tokio::test]
async fn a_thousand_addresses_come_over_tcp() {
    let server = Server::start(|query, response| {
        let base = u32::from(Ipv4Addr::new(203, 0, 0, 0));
        let records = (0..1000).map(|n| address("www.example.com", Ipv4Addr::from(base + n), 60)).collect();
        answer(query, response, records)
    })
    .await;
    let found = resolver(&[&server]).lookup("www.example.com", Family::V4).await.unwrap();
    assert_eq!(found.addresses.len(), 1000);
    assert_eq!(server.tcp_queries.load(Ordering::SeqCst), 1);
}

/// The kernel part drops a segment with a fifth message, and so it does whenever that is sent again.
#[tokio::test]
async fn no_more_questions_stand_on_a_connection_than_leave_in_one_segment() {
    let script = |query: &Query, response| {
        answer(query, response, vec![address(&query.name().to_string(), ip("203.0.113.1"), 60)])
    };
    let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let tcp = TcpListener::bind(udp.local_addr().unwrap()).await.unwrap();
    let server = udp.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = [0; 512];
        while let Ok((length, from)) = udp.recv_from(&mut buffer).await {
            let mut response = respond(&buffer[..length], &script).unwrap();
            response.metadata.truncation = true;
            udp.send_to(&response.to_vec().unwrap(), from).await.unwrap();
        }
    });
    let most = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&most);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = tcp.accept().await {
            let seen = Arc::clone(&seen);
            tokio::spawn(async move {
                let mut buffer = [0; 4096];
                loop {
                    // Whatever can come without an answer is there by then.
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    let Ok(length @ 1..) = stream.read(&mut buffer).await else { return };
                    let (mut rest, mut messages) = (&buffer[..length], 0);
                    while let [high, low, after @ ..] = rest {
                        let (query, next) = after.split_at(u16::from_be_bytes([*high, *low]).into());
                        let response = respond(query, &script).unwrap().to_vec().unwrap();
                        stream.write_u16(response.len().try_into().unwrap()).await.unwrap();
                        stream.write_all(&response).await.unwrap();
                        (rest, messages) = (next, messages + 1);
                    }
                    seen.fetch_max(messages, Ordering::SeqCst);
                }
            });
        }
    });
    let resolver = Resolver::new(&[server], Limits::default());
    // The others find a connection.
    resolver.lookup("www.example.com", Family::V4).await.unwrap();
    // hickory asks once for those that ask the same.
    let names: Vec<_> = (0..100).map(|n| format!("n{n}.example.com")).collect();
    let lookups = names.iter().map(|name| resolver.lookup(name, Family::V4));
    assert!(join_all(lookups).await.iter().all(Result::is_ok));
    assert_eq!(most.load(Ordering::SeqCst), 4);
}

#[tokio::test]
async fn each_fault_has_its_reason() {
    for (answered, expected) in [
        (ResponseCode::ServFail, Reason::ServFail),
        (ResponseCode::NXDomain, Reason::NxDomain),
        (ResponseCode::Refused, Reason::Refused),
        (ResponseCode::NoError, Reason::Empty),
    ] {
        let server = Server::start(move |_, response| code(response, answered)).await;
        assert_eq!(reason(&server).await, expected);
    }
    let silent = Server::start(|_, _| None).await;
    let started = Instant::now();
    assert_eq!(reason(&silent).await, Reason::Timeout);
    assert!(started.elapsed() < secs(2), "bounded: {:?}", started.elapsed());
    assert_eq!(resolver(&[]).lookup("a.example", Family::V4).await.unwrap_err().reason, Reason::NoResolver);
}

#[tokio::test]
async fn an_answer_to_another_question_counts_for_nothing() {
    let liar = Server::start(|_, mut response| {
        response.queries = vec![Query::query(name("other.example.com"), RecordType::A)];
        response.add_answer(address("www.example.com", ip("203.0.113.66"), 60));
        Some(response)
    })
    .await;
    assert_eq!(reason(&liar).await, Reason::Timeout, "over UDP it is ignored, as a forgery is");
    let calls = AtomicUsize::new(0);
    let over_tcp = Server::start(move |_, mut response| {
        let flood = (0..200).map(|n| address("www.example.com", Ipv4Addr::new(203, 0, 113, n), 60));
        response.add_answers(flood);
        // The truncated UDP answer repeats the question; only the answer over TCP lies.
        if calls.fetch_add(1, Ordering::SeqCst) > 0 {
            response.queries = vec![Query::query(name("other.example.com"), RecordType::A)];
        }
        Some(response)
    })
    .await;
    let reason = reason(&over_tcp).await;
    assert!(
        matches!(&reason, Reason::Unusable { problem } if problem.contains("does not answer the question")),
        "{reason}"
    );
}

#[tokio::test]
async fn another_name_in_the_answer_and_additional_section_counts_for_nothing() {
    let server = Server::start(|query, mut response| {
        response.add_additional(address("www.example.com", ip("203.0.113.66"), 60));
        answer(query, response, vec![address("other.example.com", ip("203.0.113.67"), 60)])
    })
    .await;
    assert_eq!(reason(&server).await, Reason::Empty);
}

#[tokio::test]
async fn a_resolver_that_hangs_is_asked_last_from_then_on() {
    let silent = Server::start(|_, _| None).await;
    let good = Server::start(|query, response| {
        answer(query, response, vec![address("www.example.com", ip("203.0.113.1"), 60)])
    })
    .await;
    let resolver = resolver(&[&silent, &good]);
    assert_eq!(resolver.lookup("www.example.com", Family::V4).await.unwrap().resolver, good.address);
    let asked = silent.udp_queries.load(Ordering::SeqCst);
    let started = Instant::now();
    assert_eq!(resolver.lookup("www.example.com", Family::V4).await.unwrap().resolver, good.address);
    assert!(started.elapsed() < Duration::from_millis(300), "{:?}", started.elapsed());
    assert_eq!(silent.udp_queries.load(Ordering::SeqCst), asked);
}

#[tokio::test]
async fn nxdomain_is_final_and_servfail_is_not() {
    let good = Server::start(|query, response| {
        answer(query, response, vec![address("www.example.com", ip("203.0.113.1"), 60)])
    })
    .await;
    let broken = Server::start(|_, response| code(response, ResponseCode::ServFail)).await;
    assert!(resolver(&[&broken, &good]).lookup("www.example.com", Family::V4).await.is_ok());
    let gone = Server::start(|_, response| code(response, ResponseCode::NXDomain)).await;
    let miss = resolver(&[&gone, &good]).lookup("www.example.com", Family::V4).await.unwrap_err();
    assert_eq!((miss.reason, miss.resolver), (Reason::NxDomain, Some(gone.address)));
}

#[tokio::test]
async fn resolve_once_keeps_the_order_and_marks_private_addresses() {
    let server = Server::start(|query, response| {
        let asked = query.name().to_ascii().to_ascii_lowercase();
        match asked.as_str() {
            "inside.example.com." => answer(query, response, vec![address(&asked, ip("10.0.0.1"), 60)]),
            "gone.example.com." => code(response, ResponseCode::NXDomain),
            _ => answer(query, response, vec![address(&asked, ip("2001:db8::1"), 60)]),
        }
    })
    .await;
    let names = ["gone.example.com", "inside.example.com", "v6.example.com"].map(String::from);
    let outcomes = resolve_once(&names, &[server.address], secs(1)).await;
    assert_eq!(outcomes.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>(), names);
    assert_eq!(outcomes[0].1, Err(Reason::NxDomain));
    assert_eq!(outcomes[1].1.as_ref().unwrap().private, [(ip("10.0.0.1"), Kind::Private)]);
    assert_eq!(outcomes[2].1.as_ref().unwrap().addresses, [ip("2001:db8::1")]);
}
