//! The policy as text, with comments for whoever reviews it.

use std::{fmt::Write as _, net::SocketAddr};

use super::{Learner, Plan, Use};

/// Names in one comment.
const SHOWN: usize = 20;

/// What the text says besides the rules.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// When and where it was learned, for the first line: `10m on node-1`.
    pub about: String,
    /// The resolvers to write down; empty for the system's.
    pub resolvers: Vec<SocketAddr>,
}

impl Plan {
    /// The policy. Comments name who used what and how often, and what was left out and why.
    pub fn text(&self, learner: &Learner, options: &Options) -> String {
        let mut text = format!("# Written by `egress learn`: {}.\n", options.about);
        text.push_str(
            "# Review it before it is enforced: it allows what ran meanwhile, wanted or not, and nothing that did not run.\n\
             # \"seen\" counts packets and system calls.\n",
        );
        if learner.lost() > 0 {
            let _ = writeln!(text, "# {} events were lost: something may be missing. Learn again.", learner.lost());
        }
        text.push_str("version: 1\nmode: enforce\n");
        self.dns(options, &mut text);
        if self.rules.is_empty() {
            text.push_str("# Nothing was seen that needs a rule: this policy allows the builtins alone.\n");
        } else {
            text.push_str("rules:\n");
        }
        for rule in &self.rules {
            let _ = writeln!(text, "  - name: {}\n    why: {}\n    to:", rule.name, quoted(&rule.why));
            for (item, seen) in &rule.items {
                let _ = writeln!(text, "      - {}  # {}", quoted(item), used(item, seen));
            }
            let ports: Vec<String> = rule.ports.iter().map(ToString::to_string).collect();
            let _ = writeln!(text, "    ports: [{}]", ports.join(", "));
        }
        left_out(learner, &mut text);
        text
    }

    fn dns(&self, options: &Options, text: &mut String) {
        if options.resolvers.is_empty() && self.private.is_empty() {
            return;
        }
        text.push_str("dns:\n");
        if !options.resolvers.is_empty() {
            let list: Vec<String> =
                options.resolvers.iter().map(|resolver| quoted(&resolver_text(*resolver))).collect();
            let _ = writeln!(text, "  resolvers: [{}]", list.join(", "));
        }
        if !self.private.is_empty() {
            text.push_str("  allowPrivate:  # these names had private addresses\n");
            for name in &self.private {
                let _ = writeln!(text, "    - {}", quoted(name));
            }
        }
    }
}

fn resolver_text(resolver: SocketAddr) -> String {
    if resolver.port() == 53 { resolver.ip().to_string() } else { resolver.to_string() }
}

/// A scalar that YAML reads as this string: in quotes where a plain one could be read otherwise.
fn quoted(text: &str) -> String {
    let plain =
        text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b' ' | b'(' | b')'));
    // `1.5`, `null`, `0x10` and the like: a name has a letter that no number has, and a dot.
    let word = text.contains(['.', ' ']) && text.bytes().any(|byte| matches!(byte, b'g'..=b'w' | b'G'..=b'W'));
    if plain && word && text.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        text.to_owned()
    } else {
        format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
    }
}

fn used(item: &str, seen: &Use) -> String {
    let mut text = if seen.users.is_empty() {
        "forwarded, or without a process".to_owned()
    } else {
        seen.users.iter().cloned().collect::<Vec<_>>().join(", ")
    };
    if seen.more_users {
        text.push_str(" and others");
    }
    let _ = write!(text, "; seen {}", seen.count);
    let addresses: Vec<String> =
        seen.addresses.iter().map(ToString::to_string).filter(|address| address != item).take(3).collect();
    if !addresses.is_empty() {
        let _ = write!(text, "; {}", addresses.join(" "));
    }
    text
}

fn left_out(learner: &Learner, text: &mut String) {
    text.push_str(
        "\n# Left out\n# - what needs no rule: loopback, DNS to trusted resolvers, ARP, neighbour discovery, DHCP, replies to what came in\n",
    );
    for (what, left) in &learner.left {
        let examples: Vec<&str> = left.examples.iter().map(String::as_str).collect();
        let _ = writeln!(text, "# - {what}: seen {}, such as {}", left.count, examples.join("; "));
    }
    let unused = learner.unused_names();
    if !unused.is_empty() {
        let more = unused.len().saturating_sub(SHOWN);
        let _ = write!(
            text,
            "# - names that were asked for and not connected to: {}",
            unused[..unused.len() - more].join(" ")
        );
        text.push_str(&if more > 0 { format!(" and {more} more\n") } else { "\n".to_owned() });
    }
}
