//! The names of addresses over a restart. The kernel keeps the addresses and their time; what they are called is kept in a
//! file, for people alone.
//!
//! Nothing is opened by the file: of what it says only that counts for which the kernel has the address open under a rule
//! of that very name, as long as the kernel says.

use std::{
    collections::BTreeMap,
    fs, io,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use egress_ebpf::abi::{TICK_SHIFT, Ticks};
use serde::{Deserialize, Serialize};

use super::{Core, store::replace};
use crate::{datapath::boot_ticks, policy::DomainName};

/// The longest file that is read, and written. 200,000 names with four addresses each take half of it.
const BYTES_MAX: u64 = 64 << 20;
/// The shortest pause between two writings.
const PAUSE: Duration = Duration::from_secs(5);

/// The file's content.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    /// /proc/sys/kernel/random/boot_id: another boot's names have no addresses in the kernel.
    boot: String,
    /// Which resolver said so, and when, by name and address.
    names: Names,
}

type Names = BTreeMap<String, BTreeMap<IpAddr, (String, Ticks)>>;

/// Where the names are kept.
#[derive(Clone, Debug)]
pub struct NamesFile {
    path: PathBuf,
    bytes_max: u64,
}

impl NamesFile {
    /// The file in the state directory.
    pub fn new(dir: &Path) -> Self {
        Self { path: dir.join("names.json"), bytes_max: BYTES_MAX }
    }

    /// What was kept since this boot. What cannot be read is told: names are lost and nothing else.
    fn read(&self) -> io::Result<Kept> {
        use io::Read as _;
        let file = match fs::File::open(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Kept::default()),
            file => file?,
        };
        let mut bytes = Vec::new();
        file.take(self.bytes_max + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > self.bytes_max {
            return Err(io::Error::other("it is too long"));
        }
        let kept: Kept = serde_json::from_slice(&bytes)?;
        Ok(if kept.boot == boot_id()? { kept } else { Kept::default() })
    }

    fn write(&self, names: Names) -> io::Result<()> {
        let bytes = serde_json::to_vec(&Kept { boot: boot_id()?, names })?;
        if bytes.len() as u64 > self.bytes_max {
            return Err(io::Error::other(format!("they take more than {} bytes", self.bytes_max)));
        }
        // Not synced to the disk: another boot has no use for it.
        replace(&self.path, &bytes, false)
    }
}

fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

impl Core {
    /// Gives the addresses that the kernel has open the names that an earlier daemon knew.
    pub fn recall_names(&self, file: &NamesFile) {
        let kept = match file.read() {
            Ok(kept) => kept,
            Err(error) => {
                let path = file.path.display();
                tracing::warn!(%error, %path, "cannot read what learned addresses are called; the addresses count all the same");
                return;
            }
        };
        let active = self.active();
        let (datapath, mut book) = (self.datapath(), self.book());
        let now = boot_ticks();
        for (name, addresses) in kept.names {
            if DomainName::parse(&name).is_err() {
                continue;
            }
            for (address, (resolver, learned)) in addresses {
                let open = datapath.open_until(&active.policy, &name, address).ok().flatten();
                if let (Some(expiry), Ok(_)) = (open, resolver.parse::<SocketAddr>()) {
                    book.learn(&name, &[(address, expiry)], &resolver, learned.min(now));
                }
            }
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
        let names = self.book().sources(boot_ticks());
        let result = file.write(names);
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
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some() -> Names {
        let address = "192.0.2.1".parse().unwrap();
        let said = ("192.0.2.53:53".into(), 7);
        BTreeMap::from([("a.example.com".to_owned(), BTreeMap::from([(address, said)]))])
    }

    fn file(bytes_max: u64) -> (tempfile::TempDir, NamesFile) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state/names.json");
        (dir, NamesFile { path, bytes_max })
    }

    #[test]
    fn what_is_written_is_read_and_nothing_is_left_beside_it() {
        let (_dir, file) = file(BYTES_MAX);
        assert!(file.read().unwrap().names.is_empty());
        file.write(some()).unwrap();
        assert_eq!(file.read().unwrap().names, some());
        assert_eq!(fs::read_dir(file.path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn another_boots_names_are_none() {
        let (_dir, file) = file(BYTES_MAX);
        file.write(some()).unwrap();
        let text = fs::read_to_string(&file.path).unwrap().replace(&boot_id().unwrap(), "another");
        fs::write(&file.path, text).unwrap();
        assert!(file.read().unwrap().names.is_empty());
    }

    #[test]
    fn a_cut_or_long_file_is_an_error() {
        let (_dir, file) = file(4096);
        file.write(some()).unwrap();
        let text = fs::read_to_string(&file.path).unwrap();
        for end in 0..text.len() {
            fs::write(&file.path, &text[..end]).unwrap();
            assert!(file.read().is_err(), "{end} bytes");
        }
        fs::write(&file.path, format!("{text}{}", " ".repeat(4096))).unwrap();
        assert!(file.read().unwrap_err().to_string().contains("too long"));
        let many = (0..200).map(|n| (format!("{n}.example.com"), some().remove("a.example.com").unwrap())).collect();
        assert!(file.write(many).is_err());
        assert!(file.path.exists());
    }
}
