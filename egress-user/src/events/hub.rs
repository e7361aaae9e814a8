//! Events to many readers, none of which can hold up the writer.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::sync::broadcast::{
    self,
    error::{RecvError, TryRecvError},
};

use super::Event;

/// Events that are kept for those who ask later.
pub const RECENT: usize = 1024;

/// Where events are published. A clone is the same hub.
#[derive(Clone, Debug)]
pub struct Hub {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    capacity: usize,
    /// How many events were published, up to [`Hub::close`].
    published: Arc<AtomicU64>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    recent: VecDeque<Arc<Event>>,
    /// Gone after [`Hub::close`].
    sender: Option<broadcast::Sender<Arc<Event>>>,
}

impl Default for Hub {
    fn default() -> Self {
        Self::new(RECENT)
    }
}

impl Hub {
    /// Keeps the last `capacity` events, and as many for each subscriber that lags behind.
    pub fn new(capacity: usize) -> Self {
        let capacity = capacity.max(1);
        let state = State { recent: VecDeque::with_capacity(capacity), sender: Some(broadcast::Sender::new(capacity)) };
        Self { inner: Arc::new(Inner { capacity, published: Arc::default(), state: Mutex::new(state) }) }
    }

    /// Publishes an event; never waits for a subscriber.
    pub fn publish(&self, event: Event) {
        self.publish_shared(Arc::new(event));
    }

    /// The same, for an event that others have too.
    pub fn publish_shared(&self, event: Arc<Event>) {
        let mut state = self.lock();
        if state.recent.len() >= self.inner.capacity {
            state.recent.pop_front();
        }
        state.recent.push_back(Arc::clone(&event));
        if let Some(sender) = &state.sender {
            // Without subscribers there is nobody to tell.
            let _ = sender.send(event);
            self.inner.published.fetch_add(1, Ordering::Release);
        }
    }

    /// The last events, oldest first.
    pub fn recent(&self) -> Vec<Arc<Event>> {
        self.lock().recent.iter().cloned().collect()
    }

    /// What is published from now on.
    pub fn subscribe(&self) -> Subscription {
        self.subscribe_with_recent().1
    }

    /// The last events, and what is published after them: nothing twice, nothing missing in between.
    pub fn subscribe_with_recent(&self) -> (Vec<Arc<Event>>, Subscription) {
        let state = self.lock();
        let receiver = match &state.sender {
            Some(sender) => sender.subscribe(),
            None => broadcast::channel(1).1,
        };
        let from = self.inner.published.load(Ordering::Acquire);
        let place = Place {
            published: Arc::clone(&self.inner.published),
            from,
            read: Arc::new(AtomicU64::new(from)),
            // As tokio rounds it (`broadcast::channel`).
            room: self.inner.capacity.next_power_of_two() as u64,
        };
        (state.recent.iter().cloned().collect(), Subscription { receiver, place })
    }

    /// Ends every subscription, once it has read what is there.
    pub fn close(&self) {
        self.lock().sender = None;
    }

    /// Nothing panics while it holds the lock, so that a poisoned state is still whole.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One reader's place in the stream.
#[derive(Debug)]
pub struct Subscription {
    receiver: broadcast::Receiver<Arc<Event>>,
    place: Place,
}

/// How far a thread is that reads with [`Subscription::next_blocking`] and [`Subscription::try_next`], for others to see while it
/// does something else.
#[derive(Clone, Debug)]
pub struct Place {
    published: Arc<AtomicU64>,
    from: u64,
    /// Events that were read or passed by, and the one that is being asked for.
    read: Arc<AtomicU64>,
    room: u64,
}

impl Place {
    /// How many events there were since the subscription.
    pub fn offered(&self) -> u64 {
        self.published.load(Ordering::Acquire) - self.from
    }

    /// How many events passed the reader by, of which it will hear when it reads on. Never more than there are, also while it
    /// reads; for a moment less.
    pub fn missed(&self) -> u64 {
        // In this order: what is read in between makes it less.
        let published = self.published.load(Ordering::Acquire);
        published.saturating_sub(self.read.load(Ordering::Acquire)).saturating_sub(self.room)
    }

    /// Around each look: an event counts as read before it is taken, since its place is free from then on.
    fn look<E>(
        &self,
        look: impl FnOnce() -> Result<Arc<Event>, E>,
        lagged: impl Fn(&E) -> Option<u64>,
    ) -> Result<Arc<Event>, E> {
        self.read.fetch_add(1, Ordering::AcqRel);
        let found = look();
        if let Err(error) = &found {
            // One was counted already.
            self.read.fetch_add(lagged(error).unwrap_or(0).wrapping_sub(1), Ordering::AcqRel);
        }
        found
    }
}

/// What a subscriber gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// An event.
    Event(Arc<Event>),
    /// The subscriber was too slow: so many events passed it by.
    Lost(u64),
}

impl Subscription {
    /// Its place, for others.
    pub fn place(&self) -> Place {
        self.place.clone()
    }

    /// The next item; `None` when the hub is closed.
    pub async fn next(&mut self) -> Option<Item> {
        match self.receiver.recv().await {
            Ok(event) => Some(Item::Event(event)),
            Err(RecvError::Lagged(count)) => Some(Item::Lost(count)),
            Err(RecvError::Closed) => None,
        }
    }

    /// The same for a thread of its own, which waits.
    pub fn next_blocking(&mut self) -> Option<Item> {
        let lagged = |error: &RecvError| if let RecvError::Lagged(count) = error { Some(*count) } else { None };
        match self.place.look(|| self.receiver.blocking_recv(), lagged) {
            Ok(event) => Some(Item::Event(event)),
            Err(RecvError::Lagged(count)) => Some(Item::Lost(count)),
            Err(RecvError::Closed) => None,
        }
    }

    /// The next item if it is there already.
    pub fn try_next(&mut self) -> Option<Item> {
        let lagged = |error: &TryRecvError| if let TryRecvError::Lagged(count) = error { Some(*count) } else { None };
        match self.place.look(|| self.receiver.try_recv(), lagged) {
            Ok(event) => Some(Item::Event(event)),
            Err(TryRecvError::Lagged(count)) => Some(Item::Lost(count)),
            Err(TryRecvError::Empty | TryRecvError::Closed) => None,
        }
    }
}
