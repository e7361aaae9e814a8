//! Names to addresses: asks the trusted resolvers for every exact name, keeps the answers fresh, and says which
//! resolvers the system trusts. `docs/resolver.md` has the whole picture.
//!
//! Data flows one way: [`Resolver`] (the wire) → [`Refresher`] (when to ask, what lives how long) → [`AnswerSink`].

mod answer;
mod chain;
mod lives;
mod once;
mod port;
mod private;
mod provider;
mod question;
mod refresher;
mod resolver;
mod schedule;
mod settings;
pub mod system;
mod system_watch;
mod udp;

#[cfg(test)]
mod tests;

pub use answer::{Answer, AnswerSink, Failure, Family, Held, NameStatus, Reason};
pub use once::{Resolved, resolve_once};
pub use private::{Kind, is_private};
pub use refresher::{AllowPrivate, Refresher};
pub use resolver::{Ask, Found, Limits, Miss, Outcome, Resolver};
pub use settings::Settings;
