//! What `top` knows and how it is looked at; nothing here reads the machine.

use std::collections::HashMap;

use super::table::{Sort, Table};
use crate::{
    api::RuleStatus,
    events::{Event, Kind, Refusal},
};

/// What the rows are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum View {
    #[default]
    Destination,
    Process,
    Container,
    /// Packets that each rule matched: let through, but for deny rules.
    Rule,
}

impl View {
    pub const ALL: [Self; 4] = [Self::Destination, Self::Process, Self::Container, Self::Rule];

    pub fn title(self) -> &'static str {
        match self {
            Self::Destination => "dropped, by destination",
            Self::Process => "dropped, by process",
            Self::Container => "dropped, by container or cgroup",
            Self::Rule => "matched, by rule",
        }
    }
}

/// What a key asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    Show(View),
    NextView,
    NextSort,
    Up,
    Down,
    Quit,
}

#[derive(Debug, Default)]
pub struct State {
    pub view: View,
    pub sort: Sort,
    /// Rows above the first that is shown.
    pub offset: usize,
    pub lost: u64,
    /// Seconds since the start, by the monotonic clock: a step of the wall clock changes no rate.
    pub now: u64,
    /// What stands in the way of news, such as a daemon that ended.
    pub trouble: Option<String>,
    tables: [Table; 4],
    /// Packets of each rule when they were last read.
    seen: HashMap<String, u64>,
}

impl State {
    pub fn table(&self) -> &Table {
        &self.tables[self.view as usize]
    }

    pub fn event(&mut self, event: &Event) {
        if let Kind::Lost(lost) = &event.kind {
            self.lost += lost.count;
        }
        let Some(refusal) = event.refusal() else { return };
        let names = [destination(refusal), process(refusal), container(refusal)];
        for (table, name) in self.tables.iter_mut().zip(names) {
            table.add(&name, &refusal.reason, self.now, u64::from(refusal.count));
        }
    }

    /// The rules' counters as the daemon gives them; the first reading is what is counted from.
    pub fn rules(&mut self, rules: &[RuleStatus]) {
        let first = self.seen.is_empty();
        let mut seen = HashMap::with_capacity(rules.len());
        for rule in rules {
            let before = if first { Some(&rule.packets) } else { self.seen.get(&rule.name) };
            // Less than before: another policy came, and the rule's counters began anew.
            let more = rule.packets.checked_sub(before.copied().unwrap_or(0)).unwrap_or(rule.packets);
            if more != 0 || first {
                self.tables[View::Rule as usize].add(&rule.name, &rule.action, self.now, more);
            }
            seen.insert(rule.name.clone(), rule.packets);
        }
        self.seen = seen;
    }

    /// Gives whether to go on.
    pub fn act(&mut self, act: Act) -> bool {
        match act {
            Act::Quit => return false,
            Act::Show(view) => (self.view, self.offset) = (view, 0),
            Act::NextView => {
                self.view = View::ALL[(self.view as usize + 1) % View::ALL.len()];
                self.offset = 0;
            }
            Act::NextSort => {
                self.sort = match self.sort {
                    Sort::Rate => Sort::Total,
                    Sort::Total => Sort::Name,
                    Sort::Name => Sort::Rate,
                };
            }
            Act::Up => self.offset = self.offset.saturating_sub(1),
            Act::Down => self.offset = (self.offset + 1).min(self.table().len().saturating_sub(1)),
        }
        true
    }
}

fn destination(refusal: &Refusal) -> String {
    let host = match (&refusal.query, refusal.names.first(), refusal.destination) {
        (Some(query), ..) => return format!("{query} (asked for)"),
        (None, Some(name), _) => name.clone(),
        (None, None, Some(address)) if address.is_ipv6() && refusal.destination_port.is_some() => {
            format!("[{address}]")
        }
        (None, None, Some(address)) => address.to_string(),
        (None, None, None) => "-".to_owned(),
    };
    let port = refusal.destination_port.map(|port| format!(":{port}")).unwrap_or_default();
    format!("{host}{port}/{}", refusal.protocol)
}

fn process(refusal: &Refusal) -> String {
    let process = refusal.process.as_ref();
    process.map_or_else(|| "no process".to_owned(), |process| format!("{}[{}]", process.comm, process.pid))
}

fn container(refusal: &Refusal) -> String {
    if let (Some(namespace), Some(name)) = (&refusal.pod_namespace, &refusal.pod_name) {
        return format!("{namespace}/{name}");
    }
    match (&refusal.container, &refusal.cgroup) {
        (Some(container), _) => {
            let runtime = container.runtime.as_deref().unwrap_or("container");
            format!("{runtime}:{}", &container.id[..container.id.len().min(12)])
        }
        (None, Some(cgroup)) => cgroup.clone(),
        (None, None) => "no cgroup".to_owned(),
    }
}
