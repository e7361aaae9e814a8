//! Prefix tables that one longest-prefix match answers.

use ipnet::IpNet;

use super::{super::compiled::PrefixEntry, Classes, TooMuch, Work};

/// Each prefix gets its own grants and those of every prefix that covers it. Sorted by family, address, length.
pub fn compile(
    mut grants: Vec<(IpNet, u32)>,
    classes: &mut Classes,
    work: &mut Work,
) -> Result<Vec<PrefixEntry>, TooMuch> {
    // `IpNet` sorts IPv4 first, then by address, then by length: what covers a prefix comes before it.
    grants.sort_unstable();
    let mut entries = Vec::new();
    // The prefixes that cover the present one, widest first, each with all that counts in it.
    let mut covering: Vec<(IpNet, Vec<u32>)> = Vec::new();
    for same in grants.chunk_by(|a, b| a.0 == b.0) {
        let net = same[0].0;
        while covering.last().is_some_and(|(outer, _)| !outer.contains(&net)) {
            covering.pop();
        }
        let mut set = covering.last().map(|(_, set)| set.clone()).unwrap_or_default();
        set.extend(same.iter().map(|(_, grant)| *grant));
        work.add(set.len())?;
        entries.push(PrefixEntry { net, class: classes.number(set.clone()) });
        covering.push((net, set));
    }
    Ok(entries)
}
