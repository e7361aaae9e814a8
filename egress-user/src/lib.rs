//! Egress' control plane, as a library: see the module of each part.

pub mod api;
pub mod events;
