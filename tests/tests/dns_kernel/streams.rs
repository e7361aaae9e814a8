//! Answers over TCP: where in the stream they begin, and that their segments are put together (P3, P4; decision 0019).

use crate::{
    kernel::{CLIENT, Kernel, LIVE, PASS, PORT, RESOLVER, allow},
    wire::{self, Data::Address},
};

const SYN_ACK: u8 = 0x12;
const ACK: u8 = 0x18;
/// So that the numbers of every stream here go over the end of their range.
const FIRST: u32 = u32::MAX - 20;
const NAME: &str = "www.example.com";

fn framed(message: &[u8]) -> Vec<u8> {
    [&(message.len() as u16).to_be_bytes(), message].concat()
}

/// What the resolver sends by one connection.
struct Stream {
    kernel: Kernel,
}

impl Stream {
    fn open() -> Self {
        let mut stream = Self { kernel: Kernel::load() };
        stream.kernel.name(LIVE, NAME, allow(7));
        stream.handshake();
        stream
    }

    fn handshake(&mut self) {
        self.segment(0, SYN_ACK, &[]);
    }

    fn segment(&mut self, at: u32, flags: u8, payload: &[u8]) {
        let segment = wire::segment((RESOLVER, 53), (CLIENT, PORT), FIRST.wrapping_add(at), flags, payload);
        assert_eq!(self.kernel.run("uplink_ingress", &segment), PASS);
    }

    /// `at` is counted from the stream's first byte.
    fn arrives(&mut self, at: usize, payload: &[u8]) {
        self.segment(1 + at as u32, ACK, payload);
    }

    fn asks(&mut self, id: u16) {
        let query = wire::tcp(CLIENT, PORT, RESOLVER, 53, &framed(&wire::query(id, NAME)));
        assert_eq!(self.kernel.run("uplink_egress", &query), PASS);
    }

    fn learned(&mut self, address: &str) -> bool {
        self.kernel.classes(LIVE, address) == [7]
    }
}

/// An answer with 60 addresses of which the last is this one: about 1,000 bytes.
fn answer(id: u16, last: &str) -> Vec<u8> {
    let others: Vec<_> = (0..59).map(|n| format!("198.51.100.{n}")).collect();
    let mut records: Vec<_> = others.iter().map(|address| (NAME, 30, Address(address))).collect();
    records.push((NAME, 30, Address(last)));
    framed(&wire::answer(id, NAME, &records))
}

#[test]
fn segments_of_an_answer_are_put_together() {
    for size in [2, 3, 400, 536, 900] {
        let mut stream = Stream::open();
        let mut at = 0;
        for (id, address) in [(1, "203.0.113.1"), (2, "203.0.113.2")] {
            stream.asks(id);
            let answer = answer(id, address);
            for part in answer.chunks(size) {
                assert!(!stream.learned(address), "{size}: before it was complete");
                stream.arrives(at, part);
                at += part.len();
            }
            assert!(stream.learned(address), "{size}");
        }
    }
}

#[test]
fn what_is_sent_again_counts_once_and_several_messages_may_share_a_segment() {
    let mut stream = Stream::open();
    (1..=4).for_each(|id| stream.asks(id));
    let answers: Vec<_> = (1..=4).map(|id| answer(id, &format!("203.0.113.{id}"))).collect();
    let all = answers.concat();
    let (one, three) = (answers[0].len(), answers[0].len() * 3);
    stream.arrives(0, &all[..500]);
    stream.arrives(0, &all[..500]);
    stream.arrives(300, &all[300..one - 1]);
    assert!(!stream.learned("203.0.113.1"));
    // The first one's last byte, the second and third, and half of the fourth.
    stream.arrives(one - 1, &all[one - 1..three + 500]);
    assert!((1..=2).all(|id| stream.learned(&format!("203.0.113.{id}"))));
    // Of a third one in one segment only its length is looked at.
    assert!(!stream.learned("203.0.113.3"));
    stream.arrives(three, &all[three..]);
    assert!(stream.learned("203.0.113.4"));
}

/// Text that a resolver passes on for an attacker, cut by the attacker's choice of the segments' size, is no message (P3).
#[test]
fn the_middle_of_a_message_teaches_nothing() {
    let forged = answer(9, "203.0.113.66");
    for opened in [true, false] {
        let mut stream = Stream::open();
        if !opened {
            // Of a connection from before the start its first byte is not known.
            stream = Stream { kernel: Kernel::load() };
            stream.kernel.name(LIVE, NAME, allow(7));
        }
        stream.asks(9);
        let outer = framed(&[&[0; 400][..], &forged].concat());
        if opened {
            stream.arrives(0, &outer[..402]);
        }
        stream.arrives(402, &outer[402..]);
        assert!(!stream.learned("203.0.113.66"), "{opened}");
        // Nor after a gap, nor after that.
        stream.arrives(outer.len() + 7, &forged);
        stream.arrives(outer.len() + 7 + forged.len(), &forged);
        assert!(!stream.learned("203.0.113.66"), "{opened}");
    }
}

#[test]
fn too_long_answers_are_passed_over() {
    let mut stream = Stream::open();
    stream.asks(1);
    let long = framed(&[0; 5000]);
    stream.arrives(0, &long[..1460]);
    stream.arrives(1460, &long[1460..]);
    let next = answer(1, "203.0.113.1");
    stream.arrives(long.len(), &next[..100]);
    stream.arrives(long.len() + 100, &next[100..]);
    assert!(stream.learned("203.0.113.1"));
}

/// More messages come in part than there is room for: the one that waits for longest is not learned, the others are.
#[test]
fn a_flood_of_halves_takes_the_oldest_halfs_place() {
    let mut stream = Stream::open();
    stream.asks(1);
    let half = answer(1, "203.0.113.1");
    stream.arrives(0, &half[..600]);
    for port in 1..=128 {
        for (at, flags, payload) in [(0, SYN_ACK, &half[..0]), (1, ACK, &half[..600])] {
            let to = (CLIENT, 2000 + port);
            stream.kernel.run("uplink_ingress", &wire::segment((RESOLVER, 53), to, at, flags, payload));
        }
    }
    stream.arrives(600, &half[600..]);
    assert!(!stream.learned("203.0.113.1"));
    stream.asks(2);
    let next = answer(2, "203.0.113.2");
    stream.arrives(half.len(), &next[..600]);
    stream.arrives(half.len() + 600, &next[600..]);
    assert!(stream.learned("203.0.113.2"));
}
