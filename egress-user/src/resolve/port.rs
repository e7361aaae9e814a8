//! One socket, on a random port, with the questions that are under way on it.
//!
//! A port is as short-lived as a question: it takes those that start in the same moment, and is closed with the last of
//! them. So nobody has longer to find it out than with a socket for each, and what a socket costs is shared.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt::BindToDevice};
use rand::RngExt;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

use super::provider::interface;
use super::question::{Question, Repeats};

/// Questions that one port is for.
const QUESTIONS: usize = 16;
/// How long answers are let come in before they are read, all by one wake-up; and how long a port takes questions.
const GATHER: Duration = Duration::from_millis(4);
/// Datagrams that are read in a row: a flood must not keep others waiting.
const IN_A_ROW: usize = 256;
/// Ports that are tried before the kernel chooses.
const TRIES: usize = 10;
/// More than [`Question`] asks for; what is longer is cut, and then cannot be read.
const LONGEST: usize = 4096;

/// What came back.
#[derive(Debug)]
pub enum Reply {
    /// A datagram that repeats id and question to the letter.
    Answer(Vec<u8>),
    /// One that repeats the question in other letters.
    InAnotherCase,
}

/// A socket that is connected to one resolver. Dropped, it is closed.
pub struct Port {
    socket: Arc<UdpSocket>,
    questions: Arc<Mutex<Questions>>,
    reader: AbortHandle,
}

struct Questions {
    waiting: Vec<Waiting>,
    /// How many more it takes.
    left: usize,
}

struct Waiting {
    id: u16,
    question: Arc<Question>,
    reply: oneshot::Sender<Reply>,
}

/// A question under way; dropped, it is given up.
pub struct Asked {
    port: Arc<Port>,
    id: u16,
    question: Arc<Question>,
    pub reply: oneshot::Receiver<Reply>,
}

impl Port {
    /// Needs a Tokio runtime.
    pub fn open(resolver: SocketAddr) -> io::Result<Self> {
        let socket = Arc::new(bind(resolver)?);
        if let SocketAddr::V6(resolver) = resolver
            && resolver.scope_id() != 0
        {
            setsockopt(&socket, BindToDevice, &interface(resolver.scope_id())?)?;
        }
        socket.connect(resolver)?;
        socket.set_nonblocking(true)?;
        let questions = Arc::new(Mutex::new(Questions { waiting: vec![], left: QUESTIONS }));
        let reader = tokio::spawn(read(socket.clone(), questions.clone())).abort_handle();
        Ok(Self { socket, questions, reader })
    }

    /// Takes a question, under an id that no other one here has; gives it back if the port takes no more.
    pub fn take(self: &Arc<Self>, mut question: Question) -> Result<Asked, Question> {
        let mut questions = lock(&self.questions);
        if questions.left == 0 {
            return Err(question);
        }
        questions.left -= 1;
        let mut random = rand::rng();
        let id = loop {
            let id = random.random();
            if questions.waiting.iter().all(|waiting| waiting.id != id) {
                break id;
            }
        };
        question.set_id(id);
        let question = Arc::new(question);
        let (sender, reply) = oneshot::channel();
        questions.waiting.push(Waiting { id, question: question.clone(), reply: sender });
        Ok(Asked { port: self.clone(), id, question, reply })
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Asked {
    /// Sends the question, for the first time or once more.
    pub fn send(&self) -> io::Result<()> {
        let send = || self.port.socket.send(self.question.datagram());
        // What an earlier datagram met (ICMP) is told by the next call, which sends nothing. It says as little as silence:
        // the resolver may be back right away.
        match send().or_else(|error| if error.kind() == io::ErrorKind::ConnectionRefused { send() } else { Err(error) })
        {
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::ConnectionRefused) => {
                Ok(())
            }
            sent => sent.map(drop),
        }
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        lock(&self.port.questions).waiting.retain(|waiting| waiting.id != self.id);
    }
}

/// A port at random of all that are not privileged (RFC 6056 section 3.2), twice as many as the kernel chooses from.
fn bind(resolver: SocketAddr) -> io::Result<UdpSocket> {
    let bind = |port: u16| match resolver {
        SocketAddr::V4(_) => UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)),
        SocketAddr::V6(_) => UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port)),
    };
    let mut random = rand::rng();
    for _ in 0..TRIES {
        match bind(random.random_range(1024..=u16::MAX)) {
            Err(error) if matches!(error.kind(), io::ErrorKind::AddrInUse | io::ErrorKind::PermissionDenied) => {}
            bound => return bound,
        }
    }
    bind(0)
}

/// Hands out the answers. Ends when nobody waits any more.
async fn read(socket: Arc<UdpSocket>, questions: Arc<Mutex<Questions>>) {
    loop {
        tokio::time::sleep(GATHER).await;
        lock(&questions).left = 0;
        drain(&socket, &questions);
        if lock(&questions).waiting.is_empty() {
            return;
        }
        // Only now, and only until something comes: who answers at once spares the event loop all of this. What came
        // since is told at once; where there is no room to wait, it is looked again after a while.
        // SAFETY: what is registered owns the socket, and keeps it open.
        if let Ok(readable) = unsafe { AsyncFd::register_with_interest(socket.clone(), Interest::READABLE) } {
            let _ = readable.readable().await;
        }
    }
}

fn drain(socket: &UdpSocket, questions: &Mutex<Questions>) {
    let mut buffer = [0; LONGEST];
    for _ in 0..IN_A_ROW {
        match socket.recv(&mut buffer) {
            Ok(length) => lock(questions).hand_out(&buffer[..length]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            // As in `Asked::send`.
            Err(_) => {}
        }
    }
}

impl Questions {
    /// What answers nothing that was asked here ends nothing (RFC 5452 section 9.1).
    fn hand_out(&mut self, datagram: &[u8]) {
        let answers = |waiting: &Waiting| waiting.question.repeated_by(datagram);
        let found = self.waiting.iter().map(answers).enumerate().find(|(_, repeats)| *repeats != Repeats::Not);
        let Some((place, repeats)) = found else {
            tracing::debug!("a datagram from a resolver answers no question");
            return;
        };
        let reply = match repeats {
            Repeats::Exactly => Reply::Answer(datagram.to_vec()),
            _ => Reply::InAnotherCase,
        };
        // Who asked may have given up.
        let _ = self.waiting.swap_remove(place).reply.send(reply);
    }
}

fn lock(questions: &Mutex<Questions>) -> MutexGuard<'_, Questions> {
    // Nothing is left half done by a panic.
    questions.lock().unwrap_or_else(PoisonError::into_inner)
}
