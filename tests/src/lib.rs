//! The harness of the kernel tests: a node, a world, and everything in between, on one machine.
//!
//! ```no_run
//! use std::time::Duration;
//! use egress_tests::{Cgroup, Daemon, Service, World};
//!
//! let world = World::new().unwrap();
//! world.dns.set_text("example.com", 30, &["203.0.113.80"]);
//! world.serve(Service::Https, "203.0.113.80:443").unwrap();
//! let cgroup = Cgroup::new("demo").unwrap();
//! let mut daemon = Daemon::builder(&world).policy_text("version: 1\n").cgroup(&cgroup).start().unwrap();
//! let run = world.node().in_cgroup(&cgroup).run("curl", &["https://203.0.113.80"], Duration::from_secs(5)).unwrap();
//! assert!(!run.ok());
//! daemon.stop().unwrap();
//! ```
//!
//! Kernel tests need root; a guard that cannot do its part says so, and nothing is skipped silently.

pub mod attacker;
pub mod bench;
pub mod cgroup;
pub mod chaos;
pub mod clients;
pub mod daemon;
pub mod demo;
pub mod dns;
pub mod fuzz;
pub mod governed;
pub mod held;
pub mod learned;
pub mod local_stubs;
pub mod mntns;
pub mod model;
pub mod netns;
pub mod place;
pub mod probe;
pub mod resolvers;
pub mod servers;
pub mod skip;
pub mod sniffer;
pub mod stub;
pub mod threads;
pub mod tls;
pub mod world;

pub use cgroup::Cgroup;
pub use daemon::Daemon;
pub use dns::{Dns, Fault};
pub use governed::Governed;
pub use held::{EchoServer, Held};
pub use mntns::MountNs;
pub use netns::NetNs;
pub use place::{Place, Run};
pub use servers::{Hit, Hits, Service};
pub use skip::skip;
pub use sniffer::{Frame, Sniffer};
pub use world::World;
