//! systemd's journal, by its native protocol: a datagram of fields for each entry
//! (systemd's docs/JOURNAL_NATIVE_PROTOCOL.md).

use std::{
    io,
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use serde_json::Value;

use super::{
    Write,
    fields::{Severity, flat, severity},
};
use crate::events::{Event, Style, line};

/// How long a journal that takes nothing is waited for at a time.
const TIMEOUT: Duration = Duration::from_secs(1);

/// The journal's socket.
pub(super) struct Journal {
    path: PathBuf,
    socket: UnixDatagram,
    /// Entries of the batch at hand that arrived already: a second try must not write them twice.
    sent: usize,
}

impl Journal {
    pub(super) fn new(path: &Path) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.set_write_timeout(Some(TIMEOUT))?;
        Ok(Self { path: path.to_owned(), socket, sent: 0 })
    }
}

impl Write for Journal {
    fn write(&mut self, events: &[Arc<Event>]) -> io::Result<u64> {
        for event in events.iter().skip(self.sent) {
            match self.socket.send_to(&entry(event, true), &self.path) {
                // Too long for a datagram: what a person reads is there still.
                Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE) => {
                    self.socket.send_to(&entry(event, false), &self.path)?;
                }
                result => drop(result?),
            }
            self.sent += 1;
        }
        self.sent = 0;
        Ok(0)
    }

    fn gave_up(&mut self) -> u64 {
        std::mem::take(&mut self.sent) as u64
    }
}

/// One entry: `MESSAGE`, `PRIORITY` (syslog's), `SYSLOG_IDENTIFIER`, and every field of the event as `EGRESS_...`.
pub(super) fn entry(event: &Event, fields: bool) -> Vec<u8> {
    let priority = match severity(event) {
        Severity::Error => "3",
        Severity::Warning => "4",
        Severity::Notice => "5",
        Severity::Info => "6",
    };
    let text = line(event, Style::default());
    let mut entry = Vec::new();
    // The journal has the time already.
    push(&mut entry, "MESSAGE", text.split_once(' ').map_or(text.as_str(), |(_, rest)| rest));
    push(&mut entry, "PRIORITY", priority);
    push(&mut entry, "SYSLOG_IDENTIFIER", "egress");
    if !fields {
        return entry;
    }
    for (path, value) in flat(event) {
        let key = format!("EGRESS_{}", path.replace(['.', '-'], "_").to_ascii_uppercase());
        match value {
            Value::Array(items) => items.iter().for_each(|item| push(&mut entry, &key, &text_of(item))),
            value => push(&mut entry, &key, &text_of(&value)),
        }
    }
    entry
}

fn text_of(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// `KEY=value`, or the form with a length where the value has a line feed.
fn push(entry: &mut Vec<u8>, key: &str, value: &str) {
    entry.extend_from_slice(key.as_bytes());
    if value.contains('\n') {
        entry.push(b'\n');
        entry.extend_from_slice(&(value.len() as u64).to_le_bytes());
    } else {
        entry.push(b'=');
    }
    entry.extend_from_slice(value.as_bytes());
    entry.push(b'\n');
}
