//! A sink's thread: takes events from the hub in batches and hands them over, again and again where that fails.

use std::{
    io,
    sync::{Arc, atomic::Ordering, mpsc},
    thread,
    time::{Duration, Instant},
};

use super::{Subscribed, Tally, Write};
use crate::events::{Event, Item, Kind, Lost, LostWhere, Subscription, Timestamp};

/// Events that are written at a time.
const BATCH: usize = 512;
/// How long one batch is tried before its events count as lost; meanwhile the hub's queue holds what comes.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long the sinks may write, at the end, what was published before it: one that hangs must not keep the program from ending.
const END: Duration = Duration::from_secs(2);
/// The pause before the second try, and the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(5);

/// Sinks at work.
#[derive(Debug)]
pub struct Running {
    ended: Vec<mpsc::Receiver<()>>,
}

/// Starts one thread a sink. They have the rights of the thread that calls this.
pub fn start(sinks: Vec<Subscribed>) -> io::Result<Running> {
    let mut ended = Vec::new();
    for Subscribed { opened, events } in sinks {
        let (done, receiver) = mpsc::channel();
        thread::Builder::new().name("sink".to_owned()).spawn(move || {
            Sink { writer: opened.writer, tally: opened.tally, patience: PATIENCE, failing: false, owed: 0 }
                .run(events);
            // Nobody may be waiting.
            let _ = done.send(());
        })?;
        ended.push(receiver);
    }
    Ok(Running { ended })
}

impl Running {
    /// Waits until every sink has written what was published before the hub was closed, two seconds at most.
    pub fn finish(self) {
        let until = Instant::now() + END;
        for sink in self.ended {
            let _ = sink.recv_timeout(until.saturating_duration_since(Instant::now()));
        }
    }
}

pub(super) struct Sink {
    pub(super) writer: Box<dyn Write>,
    pub(super) tally: Arc<Tally>,
    pub(super) patience: Duration,
    pub(super) failing: bool,
    /// Lost events that the sink was not told of yet.
    pub(super) owed: u64,
}

impl Sink {
    pub(super) fn run(&mut self, mut events: Subscription) {
        let mut batch: Vec<Arc<Event>> = Vec::with_capacity(BATCH);
        while let Some(first) = events.next_blocking() {
            let linger = self.writer.linger();
            if !linger.is_zero() {
                thread::sleep(linger);
            }
            let mut next = Some(first);
            while let Some(item) = next {
                match item {
                    Item::Event(event) => batch.push(event),
                    Item::Lost(count) => self.lose(count),
                }
                next = if batch.len() < BATCH { events.try_next() } else { None };
            }
            self.deliver(&mut batch);
        }
    }

    fn lose(&mut self, count: u64) {
        self.tally.lost.fetch_add(count, Ordering::Release);
        self.owed += count;
    }

    /// Writes the batch, after a word on what is missing before it.
    fn deliver(&mut self, batch: &mut Vec<Arc<Event>>) {
        let own = batch.len() as u64;
        if self.owed > 0 {
            let lost = Lost { count: self.owed, place: LostWhere::Subscriber };
            batch.insert(0, Arc::new(Event::new(Timestamp::now(), Kind::Lost(lost))));
        }
        let started = Instant::now();
        let mut pause = FIRST_PAUSE;
        loop {
            let error = match self.writer.write(batch) {
                Ok(refused) => {
                    let refused = refused.min(own);
                    self.tally.written.fetch_add(own - refused, Ordering::Relaxed);
                    self.tally.lost.fetch_add(refused, Ordering::Release);
                    self.owed = 0;
                    if std::mem::take(&mut self.failing) {
                        tracing::info!(
                            sink = self.tally.name(),
                            lost = self.tally.lost(),
                            "events reach this sink again"
                        );
                    }
                    break;
                }
                Err(error) => error,
            };
            if !std::mem::replace(&mut self.failing, true) {
                tracing::warn!(sink = self.tally.name(), %error, "events do not reach this sink: what it misses is counted, and it is tried again");
            }
            // Who closed a pipe does not come back.
            if error.kind() == io::ErrorKind::BrokenPipe || started.elapsed() + pause > self.patience {
                let arrived = self.writer.gave_up();
                let told = u64::from(self.owed > 0 && arrived > 0);
                self.owed *= 1 - told;
                self.tally.written.fetch_add(arrived - told, Ordering::Relaxed);
                self.lose(own - (arrived - told));
                break;
            }
            thread::sleep(pause);
            pause = (pause * 2).min(LAST_PAUSE);
        }
        batch.clear();
    }
}
