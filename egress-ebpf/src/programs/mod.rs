//! The attach points: thin shells that read the packet, ask the library, and write down what it says to remember.

mod cgroup_skb;
mod clock;
mod denial;
mod dns;
mod global;
mod learn;
mod log;
mod lsm;
mod maps;
mod maps_names;
mod paths;
mod rehearsal;
mod report;
mod skb;
mod sock_addr;
mod sock_create;
mod sockets;
mod tables;
mod uplink;
mod workload;
