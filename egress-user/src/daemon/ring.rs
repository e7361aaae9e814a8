//! The kernel's events, read on a thread of their own: looking up a process blocks, and nothing waits for it.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd},
    panic::resume_unwind,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use aya::maps::{MapData, RingBuf};
use egress_ebpf::abi::{DropEvent, LearnedEvent};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::Core;
use crate::{
    api::Source as _,
    datapath::cgroup_root,
    events::{Clock, Enricher, Event, RawEvent, Roots, decode},
    privilege::{self, Role},
};

/// How long the reader sleeps when nothing comes: only to notice that the daemon is gone.
const NAP: Duration = Duration::from_secs(60);
/// How long answers are let come in after the first: refreshed names are answered in bunches, and to wake up for each would cost as
/// much as reading them. Refusals are told at once.
const GATHER: Duration = Duration::from_millis(4);

/// More events than the ring buffer (1 MiB) has room for: who has read so many has read all that was there at the beginning, though others
/// come without end.
const HELD: usize = (1 << 20) / LearnedEvent::HEAD;
const _: () = assert!(LearnedEvent::HEAD < size_of::<DropEvent>());

/// Reads events until the process ends, and hands each to `seen` after the hub. The thread gives up all that it does not
/// need first.
pub fn read(core: &Arc<Core>, events: RingBuf<MapData>, seen: impl Fn(&Event) + Send + 'static) -> io::Result<()> {
    let mut reader = Reader::new(core, events);
    let (begun, result) = mpsc::channel();
    thread::Builder::new().name("events".to_owned()).spawn(move || {
        give_way();
        let restricted = privilege::restrict(Role::Events, &[]).map_err(io::Error::other);
        let failed = restricted.is_err();
        // The receiver waits just below.
        let _ = begun.send(restricted);
        if failed {
            return;
        }
        loop {
            while reader.drain(&seen) == Drained::Answers {
                thread::sleep(GATHER);
            }
            reader.wait(NAP);
        }
    })?;
    result.recv().map_err(io::Error::other)?
}

/// A thread that reads events until [`Until::finish`]: for a policy that is in force for a while, or for one command.
#[derive(Debug)]
pub struct Until {
    ended: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Until {
    /// Begins to read, and hands each event to `seen`; the end is noticed after `pause` at the latest.
    pub fn read(
        core: &Arc<Core>,
        events: RingBuf<MapData>,
        pause: Duration,
        seen: impl Fn(&Event) + Send + 'static,
    ) -> io::Result<Self> {
        let core = Arc::clone(core);
        Self::begin(move |ended| {
            let mut reader = Reader::new(&core, events);
            while !ended.load(Ordering::Acquire) {
                reader.wait(pause);
                reader.drain(&seen);
            }
            reader.drain(&seen);
            core.sweep(true).iter().for_each(&seen);
        })
    }

    fn begin(work: impl FnOnce(&AtomicBool) + Send + 'static) -> io::Result<Self> {
        let ended = Arc::new(AtomicBool::new(false));
        let end = Arc::clone(&ended);
        let thread = thread::Builder::new().name("events".to_owned()).spawn(move || work(&end))?;
        Ok(Self { ended, thread })
    }

    /// Waits until the last events are read. A panic of the thread goes on here: without what it had still to read, nothing
    /// blocked would look like nothing to block.
    pub fn finish(self) {
        self.ended.store(true, Ordering::Release);
        self.thread.join().unwrap_or_else(|panic| resume_unwind(panic));
    }
}

/// Lets others go first on a busy machine: a flood of refusals, each to another destination, should cost those who may send as
/// little as can be, and events that are not read in time are lost and counted.
fn give_way() {
    const NICE: i32 = 10;
    // SAFETY: a system call on integers; 0 is this thread (setpriority(2), "C library/kernel differences").
    let _ = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) };
}

/// What was there to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drained {
    /// Nothing.
    Nothing,
    /// Answers alone.
    Answers,
    /// Refusals too.
    Refusals,
}

/// Reads events on the caller's thread.
pub struct Reader {
    core: Arc<Core>,
    enricher: Enricher,
    events: RingBuf<MapData>,
}

impl Reader {
    /// A reader for the caller's own loop.
    pub fn new(core: &Arc<Core>, events: RingBuf<MapData>) -> Self {
        let root = cgroup_root().unwrap_or_else(|_| "/sys/fs/cgroup".into());
        let mut enricher = Enricher::new(Roots::host(root));
        enricher.watch();
        Self { core: Arc::clone(core), enricher, events }
    }

    /// Waits until there is something, at most `limit`.
    pub fn wait(&self, limit: Duration) {
        // SAFETY: the ring buffer keeps its descriptor open as long as it lives, which is longer than this call.
        let fd = unsafe { BorrowedFd::borrow_raw(self.events.as_raw_fd()) };
        let timeout = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
        let mut fds = vec![PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
        fds.extend(self.core.heard.bell().map(|bell| PollFd::new(bell, PollFlags::POLLIN)));
        fds.extend(self.enricher.watched().map(|cgroups| PollFd::new(cgroups, PollFlags::POLLIN)));
        let _ = poll(&mut fds, timeout);
    }

    /// Takes everything that is there.
    pub fn drain(&mut self, seen: &impl Fn(&Event)) -> Drained {
        self.enricher.hear();
        let (mut turn, mut read) = (self.core.heard.begin(), 0);
        let mut drained = Drained::Nothing;
        while let Some(item) = self.events.next() {
            if read == HELD {
                self.core.heard.done(turn);
                (turn, read) = (self.core.heard.begin(), 0);
            }
            read += 1;
            let raw = match decode(&item) {
                Ok(raw) => raw,
                Err(error) => {
                    tracing::warn!(%error, "an event of the kernel cannot be read");
                    continue;
                }
            };
            drop(item);
            if let RawEvent::Learned(learned) = &raw {
                let delay = Clock::now().monotonic.saturating_sub(learned.time);
                self.core.measures().noticed(Duration::from_nanos(delay));
                self.core.note(learned);
                if drained == Drained::Nothing {
                    drained = Drained::Answers;
                }
            }
            let event = Arc::new(self.enricher.enrich(&raw, &*self.core));
            seen(&event);
            if let RawEvent::Drop(refused) = &raw {
                self.core.told(refused, &event);
                drained = Drained::Refusals;
            }
            self.core.hub().publish_shared(event);
        }
        self.core.heard.done(turn);
        drained
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;

    #[test]
    fn a_reader_ends_when_it_is_told_to() {
        let (read, events) = mpsc::channel();
        let reader = Until::begin(move |ended| {
            while !ended.load(Ordering::Acquire) {
                thread::yield_now();
            }
            read.send("the last").unwrap();
        });
        reader.unwrap().finish();
        assert_eq!(events.try_recv(), Ok("the last"));
    }

    #[test]
    fn a_readers_panic_is_not_taken_for_its_end() {
        // Not `panic!`, which would be told on standard error.
        let reader = Until::begin(|_| resume_unwind(Box::new("it cannot read"))).unwrap();
        let panic = catch_unwind(AssertUnwindSafe(|| reader.finish())).unwrap_err();
        assert_eq!(panic.downcast_ref(), Some(&"it cannot read"));
    }
}
