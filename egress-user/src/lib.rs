//! Egress' control plane, one module for each arrow of the data's way: policy files are parsed, checked and compiled
//! ([`policy`]), names are resolved ([`resolve`]), both are installed in the kernel ([`datapath`]), whose events come
//! back ([`events`]). The [`daemon`] holds them together, [`api`] shows its state, and the commands are in [`cli`].

pub mod api;
mod beside;
pub mod cli;
pub mod daemon;
pub mod datapath;
pub mod events;
mod inotify;
pub mod learn;
mod memory;
pub mod metrics;
pub mod policy;
pub mod privilege;
pub mod report;
pub mod resolve;
