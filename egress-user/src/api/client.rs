//! Asking the daemon.

use std::{
    fmt::Write,
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Request, Response, StatusCode,
    body::{Bytes, Incoming},
    client::conn::http1,
};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::{net::UnixStream, task::JoinHandle, time::Instant};

use super::{
    ApplyRequest, Changed, ErrorBody, EventFilter, Explanation, Health, PacketExplanation, PacketQuestion, Status,
};
use crate::events::Event;

/// How long the daemon may take to start an answer.
const TIMEOUT: Duration = Duration::from_secs(15);
/// The same of a policy to apply: to compile a large one takes long, and whoever gives up does not know what is in force.
const APPLY_TIMEOUT: Duration = Duration::from_secs(300);
/// How long a full backlog is waited for, and how long between two tries.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const CONNECT_PAUSE: Duration = Duration::from_millis(5);
/// The longest answer: a status with 100,000 names is some 30 MB.
const ANSWER_MAX: usize = 256 << 20;
/// The longest line of an event.
const LINE_MAX: usize = 1 << 20;

/// Why the daemon did not answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("no daemon answers at {}: start one with `egress run --policy P`, or name its socket with --socket", .0.display())]
    NoDaemon(PathBuf),
    /// The socket is not for this user.
    #[error("may not ask the daemon at {}: run this as root, or as a member of the socket's group", .0.display())]
    Permission(PathBuf),
    /// The daemon takes no more clients now.
    #[error("the daemon at {} is busy: {message}: try again", path.display())]
    Busy {
        /// The socket.
        path: PathBuf,
        /// What it says.
        message: String,
    },
    /// The daemon takes the question for a wrong one.
    #[error("{message}")]
    Refused {
        /// What is wrong.
        message: String,
        /// What to do.
        hint: Option<String>,
    },
    /// It is not the time for it.
    #[error("{message}")]
    Conflict {
        /// Why.
        message: String,
        /// What to do.
        hint: Option<String>,
    },
    /// Connecting failed in another way.
    #[error("cannot reach the daemon at {}: {source}", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// No answer came.
    #[error("the daemon at {} did not answer within {} s: its log may say why", .0.display(), .1.as_secs())]
    Timeout(PathBuf, Duration),
    /// What answers speaks something else.
    #[error("what answers at {} is not this version's daemon: {message}", path.display())]
    Protocol {
        /// The socket.
        path: PathBuf,
        /// What is odd about it.
        message: String,
    },
}

/// A client of one daemon; each question is a connection of its own.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// A client for the daemon at `socket`; nothing is connected yet.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into() }
    }

    /// The daemon's state.
    pub async fn status(&self) -> Result<Status, ClientError> {
        self.json("/v1/status").await
    }

    /// Whether all is well; that it is not is an answer, no error.
    pub async fn health(&self) -> Result<Health, ClientError> {
        self.json("/v1/health").await
    }

    /// What happens to `to`, and why; [`ClientError::Refused`] where it is no destination.
    pub async fn explain(&self, to: &str) -> Result<Explanation, ClientError> {
        self.json(&format!("/v1/explain?to={}", percent(to))).await
    }

    /// What the attached programs say of a packet; [`ClientError::Refused`] where it is none.
    pub async fn packet(&self, question: &PacketQuestion) -> Result<PacketExplanation, ClientError> {
        let mut path = format!("/v1/packet?packet={}", percent(&question.packet));
        for (key, value) in [("hook", &question.hook), ("cgroup", &question.cgroup)] {
            if let Some(value) = value {
                let _ = write!(path, "&{key}={}", percent(value));
            }
        }
        self.json(&path).await
    }

    /// Events, as `filter` says.
    pub async fn events(&self, filter: EventFilter) -> Result<EventStream, ClientError> {
        let mut path = format!("/v1/events?follow={}&dropped={}", filter.follow, filter.dropped);
        let words = [
            ("recent", filter.recent.map(|recent| recent.to_string())),
            ("pid", filter.pid.map(|pid| pid.to_string())),
            ("cgroup", filter.cgroup),
            ("to", filter.to),
            ("reason", filter.reason),
        ];
        for (key, value) in words {
            if let Some(value) = value {
                let _ = write!(path, "&{key}={}", percent(&value));
            }
        }
        let (response, driver) = self.get(&path).await?;
        if response.status() != StatusCode::OK {
            return Err(self.refused(response).await);
        }
        Ok(EventStream {
            socket: self.socket.clone(),
            body: response.into_body(),
            buffer: Vec::new(),
            scanned: 0,
            driver: Abort(driver),
        })
    }

    /// Puts a policy in force, or only says what would change.
    pub async fn apply(&self, request: &ApplyRequest) -> Result<Changed, ClientError> {
        let body = serde_json::to_vec(request).map_err(|error| self.protocol(error))?;
        self.post("/v1/policy", body, APPLY_TIMEOUT).await
    }

    /// Keeps the policy that is on trial.
    pub async fn confirm(&self) -> Result<Changed, ClientError> {
        self.post("/v1/confirm", Vec::new(), TIMEOUT).await
    }

    /// Goes back to the policy before.
    pub async fn roll_back(&self) -> Result<Changed, ClientError> {
        self.post("/v1/rollback", Vec::new(), TIMEOUT).await
    }

    async fn post(&self, path: &str, body: Vec<u8>, patience: Duration) -> Result<Changed, ClientError> {
        let request = Request::post(path).header(hyper::header::CONTENT_TYPE, "application/json");
        let (response, driver) = self.send(request, body, patience).await?;
        let _driver = Abort(driver);
        if response.status() != StatusCode::OK {
            return Err(self.refused(response).await);
        }
        serde_json::from_slice(&self.body(response).await?).map_err(|error| self.protocol(error))
    }

    async fn json<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let (response, driver) = self.get(path).await?;
        let _driver = Abort(driver);
        let is_health = path == "/v1/health" && response.status() == StatusCode::SERVICE_UNAVAILABLE;
        if response.status() != StatusCode::OK && !is_health {
            return Err(self.refused(response).await);
        }
        let body = self.body(response).await?;
        match serde_json::from_slice(&body) {
            Ok(answer) => Ok(answer),
            // A full house answers 503 too.
            Err(_) if is_health && serde_json::from_slice::<ErrorBody>(&body).is_ok() => {
                Err(self.wrong(StatusCode::SERVICE_UNAVAILABLE, &body))
            }
            Err(error) => Err(self.protocol(error)),
        }
    }

    async fn get(&self, path: &str) -> Result<(Response<Incoming>, JoinHandle<()>), ClientError> {
        self.send(Request::get(path), Vec::new(), TIMEOUT).await
    }

    async fn send(
        &self,
        request: hyper::http::request::Builder,
        body: Vec<u8>,
        patience: Duration,
    ) -> Result<(Response<Incoming>, JoinHandle<()>), ClientError> {
        let stream = connect(&self.socket).await?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| self.protocol(error))?;
        let driver = tokio::spawn(async move {
            // A failure shows up at the request or at the body.
            let _ = connection.await;
        });
        let request = request
            .header(hyper::header::HOST, "egress")
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| self.protocol(error))?;
        match tokio::time::timeout(patience, sender.send_request(request)).await {
            Ok(Ok(response)) => Ok((response, driver)),
            Ok(Err(error)) => {
                driver.abort();
                Err(self.protocol(error))
            }
            Err(_) => {
                driver.abort();
                Err(ClientError::Timeout(self.socket.clone(), patience))
            }
        }
    }

    async fn body(&self, response: Response<Incoming>) -> Result<Bytes, ClientError> {
        let body = Limited::new(response.into_body(), ANSWER_MAX).collect();
        match tokio::time::timeout(TIMEOUT, body).await {
            Ok(Ok(body)) => Ok(body.to_bytes()),
            Ok(Err(error)) => Err(self.protocol(error)),
            Err(_) => Err(ClientError::Timeout(self.socket.clone(), TIMEOUT)),
        }
    }

    async fn refused(&self, response: Response<Incoming>) -> ClientError {
        let status = response.status();
        match self.body(response).await {
            Ok(body) => self.wrong(status, &body),
            Err(error) => error,
        }
    }

    fn wrong(&self, status: StatusCode, body: &[u8]) -> ClientError {
        let Ok(ErrorBody { error: message, hint }) = serde_json::from_slice(body) else {
            return self.protocol(format!("it answers {status}"));
        };
        match status {
            StatusCode::FORBIDDEN => ClientError::Permission(self.socket.clone()),
            StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT => {
                ClientError::Busy { path: self.socket.clone(), message }
            }
            StatusCode::NOT_FOUND => self.protocol(message),
            StatusCode::CONFLICT => ClientError::Conflict { message, hint },
            _ => ClientError::Refused { message, hint },
        }
    }

    fn protocol(&self, error: impl ToString) -> ClientError {
        ClientError::Protocol { path: self.socket.clone(), message: error.to_string() }
    }
}

/// Connects, and waits for a place in the socket's backlog where that is full: a flood of other clients must not keep
/// root out (P6). unix(7): a socket that does not block gets EAGAIN then, and no readiness to wait for.
async fn connect(socket: &Path) -> Result<UnixStream, ClientError> {
    let started = Instant::now();
    loop {
        let source = match UnixStream::connect(socket).await {
            Ok(stream) => return Ok(stream),
            Err(source) => source,
        };
        return Err(match source.kind() {
            io::ErrorKind::WouldBlock if started.elapsed() < CONNECT_TIMEOUT => {
                tokio::time::sleep(CONNECT_PAUSE).await;
                continue;
            }
            io::ErrorKind::WouldBlock => ClientError::Busy {
                path: socket.into(),
                message: format!("it accepted no connection within {} s", CONNECT_TIMEOUT.as_secs()),
            },
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => ClientError::NoDaemon(socket.into()),
            io::ErrorKind::PermissionDenied => ClientError::Permission(socket.into()),
            _ => ClientError::Connect { path: socket.into(), source },
        });
    }
}

/// Ends a connection when its reader is gone.
#[derive(Debug)]
struct Abort(JoinHandle<()>);

impl Drop for Abort {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Events as they come; dropping it ends the connection.
#[derive(Debug)]
pub struct EventStream {
    socket: PathBuf,
    body: Incoming,
    buffer: Vec<u8>,
    /// Bytes of `buffer` that hold no line feed.
    scanned: usize,
    #[expect(dead_code, reason = "ends the connection when dropped")]
    driver: Abort,
}

impl EventStream {
    /// The next event; `None` at the end, which with `follow` is the daemon's.
    pub async fn next(&mut self) -> Result<Option<Event>, ClientError> {
        let Some(line) = self.next_line().await? else {
            return Ok(None);
        };
        serde_json::from_str(&line).map(Some).map_err(|error| self.protocol(error))
    }

    /// The next event as the daemon wrote it, fields that this version does not know included.
    pub async fn next_line(&mut self) -> Result<Option<String>, ClientError> {
        loop {
            if let Some(at) = self.buffer[self.scanned..].iter().position(|byte| *byte == b'\n') {
                let rest = self.buffer.split_off(self.scanned + at + 1);
                let mut line = std::mem::replace(&mut self.buffer, rest);
                line.pop();
                self.scanned = 0;
                return String::from_utf8(line).map(Some).map_err(|error| self.protocol(error));
            }
            self.scanned = self.buffer.len();
            if self.scanned > LINE_MAX {
                return Err(self.protocol("a line without an end"));
            }
            match self.body.frame().await {
                Some(Ok(frame)) => self.buffer.extend_from_slice(frame.data_ref().unwrap_or(&Bytes::new())),
                // The daemon ended: with it the stream, in the middle of a line perhaps.
                None => return Ok(None),
                Some(Err(error)) if is_end(&error) => return Ok(None),
                Some(Err(error)) => return Err(self.protocol(error)),
            }
        }
    }

    fn protocol(&self, error: impl ToString) -> ClientError {
        ClientError::Protocol { path: self.socket.clone(), message: error.to_string() }
    }
}

/// Whether the connection broke off: the daemon ended, however it did.
fn is_end(error: &hyper::Error) -> bool {
    let cause = std::error::Error::source(error).and_then(|source| source.downcast_ref::<io::Error>());
    error.is_incomplete_message()
        || error.is_canceled()
        || cause.is_some_and(|cause| {
            matches!(
                cause.kind(),
                io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
            )
        })
}

/// Percent-encodes what is not unreserved (RFC 3986, 2.3).
fn percent(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}
