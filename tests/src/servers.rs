//! Servers of the little internet: TCP, UDP, HTTP, HTTPS, NTP, each recording who came.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::runtime::Handle;
use tokio_rustls::TlsAcceptor;

use crate::netns::NetNs;
use crate::tls::Authority;

/// What a server does with who comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Service {
    /// Sends back what comes.
    TcpEcho,
    /// Sends one line at once, as a tunnel's end or an SSH server does, then echoes.
    TcpBanner,
    Http,
    /// Any name is served, with a certificate of the harness's authority for it.
    Https,
    UdpEcho,
    /// RFC 5905: mode 4 answers of 48 bytes.
    Ntp,
}

pub const BANNER: &str = "tunnel ready\r\n";

/// A connection accepted, or a datagram received.
#[derive(Debug, Clone)]
pub struct Hit {
    pub service: Service,
    pub peer: SocketAddr,
    /// The address and port that were reached.
    pub local: SocketAddr,
    /// TLS server name, or the HTTP Host header.
    pub name: Option<String>,
}

/// Who came; clones share the list.
#[derive(Debug, Clone, Default)]
pub struct Hits(Arc<Mutex<Vec<Hit>>>);

impl Hits {
    #[must_use]
    pub fn all(&self) -> Vec<Hit> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn clear(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn push(&self, service: Service, peer: SocketAddr, local: SocketAddr) -> usize {
        let mut hits = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        hits.push(Hit { service, peer, local, name: None });
        hits.len() - 1
    }

    fn set_name(&self, index: usize, name: Option<String>) {
        if let Some(hit) = self.0.lock().unwrap_or_else(PoisonError::into_inner).get_mut(index) {
            hit.name = name;
        }
    }
}

/// Starts `service` at `at` inside `ns`. A TCP service may be at `0.0.0.0` or `::` for all addresses; a UDP service
/// answers from the address it is bound to, so give each its own.
pub fn serve(
    ns: &NetNs,
    runtime: &Handle,
    service: Service,
    at: SocketAddr,
    ca: &Authority,
    hits: &Hits,
) -> Result<()> {
    let (hits, _inside) = (hits.clone(), runtime.enter());
    let failed = || format!("bind {service:?} to {at}");
    if matches!(service, Service::UdpEcho | Service::Ntp) {
        let socket = ns.run(|| std::net::UdpSocket::bind(at)).with_context(failed)?;
        socket.set_nonblocking(true)?;
        runtime.spawn(serve_udp(UdpSocket::from_std(socket)?, service, at, hits));
        return Ok(());
    }
    let listener = ns.run(|| std::net::TcpListener::bind(at)).with_context(failed)?;
    listener.set_nonblocking(true)?;
    let (listener, tls) = (TcpListener::from_std(listener)?, ca.acceptor());
    runtime.spawn(async move {
        while let Ok((stream, peer)) = listener.accept().await {
            let local = stream.local_addr().unwrap_or(at);
            let index = hits.push(service, peer, local);
            tokio::spawn(serve_tcp(stream, service, tls.clone(), hits.clone(), index));
        }
    });
    Ok(())
}

async fn serve_udp(socket: UdpSocket, service: Service, at: SocketAddr, hits: Hits) {
    let mut buffer = vec![0; 65_535];
    while let Ok((length, peer)) = socket.recv_from(&mut buffer).await {
        hits.push(service, peer, at);
        let reply =
            if service == Service::Ntp { ntp_answer(&buffer[..length]) } else { Some(buffer[..length].to_vec()) };
        if let Some(reply) = reply {
            let _ = socket.send_to(&reply, peer).await;
        }
    }
}

async fn serve_tcp(mut stream: TcpStream, service: Service, tls: TlsAcceptor, hits: Hits, index: usize) -> Result<()> {
    match service {
        Service::Http => serve_http(stream, &hits, index).await,
        Service::Https => {
            let stream = tls.accept(stream).await?;
            let name = stream.get_ref().1.server_name().map(ToOwned::to_owned);
            let named = name.is_some();
            hits.set_name(index, name);
            // The name on the wire is the server name; the Host header stands in where there is none.
            serve_http(stream, &if named { Hits::default() } else { hits }, index).await
        }
        _ => {
            if service == Service::TcpBanner {
                stream.write_all(BANNER.as_bytes()).await?;
            }
            let (mut reader, mut writer) = stream.split();
            tokio::io::copy(&mut reader, &mut writer).await?;
            Ok(())
        }
    }
}

/// One request, one short answer, then the end.
async fn serve_http(mut stream: impl AsyncRead + AsyncWrite + Unpin, hits: &Hits, index: usize) -> Result<()> {
    let mut request = Vec::new();
    let mut chunk = [0; 4096];
    while !request.windows(4).any(|w| w == b"\r\n\r\n") {
        let length = stream.read(&mut chunk).await?;
        if length == 0 || request.len() > 1 << 16 {
            return Ok(());
        }
        request.extend_from_slice(&chunk[..length]);
    }
    let text = String::from_utf8_lossy(&request);
    let host = text.lines().find_map(|line| line.split_once(':').filter(|(name, _)| name.eq_ignore_ascii_case("host")));
    hits.set_name(index, host.map(|(_, value)| value.trim().to_owned()));
    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\nok\n").await?;
    stream.shutdown().await?;
    Ok(())
}

/// A server's answer (RFC 5905, section 7.3) to a client's packet; `None` when it is none.
#[must_use]
pub fn ntp_answer(query: &[u8]) -> Option<Vec<u8>> {
    const CLIENT: u8 = 3;
    const SERVER: u8 = 4;
    if query.len() < 48 || query[0] & 7 != CLIENT {
        return None;
    }
    let mut answer = vec![0; 48];
    // Leap indicator 0, the client's version, mode 4; stratum 2.
    answer[0] = (query[0] & 0b0011_1000) | SERVER;
    answer[1] = 2;
    answer[2] = query[2];
    answer[3] = 0xec;
    // The client's transmit time comes back as the origin time: that is how it knows its own answer.
    answer[24..32].copy_from_slice(&query[40..48]);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    // NTP counts seconds from 1900; era 0 wraps in 2036, as the field does.
    let seconds = (now.as_secs() as u32).wrapping_add(2_208_988_800).to_be_bytes();
    for at in [16, 32, 40] {
        answer[at..at + 4].copy_from_slice(&seconds);
    }
    Some(answer)
}
