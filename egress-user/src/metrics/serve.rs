//! The metrics' own HTTP server. It may be reached by others than root, so a client, however broken, costs a bounded
//! piece of memory for a bounded time, and the state is read once a second at most.

use std::{
    io,
    net::{SocketAddr, TcpListener as StdListener},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use prometheus_client::{encoding::text::encode, registry::Registry};
use tokio::{net::TcpListener, sync::Semaphore, task::spawn_blocking};

use super::{Measures, collect::StatusCollector};
use crate::api::Source;

/// Clients at a time; further ones wait in the kernel's queue.
const CLIENTS: usize = 16;
/// How long a client may take.
const WHOLE: Duration = Duration::from_secs(15);
/// How long a scrape serves for others, too.
const FRESH: Duration = Duration::from_secs(1);
/// The most that a request's head may have: hyper's least.
const HEAD_MAX: usize = 8192;

/// The metrics' server, before it serves.
#[derive(Debug)]
pub struct Metrics {
    listener: StdListener,
}

struct Scrapes {
    source: Arc<dyn Source>,
    registry: Registry,
    last: Mutex<Option<(Instant, String)>>,
}

impl Metrics {
    /// Takes the address.
    ///
    /// # Errors
    /// That it is in use, not this node's, or not to be taken.
    pub fn bind(address: SocketAddr) -> io::Result<Self> {
        let listener = StdListener::bind(address)?;
        listener.set_nonblocking(true)?;
        Ok(Self { listener })
    }

    /// Where it serves: of port 0 the one that was given.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves for as long as the process lives.
    pub async fn serve(self, source: Arc<dyn Source>, measures: Measures) {
        let listener = match TcpListener::from_std(self.listener) {
            Ok(listener) => listener,
            Err(error) => return tracing::error!(%error, "cannot watch the metrics' socket: nothing answers there"),
        };
        let mut registry = Registry::default();
        measures.register(&mut registry);
        registry.register_collector(Box::new(StatusCollector { source: Arc::clone(&source), measures }));
        let scrapes = Arc::new(Scrapes { source, registry, last: Mutex::default() });
        let router = Router::new()
            .route("/metrics", get(metrics))
            .route("/healthz", get(async || "ok\n"))
            .route("/readyz", get(ready))
            .with_state(scrapes);
        let clients = Arc::new(Semaphore::new(CLIENTS));
        let mut refused = false;
        loop {
            let Ok(permit) = Arc::clone(&clients).acquire_owned().await else { return };
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                // Out of descriptors, or the client is gone already.
                Err(error) => {
                    // Once, not ten times a second.
                    if !std::mem::replace(&mut refused, true) {
                        tracing::warn!(%error, "cannot take a client of the metrics");
                    }
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            refused = false;
            let service = TowerToHyperService::new(router.clone());
            tokio::spawn(async move {
                let _permit = permit;
                let served = http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(WHOLE)
                    .max_buf_size(HEAD_MAX)
                    .keep_alive(false)
                    .serve_connection(TokioIo::new(stream), service);
                let _ = tokio::time::timeout(WHOLE, served).await;
            });
        }
    }
}

async fn metrics(State(scrapes): State<Arc<Scrapes>>) -> Response {
    let text = spawn_blocking(move || scrapes.text().map_err(|error| error.to_string())).await;
    match text.map_err(|error| error.to_string()).flatten() {
        Ok(text) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], text).into_response()
        }
        Err(error) => {
            tracing::error!(error, "cannot write the metrics");
            (StatusCode::INTERNAL_SERVER_ERROR, "the daemon failed to answer; its log says more\n").into_response()
        }
    }
}

/// Ready while everything is attached, a policy is in force and names can be resolved.
async fn ready(State(scrapes): State<Arc<Scrapes>>) -> Response {
    match spawn_blocking(move || scrapes.source.health()).await {
        Ok(health) if health.healthy => "ready\n".into_response(),
        Ok(health) => (StatusCode::SERVICE_UNAVAILABLE, health.problems.join("\n") + "\n").into_response(),
        Err(error) => {
            tracing::error!(%error, "cannot tell whether all is well");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

impl Scrapes {
    fn text(&self) -> Result<String, std::fmt::Error> {
        // Held while the state is read: several clients at once are one scrape.
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, text)) = &*last
            && at.elapsed() < FRESH
        {
            return Ok(text.clone());
        }
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        *last = Some((Instant::now(), text.clone()));
        Ok(text)
    }
}
