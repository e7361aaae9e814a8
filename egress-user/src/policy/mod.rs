//! The policy: YAML files in, one checked and compiled set of tables out.
//!
//! [`load`] is the way in. Data flows one way: `yaml` (text to tree), `parse` (tree to checked document), `merge`
//! (several documents to one), `compile` (document to [`Compiled`]), `warn` (what is valid but doubtful). `lookup` and
//! `explain` read the compiled tables as the data plane does.

mod compile;
mod compiled;
mod diagnostic;
mod diff;
mod document;
mod duration;
pub mod embedded;
mod load;
mod lookup;
mod merge;
mod name;
mod parse;
mod ports;
mod schema;
mod target;
mod warn;
mod yaml;

pub use compiled::*;
pub use diagnostic::{Diagnostic, PolicyError, Report, Severity, SourceFile, eprint_all, render_all};
pub use diff::{Diff, Opening, Setting};
pub use duration::parse as parse_duration;
pub use load::{Loaded, NamedTexts, Sources, check_allow, load, read_texts};
pub use lookup::*;
pub use name::{DomainName, ItemError, NamePattern};
pub use parse::parse_resolver;
pub use ports::Ports;
pub use schema::json_schema;
pub use target::{Target, parse_destination};
pub use warn::NAMES as WARNINGS;

#[cfg(test)]
mod tests;
