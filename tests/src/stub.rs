//! Stub resolvers as static programs bring them: no libc, no resolv.conf, A and AAAA asked for at the same time.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};

const LIMIT: Duration = Duration::from_millis(800);

/// Whose habits to take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// A connected socket for each question, EDNS0 with 1,232 bytes; TCP when the answer is cut.
    Go,
    /// One unconnected socket for both questions, no EDNS; TCP when the answer is cut.
    Musl,
}

/// Asks `server` for the addresses of `name`, A first. An error when neither question got an answer with addresses.
/// Made for [`Place::fork`](crate::Place::fork).
pub fn resolve(style: Style, server: SocketAddr, name: &str) -> Result<Vec<IpAddr>> {
    let queries = [query(style, 0x1a2b, name, RecordType::A)?, query(style, 0x3c4d, name, RecordType::AAAA)?];
    let mut answers = match style {
        Style::Go => {
            let sockets = [connected(server)?, connected(server)?];
            for (socket, query) in sockets.iter().zip(&queries) {
                socket.send(&query.to_vec()?).context("send the question")?;
            }
            let pairs = sockets.iter().zip(&queries);
            pairs
                .map(|(socket, query)| receive(socket, server, std::slice::from_ref(query)))
                .collect::<Result<Vec<_>>>()?
        }
        Style::Musl => {
            let socket = UdpSocket::bind((unspecified(server), 0))?;
            for query in &queries {
                socket.send_to(&query.to_vec()?, server).context("send the question")?;
            }
            let first = receive(&socket, server, &queries)?;
            let rest = queries.iter().find(|query| query.metadata.id != first.metadata.id).cloned();
            let second = receive(&socket, server, &rest.into_iter().collect::<Vec<_>>())?;
            vec![first, second]
        }
    };
    answers.sort_by_key(|answer| answer.metadata.id);
    let mut found = Vec::new();
    for (answer, query) in answers.into_iter().zip(&queries) {
        let answer = if answer.metadata.truncation { over_tcp(server, query)? } else { answer };
        let code = answer.metadata.response_code;
        ensure!(code == ResponseCode::NoError, "{name}: {code:?}");
        found.extend(answer.answers.iter().filter_map(|record| match &record.data {
            RData::A(a) => Some(IpAddr::V4(a.0)),
            RData::AAAA(a) => Some(IpAddr::V6(a.0)),
            _ => None,
        }));
    }
    ensure!(!found.is_empty(), "{name}: no addresses");
    Ok(found)
}

fn query(style: Style, id: u16, name: &str, kind: RecordType) -> Result<Message> {
    let mut name = Name::from_ascii(name)?;
    name.set_fqdn(true);
    let mut query = Message::new(id, MessageType::Query, OpCode::Query);
    query.metadata.recursion_desired = true;
    query.add_query(Query::query(name, kind));
    if style == Style::Go {
        let mut edns = Edns::new();
        edns.set_max_payload(1232);
        query.set_edns(edns);
    }
    Ok(query)
}

fn unspecified(server: SocketAddr) -> IpAddr {
    if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { std::net::Ipv6Addr::UNSPECIFIED.into() }
}

fn connected(server: SocketAddr) -> Result<UdpSocket> {
    let socket = UdpSocket::bind((unspecified(server), 0))?;
    socket.connect(server).context("connect to the resolver")?;
    Ok(socket)
}

/// Waits for the answer to one of `queries`; what does not fit is ignored, as stubs do.
fn receive(socket: &UdpSocket, server: SocketAddr, queries: &[Message]) -> Result<Message> {
    let until = Instant::now() + LIMIT;
    let mut buffer = [0; 4096];
    while let Some(left) = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
        socket.set_read_timeout(Some(left))?;
        let (length, from) = socket.recv_from(&mut buffer).context("no answer")?;
        let Ok(answer) = Message::from_vec(&buffer[..length]) else {
            continue;
        };
        let ours = |query: &Message| query.metadata.id == answer.metadata.id && query.queries == answer.queries;
        if from == server && queries.iter().any(ours) {
            return Ok(answer);
        }
    }
    bail!("no answer that fits")
}

fn over_tcp(server: SocketAddr, query: &Message) -> Result<Message> {
    let mut stream = TcpStream::connect_timeout(&server, LIMIT).context("connect to the resolver over TCP")?;
    stream.set_read_timeout(Some(LIMIT))?;
    let bytes = query.to_vec()?;
    stream.write_all(&[&u16::try_from(bytes.len())?.to_be_bytes()[..], &bytes].concat())?;
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut answer)?;
    Ok(Message::from_vec(&answer)?)
}
