//! A model's policy as the text that a user would write.

use std::fmt::Write as _;

use super::{Action, Mode, Policy, Ports, Queries, To};

impl Policy {
    /// The policy as YAML, in the language of DESIGN section 1. Resolvers are listed only where there are any.
    #[must_use]
    pub fn to_yaml(&self) -> String {
        let mode = if self.mode == Mode::Audit { "audit" } else { "enforce" };
        let queries = if self.dns.queries == Queries::Any { "any" } else { "allowlisted" };
        let mut text = format!("version: 1\nmode: {mode}\ndns:\n");
        if !self.dns.resolvers.is_empty() {
            text += &format!("  resolvers: {}\n", list(&self.dns.resolvers));
        }
        let (min_ttl, grace) = (self.dns.min_ttl, self.dns.grace);
        let _ = writeln!(text, "  queries: {queries}\n  minTtl: {min_ttl}s\n  grace: {grace}s");
        if !self.dns.internal.is_empty() {
            text += &format!("  internal: {}\n", list(&self.dns.internal));
        }
        if !self.dns.allow_private.is_empty() {
            text += &format!("  allowPrivate: {}\n", list(&self.dns.allow_private));
        }
        text += if self.rules.is_empty() { "" } else { "rules:\n" };
        for rule in &self.rules {
            let _ = writeln!(text, "  - name: {}", rule.name);
            if rule.action == Action::Deny {
                text += "    action: deny\n";
            }
            let _ = writeln!(text, "    to: {}", list(&rule.to));
            if !rule.ports.is_empty() {
                let _ = writeln!(text, "    ports: {}", list(&rule.ports));
            }
        }
        text
    }
}

fn list<T: ToString>(items: &[T]) -> String {
    // Quoted: `*` opens an alias and `:` a mapping in YAML.
    let quoted: Vec<String> = items.iter().map(|item| format!("\"{}\"", item.to_string())).collect();
    format!("[{}]", quoted.join(", "))
}

impl std::fmt::Display for To {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            To::Name(name) => f.write_str(name),
            To::Net(net) if net.prefix_len() == net.max_prefix_len() => write!(f, "{}", net.addr()),
            To::Net(net) => write!(f, "{net}"),
            To::Any => f.write_str("any"),
        }
    }
}

impl std::fmt::Display for Ports {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match *self {
            Ports::Tcp(low, high) if low == high => write!(f, "{low}/tcp"),
            Ports::Tcp(low, high) => write!(f, "{low}-{high}/tcp"),
            Ports::Udp(low, high) if low == high => write!(f, "{low}/udp"),
            Ports::Udp(low, high) => write!(f, "{low}-{high}/udp"),
            Ports::AnyTcp => f.write_str("any/tcp"),
            Ports::AnyUdp => f.write_str("any/udp"),
            Ports::Icmp => f.write_str("icmp"),
            Ports::Any => f.write_str("any"),
        }
    }
}
