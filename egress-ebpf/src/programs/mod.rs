//! The attach points, in a form for these tests alone.

mod dns;
mod hooks;
mod learn;
mod maps;
mod maps_names;
mod report;
mod skb;
mod tables;
