//! The world's own count: every frame that the node sends is looked at, all the time, and judged by what the policy of
//! the run says, without asking the product.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Result, anyhow};

use crate::netns::NetNs;
use crate::sniffer::{Frame, Sniffer};

/// How many forbidden frames are kept to be shown.
const SHOWN: usize = 5;

/// What arrived.
#[derive(Debug, Default, Clone)]
pub struct Seen {
    pub frames: u64,
    /// Frames that the policy does not allow.
    pub forbidden: u64,
    /// The first of them.
    pub shown: Vec<String>,
}

/// Counts on a thread of its own, from its making until [`Watch::end`].
#[derive(Debug)]
pub struct Watch {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<Seen>>,
}

impl Watch {
    /// Watches all that comes into `world` by any interface but `lo`.
    pub fn begin(world: &NetNs, allowed: fn(&Frame) -> bool) -> Result<Self> {
        let sniffer = Sniffer::new(world)?;
        let over = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&over);
        let thread = std::thread::spawn(move || {
            let mut seen = Seen::default();
            loop {
                // Read before the last look: what was sent until then is in it.
                let last = stop.load(Ordering::Acquire);
                for frame in sniffer.take() {
                    seen.frames += 1;
                    if !allowed(&frame) {
                        seen.forbidden += 1;
                        if seen.shown.len() < SHOWN {
                            seen.shown.push(frame.to_string());
                        }
                    }
                }
                if last {
                    return seen;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        Ok(Self { over, thread: Some(thread) })
    }

    /// The count, with 100 ms for what is on its way.
    pub fn end(mut self) -> Result<Seen> {
        std::thread::sleep(Duration::from_millis(100));
        self.over.store(true, Ordering::Release);
        let thread = self.thread.take().ok_or_else(|| anyhow!("ended twice"))?;
        thread.join().map_err(|_| anyhow!("the watch lost frames: its buffer was full"))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Release);
    }
}

/// Whether the run's policy ([`super::scene::POLICY`]) lets this frame leave the node.
pub fn allowed(frame: &Frame) -> bool {
    let is = |address: &str| frame.destination == address.parse::<IpAddr>().ok();
    // What a change of the policy opens, which its act alone asks for: it knows itself when it may.
    let changed =
        matches!(frame.destination, Some(IpAddr::V4(to)) if to.octets()[..3] == [203, 0, 113] && to.octets()[3] >= 128);
    let learned = matches!(frame.destination, Some(IpAddr::V4(to)) if to.octets()[0] == 20 && to.octets()[1] < 4);
    match (frame.protocol, frame.destination_port) {
        _ if frame.is_chatter() => true,
        (Some(6 | 17), Some(53)) => is("203.0.113.53") && !frame.payload.windows(9).any(|word| word == b"forbidden"),
        (Some(6), Some(7000)) => is("203.0.113.10") || is("2001:db8::10") || is("203.0.113.40") || learned || changed,
        (Some(17), Some(7000)) => is("203.0.113.12"),
        // Of the connection that the node accepted.
        (Some(6), _) => frame.source_port == Some(2200) && is("192.0.2.1"),
        _ => false,
    }
}
