//! P3: answers that a container forges, its own way round: raw IP, AF_PACKET on its loopback, AF_PACKET out of its veth.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::time::Duration;

use egress_tests::attacker::{answer, as_container, forged};
use egress_tests::model::wire::dns_query;
use egress_tests::probe::{send_frame, send_ip};
use egress_tests::world::{DNS_V4, POD_V4, POD_VETH};
use egress_tests::{Cgroup, Daemon, Fault, Governed, Place};

use crate::{EVIL, LIMIT, POLICY, assert_harmless, world};

/// How a container gets its forged answer to its own socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    RawOverLoopback,
    PacketOnLoopback,
    HairpinnedByTheHost,
}

/// Asks the trusted resolver, which keeps silent, and answers in its stead. Gives whether the forged answer arrived.
fn forge(place: &Place, way: Way, gateway: [u8; 6], name: &str) -> bool {
    let resolver = SocketAddrV4::new(DNS_V4.parse().unwrap(), 53);
    let own: Ipv4Addr = POD_V4.parse().unwrap();
    let arrived = place.fork(LIMIT, || {
        as_container()?;
        let socket = UdpSocket::bind((own, 0))?;
        socket.set_read_timeout(Some(Duration::from_millis(300)))?;
        let SocketAddr::V4(local) = socket.local_addr()? else { anyhow::bail!("an IPv4 socket") };
        let query = dns_query(name);
        socket.send_to(&query, resolver)?;
        // The uplink has seen the query before an answer to it can count.
        std::thread::sleep(Duration::from_millis(20));
        let packet = forged(resolver, local, &answer(&query, EVIL));
        match way {
            Way::RawOverLoopback => send_ip(&packet, own.into())?,
            Way::PacketOnLoopback => send_frame("lo", [0; 6], &packet)?,
            Way::HairpinnedByTheHost => send_frame("eth0", gateway, &packet)?,
        }
        let mut buffer = [0; 512];
        Ok(socket.recv_from(&mut buffer).is_ok_and(|(_, from)| from == SocketAddr::V4(resolver)))
    });
    arrived.unwrap()
}

fn silent(test: &Governed, name: &str) {
    test.world.dns.fault(name, Fault::Silent);
}

/// P3: under `run` with an uplink; the container's own namespaces and loopback do not teach.
#[test]
fn a_containers_forged_answers_teach_nothing() {
    let test = Governed::over(world(), POLICY).unwrap();
    attack(&test);
    let told = test.event(|event| event["reason"] == "forged-resolver" && event["hook"] == "workload-ingress");
    let told = told.unwrap().unwrap_or_else(|| panic!("no event: {:?}", test.daemon.events(true)));
    assert_eq!(told["source"], DNS_V4);
}

/// P3: the same where answers are believed at the cgroup.
#[test]
fn a_containers_forged_answers_teach_nothing_without_an_uplink() {
    let world = world();
    let cgroup = Cgroup::new("governed").unwrap();
    let daemon = Daemon::builder(&world).policy_text(POLICY).cgroup(&cgroup).interfaces(&[]).start().unwrap();
    let (inside, beside) = (world.node().in_cgroup(&cgroup), world.node());
    attack(&Governed { daemon, inside, beside, cgroup, world });
}

fn attack(test: &Governed) {
    let at_uplink = test.daemon.status().unwrap()["attach_points"].to_string().contains("uplink");
    let pod = test.world.pod().in_cgroup(&test.cgroup);
    let gateway = test.world.node_ns.mac(POD_VETH).unwrap();
    for (number, way) in [Way::RawOverLoopback, Way::PacketOnLoopback, Way::HairpinnedByTheHost].into_iter().enumerate()
    {
        let name = format!("n{number}.wild.example.com");
        silent(test, &name);
        let arrived = forge(&pod, way, gateway, &name);
        // The attack is real: where no program stops the packet itself, the forged answer does come to the socket.
        let stopped = at_uplink && way == Way::HairpinnedByTheHost;
        assert_eq!(arrived, !stopped, "{way:?}");
        // A forged answer may come before the resolver has read the query.
        let start = std::time::Instant::now();
        while test.world.dns.count(&name) == 0 && start.elapsed() < LIMIT {
            std::thread::sleep(Duration::from_millis(2));
        }
        assert_eq!(test.world.dns.count(&name), 1, "{way:?}: the query itself left");
        assert_harmless(test, &format!("{way:?}"));
    }
}

/// P4: a resolver that really is in a workload answers, and what it asks for is learned at the uplink.
#[test]
fn a_resolver_in_a_pod_may_answer() {
    let world = world();
    let pod = world.pod_ns.as_ref().unwrap();
    world.dns.listen(pod, world.runtime(), SocketAddr::new(POD_V4.parse().unwrap(), 53)).unwrap();
    world.set_resolvers(&[POD_V4]).unwrap();
    let cgroup = Cgroup::new("governed").unwrap();
    let daemon =
        Daemon::builder(&world).policy_text(POLICY).cgroup(&cgroup).resolvers(&[POD_V4, DNS_V4]).start().unwrap();
    let found =
        world.node().in_cgroup(&cgroup).run("getent", &["ahostsv4", "neighbour.wild.example.com"], LIMIT).unwrap();
    assert!(found.stdout.contains(crate::NEIGHBOUR), "{found:?}");
    assert!(daemon.events(true).unwrap().iter().all(|event| event["reason"] != "forged-resolver"));
}
