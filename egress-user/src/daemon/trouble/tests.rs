use std::time::Duration;

use tokio::time::Instant;

use super::*;

const ONE: &str = "192.0.2.53:53";

fn failure(name: &str, family: Family, reason: Reason) -> Failure {
    Failure {
        name: name.into(),
        family,
        reason,
        resolver: ONE.parse().ok(),
        at: Instant::now(),
        kept: Vec::new(),
        kept_aliases: Vec::new(),
        retry_in: Duration::from_secs(1),
    }
}

fn answer(name: &str) -> Answer {
    Answer {
        name: name.into(),
        addresses: vec![("203.0.113.1".parse().unwrap(), Duration::from_secs(60))],
        aliases: Vec::new(),
        resolver: ONE.parse().unwrap(),
        at: Instant::now(),
    }
}

#[test]
fn a_dead_resolver_is_told_once_and_its_return_once() {
    let mut troubles = Troubles::default();
    let told: Vec<_> = ["a.example", "b.example", "c.example"]
        .iter()
        .flat_map(|name| Family::BOTH.map(|family| failure(name, family, Reason::Timeout)))
        .filter_map(|failure| troubles.failed(&failure))
        .collect();
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!((told[0].resolver.as_deref(), told[0].name.as_deref(), told[0].recovered), (Some(ONE), None, false));
    let ended = troubles.answered(&answer("a.example"));
    assert_eq!(ended.len(), 1, "{ended:?}");
    assert!(ended[0].recovered);
    assert!(troubles.answered(&answer("b.example")).is_empty());
    assert!(troubles.failed(&failure("a.example", Family::V4, Reason::Timeout)).is_some());
}

#[test]
fn a_name_that_does_not_exist_is_told_once_and_by_its_name() {
    let mut troubles = Troubles::default();
    let told = troubles.failed(&failure("a.example", Family::V4, Reason::NxDomain)).unwrap();
    assert_eq!(told.name.as_deref(), Some("a.example"));
    assert_eq!(troubles.failed(&failure("a.example", Family::V6, Reason::NxDomain)), None);
    assert_eq!(troubles.failed(&failure("a.example", Family::V4, Reason::NxDomain)), None);
    assert!(troubles.failed(&failure("a.example", Family::V4, Reason::ServFail)).is_some());
    assert!(troubles.answered(&answer("b.example")).is_empty());
    // The other family's failure is what it was, and stays told.
    assert_eq!(troubles.answered(&answer("a.example"))[0].name.as_deref(), Some("a.example"));
    assert!(troubles.answered(&answer("a.example")).is_empty());
    assert_eq!(troubles.failed(&failure("a.example", Family::V6, Reason::NxDomain)), None);
    // Both failed for one reason: both are over.
    troubles.failed(&failure("b.example", Family::V4, Reason::NxDomain));
    troubles.failed(&failure("b.example", Family::V6, Reason::NxDomain));
    assert_eq!(troubles.answered(&answer("b.example")).len(), 1);
    assert!(troubles.failed(&failure("b.example", Family::V6, Reason::NxDomain)).is_some());
}
