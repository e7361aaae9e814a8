//! What fuzzing kept, read by the host's parser and by the loaded programs: their verdicts are the same (P3, P5).

use std::fs;
use std::path::Path;

use egress_ebpf::abi::{Config, LearnCount, PROTO_UDP};
use egress_ebpf::reason::Reason;
use egress_tests::fuzz;

use crate::kernel::{DROP, Kernel, LIVE, PASS, allow};

/// Every input of a fuzz target, with its file's name.
fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut inputs: Vec<_> = fs::read_dir(&dir)
        .unwrap_or_else(|error| panic!("read {}: {error}", dir.display()))
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), fs::read(&path).unwrap()))
        .collect();
    inputs.sort();
    assert!(inputs.len() >= 5, "{} has {} inputs", dir.display(), inputs.len());
    inputs
}

/// Queries for any name may leave; malformed ones may not.
fn any_name(kernel: &mut Kernel) {
    kernel.config(Config {
        generation: LIVE,
        epoch: LIVE,
        flags: Config::ENFORCE,
        min_ttl: 56,
        grace: 838,
        ..Config::default()
    });
}

#[test]
fn queries_are_judged_as_on_the_host() {
    let mut kernel = Kernel::load();
    any_name(&mut kernel);
    let mut taken = 0;
    for (file, message) in corpus("dns_query") {
        if message.is_empty() {
            continue;
        }
        let host = fuzz::dns_query(&message);
        assert_eq!(kernel.query(&message), host.is_some(), "{file}: {host:?}");
        taken += usize::from(host.is_some());
    }
    assert!(taken >= 3, "only {taken} are well-formed: the corpus shows nothing");
}

#[test]
fn answers_teach_what_they_teach_on_the_host() {
    let mut teaching = 0;
    let mut kernel = Kernel::load();
    any_name(&mut kernel);
    for (file, message) in corpus("dns_answer") {
        let Some(query) = fuzz::query_of(&message) else { continue };
        let Some(Some(name)) = fuzz::dns_query(&query) else { continue };
        kernel.name(LIVE, &name, allow(7));
        assert!(kernel.query(&query), "{file}");
        // Several files of the corpus say the same.
        kernel.forget_told();
        kernel.answer(&message);
        let host = fuzz::dns_answer(&message);
        let told: Vec<_> = kernel
            .events()
            .into_iter()
            .map(|(_, found)| found.into_iter().map(|one| (one.address.into(), one.ttl)).collect::<Vec<_>>())
            .collect();
        let expected: Vec<_> = host.iter().map(|taught| taught.addresses.clone()).collect();
        assert_eq!(told, expected, "{file}: {name}");
        teaching += usize::from(host.is_some_and(|taught| !taught.addresses.is_empty()));
    }
    assert!(teaching >= 3, "only {teaching} teach anything: the corpus shows nothing");
    assert!(kernel.count(LearnCount::Answers) >= teaching as u64);
}

#[test]
fn packets_are_parsed_as_on_the_host() {
    let mut kernel = Kernel::load();
    let (mut good, mut bad) = (0, 0);
    for (file, bytes) in corpus("packet") {
        // The test run wants what a device would give: a whole IP header at least.
        if bytes.len() < if bytes.first().is_some_and(|byte| byte >> 4 == 6) { 40 } else { 20 } {
            continue;
        }
        let before = refusals(&kernel);
        let returned = kernel.run("uplink_egress", &bytes);
        let refused = newly(&before, &refusals(&kernel));
        match fuzz::packet(&bytes) {
            Err(reason) => {
                assert_eq!((returned, refused), (DROP, Some(reason)), "{file}");
                bad += 1;
            }
            Ok(packet) => {
                assert!(returned == PASS || returned == DROP, "{file}: {returned}");
                assert!(!refused.is_some_and(unread), "{file}: {refused:?}, {packet:?}");
                good += usize::from(packet.proto == PROTO_UDP);
            }
        }
    }
    assert!(good >= 2 && bad >= 2, "{good} good, {bad} bad: the corpus shows nothing");
}

/// The reasons of packets that could not be read.
const fn unread(reason: Reason) -> bool {
    matches!(reason, Reason::Malformed | Reason::SourceRoute)
}

fn refusals(kernel: &Kernel) -> Vec<(Reason, u64)> {
    kernel
        .counters()
        .into_iter()
        .filter(|(reason, _)| !reason.passes())
        .map(|(reason, hits)| (reason, hits.packets))
        .collect()
}

fn newly(before: &[(Reason, u64)], after: &[(Reason, u64)]) -> Option<Reason> {
    after.iter().find(|now| !before.contains(now)).map(|(reason, _)| *reason)
}
