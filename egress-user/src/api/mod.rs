//! The control socket: HTTP/1 with JSON over a Unix socket, for root (and one group, for reading).
//!
//! | request | answer |
//! | --- | --- |
//! | `GET /v1/status` | [`Status`] |
//! | `GET /v1/health` | [`Health`], 200 or 503 |
//! | `GET /v1/explain?to=DEST` | [`Explanation`], or 400 |
//! | `GET /v1/packet?packet=&hook=&cgroup=` | [`PacketExplanation`], or 400. Root alone |
//! | `POST /v1/policy` ([`ApplyRequest`]) | [`Changed`]; 422 for a wrong policy, 409 while another is on trial. Root alone, but for a dry run |
//! | `POST /v1/confirm`, `POST /v1/rollback` | [`Changed`], or 409. Root alone |
//! | `GET /v1/events?follow=&dropped=&recent=` | JSON lines of [`crate::events::Event`] |

mod change;
mod client;
mod cut;
mod explain;
mod listen;
mod packet;
mod peer;
mod readers;
mod routes;
mod server;
mod types;

pub use change::{ApplyRequest, Change, ChangeError, Changed, Texts};
pub use client::{Client, ClientError, EventStream};
pub use cut::{CUT_TOLD, Cut, CutDestination};
pub use explain::{ExplainError, ExplainedAddress, ExplainedRule, Explanation, NearestRule};
pub use listen::{ListenError, remove_left};
pub use packet::{HookVerdict, PacketExplanation, PacketQuestion, PacketSpec, PacketVerdict};
pub use peer::{Peer, Role};
pub use server::{Limits, Server};
pub use types::*;

use crate::events::Hub;

/// Where the control socket is unless `--socket` or `EGRESS_SOCKET` says otherwise.
pub const DEFAULT_SOCKET: &str = "/run/egress/egress.sock";

/// The daemon's state, as the control socket shows it. Called on a thread that may block.
pub trait Source: Send + Sync + 'static {
    /// The state now.
    fn status(&self) -> Status;
    /// The same without its names, which are counted alone: they may have a million addresses, and metrics are asked for often.
    fn summary(&self) -> (Status, NameCounts) {
        let mut status = self.status();
        let names = NameCounts::of(&std::mem::take(&mut status.names));
        (status, names)
    }
    /// What happens to `to` (`NAME-or-ADDRESS[:PORT][/PROTO]`) now, and why.
    fn explain(&self, to: &str) -> Result<Explanation, ExplainError>;
    /// What the attached programs, and the model, say of a packet.
    fn packet(&self, _question: &PacketQuestion) -> Result<PacketExplanation, ExplainError> {
        Err(ExplainError { message: "no program is attached".to_owned(), hint: None })
    }
    /// Whether all is well; cheaper than the whole status where that can be.
    fn health(&self) -> Health {
        self.status().health
    }
    /// Where events are published.
    fn hub(&self) -> &Hub;
    /// What changes the policy, where it can be changed.
    fn change(&self) -> Option<&dyn Change> {
        None
    }
}

#[cfg(test)]
pub(crate) mod tests;
