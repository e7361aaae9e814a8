//! A small DNS server on loopback, UDP and TCP on one port, that says what a test tells it to.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hickory_proto::op::{Message, MessageType, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};
use tokio::task::JoinSet;

/// What to answer; `None` is silence.
type Script = dyn Fn(&Query, Message) -> Option<Message> + Send + Sync;

pub struct Server {
    pub address: SocketAddr,
    pub udp_queries: Arc<AtomicUsize>,
    pub tcp_queries: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

impl Server {
    /// `script` gets the question and an empty NOERROR response with it, id and all.
    pub async fn start(script: impl Fn(&Query, Message) -> Option<Message> + Send + Sync + 'static) -> Self {
        let script: Arc<Script> = Arc::new(script);
        let (udp, tcp) = loop {
            let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            // The same port may be taken for TCP: try another.
            if let Ok(tcp) = TcpListener::bind(udp.local_addr().unwrap()).await {
                break (udp, tcp);
            }
        };
        let address = udp.local_addr().unwrap();
        let (udp_queries, tcp_queries) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let mut tasks = JoinSet::new();
        let (by_udp, count) = (script.clone(), udp_queries.clone());
        tasks.spawn(async move {
            let mut buffer = [0; 4096];
            loop {
                let (length, from) = udp.recv_from(&mut buffer).await.unwrap();
                count.fetch_add(1, Ordering::SeqCst);
                let Some(response) = respond(&buffer[..length], &*by_udp) else {
                    continue;
                };
                let mut bytes = response.to_vec().unwrap();
                if bytes.len() > 1232 {
                    let mut truncated = response.truncate();
                    truncated.metadata.truncation = true;
                    bytes = truncated.to_vec().unwrap();
                }
                udp.send_to(&bytes, from).await.unwrap();
            }
        });
        let count = tcp_queries.clone();
        tasks.spawn(async move {
            loop {
                let (mut stream, _) = tcp.accept().await.unwrap();
                let (script, count) = (script.clone(), count.clone());
                tokio::spawn(async move {
                    while let Ok(length) = stream.read_u16().await {
                        let mut query = vec![0; length.into()];
                        stream.read_exact(&mut query).await.unwrap();
                        count.fetch_add(1, Ordering::SeqCst);
                        let Some(response) = respond(&query, &*script) else {
                            continue;
                        };
                        let bytes = response.to_vec().unwrap();
                        stream.write_u16(bytes.len().try_into().unwrap()).await.unwrap();
                        stream.write_all(&bytes).await.unwrap();
                    }
                });
            }
        });
        Self { address, udp_queries, tcp_queries, _tasks: tasks }
    }
}

pub fn respond(query: &[u8], script: &Script) -> Option<Message> {
    let query = Message::from_vec(query).ok()?;
    let mut response = Message::new(query.metadata.id, MessageType::Response, query.metadata.op_code);
    response.metadata.recursion_desired = true;
    response.metadata.recursion_available = true;
    response.add_query(query.queries[0].clone());
    script(&query.queries[0], response)
}

/// Answers with one code and nothing else.
pub fn code(mut response: Message, code: ResponseCode) -> Option<Message> {
    response.metadata.response_code = code;
    Some(response)
}

pub fn address(name: &str, address: impl Into<IpAddr>, ttl: u32) -> Record {
    let data = match address.into() {
        IpAddr::V4(address) => RData::A(A(address)),
        IpAddr::V6(address) => RData::AAAA(AAAA(address)),
    };
    Record::from_rdata(self::name(name), ttl, data)
}

pub fn cname(name: &str, target: &str, ttl: u32) -> Record {
    Record::from_rdata(self::name(name), ttl, RData::CNAME(CNAME(self::name(target))))
}

pub fn name(name: &str) -> Name {
    let mut name = Name::from_ascii(name).unwrap();
    name.set_fqdn(true);
    name
}

/// Puts in those records that are of the type asked for, and all CNAMEs.
pub fn answer(query: &Query, mut response: Message, records: Vec<Record>) -> Option<Message> {
    let fits = |record: &Record| [query.query_type(), RecordType::CNAME].contains(&record.record_type());
    response.add_answers(records.into_iter().filter(fits));
    Some(response)
}
