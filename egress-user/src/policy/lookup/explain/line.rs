//! The line that allows a destination: a rule of its own, which opens nothing else.

use std::fmt::Write as _;

use super::{super::super::compiled::Compiled, Context, Destination, Host, Proto};

/// Bytes of the longest name that is made for a rule; the language allows more.
const NAME_MAX: usize = 80;

impl Compiled {
    /// One more item of the list `rules:`, in YAML's flow style, without indentation: valid wherever it is pasted there.
    pub(super) fn line(&self, destination: &Destination, context: &Context<'_>) -> String {
        // By the name under which the address is known now, if there is one: addresses change.
        let to = match (&destination.host, context.names.first()) {
            (Host::Name(name), _) | (Host::Address(_), Some(name)) => name.to_string(),
            (Host::Address(address), None) => address.to_string(),
        };
        let ports = match destination.proto {
            Proto::Icmp | Proto::Any => destination.proto.to_string(),
            proto => format!("{}/{proto}", destination.port),
        };
        // Of two lines that are pasted together each has a name of its own.
        let name = self.free_name(&format!("{to}-{ports}"));
        // In quotes: without them `1.0` would be a number, and an IPv6 address a mapping.
        format!("- {{name: {name}, to: [\"{to}\"], ports: [{ports}]}}")
    }

    /// `allow-` and the destination with its port, in characters that need no quotes, and a number where that is taken.
    fn free_name(&self, to: &str) -> String {
        let mut name = String::from("allow-");
        name.extend(to.chars().take(NAME_MAX).map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }));
        let stem = name.trim_end_matches('-').len();
        name.truncate(stem);
        let mut number = 2;
        while self.rules.iter().any(|rule| rule.name == name) {
            name.truncate(stem);
            let _ = write!(name, "-{number}");
            number += 1;
        }
        name
    }
}
