//! A destination written as a URL, as people copy it from a log.

use super::super::super::{
    compiled::Proto,
    name::ItemError,
    ports::Ports,
    target::{self, Target},
};

/// The ports of schemes that stand for one (IANA's registries of schemes and of service names), all of TCP.
const PORTS: [(&str, u16); 12] = [
    ("https", 443),
    ("http", 80),
    ("wss", 443),
    ("ws", 80),
    ("ssh", 22),
    ("git", 9418),
    ("ftp", 21),
    ("ldap", 389),
    ("ldaps", 636),
    ("postgresql", 5432),
    ("mysql", 3306),
    ("redis", 6379),
];

/// Where a URL leads; `None` for text that is no URL.
///
/// # Errors
/// A scheme without a port that is known, or no name or address where one should be.
pub(super) fn destination(text: &str) -> Result<Option<(Target, Option<Ports>)>, ItemError> {
    let Some((scheme, rest)) = text.trim().split_once("://") else { return Ok(None) };
    // RFC 3986, 3.2: the authority ends at the path, the query or the fragment; what is before its last `@` is no host.
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let host = authority.rsplit('@').next().unwrap_or_default();
    let (target, ports) = target::parse_destination(host)?;
    if ports.is_some() {
        return Ok(Some((target, ports)));
    }
    let scheme = scheme.to_ascii_lowercase();
    let Some((_, port)) = PORTS.iter().find(|(known, _)| *known == scheme) else {
        return Err(ItemError::new(
            format!("the port of `{scheme}` is not known"),
            format!("write it out, like `{host}:443`"),
        ));
    };
    Ok(Some((target, Some(Ports { proto: Proto::Tcp, from: *port, to: *port }))))
}
