//! The names of addresses over a restart. The kernel keeps the addresses and their time; what they are called is kept in a
//! file, for people alone.
//!
//! Nothing is opened by the file: of what it says only that counts for which the kernel has the address open under a rule
//! of that very name, as long as the kernel says.

mod file;

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use egress_ebpf::abi::{TICK_SHIFT, Ticks};
use serde::{Serializer as _, ser::SerializeMap as _};

pub use self::file::NamesFile;
use super::{Book, Core};
use crate::{datapath::boot_ticks, policy::DomainName};

/// The shortest pause between two writings.
const PAUSE: Duration = Duration::from_secs(5);
/// Names that are written with one look at the book, which nobody learns into meanwhile.
const AT_ONCE: u32 = 512;
/// How often a writing begins anew when names got other numbers meanwhile.
const TRIES: usize = 3;

impl Core {
    /// Gives the addresses that the kernel has open the names that an earlier daemon knew.
    pub fn recall_names(&self, file: &NamesFile) {
        let active = self.active();
        let (datapath, mut book) = (self.datapath(), self.book());
        let now = boot_ticks();
        let kept = file.read(|name, said| {
            if DomainName::parse(name).is_err() {
                return;
            }
            let addresses: Vec<IpAddr> = said.keys().copied().collect();
            let Ok(open) = datapath.open_until(&active.policy, name, &addresses) else { return };
            // What one answer said was said together.
            let mut answers = BTreeMap::<(String, Ticks), Vec<(IpAddr, Ticks)>>::new();
            for ((address, said), open) in said.into_iter().zip(open) {
                if let Some(expiry) = open {
                    answers.entry(said).or_default().push((address, expiry));
                }
            }
            for ((resolver, learned), addresses) in answers {
                if resolver.parse::<SocketAddr>().is_ok() {
                    book.learn(name, &addresses, &resolver, learned.min(now));
                }
            }
        });
        if let Err(error) = kept {
            let path = file.path.display();
            tracing::warn!(%error, %path, "cannot read what learned addresses are called; the addresses count all the same");
        }
    }

    /// A name's living addresses, each with the life left and how long ago a resolver said so last.
    pub fn recalled(&self, name: &str) -> Vec<(IpAddr, Duration, Duration)> {
        let now = boot_ticks();
        let time = |ticks: Ticks| Duration::from_nanos(u64::from(ticks) << TICK_SHIFT);
        let known = self.book().addresses_of(name, now).into_iter();
        known
            .map(|(address, entry)| (address, time(entry.expiry - now), time(now.saturating_sub(entry.learned))))
            .collect()
    }

    /// Writes the names down now and then, while new ones come; never ends.
    pub async fn keep_names(self: Arc<Self>, file: NamesFile) {
        let mut written = 0;
        let mut pause = PAUSE;
        loop {
            tokio::time::sleep(pause).await;
            let version = self.book().version();
            if version == written {
                continue;
            }
            let (core, to) = (Arc::clone(&self), file.clone());
            let start = Instant::now();
            if tokio::task::spawn_blocking(move || core.write_names(&to)).await.is_err() {
                return;
            }
            written = version;
            // A big book takes at most a twentieth of a processor.
            pause = PAUSE.max(start.elapsed() * 20);
        }
    }

    /// Writes the names down.
    pub fn write_names(&self, file: &NamesFile) {
        let mut result = self.try_write_names(file);
        for _ in 1..TRIES {
            if result.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::Interrupted) {
                result = self.try_write_names(file);
            }
        }
        self.set_note(
            "names",
            result.err().map(|error| {
                format!(
                    "the names of learned addresses cannot be kept: {}: {error}; after a restart `status` and `events` \
                         do not know them until they are asked for again",
                    file.path.display()
                )
            }),
        );
    }

    fn try_write_names(&self, file: &NamesFile) -> io::Result<()> {
        let renumbered = self.book().renumbered();
        let mut from = 0;
        file.write(|bytes| {
            let book = self.book();
            if book.renumbered() != renumbered {
                return Err(io::Error::new(io::ErrorKind::Interrupted, "names came and went meanwhile"));
            }
            let to = book.names().min(from + AT_ONCE);
            write_names(&book, from..to, bytes)?;
            from = to;
            Ok(to < book.names())
        })
    }
}

/// The living ones of the names with these numbers, as members of a JSON object.
fn write_names(book: &Book, numbers: std::ops::Range<u32>, bytes: &mut Vec<u8>) -> io::Result<()> {
    let (start, now) = (bytes.len(), boot_ticks());
    let mut json = serde_json::Serializer::new(&mut *bytes);
    let mut names = json.serialize_map(None)?;
    for number in numbers {
        let (name, mut said) = book.said(number, now);
        if said.is_empty() {
            continue;
        }
        said.sort_unstable_by_key(|(address, ..)| *address);
        names.serialize_entry(name, &Said(&said))?;
    }
    names.end()?;
    // Without its braces.
    bytes.remove(start);
    bytes.pop();
    Ok(())
}

/// Which resolver said so, and when, by address.
struct Said<'a>(&'a [(IpAddr, &'a str, Ticks)]);

impl serde::Serialize for Said<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(address, resolver, learned)| (address, (resolver, learned))))
    }
}
