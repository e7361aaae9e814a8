//! A question as it goes out over UDP, and whether a datagram answers it. Pure but for the case of its letters.

use hickory_proto::rr::{DNSClass, Name, RecordType};
use rand::RngExt;

const HEADER: usize = 12;

/// The longest answer that is asked for over UDP: what no path fragments (DNS flag day 2020), and what hickory asks for.
const PAYLOAD: u16 = 1232;

/// A whole query, and where its question section ends.
#[derive(Debug)]
pub struct Question {
    datagram: Vec<u8>,
    end: usize,
}

/// What a datagram repeats of a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repeats {
    /// Id and question, to the letter.
    Exactly,
    /// The same in another case: from somebody who guessed, or a resolver that does not keep it.
    InAnotherCase,
    /// Another id or question, or it is no answer at all.
    Not,
}

impl Question {
    /// A recursive query with EDNS(0), in letters of random case (draft-vixie-dnsext-dns0x20). Its id is set later.
    pub fn new(name: &Name, record_type: RecordType) -> Self {
        let mut random = rand::rng();
        let mut datagram = Vec::with_capacity(HEADER + name.len() + 4 + 11);
        // Recursion desired; one question, one additional record.
        datagram.extend_from_slice(&[0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 1]);
        for label in name.iter() {
            // RFC 1035 section 3.1: at most 63 bytes.
            datagram.push(label.len() as u8);
            let cased = |byte: &u8| if byte.is_ascii_alphabetic() && random.random() { byte ^ 0x20 } else { *byte };
            datagram.extend(label.iter().map(cased));
        }
        datagram.push(0);
        datagram.extend_from_slice(&u16::from(record_type).to_be_bytes());
        datagram.extend_from_slice(&u16::from(DNSClass::IN).to_be_bytes());
        let end = datagram.len();
        // RFC 6891 section 6.1.2: the root's name, OPT, the payload, no flags, no options.
        let [high, low] = PAYLOAD.to_be_bytes();
        datagram.extend_from_slice(&[0, 0, 41, high, low, 0, 0, 0, 0, 0, 0]);
        Self { datagram, end }
    }

    pub fn set_id(&mut self, id: u16) {
        self.datagram[..2].copy_from_slice(&id.to_be_bytes());
    }

    /// What is sent.
    pub fn datagram(&self) -> &[u8] {
        &self.datagram
    }

    /// RFC 5452 section 9.1, but for addresses and ports: the socket is connected.
    pub fn repeated_by(&self, answer: &[u8]) -> Repeats {
        let (Some(header), Some(question)) = (answer.get(..HEADER), answer.get(HEADER..self.end)) else {
            return Repeats::Not;
        };
        // A response to a plain query, with one question.
        let answers = header[2] & 0xf8 == 0x80 && header[4..6] == [0, 1];
        if !answers || header[..2] != self.datagram[..2] {
            return Repeats::Not;
        }
        let asked = &self.datagram[HEADER..self.end];
        if question == asked {
            Repeats::Exactly
        } else if question.eq_ignore_ascii_case(asked) {
            // Lengths of labels, types and classes are no letters.
            Repeats::InAnotherCase
        } else {
            Repeats::Not
        }
    }
}

/// Whether an answer says that it is not whole.
pub fn is_truncated(answer: &[u8]) -> bool {
    answer.get(2).is_some_and(|flags| flags & 0x02 != 0)
}
