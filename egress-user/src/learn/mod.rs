//! From what was seen in audit mode to the policy that it would need.
//!
//! `events → [Learner] → [Plan] → text`. Nothing here reads the machine: [`Learner::add`] takes events from wherever they
//! come, [`Plan::of`] groups what was seen into rules, [`Plan::text`] writes the policy.

mod plan;
mod seen;
mod text;

pub use plan::{Plan, Rule};
pub use seen::{DESTINATIONS, Host, Learner, LeftOut, Use};
pub use text::Options;

#[cfg(test)]
mod tests;
