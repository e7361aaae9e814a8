//! The JSON schema of a policy. These types exist for it alone: reading is done on the tree, which keeps positions.

#![allow(dead_code, reason = "the types are never built: schemars reads their shape and doc comments")]

use std::collections::BTreeMap;

use schemars::{JsonSchema, Schema, generate::SchemaSettings, transform::RecursiveTransform};
use serde_json::Value;

/// The schema, draft 2020-12.
pub fn json_schema() -> Schema {
    let settings = SchemaSettings::draft2020_12().with_transform(RecursiveTransform(without_null));
    settings.into_generator().into_root_schema_for::<Policy>()
}

/// A key may be left out, which `Option` stands for here; it may not be there with nothing behind it.
fn without_null(schema: &mut Schema) {
    if let Some(Value::Array(kinds)) = schema.get_mut("type") {
        kinds.retain(|kind| kind != "null");
        if let [kind] = kinds.as_slice() {
            let kind = kind.clone();
            schema.insert("type".to_owned(), kind);
        }
    }
    if let Some(Value::Array(options)) = schema.get_mut("anyOf") {
        options.retain(|option| option["type"] != "null");
        if let [Value::Object(only)] = options.as_slice() {
            let only = only.clone();
            schema.remove("anyOf");
            schema.ensure_object().extend(only);
        }
    }
}

/// An Egress policy: what may leave a node. Everything that no rule allows is dropped.
#[derive(JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Policy {
    /// The version of the language.
    version: Option<Version>,
    /// What happens to a packet that no rule allows. Default: `enforce`.
    mode: Option<Mode>,
    dns: Option<Dns>,
    builtins: Option<Builtins>,
    /// What may leave. Order never matters: deny rules come first, then allow rules. Leave the key out to allow nothing.
    #[schemars(length(min = 1))]
    rules: Option<Vec<Rule>>,
}

#[derive(JsonSchema)]
#[schemars(transparent)]
struct Version(#[schemars(range(min = 1, max = 1))] u8);

#[derive(JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Mode {
    /// Drop it.
    Enforce,
    /// Let everything pass, and report what would be dropped.
    Audit,
}

/// How names are resolved, and which answers are believed.
#[derive(JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Dns {
    /// The only resolvers that may be asked, or believed. Default: `system`.
    resolvers: Option<Resolvers>,
    /// Which names may be asked for. Default: `allowlisted`.
    queries: Option<Queries>,
    /// Names answered inside (each with all names below it) that need no rule to be asked for; the host's search
    /// domains join them.
    #[schemars(length(min = 1))]
    internal: Option<Vec<String>>,
    /// A shorter TTL is raised to this. Default: `60s`.
    min_ttl: Option<Time>,
    /// How long an address counts past its TTL. `0s` is strict. Default: `15m`.
    grace: Option<Time>,
    /// How long the last good answer stays while resolvers fail. Default: `1h`.
    max_stale: Option<Time>,
    /// Names or wildcards whose answers may be private, loopback or link-local addresses; refused for others.
    #[schemars(length(min = 1))]
    allow_private: Option<Vec<String>>,
}

#[derive(JsonSchema)]
#[serde(untagged)]
enum Resolvers {
    /// Those of /etc/resolv.conf.
    System(System),
    /// `ADDR`, `ADDR:PORT`, or `[V6]:PORT`; port 53 where none is written.
    Addresses(#[schemars(length(min = 1))] Vec<String>),
}

#[derive(JsonSchema)]
#[serde(rename_all = "lowercase")]
enum System {
    System,
}

#[derive(JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Queries {
    /// Only names that a rule allows, and internal ones.
    Allowlisted,
    /// Every name; data can leave in questions.
    Any,
}

/// A time with its unit, like `60s`, `10m` or `1h`.
#[derive(JsonSchema)]
#[serde(untagged)]
enum Time {
    Text(#[schemars(regex(pattern = r"^\s*(0|([0-9]+\s*[a-zA-Z]+\s*)+)$"))] String),
    Zero(#[schemars(range(min = 0, max = 0))] u8),
}

/// What passes without a rule. All are on unless they are switched off here.
#[derive(JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Builtins {
    /// 127.0.0.0/8 and `::1`.
    loopback: Option<bool>,
    /// Address resolution of IPv4.
    arp: Option<bool>,
    /// 802.1X.
    eapol: Option<bool>,
    lldp: Option<bool>,
    /// Address resolution and router discovery of IPv6.
    neighbour_discovery: Option<bool>,
    /// Multicast listener discovery of IPv6.
    mld: Option<bool>,
    /// Group membership of IPv4 multicast.
    igmp: Option<bool>,
    /// A DHCP client.
    dhcpv4: Option<bool>,
    /// A DHCPv6 client.
    dhcpv6: Option<bool>,
}

/// One rule. An allow rule needs `ports`; a deny rule without them denies all.
#[derive(JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Rule {
    /// What reports and `explain` call the rule. Each name is there once.
    #[schemars(length(min = 1, max = 128))]
    name: String,
    /// Why the rule is there.
    why: Option<String>,
    /// Default: `allow`. Deny rules take addresses and prefixes, not names.
    action: Option<Action>,
    /// The destinations.
    #[schemars(length(min = 1))]
    to: Vec<To>,
    /// `443/tcp`, `30000-32767/udp`, `any/tcp`, `icmp`, or `any` (TCP and UDP on every port, ICMP).
    #[schemars(length(min = 1))]
    ports: Option<Vec<Port>>,
    /// Warnings of `egress check` that are right for this rule: the warning's name and the reason.
    silence: Option<BTreeMap<Warning, String>>,
}

#[derive(JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Action {
    Allow,
    Deny,
}

#[derive(JsonSchema)]
#[serde(untagged)]
enum To {
    /// A name (`api.example.com`), a wildcard (`*.example.com`: one or more labels, never the apex; `md-*.example.com`:
    /// within one label), an address, a prefix (`192.0.2.0/24`, `2001:db8::/32`), or `any`. `${name}` is filled by
    /// `--set name=value`.
    Item(#[schemars(length(min = 1))] String),
    Placeholder(Placeholder),
}

/// An item that depends on whether its placeholders are given.
#[derive(JsonSchema)]
#[serde(deny_unknown_fields)]
struct Placeholder {
    /// The item where `--set` gives all its placeholders, like `*.hcp.${region}.azmk8s.io`.
    #[schemars(regex(pattern = r"\$\{[^}]+\}"))]
    set: String,
    /// The item where it does not.
    unset: String,
}

#[derive(JsonSchema)]
#[schemars(transparent)]
struct Port(
    #[schemars(regex(
        pattern = r"^([Aa][Nn][Yy]|[Ii][Cc][Mm][Pp]|([0-9]{1,5}(-[0-9]{1,5})?|[Aa][Nn][Yy])/([Tt][Cc][Pp]|[Uu][Dd][Pp])|any/(icmp|any))$"
    ))]
    String,
);

#[derive(JsonSchema, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "kebab-case")]
enum Warning {
    PublicSuffix,
    Covered,
    Denied,
    WidePorts,
    ResolverDenied,
    UnusedSilence,
    Unresolved,
}
