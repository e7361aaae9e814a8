//! An authoritative and recursive DNS server that does what a test tells it, over UDP and TCP.
//!
//! It answers from a table that the test may change at any time; a name without records is NXDOMAIN. A name that has
//! CNAME records is followed, and the whole chain is in the answer, as a recursive resolver gives it.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use hickory_proto::op::{Message, MessageType, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::runtime::Handle;

use crate::netns::NetNs;

/// The links of a CNAME chain that are followed, as resolvers limit it too.
const MAX_CHAIN: usize = 16;

/// What goes wrong when a name is asked for.
#[derive(Debug, Clone, PartialEq)]
pub enum Fault {
    ServFail,
    NxDomain,
    Refused,
    /// No answer at all, over UDP; over TCP the connection is closed.
    Silent,
    /// NOERROR with no records.
    Empty,
    /// The right answer under another transaction id.
    WrongId,
    /// The right answer to a question that was not asked (this name).
    WrongQuestion(String),
    /// The right answer from another UDP port of the same address.
    WrongPort,
    /// Always TC and no records over UDP, the answer over TCP.
    Truncated,
    /// A CNAME alone, without the records of its target.
    NoChase,
    /// The right answer, with these records in the additional section.
    Additional(Vec<Record>),
    /// The right answer, with these records appended to the answer section.
    Appended(Vec<Record>),
    /// These bytes instead of a message.
    Bytes(Vec<u8>),
}

/// One question that arrived.
#[derive(Debug, Clone)]
pub struct Asked {
    /// Lower case, no trailing dot.
    pub name: String,
    pub kind: RecordType,
    pub from: SocketAddr,
    /// The server's address that was asked.
    pub at: SocketAddr,
    pub tcp: bool,
    pub when: Instant,
}

#[derive(Debug, Default)]
struct State {
    records: HashMap<(String, RecordType), Vec<(u32, RData)>>,
    faults: HashMap<String, Fault>,
    fault_everywhere: Option<Fault>,
    delays: HashMap<String, Duration>,
    rotating: HashSet<String>,
    rotation: usize,
    asked: Vec<Asked>,
}

/// The server's handle; clones share the table.
#[derive(Debug, Clone, Default)]
pub struct Dns {
    state: Arc<Mutex<State>>,
}

fn key(name: &str) -> String {
    name.trim_end_matches('.').to_ascii_lowercase()
}

fn rdata(address: IpAddr) -> RData {
    match address {
        IpAddr::V4(v4) => RData::A(A(v4)),
        IpAddr::V6(v6) => RData::AAAA(AAAA(v6)),
    }
}

/// An address record, for [`Fault::Additional`] and [`Fault::Appended`].
pub fn address_record(name: &str, ttl: u32, address: IpAddr) -> Result<Record> {
    Ok(Record::from_rdata(fqdn(name)?, ttl, rdata(address)))
}

fn fqdn(name: &str) -> Result<Name> {
    let mut name = Name::from_ascii(name).with_context(|| format!("`{name}` is not a domain name"))?;
    name.set_fqdn(true);
    Ok(name)
}

impl Dns {
    /// Starts listening at `at`, UDP and TCP, inside `ns`. May be called for any number of addresses.
    pub fn listen(&self, ns: &NetNs, runtime: &Handle, at: SocketAddr) -> Result<()> {
        let (udp, tcp) = ns
            .run(|| -> io::Result<_> { Ok((std::net::UdpSocket::bind(at)?, std::net::TcpListener::bind(at)?)) })
            .with_context(|| format!("bind the DNS server to {at}"))?;
        udp.set_nonblocking(true)?;
        tcp.set_nonblocking(true)?;
        let other_port = ns.run(|| std::net::UdpSocket::bind((at.ip(), 0)))?;
        let _inside = runtime.enter();
        let (udp, tcp) = (Arc::new(UdpSocket::from_std(udp)?), TcpListener::from_std(tcp)?);
        let dns = self.clone();
        let other_port = Arc::new(other_port);
        runtime.spawn(async move {
            let mut buffer = vec![0; 65_535];
            while let Ok((length, from)) = udp.recv_from(&mut buffer).await {
                let (dns, query, udp, other) =
                    (dns.clone(), buffer[..length].to_vec(), udp.clone(), other_port.clone());
                tokio::spawn(async move {
                    if let Some((bytes, wrong_port)) = dns.answer(&query, from, at, false).await {
                        if wrong_port {
                            let _ = other.send_to(&bytes, from);
                        } else {
                            let _ = udp.send_to(&bytes, from).await;
                        }
                    }
                });
            }
        });
        let dns = self.clone();
        runtime.spawn(async move {
            while let Ok((stream, from)) = tcp.accept().await {
                tokio::spawn(dns.clone().serve_tcp(stream, from, at));
            }
        });
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the addresses of `name`, A and AAAA, instead of those it had. TTL in seconds.
    pub fn set(&self, name: &str, ttl: u32, addresses: &[IpAddr]) {
        let mut state = self.lock();
        for kind in [RecordType::A, RecordType::AAAA] {
            let records: Vec<_> =
                addresses.iter().map(|&a| (ttl, rdata(a))).filter(|(_, data)| data.record_type() == kind).collect();
            state.records.insert((key(name), kind), records);
        }
    }

    /// The same, with addresses as text.
    ///
    /// # Panics
    /// When one is not an address.
    pub fn set_text(&self, name: &str, ttl: u32, addresses: &[&str]) {
        let parsed: Vec<IpAddr> = addresses.iter().map(|a| a.parse().expect("an IP address")).collect();
        self.set(name, ttl, &parsed);
    }

    /// Makes `name` an alias of `target`. Its own address records are taken away.
    ///
    /// # Panics
    /// When `target` is not a domain name.
    pub fn cname(&self, name: &str, ttl: u32, target: &str) {
        let target = CNAME(fqdn(target).expect("a domain name"));
        self.remove(name);
        self.lock().records.insert((key(name), RecordType::CNAME), vec![(ttl, RData::CNAME(target))]);
    }

    /// Takes all records of `name` away: NXDOMAIN from now on.
    pub fn remove(&self, name: &str) {
        self.lock().records.retain(|(owner, _), _| *owner != key(name));
    }

    /// What goes wrong for `name` from now on; `None` heals it.
    pub fn fault(&self, name: &str, fault: impl Into<Option<Fault>>) {
        match fault.into() {
            Some(fault) => self.lock().faults.insert(key(name), fault),
            None => self.lock().faults.remove(&key(name)),
        };
    }

    /// What goes wrong for every name (a dead resolver: [`Fault::Silent`]); `None` heals it.
    pub fn fault_everywhere(&self, fault: impl Into<Option<Fault>>) {
        self.lock().fault_everywhere = fault.into();
    }

    /// Answers for `name` come this much later.
    pub fn delay(&self, name: &str, by: Duration) {
        self.lock().delays.insert(key(name), by);
    }

    /// Each answer for `name` gives one of its addresses, the next one each time.
    pub fn rotate(&self, name: &str) {
        self.lock().rotating.insert(key(name));
    }

    /// Every question that arrived, oldest first.
    #[must_use]
    pub fn asked(&self) -> Vec<Asked> {
        self.lock().asked.clone()
    }

    /// How many questions about `name`, of any type, arrived.
    #[must_use]
    pub fn count(&self, name: &str) -> usize {
        self.lock().asked.iter().filter(|asked| asked.name == key(name)).count()
    }

    /// Forgets the questions that arrived.
    pub fn forget(&self) {
        self.lock().asked.clear();
    }

    async fn serve_tcp(self, mut stream: TcpStream, from: SocketAddr, at: SocketAddr) -> io::Result<()> {
        loop {
            let length = stream.read_u16().await?;
            let mut query = vec![0; usize::from(length)];
            stream.read_exact(&mut query).await?;
            let Some((bytes, _)) = self.answer(&query, from, at, true).await else {
                return Ok(());
            };
            stream.write_u16(u16::try_from(bytes.len()).map_err(io::Error::other)?).await?;
            stream.write_all(&bytes).await?;
        }
    }

    /// The bytes to send, and whether to send them from the wrong port.
    async fn answer(&self, query: &[u8], from: SocketAddr, at: SocketAddr, tcp: bool) -> Option<(Vec<u8>, bool)> {
        let query = Message::from_vec(query).ok()?;
        let question = query.queries.first()?;
        let name = key(&question.name().to_ascii());
        let kind = question.query_type();
        let (fault, delay, answers) = {
            let mut state = self.lock();
            state.asked.push(Asked { name: name.clone(), kind, from, at, tcp, when: Instant::now() });
            let fault = state.fault_everywhere.clone().or_else(|| state.faults.get(&name).cloned());
            let chase = fault != Some(Fault::NoChase);
            (fault, state.delays.get(&name).copied(), state.lookup(question.name(), kind, chase))
        };
        if let Some(delay) = delay {
            tokio::time::sleep(delay).await;
        }
        let mut reply = Message::response(query.metadata.id, query.metadata.op_code);
        reply.metadata.message_type = MessageType::Response;
        reply.metadata.recursion_desired = query.metadata.recursion_desired;
        reply.metadata.recursion_available = true;
        reply.add_query(question.clone());
        match &answers {
            Some(records) => drop(reply.add_answers(records.iter().cloned())),
            None => reply.metadata.response_code = ResponseCode::NXDomain,
        }
        let mut wrong_port = false;
        let code = |reply: &mut Message, code| {
            reply.answers.clear();
            reply.metadata.response_code = code;
        };
        match fault {
            None | Some(Fault::NoChase) => {}
            Some(Fault::Silent) => return None,
            Some(Fault::Bytes(bytes)) => return Some((bytes, false)),
            Some(Fault::ServFail) => code(&mut reply, ResponseCode::ServFail),
            Some(Fault::NxDomain) => code(&mut reply, ResponseCode::NXDomain),
            Some(Fault::Refused) => code(&mut reply, ResponseCode::Refused),
            Some(Fault::Empty) => code(&mut reply, ResponseCode::NoError),
            Some(Fault::WrongId) => reply.metadata.id ^= 0x5a5a,
            Some(Fault::WrongQuestion(other)) => reply.queries[0].name = fqdn(&other).ok()?,
            Some(Fault::WrongPort) => wrong_port = true,
            Some(Fault::Truncated) if tcp => {}
            Some(Fault::Truncated) => {
                reply.answers.clear();
                reply.metadata.truncation = true;
            }
            Some(Fault::Additional(records)) => drop(reply.add_additionals(records)),
            Some(Fault::Appended(records)) => drop(reply.add_answers(records)),
        }
        let bytes = reply.to_vec().ok()?;
        let room = query.edns.as_ref().map_or(512, |edns| edns.max_payload().max(512));
        if tcp || bytes.len() <= usize::from(room) {
            return Some((bytes, wrong_port));
        }
        // RFC 1035 section 4.2.1: what does not fit is cut and TC says so; the client asks again over TCP.
        reply.metadata.truncation = true;
        reply.answers.clear();
        Some((reply.to_vec().ok()?, wrong_port))
    }
}

impl State {
    /// The answer section, or `None` for NXDOMAIN. Wildcard owners (`*.example.com`) serve names that have no records.
    fn lookup(&mut self, asked: &Name, kind: RecordType, chase: bool) -> Option<Vec<Record>> {
        let mut answer = Vec::new();
        let mut owner = asked.clone();
        for _ in 0..MAX_CHAIN {
            let Some(source) = self.source(&key(&owner.to_ascii())) else {
                // A chain into nothing: the resolver still says NOERROR for the alias' own links here.
                return (!answer.is_empty()).then_some(answer);
            };
            let own = self.records.get(&(source.clone(), kind)).cloned().unwrap_or_default();
            if self.rotating.contains(&source) && !own.is_empty() {
                let (ttl, data) = &own[self.rotation % own.len()];
                answer.push(Record::from_rdata(owner.clone(), *ttl, data.clone()));
                self.rotation += 1;
            } else {
                answer.extend(own.into_iter().map(|(ttl, data)| Record::from_rdata(owner.clone(), ttl, data)));
            }
            let alias = self.records.get(&(source, RecordType::CNAME)).and_then(|records| records.first()).cloned();
            let Some((ttl, RData::CNAME(target))) = alias.filter(|_| kind != RecordType::CNAME) else {
                break;
            };
            answer.push(Record::from_rdata(owner.clone(), ttl, RData::CNAME(target.clone())));
            owner = target.0;
            if !chase {
                break;
            }
        }
        Some(answer)
    }

    /// The owner name whose records serve `name`: itself, or the nearest wildcard above it.
    fn source(&self, name: &str) -> Option<String> {
        let exists = |owner: &str| self.records.keys().any(|(known, _)| known == owner);
        if exists(name) {
            return Some(name.to_owned());
        }
        let mut rest = name;
        while let Some((_, parent)) = rest.split_once('.') {
            let wildcard = format!("*.{parent}");
            if exists(&wildcard) {
                return Some(wildcard);
            }
            rest = parent;
        }
        None
    }
}
