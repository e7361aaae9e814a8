//! The name table: a trie over the labels from the top, walked once with what is inherited from above.

use std::{borrow::Cow, collections::BTreeMap};

use super::{
    super::{
        compiled::{InnerWildcard, NameEntry, NameKey},
        name::{DomainName, NamePattern, label_matches},
    },
    Classes, TooMuch, Work, number,
};

#[derive(Default)]
struct TrieNode<'a> {
    /// Sorted, so that the table is.
    children: BTreeMap<&'a str, u32>,
    /// Set where some pattern or internal name ends.
    name: Option<&'a DomainName>,
    exact: Vec<u32>,
    below: Vec<u32>,
    inner: Vec<Inner<'a>>,
    internal: bool,
    private: Private,
}

/// A wildcard inside a label.
#[derive(Clone, Copy)]
struct Inner<'a> {
    prefix: &'a str,
    suffix: &'a str,
    /// The grant of a rule's, `None` of one of `dns.allowPrivate`.
    grant: Option<u32>,
}

/// Which patterns of `dns.allowPrivate` end at a name, besides those inside a label.
#[derive(Clone, Copy, Default)]
struct Private {
    exact: bool,
    below: bool,
}

/// What the labels above give to every name below them.
#[derive(Clone, Copy)]
struct Inherited<'a> {
    grants: &'a [u32],
    ask: bool,
    private: bool,
}

pub fn compile(
    patterns: &[(&NamePattern, u32)],
    internal: &[DomainName],
    private: &[NamePattern],
    classes: &mut Classes,
    work: &mut Work,
) -> Result<Vec<NameEntry>, TooMuch> {
    let mut trie = Trie { nodes: vec![TrieNode::default()] };
    for (pattern, grant) in patterns {
        match pattern {
            NamePattern::Exact(name) => trie.node(name).exact.push(*grant),
            NamePattern::Below(base) => trie.node(base).below.push(*grant),
            NamePattern::InLabel { prefix, suffix, base } => {
                trie.node(base).inner.push(Inner { prefix, suffix, grant: Some(*grant) });
            }
        }
    }
    for pattern in private {
        match pattern {
            NamePattern::Exact(name) => trie.node(name).private.exact = true,
            NamePattern::Below(base) => trie.node(base).private.below = true,
            NamePattern::InLabel { prefix, suffix, base } => {
                trie.node(base).inner.push(Inner { prefix, suffix, grant: None });
            }
        }
    }
    for name in internal {
        trie.node(name).internal = true;
    }
    let mut walk = Walk { trie: &trie, classes, work, entries: Vec::new() };
    walk.node(0, None, Inherited { grants: &[], ask: false, private: false }, &[])?;
    Ok(walk.entries)
}

struct Trie<'a> {
    nodes: Vec<TrieNode<'a>>,
}

impl<'a> Trie<'a> {
    fn node(&mut self, name: &'a DomainName) -> &mut TrieNode<'a> {
        let mut at = 0;
        for label in name.labels_from_top() {
            let next = number(self.nodes.len());
            let child = *self.nodes[at].children.entry(label).or_insert(next);
            if child == next {
                self.nodes.push(TrieNode::default());
            }
            at = child as usize;
        }
        let node = &mut self.nodes[at];
        node.name = Some(name);
        node
    }
}

/// What an entry says besides its class.
#[derive(Clone, Copy)]
struct Flags {
    ask: bool,
    private: bool,
}

struct Walk<'a, 'b> {
    trie: &'b Trie<'a>,
    classes: &'b mut Classes,
    work: &'b mut Work,
    entries: Vec<NameEntry>,
}

impl Walk<'_, '_> {
    /// A name has at most 127 labels, so the recursion is bounded. `siblings` are the inner wildcards of the parent.
    fn node(
        &mut self,
        at: u32,
        label: Option<&str>,
        above: Inherited<'_>,
        siblings: &[Inner<'_>],
    ) -> Result<(), TooMuch> {
        let node = &self.trie.nodes[at as usize];
        let ask = above.ask || node.internal;
        let private = above.private || node.private.below;
        // Copied only where this name adds to it.
        let mut grants = Cow::Borrowed(above.grants);
        if let Some(name) = node.name {
            if !node.exact.is_empty() || node.internal || node.private.exact {
                let mut exact = node.exact.clone();
                exact.extend_from_slice(above.grants);
                let mut private = above.private || node.private.exact;
                if let Some(label) = label {
                    self.work.add(siblings.len())?;
                    for inner in siblings.iter().filter(|inner| label_matches(label, inner.prefix, inner.suffix)) {
                        exact.extend(inner.grant);
                        private |= inner.grant.is_none();
                    }
                }
                self.entry(NameKey::Exact(name.clone()), exact, Flags { ask, private }, Vec::new())?;
            }
            if !node.below.is_empty() {
                self.work.add(grants.len())?;
                grants.to_mut().extend_from_slice(&node.below);
            }
            if !node.below.is_empty() || !node.inner.is_empty() || node.internal || node.private.below {
                let inner = self.inner(&node.inner)?;
                self.entry(NameKey::Suffix(name.clone()), grants.to_vec(), Flags { ask, private }, inner)?;
            }
        }
        for (label, child) in &node.children {
            self.node(*child, Some(label), Inherited { grants: &grants, ask, private }, &node.inner)?;
        }
        Ok(())
    }

    fn entry(
        &mut self,
        key: NameKey,
        grants: Vec<u32>,
        Flags { ask, private }: Flags,
        inner: Vec<InnerWildcard>,
    ) -> Result<(), TooMuch> {
        // Of a name that no rule opens there is nothing to say that it has private addresses for.
        if grants.is_empty() && !ask && inner.iter().all(|inner| inner.class == 0) {
            return Ok(());
        }
        self.work.add(grants.len())?;
        self.entries.push(NameEntry { key, class: self.classes.number(grants), ask, private, inner });
        Ok(())
    }

    fn inner(&mut self, patterns: &[Inner<'_>]) -> Result<Vec<InnerWildcard>, TooMuch> {
        let mut grouped: BTreeMap<(&str, &str), (Vec<u32>, bool)> = BTreeMap::new();
        for inner in patterns {
            let (grants, private) = grouped.entry((inner.prefix, inner.suffix)).or_default();
            grants.extend(inner.grant);
            *private |= inner.grant.is_none();
        }
        grouped
            .into_iter()
            .map(|((prefix, suffix), (grants, private))| {
                self.work.add(grants.len())?;
                let class = self.classes.number(grants);
                Ok(InnerWildcard { prefix: prefix.to_owned(), suffix: suffix.to_owned(), class, private })
            })
            .collect()
    }
}
