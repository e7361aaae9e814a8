//! Questions over UDP to one resolver: which port a question goes out by, and that it is sent again when nothing comes.
//!
//! hickory's UDP is not used: it opens, registers and closes a socket for each question, which is most of what one costs
//! (decision 0058).

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use hickory_proto::rr::{Name, RecordType};

use super::port::{Asked, Port, Reply};
use super::question::Question;

/// Times that a question is sent.
const SENDS: u32 = 3;

pub struct Udp {
    resolver: SocketAddr,
    /// Alive as long as a question is under way on it.
    latest: Mutex<Weak<Port>>,
}

impl Udp {
    pub fn new(resolver: SocketAddr) -> Self {
        Self { resolver, latest: Mutex::default() }
    }

    /// Asks, at most [`SENDS`] times, `resend` apart. Waits for an answer as long as the caller does.
    ///
    /// # Errors
    /// What sending meets: no route, no permission, no descriptor.
    pub async fn ask(&self, name: &Name, record_type: RecordType, resend: Duration) -> io::Result<Reply> {
        let mut asked = self.start(Question::new(name, record_type))?;
        for _ in 1..SENDS {
            match tokio::time::timeout(resend, &mut asked.reply).await {
                Ok(reply) => return reply.map_err(io::Error::other),
                Err(_) => asked.send()?,
            }
        }
        (&mut asked.reply).await.map_err(io::Error::other)
    }

    fn start(&self, question: Question) -> io::Result<Asked> {
        let asked = self.take(question)?;
        asked.send()?;
        Ok(asked)
    }

    /// By the port that others were asked by in this moment, or a new one.
    fn take(&self, mut question: Question) -> io::Result<Asked> {
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(port) = latest.upgrade() {
            match port.take(question) {
                Ok(asked) => return Ok(asked),
                Err(back) => question = back,
            }
        }
        let port = Arc::new(Port::open(self.resolver)?);
        *latest = Arc::downgrade(&port);
        port.take(question).map_err(|_| io::Error::other("a new port takes no question"))
    }
}
