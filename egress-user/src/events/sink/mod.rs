//! Where `--events` of `egress run` and `egress exec` sends events. Each sink has a thread of its own behind the
//! [`Hub`]'s bounded queue: however slow or broken it is, no packet and no other reader waits for it, and what it missed
//! is counted and told.

mod fields;
mod file;
mod journal;
mod otlp;
mod run;
mod stdout;

use std::{
    fmt, io,
    path::{Path, PathBuf},
    str::FromStr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use super::{Event, Hub, Subscription, hub::Place};

#[cfg(test)]
mod tests;

/// A sink as the command line names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SinkSpec {
    /// Standard output: for people on a terminal, else JSON lines.
    Stdout(Form),
    /// JSON lines appended to a file.
    File(PathBuf),
    /// The journal, at its native protocol's socket.
    Journal(PathBuf),
    /// An OpenTelemetry collector, by OTLP over HTTP.
    Otlp(hyper::Uri),
}

/// How standard output is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// By what standard output is.
    Detect,
    /// JSON lines.
    Json,
    /// Lines for people.
    Pretty,
}

/// What `--events` takes, for messages.
const FORMS: &str =
    "`stdout`, `stdout:json`, `stdout:pretty`, `file:PATH`, `journal`, `journal:SOCKET` or `otlp:http://HOST:PORT`";
/// systemd-journald's socket for its native protocol.
const JOURNAL: &str = "/run/systemd/journal/socket";

impl FromStr for SinkSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (kind, rest) = text.split_once(':').map_or((text, None), |(kind, rest)| (kind, Some(rest)));
        match (kind, rest) {
            ("-" | "stdout", None) => Ok(Self::Stdout(Form::Detect)),
            ("stdout", Some("json")) => Ok(Self::Stdout(Form::Json)),
            ("stdout", Some("pretty")) => Ok(Self::Stdout(Form::Pretty)),
            ("file", Some(path)) if !path.is_empty() => file(path.into()),
            ("journal", None) => Ok(Self::Journal(JOURNAL.into())),
            ("journal", Some(path)) if !path.is_empty() => Ok(Self::Journal(path.into())),
            ("otlp", Some(url)) => otlp::endpoint(url).map(Self::Otlp),
            _ => Err(format!("a sink is one of {FORMS}")),
        }
    }
}

/// The daemon may write in the file's directory, since the file is made anew there: that must not be every directory.
fn file(path: PathBuf) -> Result<SinkSpec, String> {
    let spec = SinkSpec::File(path);
    match spec.writes_in() {
        Some(directory) if directory != Path::new("/") => Ok(spec),
        _ => Err(
            "give the file a directory of its own, like file:/var/log/egress/events.jsonl: the daemon may write there"
                .into(),
        ),
    }
}

impl fmt::Display for SinkSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stdout(_) => f.write_str("stdout"),
            Self::File(path) => write!(f, "file:{}", path.display()),
            Self::Journal(path) if path == Path::new(JOURNAL) => f.write_str("journal"),
            Self::Journal(path) => write!(f, "journal:{}", path.display()),
            Self::Otlp(uri) => write!(f, "otlp:{uri}"),
        }
    }
}

impl SinkSpec {
    /// The directory that the daemon must be able to write in: that of the file itself, where the path is a symbolic link.
    pub fn writes_in(&self) -> Option<PathBuf> {
        let Self::File(path) = self else { return None };
        let path = std::fs::canonicalize(path).unwrap_or_else(|_| path.clone());
        path.parent().map(|parent| if parent.as_os_str().is_empty() { PathBuf::from(".") } else { parent.to_owned() })
    }
}

/// Where one sink writes. Called from the sink's own thread, which it may block.
trait Write: Send {
    /// Writes all of `events`, or says why not. `Ok` tells how many of them were refused for good. After an error nothing of them may be left half-written where it can be
    /// taken back.
    fn write(&mut self, events: &[Arc<Event>]) -> io::Result<u64>;

    /// The rest of the batch is given up: how many of its events, from the first on, arrived all the same.
    fn gave_up(&mut self) -> u64 {
        0
    }

    /// How long to wait for further events, once there is one, to write them together.
    fn linger(&self) -> Duration {
        Duration::ZERO
    }
}

/// What became of the events that one sink was to write.
#[derive(Debug)]
pub struct Tally {
    name: String,
    written: AtomicU64,
    /// Lost events that its thread knows of.
    lost: AtomicU64,
    /// The most that was told as lost.
    told: AtomicU64,
    /// How far its thread is, once it has a place in the stream.
    place: OnceLock<Place>,
}

impl Tally {
    fn new(name: String) -> Self {
        let none = || AtomicU64::new(0);
        Self { name, written: none(), lost: none(), told: none(), place: OnceLock::new() }
    }

    /// The sink, as [`SinkSpec`] writes it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Events that it took.
    pub fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Events that it did not get: it was too slow, away for too long, or hangs. Never less than before.
    pub fn lost(&self) -> u64 {
        // In this order: what its thread hears of in between is missing in both for a moment, and never in both.
        let known = self.lost.load(Ordering::Acquire);
        let lost = known + self.place.get().map_or(0, Place::missed);
        self.told.fetch_max(lost, Ordering::Relaxed).max(lost)
    }

    /// Events that it did not get so far, those that wait for it included.
    pub fn missing(&self) -> u64 {
        self.place.get().map_or(0, Place::offered).saturating_sub(self.written())
    }
}

/// A sink that can be written to.
pub struct Opened {
    writer: Box<dyn Write>,
    tally: Arc<Tally>,
}

impl fmt::Debug for Opened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Opened").field(&self.tally).finish()
    }
}

impl Opened {
    /// Opens what `spec` names. A journal or collector that is not there yet is no error; a file that cannot be written
    /// is one.
    pub fn new(spec: &SinkSpec) -> io::Result<Self> {
        let writer: Box<dyn Write> = match spec {
            SinkSpec::Stdout(form) => Box::new(stdout::Stdout::new(*form)),
            SinkSpec::File(path) => Box::new(file::File::open(path)?),
            SinkSpec::Journal(path) => Box::new(journal::Journal::new(path)?),
            SinkSpec::Otlp(uri) => Box::new(otlp::Otlp::new(uri.clone())?),
        };
        Ok(Self { writer, tally: Arc::new(Tally::new(spec.to_string())) })
    }

    /// What becomes of its events.
    pub fn tally(&self) -> Arc<Tally> {
        Arc::clone(&self.tally)
    }

    /// Takes a place in the hub's stream: what is published from now on is for this sink.
    pub fn subscribe(self, hub: &Hub) -> Subscribed {
        let events = hub.subscribe();
        // A sink has one place.
        let _ = self.tally.place.set(events.place());
        Subscribed { events, opened: self }
    }
}

/// A sink with its place in the stream.
#[derive(Debug)]
pub struct Subscribed {
    opened: Opened,
    events: Subscription,
}

pub use run::{Running, start};
