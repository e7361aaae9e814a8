//! Every type that crosses the kernel boundary, in one place.
//!
//! All of them are `#[repr(C)]` without implicit padding (zerocopy's `IntoBytes` refuses a type that has any), so a map
//! key is the same bytes on both sides. Byte order is the host's unless a field says *network order*. Addresses of
//! both families that share a field are 16 bytes, IPv4 as IPv4-mapped IPv6 (RFC 4291, 2.5.5.2).
//!
//! [`VERSION`] is compared with what is pinned: a map of another version is never reused blindly.

mod address;
mod addresses;
mod config;
mod control;
mod events;
mod flows;
mod names;
mod paths;
mod rehearsal;

pub use address::Address;
pub use addresses::*;
pub use config::*;
pub use control::*;
pub use events::*;
pub use flows::*;
pub use names::*;
pub use paths::*;
pub use rehearsal::*;

/// The version of everything in this module. Bump it with any change to a type, a map's meaning or a map's name.
pub const VERSION: u32 = 9;

/// A point in time or a span, in units of 2^30 nanoseconds (1.074 s) of `CLOCK_MONOTONIC`.
///
/// The kernel gets it from its coarse clock with one shift (a division costs more than the map lookup that follows),
/// and the daemon from the same clock, so no step of the wall clock moves an expiry.
pub type Ticks = u32;

/// How far nanoseconds are shifted to become [`Ticks`].
pub const TICK_SHIFT: u32 = 30;

/// An expiry that never comes: addresses that the policy itself writes down.
pub const NEVER: Ticks = u32::MAX;
