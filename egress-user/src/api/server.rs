//! Accepts connections, checks who it is, and serves each within limits: a client, however broken, costs the daemon a
//! bounded piece of memory for a bounded time.

use std::{
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
    readers::Readers,
    routes,
};

/// What one daemon gives to its clients.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at a time; more are told 503.
    pub connections: usize,
    /// Those of them that members of the socket's group may have, so that root always gets in.
    pub readers: usize,
    /// Those of them that one user may have, who is not root.
    pub per_user: usize,
    /// Those of them that may follow the events, so that `status` always gets through.
    pub followers: usize,
    /// How long a request's head may take to arrive.
    pub head: Duration,
    /// How long the daemon may think about an answer.
    pub request: Duration,
    /// How long a connection may last that neither follows the events nor waits for root's change.
    pub whole: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 64,
            readers: 32,
            per_user: 8,
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
    /// It may last: it follows the events, or waits for root's change.
    pub(super) lasts: Arc<AtomicBool>,
    /// Those who are not root ask what would change by turns.
    pub(super) dry_runs: Arc<Semaphore>,
}

/// A daemon's control socket.
#[derive(Debug)]
pub struct Server {
    listener: std::os::unix::net::UnixListener,
    listening: Listening,
    group: Option<u32>,
    limits: Limits,
}

impl Server {
    /// Opens the socket. Call it before anything is changed in the kernel: it is also what finds a second daemon.
    pub fn bind(options: &SocketOptions) -> Result<Self, ListenError> {
        let (listener, listening) = listen(options)?;
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
        let listener = match UnixListener::from_std(listener) {
            Ok(listener) => listener,
            Err(error) => return tracing::error!(%error, "cannot watch the control socket: nothing answers there"),
        };
        let connections = Arc::new(Semaphore::new(limits.connections));
        let followers = Arc::new(Semaphore::new(limits.followers));
        let readers = Arc::new(Readers::new(limits));
        let dry_runs = Arc::new(Semaphore::new(1));
        let refusals = Arc::new(Semaphore::new(limits.connections));
        let mut tasks = JoinSet::new();
        let mut shutdown = std::pin::pin!(shutdown);
        // Told once: it would be ten lines a second.
        let mut refused = false;
        loop {
            let accepted = tokio::select! {
                () = &mut shutdown => break,
                accepted = listener.accept() => accepted,
                Some(_) = tasks.join_next() => continue,
            };
            let stream = match accepted {
                Ok((stream, _)) => {
                    if std::mem::take(&mut refused) {
                        tracing::info!("the control socket answers again");
                    }
                    stream
                }
                Err(error) => {
                    // Out of descriptors, most likely: the listener stays ready, so that a pause keeps the CPU free.
                    if !std::mem::replace(&mut refused, true) {
                        tracing::warn!(%error, "cannot accept a connection at the control socket; trying on");
                    }
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let connection = Connection {
                source: Arc::clone(&source),
                limits,
                followers: Arc::clone(&followers),
                lasts: Arc::new(AtomicBool::new(false)),
                dry_runs: Arc::clone(&dry_runs),
            };
            let refusal = match Peer::of(&stream, group) {
                Ok(Some(peer)) => {
                    let place = readers.admit(&peer).zip(Arc::clone(&connections).try_acquire_owned().ok());
                    if let Some(place) = place {
                        tasks.spawn(async move {
                            serve_connection(stream, peer, connection).await;
                            drop(place);
                        });
                        continue;
                    }
                    (StatusCode::SERVICE_UNAVAILABLE, "too many clients at the control socket")
                }
                Ok(None) => (StatusCode::FORBIDDEN, "only root and the socket's group may ask the daemon"),
                Err(error) => {
                    tracing::warn!(%error, "cannot tell who connected to the control socket");
                    continue;
                }
            };
            // Past this many, those who may not get in learn no reason.
            if let Ok(permit) = Arc::clone(&refusals).try_acquire_owned() {
                tasks.spawn(async move {
                    refuse(stream, refusal, limits).await;
                    drop(permit);
                });
            }
        }
        tasks.shutdown().await;
        drop(listening);
    }
}

/// One answer to whatever is asked. The request is read first: a client that is still writing would not see it.
async fn refuse(stream: UnixStream, (status, message): (StatusCode, &'static str), limits: Limits) {
    let router = Router::new().fallback(async move || routes::error(status, message, None));
    // Who it is and why was answered; what becomes of the answer matters to the client alone.
    let _ =
        tokio::time::timeout(limits.head, http(limits).serve_connection(TokioIo::new(stream), service(router))).await;
}

/// HTTP as it is spoken here: one request a connection.
fn http(limits: Limits) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(limits.head).max_buf_size(HEAD_MAX).keep_alive(false);
    builder
}

fn service(router: Router) -> TowerToHyperService<Router> {
    TowerToHyperService::new(router)
}

async fn serve_connection(stream: UnixStream, peer: Peer, connection: Connection) {
    let limits = connection.limits;
    let lasts = Arc::clone(&connection.lasts);
    let router: Router =
        routes::router(connection).layer(axum::Extension(peer)).layer(axum::extract::DefaultBodyLimit::max(HEAD_MAX));
    let serving = http(limits).serve_connection(TokioIo::new(stream), service(router));
    let mut serving = std::pin::pin!(serving);
    let result = match tokio::time::timeout(limits.whole, &mut serving).await {
        Ok(result) => result,
        Err(_) if lasts.load(Ordering::Relaxed) => serving.await,
        Err(_) => return tracing::debug!(?peer, "a client took too long"),
    };
    if let Err(error) = result {
        // A client that went away, or one that does not speak HTTP.
        tracing::debug!(?peer, %error, "a client's connection failed");
    }
}
