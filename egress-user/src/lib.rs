//! Egress' control plane, one module for each arrow of the data's way: policy files are parsed, checked and compiled
//! ([`policy`]), names are resolved ([`resolve`]), both are installed in the kernel ([`datapath`]); the commands are in
//! [`cli`].

pub mod cli;
pub mod datapath;
pub mod policy;
pub mod resolve;
