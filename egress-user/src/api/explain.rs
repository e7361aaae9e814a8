//! What `GET /v1/explain` answers. docs/explain.md tells each field.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// `GET /v1/explain?to=DEST`: what the daemon does to a destination now, and why.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// The destination as it was understood: `api.example.com:443/tcp`.
    pub destination: String,
    /// Whether it may be reached. In audit mode everything may: then this says what would be in enforce mode.
    pub allowed: bool,
    /// `enforce` or `audit`.
    #[serde(default)]
    pub mode: String,
    /// The stable name of an [`egress_ebpf::reason::Reason`]: `rule`, `builtin`, `no-rule`, ....
    pub reason: String,
    /// The rule that decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// All rules that say the same; the one that decided first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<ExplainedRule>,
    /// The builtin that decided.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub builtin: Option<String>,
    /// The name through which the address is allowed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub via_name: Option<String>,
    /// The resolver that gave the address, as `ADDRESS:PORT`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub learned_from: Option<String>,
    /// How many seconds ago it did so last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub learned_seconds_ago: Option<u64>,
    /// Seconds until the address stops counting, the grace included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds_left: Option<u64>,
    /// The answer's own life is over: the address counts in the grace.
    #[serde(default)]
    pub in_grace: bool,
    /// The addresses that a name has, or the names that an address has, one by one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<ExplainedAddress>,
    /// The live generation.
    pub generation: u32,
    /// For a denial: the rule that almost allows it, as a sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nearest_rule: Option<String>,
    /// The same in parts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nearest: Option<NearestRule>,
    /// For a denial: a rule that allows it, as one item of the policy's `rules:`, without indentation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub add: Option<String>,
    /// For a denial: what to do to allow it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// What else is worth knowing, a sentence each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// A rule, and what of it counts here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExplainedRule {
    /// Its name.
    pub name: String,
    /// `allow` or `deny`.
    pub action: String,
    /// The item of its `to`, in canonical form.
    pub item: String,
    /// Its ports.
    pub ports: Vec<String>,
    /// Where it is written: `FILE:LINE`.
    pub source: String,
    /// What it is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// An address under a name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExplainedAddress {
    /// The address.
    pub address: IpAddr,
    /// The name that it was given for; absent where only the kernel's tables know it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What the kernel's tables say of this address and the destination's port.
    pub allowed: bool,
    /// Why: the stable name of an [`egress_ebpf::reason::Reason`].
    pub reason: String,
    /// The resolver that said so last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub learned_from: Option<String>,
    /// How many seconds ago.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub learned_seconds_ago: Option<u64>,
    /// Seconds until it stops counting; absent where the policy itself names the address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds_left: Option<u64>,
    /// It counts in the grace.
    #[serde(default)]
    pub in_grace: bool,
}

/// A rule that almost allows a destination.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NearestRule {
    /// How near: `other-port`, `apex`, `spelling`, `sibling` or `prefix`.
    pub near: String,
    /// The rule.
    pub rule: ExplainedRule,
}

/// Why a destination could not be explained: it is not one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ExplainError {
    /// What is wrong with it.
    pub message: String,
    /// What to write.
    pub hint: Option<String>,
}
