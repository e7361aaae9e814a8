use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::{
    api::tests::{Fake, status},
    events::Hub,
    resolve::{Miss, Reason},
};

async fn get(address: std::net::SocketAddr, path: &str) -> String {
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    text
}

fn start(status: crate::api::Status, measures: &Measures) -> std::net::SocketAddr {
    let metrics = Metrics::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = metrics.address().unwrap();
    tokio::spawn(metrics.serve(Arc::new(Fake { hub: Hub::default(), status }), measures.clone()));
    address
}

#[tokio::test]
async fn the_state_is_told_as_openmetrics() {
    let measures = Measures::default();
    let miss = Miss { reason: Reason::Timeout, resolver: "10.0.0.53:53".parse().ok(), negative_ttl: None };
    measures.asked(&Err(miss), std::time::Duration::from_secs(1));
    let text = get(start(status(), &measures), "/metrics").await;
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200") && head.contains("application/openmetrics-text"), "{head}");
    for line in [
        "egress_packets_total{verdict=\"pass\",reason=\"rule\"} 1200",
        "egress_packets_total{verdict=\"drop\",reason=\"no-rule\"} 12",
        "egress_rule_packets_total{rule=\"api-server\"} 1200",
        "egress_map_entries{map=\"ADDRESSES_4\"} 60000",
        "egress_map_capacity{map=\"ADDRESSES_4\"} 65536",
        "egress_map_bytes{map=\"ADDRESSES_4\"} 5242880",
        "egress_events_lost_total 5",
        "egress_sink_events_total{sink=\"file:/var/log/egress.jsonl\"} 7",
        "egress_sink_events_lost_total{sink=\"file:/var/log/egress.jsonl\"} 2",
        "egress_attach_points{hook=\"tcx/egress\",state=\"missing\"} 1",
        "egress_attach_points{hook=\"cgroup_skb/egress\",state=\"present\"} 1",
        "egress_names_failing 1",
        "egress_policy_generation 3",
        "egress_healthy 0",
        "egress_resolver_failures_total{resolver=\"10.0.0.53:53\",reason=\"timeout\"} 1",
    ] {
        assert!(body.lines().any(|found| found == line), "{line}\n{body}");
    }
    assert!(body.ends_with("# EOF\n"));
}

#[tokio::test]
async fn rules_past_a_bound_share_a_label() {
    let mut many = status();
    let rule = many.rules[0].clone();
    many.rules =
        (0..600).map(|n| crate::api::RuleStatus { name: format!("r{n}"), packets: 1, ..rule.clone() }).collect();
    let text = get(start(many, &Measures::default()), "/metrics").await;
    assert_eq!(text.lines().filter(|line| line.starts_with("egress_rule_packets_total{")).count(), 501);
    assert!(text.contains("egress_rule_packets_total{rule=\"_other\"} 100"));
}

#[tokio::test]
async fn alive_is_not_ready() {
    let address = start(status(), &Measures::default());
    assert!(get(address, "/healthz").await.starts_with("HTTP/1.1 200"));
    let ready = get(address, "/readyz").await;
    assert!(ready.starts_with("HTTP/1.1 503") && ready.contains("tcx/egress"), "{ready}");
    let mut well = status();
    well.health = crate::api::Health { healthy: true, problems: Vec::new() };
    assert!(get(start(well, &Measures::default()), "/readyz").await.starts_with("HTTP/1.1 200"));
}
