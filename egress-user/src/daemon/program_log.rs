//! The programs' own debug lines (`run --log-programs`), into this program's log.

use std::{fmt::Write as _, io};

use aya_log::EbpfLogger;
use egress_ebpf::{abi::LearnCount, reason::Reason};
use tokio::io::{Interest, unix::AsyncFd};

use crate::events::Hook;

/// What aya-log writes to.
#[derive(Clone, Copy, Debug)]
pub struct Named;

impl log::Log for Named {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        tracing::info!(target: "programs", "{}", named(&record.args().to_string()));
    }

    fn flush(&self) {}
}

/// The lines, as they come.
pub type ProgramLog = EbpfLogger<Named>;

/// A line with the names of what the programs write as numbers.
pub fn named(line: &str) -> String {
    let mut named = String::new();
    for word in line.split(' ') {
        if !named.is_empty() {
            named.push(' ');
        }
        let name = word.split_once('=').and_then(|(field, number)| {
            let number = number.parse::<u8>().ok()?;
            match field {
                "reason" => Reason::from_number(number).map(|reason| (field, reason.name())),
                "answer" => LearnCount::ALL.get(usize::from(number)).map(|count| (field, count.name())),
                "hook" => Some((field, Hook::from_number(number).name())),
                _ => None,
            }
        });
        match name {
            Some((field, name)) => {
                let _ = write!(named, "{field}={name}");
            }
            // An IPv4 address, as the tables have it.
            None => named.push_str(&word.replace("=::ffff:", "=")),
        }
    }
    named
}

/// Writes the lines as they come, until the process ends. To be called within a runtime.
pub fn follow(lines: ProgramLog) -> io::Result<()> {
    // SAFETY: the ring buffer keeps its descriptor, the same one, as long as it lives.
    let mut lines = unsafe { AsyncFd::register_with_interest(lines, Interest::READABLE) }.map_err(io::Error::from)?;
    tokio::spawn(async move {
        while let Ok(mut ready) = lines.readable_mut().await {
            ready.get_inner_mut().flush();
            ready.clear_ready();
        }
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_get_their_names() {
        let line =
            "hook=1 reason=16 protocol=6 from=::ffff:192.0.2.1 from-port=40000 to=2001:db8::1 to-port=443 item=0";
        let named_line = "hook=cgroup-egress reason=no-rule protocol=6 from=192.0.2.1 from-port=40000 to=2001:db8::1 to-port=443 item=0";
        assert_eq!(named(line), named_line);
        assert_eq!(named("answer=1"), "answer=answers");
        assert_eq!(named("reason=200 answer=200 hook=99"), "reason=200 answer=200 hook=unknown");
    }
}
