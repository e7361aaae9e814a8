//! P3, P5: false answers from the resolver's own side, and queries that try to slip past, by real clients.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use egress_ebpf::abi::RING_SLOTS;
use egress_ebpf::dns::ring_of;
use egress_tests::dns::address_record;
use egress_tests::model::wire::dns_query;
use egress_tests::probe::tcp;
use egress_tests::world::DNS_V4;
use egress_tests::{Fault, Governed, Place, learned};

use crate::{EVIL, LIMIT, POLICY, assert_harmless, world};

fn dig(place: &Place, name: &str) -> String {
    place.run("dig", &["+short", "+time=1", "+tries=1", name], LIMIT).unwrap().stdout
}

/// P3: answers with a wrong id, question or port, and addresses where no answer is looked for.
#[test]
fn false_answers_on_the_wire_teach_nothing() {
    let test = Governed::over(world(), POLICY).unwrap();
    let evil = IpAddr::from(EVIL);
    let record = |name: &str| address_record(name, 300, evil).unwrap();
    let own = |name: &str| format!("{name}.wild.example.com");
    let faults = [
        ("id", Fault::WrongId),
        ("question", Fault::WrongQuestion(own("other"))),
        ("port", Fault::WrongPort),
        ("additional", Fault::Additional(vec![record(&own("additional"))])),
        ("appended", Fault::Appended(vec![record("bank.test")])),
        ("truncated", Fault::Bytes(vec![0x12, 0x34, 0x81, 0x80, 0, 1, 0, 1])),
    ];
    for (what, fault) in faults {
        let name = own(what);
        // What is wrong is all that speaks against it; of the last three the answer itself is good.
        let real = if matches!(what, "additional" | "appended") { "203.0.113.77" } else { "198.51.100.66" };
        test.world.dns.set_text(&name, 300, &[real]);
        test.world.dns.fault(&name, fault);
        dig(&test.inside, &name);
        assert!(test.world.dns.count(&name) > 0, "{what}: the resolver was not asked");
        assert_harmless(&test, what);
    }
    assert!(tcp(&test.inside, "203.0.113.77:7000").unwrap().echoed, "the good record beside the bad one counts");
}

/// P5: a UDP_SEGMENT send holds a second, forbidden query.
#[test]
fn a_query_hidden_in_a_gso_send_does_not_leave() {
    let test = Governed::over(world(), POLICY).unwrap();
    let good = dns_query("neighbour.wild.example.com");
    // Of the same length, as segments must be.
    let bad = dns_query("hhhhhhhh.tunn.example.test");
    let size = good.len() as libc::c_int;
    assert_eq!(bad.len(), good.len());
    for place in [&test.inside, &test.world.pod().in_cgroup(&test.cgroup), &test.beside] {
        let sent = place.fork(LIMIT, || {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            // SAFETY: the option is one c_int, and its size is given.
            let set = unsafe {
                let value = (&raw const size).cast();
                libc::setsockopt(socket.as_raw_fd(), libc::SOL_UDP, libc::UDP_SEGMENT, value, 4)
            };
            anyhow::ensure!(set == 0, "UDP_SEGMENT: {}", std::io::Error::last_os_error());
            let both = [&good[..], &bad].concat();
            Ok(socket.send_to(&both, SocketAddr::new(DNS_V4.parse()?, 53)).err().and_then(|error| error.raw_os_error()))
        });
        if !std::ptr::eq(place, &raw const test.beside) {
            assert_eq!(sent.unwrap(), Some(libc::EPERM), "a governed socket is told");
        }
    }
    let asked = test.world.dns.asked();
    assert!(asked.iter().all(|asked| !asked.name.contains("tunn")), "{asked:?}");
    assert_harmless(&test, "UDP GSO");
}

/// P5: labels that carry data, under a domain that nobody allows, from every place and transport.
#[test]
fn a_tunnel_in_labels_does_not_leave() {
    let test = Governed::over(world(), POLICY).unwrap();
    let pod = test.world.pod();
    for place in [&test.inside, &test.beside, &pod] {
        for name in ["mfrggzdfmztwq2lknnwg23tpobyxe43u.t.evil.test", "mfrggzdf.mztwq2lk.evil.test"] {
            for transport in ["+notcp", "+tcp"] {
                place.run("dig", &[transport, "+time=1", "+tries=1", "TXT", name], LIMIT).unwrap();
            }
        }
    }
    assert!(test.world.dns.asked().iter().all(|asked| !asked.name.contains("evil")), "{:?}", test.world.dns.asked());
    assert_harmless(&test, "a tunnel");
}

/// P3, P4: askers that flood push out their own queries alone.
#[test]
fn a_flood_of_queries_leaves_a_neighbours_pending_query() {
    let test = Governed::over(world(), POLICY).unwrap();
    let child = |name: &str| test.cgroup.child(name).unwrap();
    let neighbour = child("neighbour");
    let ring = |cgroup: &egress_tests::Cgroup| ring_of(cgroup.id().unwrap());
    // Two of the 128 rings may be one by chance.
    let others: Vec<_> =
        (0..6).map(|n| child(&format!("flood{n}"))).filter(|it| ring(it) != ring(&neighbour)).collect();
    assert!(others.len() >= 2);
    let slow = "slow.wild.example.com";
    test.world.dns.set_text(slow, 60, &["203.0.113.99"]);
    test.world.dns.delay(slow, Duration::from_secs(3));
    test.world.dns.fault("flood.wild.example.com", Fault::Silent);
    let asking = std::thread::scope(|scope| {
        let place = test.world.node().in_cgroup(&neighbour);
        let asking = scope
            .spawn(move || place.run("dig", &["+short", "+time=7", "+tries=1", slow], Duration::from_secs(9)).unwrap());
        while test.world.dns.count(slow) == 0 {
            std::thread::sleep(Duration::from_millis(5));
        }
        for cgroup in &others[..2] {
            let place = test.world.node().in_cgroup(cgroup);
            let sent = place.fork(LIMIT, || {
                let mut query = dns_query("flood.wild.example.com");
                for id in 0..2 * RING_SLOTS as u16 {
                    // A socket of its own for each, so that no two are the same query.
                    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
                    query[..2].copy_from_slice(&id.to_be_bytes());
                    socket.send_to(&query, SocketAddr::new(DNS_V4.parse()?, 53))?;
                }
                Ok(())
            });
            sent.unwrap();
        }
        asking.join().unwrap()
    });
    assert!(asking.stdout.contains("203.0.113.99"), "{asking:?}");
    let displaced = test.daemon.status().unwrap()["learning"].to_string();
    assert!(displaced.contains("displaced"), "the flood was one: {displaced}");
    assert!(learned::addresses(&test.world).unwrap().contains(&"203.0.113.99".parse().unwrap()));
    assert!(tcp(&test.inside, "203.0.113.99:7000").unwrap().echoed);
    assert_harmless(&test, "a flood");
}
