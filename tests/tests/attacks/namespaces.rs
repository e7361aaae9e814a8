//! P3: an unprivileged user with namespaces of its own, in which it is the trusted resolver itself.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use egress_tests::attacker::{answer, forged, into_own_namespaces, tap, tun_device};
use egress_tests::model::wire::dns_query;
use egress_tests::world::DNS_V4;
use egress_tests::{Cgroup, Daemon, Governed};

use crate::{EVIL, LIMIT, POLICY, assert_harmless, world};

const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
const WAIT: Duration = Duration::from_millis(800);

/// Where the false resolver has its address.
#[derive(Clone, Copy, Debug)]
enum Way {
    Loopback,
    Dummy,
    Tap,
    Veth,
}

fn resolver() -> SocketAddrV4 {
    SocketAddrV4::new(DNS_V4.parse().expect("an address"), 53)
}

/// Asks the trusted resolver's address in a network of its own making, and is answered by itself.
fn act_as_resolver(way: Way, name: &str) -> Result<bool> {
    let device = tun_device()?;
    into_own_namespaces()?;
    let query = dns_query(name);
    match way {
        Way::Loopback => ip(&format!("link set lo up\naddr add {DNS_V4}/32 dev lo\naddr add {CLIENT}/24 dev lo"))?,
        Way::Dummy => {
            ip("link set lo up")?;
            // A kernel without dummy interfaces has bridges, which without a port are the same.
            ip("link add d0 type dummy").or_else(|_| ip("link add d0 type bridge"))?;
            ip(&format!("link set d0 up\naddr add {CLIENT}/24 dev d0\naddr add {DNS_V4}/32 dev d0"))?;
        }
        Way::Tap => {
            let mut device = tap(&device, "t0")?;
            ip(&format!(
                "link set t0 up\naddr add {CLIENT}/24 dev t0\nroute add {DNS_V4} dev t0\n\
                 neigh add {DNS_V4} lladdr 02:00:00:00:00:53 dev t0"
            ))?;
            return ask(&query, move |ready| {
                ready();
                let mut frame = [0; 2048];
                loop {
                    let length = device.read(&mut frame)?;
                    // An Ethernet header, an IPv4 one without options, UDP to port 53: the query.
                    if length > 42 && frame[12..14] == [8, 0] && frame[23] == 17 && frame[36..38] == [0, 53] {
                        let port = u16::from_be_bytes([frame[34], frame[35]]);
                        let said = answer(&frame[42..length], EVIL);
                        let packet = forged(resolver(), SocketAddrV4::new(CLIENT, port), &said);
                        let reply = egress_tests::attacker::frame([2, 0, 0, 0, 0, 0x53], mac(&frame), &packet);
                        device.write_all(&reply)?;
                        return Ok(());
                    }
                }
            });
        }
        Way::Veth => ip("link set lo up")?,
    }
    let veth = matches!(way, Way::Veth);
    ask(&query, move |ready| {
        if veth {
            // A thread of its own in a second namespace, joined to the first by a veth pair.
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)?;
            let first = std::process::id();
            ip(&format!(
                "link add v1 type veth peer name v0 netns {first}\nlink set v1 up\naddr add {DNS_V4}/32 dev v1\nroute add {CLIENT} dev v1"
            ))?;
        }
        let server = UdpSocket::bind(resolver())?;
        server.set_read_timeout(Some(WAIT * 4))?;
        ready();
        let mut buffer = [0; 512];
        let (length, from) = server.recv_from(&mut buffer)?;
        server.send_to(&answer(&buffer[..length], EVIL), from)?;
        Ok(())
    })
}

fn mac(frame: &[u8]) -> [u8; 6] {
    let mut mac = [0; 6];
    mac.copy_from_slice(&frame[6..12]);
    mac
}

/// Runs the false resolver on a thread, asks it, and gives whether its answer came.
fn ask(query: &[u8], serve: impl FnOnce(&dyn Fn()) -> Result<()> + Send + 'static) -> Result<bool> {
    let (sender, ready) = std::sync::mpsc::channel();
    let server = std::thread::spawn(move || {
        let said = sender.clone();
        let result = serve(&move || {
            let _ = said.send(());
        });
        drop(sender);
        result
    });
    if ready.recv_timeout(Duration::from_secs(4)).is_err() {
        server.join().map_err(|_| anyhow::anyhow!("the server's thread panicked"))??;
        anyhow::bail!("the server was not ready");
    }
    let _ = ip(&format!("link set v0 up\naddr add {CLIENT}/32 dev v0\nroute add {DNS_V4} dev v0"));
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.set_read_timeout(Some(WAIT / 4))?;
    let mut buffer = [0; 512];
    // A link that just came up may lose what is sent at first.
    let arrived = (0..12).any(|_| {
        let sent = socket.send_to(query, resolver()).is_ok();
        sent && socket.recv_from(&mut buffer).is_ok_and(|(_, from)| from == SocketAddr::V4(resolver()))
    });
    if arrived {
        server.join().map_err(|_| anyhow::anyhow!("the server's thread panicked"))??;
    }
    Ok(arrived)
}

fn ip(lines: &str) -> Result<()> {
    let mut child = Command::new("ip")
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    child.stdin.take().context("piped")?.write_all(format!("{lines}\n").as_bytes())?;
    let out = child.wait_with_output()?;
    ensure!(out.status.success(), "ip: {}", String::from_utf8_lossy(&out.stderr));
    Ok(())
}

fn attack(test: &Governed) {
    for (number, way) in [Way::Loopback, Way::Dummy, Way::Tap, Way::Veth].into_iter().enumerate() {
        let name = format!("own{number}.wild.example.com");
        let arrived = test.inside.fork(LIMIT, || act_as_resolver(way, &name)).unwrap();
        // The attack is real: its own process does get the answer.
        assert!(arrived, "{way:?}: the false resolver was not heard");
        assert_eq!(test.world.dns.count(&name), 0, "{way:?}");
        assert_harmless(test, &format!("{way:?}"));
    }
}

#[test]
fn a_resolver_in_a_namespace_of_ones_own_teaches_nothing() {
    attack(&Governed::over(world(), POLICY).unwrap());
}

/// Where answers are believed at the cgroup, it is the socket's namespace that decides.
#[test]
fn a_resolver_in_a_namespace_of_ones_own_teaches_nothing_without_an_uplink() {
    let world = world();
    let cgroup = Cgroup::new("governed").unwrap();
    let daemon = Daemon::builder(&world).policy_text(POLICY).cgroup(&cgroup).interfaces(&[]).start().unwrap();
    let (inside, beside) = (world.node().in_cgroup(&cgroup), world.node());
    attack(&Governed { daemon, inside, beside, cgroup, world });
}
