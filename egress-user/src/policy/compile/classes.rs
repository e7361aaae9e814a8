//! Sets of grants, each kept once.

use std::{collections::HashMap, sync::Arc};

use super::{
    super::{
        compiled::{self, Class},
        ports::{self, Ports},
    },
    number, port_range,
};

/// The normalised ports of one grant.
pub type GrantPorts = Arc<[Ports]>;

pub struct Classes {
    numbers: HashMap<Arc<[u32]>, u32>,
    sets: Vec<Arc<[u32]>>,
}

impl Classes {
    /// Class 0 is the empty set.
    pub fn new() -> Self {
        let empty: Arc<[u32]> = Arc::new([]);
        Self { numbers: HashMap::from([(Arc::clone(&empty), 0)]), sets: vec![empty] }
    }

    /// The number of the class with these grants, in any order and with repetitions.
    pub fn number(&mut self, mut grants: Vec<u32>) -> u32 {
        grants.sort_unstable();
        grants.dedup();
        if let Some(class) = self.numbers.get(grants.as_slice()) {
            return *class;
        }
        let class = number(self.sets.len());
        let set: Arc<[u32]> = grants.into();
        self.sets.push(Arc::clone(&set));
        self.numbers.insert(set, class);
        class
    }

    pub fn finish(self, grant_ports: &[GrantPorts]) -> compiled::Classes {
        let mut ids: HashMap<Vec<Ports>, u32> = HashMap::new();
        let mut classes = compiled::Classes::default();
        for set in self.sets {
            let ports_of = |grant: u32| grant_ports[grant as usize].iter().map(move |ports| (*ports, grant));
            let mut ranges: Vec<_> =
                set.iter().flat_map(|grant| ports_of(*grant)).map(|(ports, grant)| port_range(ports, grant)).collect();
            ranges.sort_unstable();
            let mut open: Vec<Ports> = set.iter().flat_map(|grant| ports_of(*grant)).map(|(ports, _)| ports).collect();
            ports::normalise(&mut open);
            let ports_id = if set.is_empty() {
                0
            } else {
                let next = number(ids.len()) + 1;
                *ids.entry(open).or_insert(next)
            };
            classes.push(Class { grants: &set, ports: &ranges, ports_id });
        }
        classes
    }
}
