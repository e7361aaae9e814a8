//! Metrics for Prometheus (OpenMetrics text) at `run --metrics ADDR`, with health and readiness. `docs/metrics.md` lists
//! them. Nothing here is asked for by packets: the kernel's counters are read when somebody scrapes.

mod collect;
mod measures;
mod serve;

pub use measures::{Measures, Timed};
pub use serve::Metrics;

#[cfg(test)]
mod tests;
