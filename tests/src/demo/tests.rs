//! The demo's own judgement: what counts as expected, as an arrival, and as the daemon's word.

use serde_json::json;

use super::clients::Client;
use super::*;

fn outcome(expect_pass: bool, client: bool, world: bool, daemon: Option<bool>) -> Outcome {
    let address = "203.0.113.66".parse().unwrap();
    let frame = Frame {
        ifindex: 1,
        ether_type: 0x0800,
        source: None,
        destination: Some(address),
        protocol: Some(6),
        source_port: Some(40_000),
        destination_port: Some(443),
        payload: Vec::new(),
        bytes: Vec::new(),
    };
    let row = Row {
        section: "",
        destination: String::new(),
        tried: "",
        from: From::Node,
        allowed: expect_pass,
        client: Client::Ping { to: String::new() },
        watch: vec![Watch::To { address, protocol: 6, port: Some(443) }],
    };
    Outcome {
        row,
        told: Told { pass: client, words: String::new() },
        frames: if world { vec![frame] } else { Vec::new() },
        events: daemon.map(|dropped| if dropped { vec![json!({})] } else { Vec::new() }),
        expect_pass,
    }
}

#[test]
fn a_row_is_as_expected_only_when_client_world_and_daemon_agree() {
    for expect in [true, false] {
        for client in [true, false] {
            for world in [true, false] {
                for dropped in [true, false] {
                    let good = client == expect && world == expect && dropped != expect;
                    let row = outcome(expect, client, world, Some(dropped));
                    assert_eq!(
                        row.as_expected(),
                        good,
                        "expect {expect} client {client} world {world} dropped {dropped}"
                    );
                }
                let row = outcome(expect, client, world, None);
                assert_eq!(row.as_expected(), client == expect && world == expect);
            }
        }
    }
}

#[test]
fn a_question_is_found_in_what_arrives() {
    let mut frame = outcome(true, true, true, None).frames.remove(0);
    (frame.protocol, frame.destination_port) = (Some(17), Some(53));
    frame.payload = crate::model::dns_query("Data.Tunnel.forbidden.example");
    let asks = |name: &str| Watch::Question(name.into());
    assert!(asks("data.tunnel.forbidden.example").matches(&frame));
    assert!(!asks("data.other.forbidden.example").matches(&frame));
    frame.destination_port = Some(54);
    assert!(!asks("data.tunnel.forbidden.example").matches(&frame));
}

#[test]
fn an_event_counts_for_its_own_destination_only() {
    let to = |address: &str| Watch::To { address: address.parse().unwrap(), protocol: 6, port: None };
    let event = json!({"destination": "2001:db8:66::66", "port": 443});
    assert!(to("2001:db8:66:0::66").named_in(&event));
    assert!(!to("203.0.113.66").named_in(&event));
    let event = json!({"question": "data.tunnel.FORBIDDEN.example"});
    assert!(Watch::Question("data.tunnel.forbidden.example".into()).named_in(&event));
    assert!(!Watch::Question("azmk8s.io".into()).named_in(&event));
}
