//! From the ring buffer's bytes to the kernel's own types. Reads nothing else.

use egress_ebpf::abi::{ANSWER_MAX, DropEvent, EVENT_DROP, EVENT_LEARNED, LearnedAddress, LearnedEvent};
use zerocopy::{FromBytes, FromZeros as _, IntoBytes as _};

/// A record of the ring buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RawEvent {
    /// See [`DropEvent`].
    Drop(Box<DropEvent>),
    /// See [`LearnedEvent`].
    Learned(Box<LearnedEvent>),
}

/// Why a record cannot be read: the programs in the kernel are of another version. Such a record is counted and left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Not even a kind.
    #[error("event record of {0} bytes, too short for a kind")]
    NoKind(usize),
    /// A kind that this version does not know.
    #[error("event record of unknown kind {0}")]
    UnknownKind(u32),
    /// Shorter than its kind is.
    #[error("event record of kind {kind} has {found} bytes of {expected}")]
    Short {
        /// The kind.
        kind: u32,
        /// Bytes that such a record has.
        expected: usize,
        /// Bytes that it had.
        found: usize,
    },
}

/// Reads one record. Bytes after it are ignored: a later version may append fields.
pub fn decode(bytes: &[u8]) -> Result<RawEvent, DecodeError> {
    let (kind, _) = u32::read_from_prefix(bytes).map_err(|_| DecodeError::NoKind(bytes.len()))?;
    match kind {
        EVENT_DROP => record(kind, bytes).map(RawEvent::Drop),
        EVENT_LEARNED => learned(bytes).map(RawEvent::Learned),
        other => Err(DecodeError::UnknownKind(other)),
    }
}

fn record<T: FromBytes>(kind: u32, bytes: &[u8]) -> Result<Box<T>, DecodeError> {
    let (event, _) = T::read_from_prefix(bytes).map_err(|_| DecodeError::Short {
        kind,
        expected: size_of::<T>(),
        found: bytes.len(),
    })?;
    Ok(Box::new(event))
}

/// A learned event ends after the last address in use: the rest is filled up with zeros.
fn learned(bytes: &[u8]) -> Result<Box<LearnedEvent>, DecodeError> {
    let short = |expected| DecodeError::Short { kind: EVENT_LEARNED, expected, found: bytes.len() };
    if bytes.len() < LearnedEvent::HEAD {
        return Err(short(LearnedEvent::HEAD));
    }
    let mut event = Box::new(LearnedEvent::new_zeroed());
    let len = bytes.len().min(size_of::<LearnedEvent>());
    event.as_mut_bytes()[..len].copy_from_slice(&bytes[..len]);
    let expected = LearnedEvent::HEAD + usize::from(event.count).min(ANSWER_MAX) * size_of::<LearnedAddress>();
    if bytes.len() < expected {
        return Err(short(expected));
    }
    Ok(event)
}
