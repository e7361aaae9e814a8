//! Accepts connections, checks who it is, and serves each within limits: a client, however broken, costs the daemon a
//! bounded piece of memory for a bounded time.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{Router, http::StatusCode};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::Semaphore,
    task::JoinSet,
};

use super::{
    ListenError, SocketOptions, Source,
    listen::{Listening, listen},
    peer::Peer,
    routes,
};

/// What one daemon gives to its clients.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at a time; more are told 503.
    pub connections: usize,
    /// Those of them that may follow the events, so that `status` always gets through.
    pub followers: usize,
    /// How long a request's head may take to arrive.
    pub head: Duration,
    /// How long the daemon may think about an answer.
    pub request: Duration,
    /// How long a connection may last that does not follow the events.
    pub whole: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 64,
            followers: 48,
            head: Duration::from_secs(5),
            request: Duration::from_secs(10),
            whole: routes::WHOLE,
        }
    }
}

/// The most that a request's head may have: hyper's least.
const HEAD_MAX: usize = 8192;

/// What a request handler knows.
#[derive(Clone)]
pub(super) struct Connection {
    pub(super) source: Arc<dyn Source>,
    pub(super) limits: Limits,
    pub(super) followers: Arc<Semaphore>,
    pub(super) following: Arc<AtomicBool>,
}

/// A daemon's control socket.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    listening: Listening,
    group: Option<u32>,
    limits: Limits,
}

impl Server {
    /// Opens the socket. Call it before anything is changed in the kernel: it is also what finds a second daemon.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn bind(options: &SocketOptions) -> Result<Self, ListenError> {
        let (listener, listening) = listen(options)?;
        let fail = |source| ListenError::Failed { step: "cannot watch", path: options.path.clone(), source };
        let listener = UnixListener::from_std(listener).map_err(fail)?;
        Ok(Self { listener, listening, group: options.group, limits: Limits::default() })
    }

    /// With other limits.
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Serves until `shutdown` is done, then closes every connection and removes the socket.
    pub async fn serve(self, source: Arc<dyn Source>, shutdown: impl Future<Output = ()>) {
        let Self { listener, listening, group, limits } = self;
        let connections = Arc::new(Semaphore::new(limits.connections));
        let followers = Arc::new(Semaphore::new(limits.followers));
        let mut tasks = JoinSet::new();
        let mut shutdown = std::pin::pin!(shutdown);
        loop {
            let accepted = tokio::select! {
                () = &mut shutdown => break,
                accepted = listener.accept() => accepted,
                Some(_) = tasks.join_next() => continue,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of descriptors, most likely: the listener stays ready, so that a pause keeps the CPU free.
                    tracing::warn!(%error, "cannot accept a connection at the control socket");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let permit = Arc::clone(&connections).try_acquire_owned();
            let connection = Connection {
                source: Arc::clone(&source),
                limits,
                followers: Arc::clone(&followers),
                following: Arc::new(AtomicBool::new(false)),
            };
            let Ok(permit) = permit else {
                refuse(&stream, "503 Service Unavailable", "too many clients at the control socket");
                continue;
            };
            match Peer::of(&stream, group) {
                Ok(Some(peer)) => {
                    tasks.spawn(async move {
                        serve_connection(stream, peer, connection).await;
                        drop(permit);
                    });
                }
                Ok(None) => refuse(&stream, "403 Forbidden", "only root and the socket's group may ask the daemon"),
                Err(error) => tracing::warn!(%error, "cannot tell who connected to the control socket"),
            }
        }
        tasks.shutdown().await;
        drop(listening);
    }
}

/// Answers without reading: a few bytes always fit a fresh socket's buffer.
fn refuse(stream: &UnixStream, status: &str, error: &str) {
    let body = serde_json::json!({ "error": error }).to_string();
    let answer = format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    if let Err(error) = stream.try_write(answer.as_bytes())
        && error.kind() != io::ErrorKind::BrokenPipe
    {
        tracing::debug!(%error, "cannot refuse a connection");
    }
}

async fn serve_connection(stream: UnixStream, peer: Peer, connection: Connection) {
    let limits = connection.limits;
    let following = Arc::clone(&connection.following);
    let router: Router =
        routes::router(connection).layer(axum::Extension(peer)).layer(axum::extract::DefaultBodyLimit::max(HEAD_MAX));
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head)
        .max_buf_size(HEAD_MAX)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut serving = std::pin::pin!(serving);
    let result = match tokio::time::timeout(limits.whole, &mut serving).await {
        Ok(result) => result,
        Err(_) if following.load(Ordering::Relaxed) => serving.await,
        Err(_) => return tracing::debug!(?peer, "a client took too long"),
    };
    if let Err(error) = result {
        // A client that went away, or one that does not speak HTTP.
        tracing::debug!(?peer, %error, code = StatusCode::BAD_REQUEST.as_u16(), "a client's connection failed");
    }
}
