//! The daemon's state as metrics, read anew for every scrape.

use std::{fmt, sync::Arc};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
};

use super::Measures;
use crate::api::{NameCounts, SinkStatus, Source, Status};

/// Rules that have a label of their own; what further rules did is summed up under `_other`.
const RULES: usize = 500;

type Labels = Vec<(&'static str, String)>;

pub(super) struct StatusCollector {
    pub(super) source: Arc<dyn Source>,
    pub(super) measures: Measures,
}

impl fmt::Debug for StatusCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StatusCollector")
    }
}

impl Collector for StatusCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let (status, names) = self.source.summary();
        packets(&status, &mut encoder)?;
        rules(&status, &mut encoder)?;
        let map = |map: &crate::api::MapFill, value| (vec![("map", map.name.clone())], value);
        let entries = status.maps.iter().map(|fill| map(fill, fill.entries));
        gauges(&mut encoder, "egress_map_entries", "Entries in use of a kernel table", entries)?;
        let capacity = status.maps.iter().map(|fill| map(fill, fill.capacity));
        gauges(&mut encoder, "egress_map_capacity", "Entries that a kernel table can hold", capacity)?;
        let bytes = status.maps.iter().map(|fill| map(fill, fill.bytes));
        gauges(&mut encoder, "egress_map_bytes", "Kernel memory of a kernel table", bytes)?;
        let learning = status.learning.iter().map(|row| (vec![("what", row.what.clone())], row.count));
        counters(&mut encoder, "egress_learning", "What became of DNS questions, answers and their records", learning)?;
        attach_points(&status, &mut encoder)?;
        self.rest(&status, names, &mut encoder)
    }
}

impl StatusCollector {
    fn rest(&self, status: &Status, names: NameCounts, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let lost = [(Labels::new(), status.events_lost)];
        counters(encoder, "egress_events_lost", "Events that the kernel's ring buffer had no room for", lost)?;
        let sink = |sink: &SinkStatus, value| (vec![("sink", sink.sink.clone())], value);
        let written = status.sinks.iter().map(|one| sink(one, one.written));
        counters(encoder, "egress_sink_events", "Events that a sink took", written)?;
        let missed = status.sinks.iter().map(|one| sink(one, one.lost));
        counters(encoder, "egress_sink_events_lost", "Events that a sink missed", missed)?;
        let age = crate::events::Timestamp::now().seconds().saturating_sub(self.measures.applied().seconds());
        let single = [
            ("egress_names", "Names that have addresses now", names.known as u64),
            ("egress_names_failing", "Exact names whose last question failed", names.failing as u64),
            ("egress_name_addresses", "Addresses that names open now", names.addresses as u64),
            ("egress_policy_generation", "The generation of the policy in force", u64::from(status.generation)),
            ("egress_policy_age_seconds", "Since the policy in force was put there", age),
            ("egress_policy_rules", "Rules of the policy in force", status.policy.rules as u64),
            ("egress_start_time_seconds", "When the daemon started, since 1970", status.started.seconds()),
            ("egress_enforcing", "1 while what no rule allows is dropped", u64::from(status.enforcing)),
            ("egress_healthy", "1 while nothing is known to be wrong", u64::from(status.health.healthy)),
            ("egress_problems", "What is wrong now, counted", status.health.problems.len() as u64),
        ];
        for (name, help, value) in single {
            gauges(encoder, name, help, [(Labels::new(), value)])?;
        }
        let version = vec![("version", status.version.clone()), ("mode", status.mode.clone())];
        gauges(encoder, "egress_build_info", "The daemon's version and mode; always 1", [(version, 1)])
    }
}

fn packets(status: &Status, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let refused = if status.mode == "audit" { "would-drop" } else { "drop" };
    let labels = |counter: &crate::api::Counter| -> Labels {
        let verdict = if counter.passes { "pass" } else { refused };
        vec![("verdict", verdict.to_owned()), ("reason", counter.reason.clone())]
    };
    let rows = status.counters.iter().map(|counter| (labels(counter), counter.packets));
    counters(encoder, "egress_packets", "Packets and refused system calls, by what became of them and why", rows)?;
    let rows = status.counters.iter().map(|counter| (labels(counter), counter.bytes));
    counters(encoder, "egress_bytes", "Bytes of packets, by what became of them and why", rows)
}

fn rules(status: &Status, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let (named, rest) = status.rules.split_at(status.rules.len().min(RULES));
    let sum = |field: fn(&crate::api::RuleStatus) -> u64| -> Vec<(Labels, u64)> {
        let label = |rule: &str| vec![("rule", rule.to_owned())];
        let mut rows: Vec<_> = named.iter().map(|rule| (label(&rule.name), field(rule))).collect();
        if !rest.is_empty() {
            rows.push((label("_other"), rest.iter().map(field).sum()));
        }
        rows
    };
    counters(encoder, "egress_rule_packets", "Packets that a rule let through", sum(|rule| rule.packets))?;
    counters(encoder, "egress_rule_bytes", "Bytes that a rule let through", sum(|rule| rule.bytes))
}

/// By hook alone: a node with many workloads has as many interfaces.
fn attach_points(status: &Status, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let mut points = std::collections::BTreeMap::<(&str, bool), u64>::new();
    for point in &status.attach_points {
        *points.entry((&point.hook, true)).or_default() += u64::from(point.present);
        *points.entry((&point.hook, false)).or_default() += u64::from(!point.present);
    }
    let rows = points.into_iter().map(|((hook, present), count)| {
        (vec![("hook", hook.to_owned()), ("state", if present { "present" } else { "missing" }.to_owned())], count)
    });
    gauges(encoder, "egress_attach_points", "Places of the programs, by whether they are attached there", rows)
}

fn counters(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    rows: impl IntoIterator<Item = (Labels, u64)>,
) -> fmt::Result {
    let family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    write(family, rows.into_iter().map(|(labels, value)| (labels, ConstCounter::new(value))))
}

fn gauges(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    rows: impl IntoIterator<Item = (Labels, u64)>,
) -> fmt::Result {
    let family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    write(family, rows.into_iter().map(|(labels, value)| (labels, ConstGauge::new(value))))
}

fn write<M: EncodeMetric>(mut family: MetricEncoder<'_>, rows: impl IntoIterator<Item = (Labels, M)>) -> fmt::Result {
    for (labels, metric) in rows {
        if labels.is_empty() {
            // As a family it would be written `name{}`.
            return metric.encode(family);
        }
        metric.encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}
