//! Resolve, then send at once, on names never seen before, while the daemon comes and goes (P4).

use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use egress_tests::{Cgroup, Daemon, Governed, Place, World};
use serde::{Deserialize, Serialize};

/// `EGRESS_RACE=100000` runs five times as many, in half a minute.
const NAMES: u32 = 20_000;
/// Of each process. As fast as they can, they would be done before the daemon started again for the first time, and all
/// their addresses alive at once.
const PACE: Duration = Duration::from_micros(1_200);
const PROCESSES: u32 = 4;
/// Times that the daemon is ended and started again, by turns killed and told to stop, each followed by a reload.
const ROUNDS: u32 = 10;
const LIMIT: Duration = Duration::from_secs(170);
/// Beside the world's own, which looks names up in a table.
const RESOLVER: &str = "203.0.113.99:53";
const FAR: u16 = 7000;
const SUFFIX: &[u8] = b"\x04race\x07example\x03com\0";

fn policy(round: u32) -> String {
    format!(
        "version: 1
dns: {{minTtl: 2s, grace: 1s}}
rules:
  - {{name: race, to: ['*.race.example.com'], ports: [7000/udp]}}
  - {{name: changes, to: [10.0.0.{round}], ports: [443/tcp]}}
"
    )
}

/// The one address of name number `n`.
fn address(n: u32) -> Ipv4Addr {
    Ipv4Addr::from(0x1400_0000 + 1 + n)
}

/// A resolver that makes every answer up from the number in the name: TTL 1 s.
fn answer(query: &[u8]) -> Option<Vec<u8>> {
    let label = query.get(13..13 + usize::from(*query.get(12)?))?;
    let n: u32 = std::str::from_utf8(label).ok()?.strip_prefix('n')?.parse().ok()?;
    let mut reply = query.to_vec();
    reply[2..8].copy_from_slice(&[0x81, 0x80, 0, 1, 0, 1]);
    reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4]);
    reply.extend(address(n).octets());
    Some(reply)
}

fn question(n: u32) -> Vec<u8> {
    let label = format!("n{n}");
    let mut query = (n as u16).to_be_bytes().to_vec();
    query.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0, label.len() as u8]);
    query.extend(label.as_bytes());
    query.extend(SUFFIX);
    query.extend([0, 1, 0, 1]);
    query
}

/// How one process fared.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Fared {
    sent: u32,
    /// First packets that the system call itself refused.
    refused: u32,
    /// Queries that were refused, or answered by nobody within a second, and asked again.
    again: u32,
}

/// Resolves and sends `first`, `first + PROCESSES`, ... up to `names`.
fn client(first: u32, names: u32) -> io::Result<Fared> {
    let mut fared = Fared::default();
    let asks = UdpSocket::bind("0.0.0.0:0")?;
    asks.connect(RESOLVER)?;
    asks.set_read_timeout(Some(Duration::from_secs(1)))?;
    let sends = UdpSocket::bind("0.0.0.0:0")?;
    let mut buffer = [0; 512];
    let start = Instant::now();
    for n in (first..names).step_by(PROCESSES as usize) {
        if let Some(early) = (PACE * (n / PROCESSES)).checked_sub(start.elapsed()) {
            thread::sleep(early);
        }
        let query = question(n);
        let length = loop {
            if asks.send(&query).is_ok()
                && let Ok(length) = asks.recv(&mut buffer)
                && buffer[..2] == query[..2]
            {
                break length;
            }
            fared.again += 1;
            if fared.again > 50 {
                return Ok(fared);
            }
        };
        let octets: [u8; 4] = buffer[length - 4..length].try_into().expect("four bytes");
        match sends.send_to(&n.to_be_bytes(), SocketAddr::from((octets, FAR))) {
            Ok(_) => fared.sent += 1,
            Err(_) => fared.refused += 1,
        }
    }
    Ok(fared)
}

/// A large receive buffer: the far side must not lose what arrives.
fn widen(socket: &UdpSocket) {
    let bytes: libc::c_int = 64 << 20;
    // SAFETY: an open socket, and an int of the size that is said.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVBUFFORCE,
            (&raw const bytes).cast(),
            size_of_val(&bytes) as u32,
        )
    };
    assert_eq!(set, 0, "{}", io::Error::last_os_error());
}

/// Runs `body` on each datagram of a socket until `over`.
fn serve(
    socket: UdpSocket,
    over: Arc<AtomicBool>,
    mut body: impl FnMut(&UdpSocket, &[u8], SocketAddr) + Send + 'static,
) {
    socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    widen(&socket);
    thread::spawn(move || {
        let mut buffer = [0; 512];
        while !over.load(Ordering::Relaxed) {
            if let Ok((length, from)) = socket.recv_from(&mut buffer) {
                body(&socket, &buffer[..length], from);
            }
        }
    });
}

fn start_daemon(world: &World, cgroup: &Cgroup, policy: &str) -> Daemon {
    Daemon::builder(world).policy_text(policy).cgroup(cgroup).resolvers(&[RESOLVER]).start().unwrap()
}

#[test]
fn no_first_packet_is_lost_while_the_daemon_comes_and_goes() {
    let names: u32 = std::env::var("EGRESS_RACE").map_or(NAMES, |text| text.parse().expect("EGRESS_RACE is a number"));
    let world = World::new().unwrap();
    let over = Arc::new(AtomicBool::new(false));
    let (resolver, far) =
        world.world_ns.run(|| (UdpSocket::bind(RESOLVER).unwrap(), UdpSocket::bind(("0.0.0.0", FAR)).unwrap()));
    serve(resolver, Arc::clone(&over), |socket, query, from| {
        if let Some(reply) = answer(query) {
            let _ = socket.send_to(&reply, from);
        }
    });
    let arrived: Arc<Vec<AtomicU8>> = Arc::new((0..names).map(|_| AtomicU8::new(0)).collect());
    let (total, seen) = (Arc::new(AtomicU32::new(0)), Arc::clone(&arrived));
    let counted = Arc::clone(&total);
    serve(far, Arc::clone(&over), move |_, bytes, _| {
        let n = bytes.try_into().map(u32::from_be_bytes).expect("four bytes");
        seen[n as usize].fetch_add(1, Ordering::Relaxed);
        counted.fetch_add(1, Ordering::Relaxed);
    });

    let cgroup = Cgroup::new("governed").unwrap();
    let (inside, beside) = (world.node().in_cgroup(&cgroup), world.node());
    let daemon = start_daemon(&world, &cgroup, &policy(0));
    let mut test = Governed { daemon, inside, beside, cgroup, world };
    let place: Place = test.inside.clone();
    let start = Instant::now();
    let fared: Vec<Fared> = thread::scope(|scope| {
        let clients: Vec<_> = (0..PROCESSES)
            .map(|first| {
                let place = &place;
                scope.spawn(move || place.fork(LIMIT, || Ok(client(first, names)?)).unwrap())
            })
            .collect();
        for round in 1..=ROUNDS {
            // Spread over the whole run, whatever its length.
            while total.load(Ordering::Relaxed) < names / (ROUNDS + 1) * round && start.elapsed() < LIMIT {
                thread::sleep(Duration::from_millis(1));
            }
            if round % 2 == 0 { test.daemon.kill() } else { test.daemon.stop() }.unwrap();
            thread::sleep(Duration::from_millis(20));
            let next = start_daemon(&test.world, &test.cgroup, &policy(round - 1));
            test.follow(next);
            let generation = test.daemon.status().unwrap()["generation"].clone();
            test.reload(&policy(round), |status| status["generation"] != generation).unwrap();
        }
        clients.into_iter().map(|client| client.join().unwrap()).collect()
    });
    let took = start.elapsed();
    let settle = Instant::now();
    while total.load(Ordering::Relaxed) < names && settle.elapsed() < Duration::from_secs(2) {
        thread::sleep(Duration::from_millis(5));
    }
    over.store(true, Ordering::Relaxed);
    println!("{names} names in {took:?}: {fared:?}");
    let lost: Vec<usize> = (0..names as usize).filter(|n| arrived[*n].load(Ordering::Relaxed) != 1).collect();
    assert!(
        lost.is_empty(),
        "{} first packets did not arrive once, among them {:?}",
        lost.len(),
        &lost[..lost.len().min(9)]
    );
    let sent: u32 = fared.iter().map(|one| one.sent).sum();
    let refused: u32 = fared.iter().map(|one| one.refused + one.again).sum();
    assert_eq!((sent, refused), (names, 0), "{fared:?}");
}
