//! What happened, from the kernel's ring buffer to a person: decode, enrich, broadcast, print.
//!
//! `bytes → [decode] → [RawEvent] → [Enricher] → [Event] → [Hub] → subscribers`. Decoding reads nothing but the bytes;
//! the [`Enricher`] alone reads `/proc`, the cgroup tree and the names of pods. The JSON form is documented in `docs/events.md`.

mod cgroup;
mod container;
mod decode;
mod enrich;
mod escape;
mod event;
mod filter;
mod hub;
mod pods;
mod pretty;
mod process;
mod sink;
mod summary;
mod time;

pub use cgroup::CgroupPaths;
pub use container::{Container, Workload};
pub use decode::{DecodeError, RawEvent, decode};
pub use enrich::{Enricher, Known, Nothing, Roots};
pub use escape::escape;
pub use event::{
    Event, Hook, Icmp, Kind, LearnedAddress, LearnedName, Lost, LostWhere, PolicyChange, ProcessInfo, Refusal,
    ResolverTrouble, SCHEMA_VERSION, Verdict,
};
pub use filter::{Filter, To};
pub use hub::{Hub, Item, RECENT, Subscription};
pub use pretty::{Style, line};
pub use sink::{Opened, Running, SinkSpec, Subscribed, Tally, start as start_sinks};
pub use summary::Summary;
pub use time::{Clock, Timestamp};

#[cfg(test)]
mod tests;
