//! What `top` counts: bounded in memory, whatever a node talks to.

use std::collections::HashMap;

/// Seconds of history that a row keeps.
pub const HISTORY: usize = 32;
/// Rows of one table. When it is full, the quieter half of them is summed up as others.
pub const ROWS: usize = 4096;
/// Characters of a row's name that are kept.
const NAME_MAX: usize = 256;
/// Seconds that a rate is the mean of.
const RATE_OVER: usize = 5;

/// One destination, process, container or rule.
#[derive(Clone, Debug)]
pub struct Row {
    /// Since `top` began.
    pub total: u64,
    /// The last refusal's reason; of a rule its action.
    pub note: String,
    seconds: [u64; HISTORY],
    /// The second that `seconds` was last written in.
    at: u64,
}

impl Row {
    /// Counts in the last [`HISTORY`] seconds, the second `now` last.
    pub fn history(&self, now: u64) -> [u64; HISTORY] {
        let mut history = [0; HISTORY];
        for (ago, slot) in history.iter_mut().rev().enumerate() {
            let Some(second) = now.checked_sub(ago as u64) else { break };
            if second <= self.at && second + (HISTORY as u64) > self.at {
                *slot = self.seconds[second as usize % HISTORY];
            }
        }
        history
    }

    /// A second, as the mean of the last five whole ones.
    pub fn rate(&self, now: u64) -> f64 {
        let history = self.history(now);
        history[HISTORY - 1 - RATE_OVER..HISTORY - 1].iter().sum::<u64>() as f64 / RATE_OVER as f64
    }

    fn add(&mut self, now: u64, count: u64) {
        let first = (self.at + 1).max((now + 1).saturating_sub(HISTORY as u64));
        for second in first..=now {
            self.seconds[second as usize % HISTORY] = 0;
        }
        self.at = self.at.max(now);
        self.seconds[now as usize % HISTORY] += count;
        self.total += count;
    }
}

/// Rows by name.
#[derive(Debug, Default)]
pub struct Table {
    rows: HashMap<String, Row>,
    /// Counts of rows that had to go.
    pub others: u64,
    /// All counts.
    pub total: u64,
}

/// What rows are sorted by, the greatest first but for names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sort {
    /// By counts a second, then by total.
    #[default]
    Rate,
    /// By counts since the start.
    Total,
    /// By name.
    Name,
}

impl Table {
    /// Counts for a row in the second `now`, which never goes back.
    pub fn add(&mut self, name: &str, note: &str, now: u64, count: u64) {
        self.total += count;
        let name = match name.char_indices().nth(NAME_MAX) {
            Some((end, _)) => &name[..end],
            None => name,
        };
        if !self.rows.contains_key(name) {
            if self.rows.len() >= ROWS {
                self.make_room();
            }
            let row = Row { total: 0, note: String::new(), seconds: [0; HISTORY], at: now };
            self.rows.insert(name.to_owned(), row);
        }
        if let Some(row) = self.rows.get_mut(name) {
            note.clone_into(&mut row.note);
            row.add(now, count);
        }
    }

    /// How many rows there are, [`ROWS`] at most.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// The rows in order.
    pub fn sorted(&self, sort: Sort, now: u64) -> Vec<(&str, &Row)> {
        let mut rows: Vec<_> = self.rows.iter().map(|(name, row)| (row.rate(now), name.as_str(), row)).collect();
        rows.sort_by(|a, b| match sort {
            Sort::Rate => b.0.total_cmp(&a.0).then(b.2.total.cmp(&a.2.total)).then(a.1.cmp(b.1)),
            Sort::Total => b.2.total.cmp(&a.2.total).then(a.1.cmp(b.1)),
            Sort::Name => a.1.cmp(b.1),
        });
        rows.into_iter().map(|(_, name, row)| (name, row)).collect()
    }

    /// Half at a time, so that a million newcomers cost a sort every 2,048 of them.
    fn make_room(&mut self) {
        let mut rows: Vec<_> = self.rows.drain().collect();
        rows.sort_by_key(|(_, row)| std::cmp::Reverse((row.total, row.at)));
        for (_, row) in rows.drain(ROWS / 2..) {
            self.others += row.total;
        }
        self.rows.extend(rows);
    }
}
