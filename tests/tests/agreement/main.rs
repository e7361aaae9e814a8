//! The product against the slow model of `egress_tests::model`, on random policies, facts and packets: parser, compiler,
//! lowering and decision on the host, and the loaded program by BPF_PROG_TEST_RUN. `EGRESS_SEED` picks other cases.

mod given;
mod host;
mod kernel;
mod tables;

use std::{
    path::PathBuf,
    sync::atomic::{AtomicU64, Ordering},
};

use egress_ebpf::abi::LEARN_AT_UPLINK;
use egress_tests::model::{self, Case, Policy};
use egress_user::{
    datapath::{Resolver, Settings},
    policy::{Compiled, Sources, load},
};
use proptest::{
    strategy::{Strategy, ValueTree},
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};

/// A seed of its own for each thread of a test.
fn seed(thread: u64) -> u64 {
    let seed = std::env::var("EGRESS_SEED").map_or(1, |text| text.parse().expect("EGRESS_SEED is a number"));
    seed * 1000 + thread
}

/// A source of random values that gives the same ones for the same seed.
struct Random(TestRunner);

impl Random {
    fn new(seed: u64) -> Self {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        Self(TestRunner::new_with_rng(Config::default(), TestRng::from_seed(RngAlgorithm::ChaCha, &bytes)))
    }

    fn policy(&mut self) -> Policy {
        model::policy().new_tree(&mut self.0).expect("a policy").current()
    }

    /// Cases of this policy, without CNAMEs of earlier answers: those are what the kernel learns by itself, which
    /// `dns_kernel` tests.
    fn cases(&mut self, policy: &Policy, count: usize) -> Vec<Case> {
        let strategy = model::case_of(policy.clone(), false);
        (0..count).map(|_| strategy.new_tree(&mut self.0).expect("a case").current()).collect()
    }
}

/// Compiles a model's policy from its text, as a user's file is.
fn compile(policy: &Policy) -> Compiled {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let path: PathBuf = std::env::temp_dir().join(format!("agreement-{}-{number}.yaml", std::process::id()));
    std::fs::write(&path, policy.to_yaml()).expect("write a policy");
    let loaded = load(&Sources { policies: vec![path.clone()], ..Sources::default() });
    std::fs::remove_file(path).expect("remove a policy");
    loaded.unwrap_or_else(|error| panic!("{error}\n{}", policy.to_yaml())).compiled
}

fn settings(policy: &Policy) -> Settings {
    let resolver = |address: &std::net::IpAddr| Resolver { address: (*address, 53).into(), trust: LEARN_AT_UPLINK };
    Settings { resolvers: policy.dns.resolvers.iter().map(resolver).collect(), ..Settings::default() }
}

/// Cases on which the two do not agree, with both opinions; a test fails with the first few.
#[derive(Default)]
struct Disagreements(Vec<String>);

impl Disagreements {
    fn compare(&mut self, what: &str, case: &Case, passes: bool, why: &dyn std::fmt::Debug) {
        let model = model::decide(&case.policy, &case.facts, &case.packet);
        if model.pass != passes {
            let text = format!(
                "{what}: model {:?}, product {passes} ({why:?})\n{:?}\n{:?}\n{}",
                model,
                case.packet,
                case.facts,
                case.policy.to_yaml()
            );
            self.0.push(text);
        }
    }

    fn none(self, cases: usize) {
        let shown: Vec<_> = self.0.iter().take(5).cloned().collect();
        assert!(self.0.is_empty(), "{} of {cases} disagree; the first:\n{}", self.0.len(), shown.join("\n---\n"));
    }
}
