use hickory_proto::op::{Message, MessageType};
use hickory_proto::rr::RecordType;

use super::server::name;
use crate::resolve::question::{Question, Repeats, is_truncated};

const NAME: &str = "www.some-long-name.example.com";

fn question(id: u16) -> Question {
    let mut question = Question::new(&name(NAME), RecordType::AAAA);
    question.set_id(id);
    question
}

/// An answer to it, as hickory writes one.
fn answer(question: &Question) -> Vec<u8> {
    let mut message = Message::from_vec(question.datagram()).unwrap();
    message.metadata.message_type = MessageType::Response;
    message.to_vec().unwrap()
}

#[test]
fn it_is_a_query_that_others_read() {
    let message = Message::from_vec(question(0xabcd).datagram()).unwrap();
    assert_eq!((message.metadata.id, message.metadata.message_type), (0xabcd, MessageType::Query));
    assert!(message.metadata.recursion_desired && !message.metadata.truncation);
    let [asked] = &*message.queries else { panic!("{:?}", message.queries) };
    assert_eq!((asked.name(), asked.query_type()), (&name(NAME), RecordType::AAAA));
    let edns = message.edns.unwrap();
    assert_eq!((edns.max_payload(), edns.version()), (1232, 0));
    assert!(!edns.flags().dnssec_ok);
}

#[test]
fn its_letters_are_of_random_case() {
    let written = |_| question(0).datagram()[12..].to_vec();
    let mut forms: Vec<_> = (0..100).map(written).collect();
    forms.sort();
    forms.dedup();
    // Of 2 to the power of 26.
    assert!(forms.len() > 98, "{}", forms.len());
}

#[test]
fn only_what_repeats_it_to_the_letter_answers_it() {
    let asked = question(7);
    let good = answer(&asked);
    assert_eq!(asked.repeated_by(&good), Repeats::Exactly);
    let changed = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] ^= byte;
        asked.repeated_by(&bytes)
    };
    assert_eq!(changed(13, 0x20), Repeats::InAnotherCase, "one letter");
    let end = 12 + NAME.len() + 2;
    for (at, byte, what) in [
        (0, 1, "id"),
        (1, 1, "id"),
        (2, 0x80, "a query"),
        (2, 0x28, "an update"),
        (5, 3, "two questions"),
        (5, 1, "no question"),
        (13, 0x01, "another name"),
        (12, 0x20, "another length"),
        (end + 1, 29, "another type"),
        (end + 3, 2, "another class"),
    ] {
        assert_eq!(changed(at, byte), Repeats::Not, "{what}");
    }
    for length in 0..end + 4 {
        assert_eq!(asked.repeated_by(&good[..length]), Repeats::Not, "{length} bytes");
    }
    assert_eq!(asked.repeated_by(&answer(&question(8))), Repeats::Not);
}

#[test]
fn what_is_not_whole_is_known_by_its_header() {
    let mut bytes = answer(&question(7));
    assert!(!is_truncated(&bytes));
    bytes[2] |= 0x02;
    assert!(is_truncated(&bytes) && !is_truncated(&[]));
}
