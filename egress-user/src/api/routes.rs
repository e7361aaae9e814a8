//! What each request is answered with.

use std::{
    convert::Infallible,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use axum::{
    Extension, Json, Router,
    body::{Body, Bytes},
    extract::{Query, State, rejection::QueryRejection},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use futures_util::stream;
use serde::Deserialize;
use tokio::task::spawn_blocking;

use super::{ErrorBody, EventFilter, PacketQuestion, Peer, Role, Source, server::Connection};
use crate::events::{Event, Filter, Item, Kind, Lost, LostWhere, Subscription, Timestamp};

/// The longest destination that `explain` takes: a name of 253 bytes, a port, a protocol.
const DESTINATION_MAX: usize = 300;

pub(super) fn router(connection: Connection) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/health", get(health))
        .route("/v1/explain", get(explain))
        .route("/v1/packet", get(packet))
        .route("/v1/events", get(events))
        .merge(super::change::routes())
        .fallback(async || error(StatusCode::NOT_FOUND, "no such resource", Some("this daemon speaks /v1".to_owned())))
        .method_not_allowed_fallback(async || error(StatusCode::METHOD_NOT_ALLOWED, "not served in this way", None))
        .with_state(connection)
}

pub(super) fn error(status: StatusCode, message: impl Into<String>, hint: Option<String>) -> Response {
    (status, Json(ErrorBody { error: message.into(), hint })).into_response()
}

/// Calls the source on a thread that may block, for no longer than a request may take.
async fn ask<T: Send + 'static>(
    connection: &Connection,
    question: impl FnOnce(&dyn Source) -> T + Send + 'static,
) -> Result<T, Response> {
    let source = Arc::clone(&connection.source);
    let answer = spawn_blocking(move || question(&*source));
    match tokio::time::timeout(connection.limits.request, answer).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(_)) => Err(error(
            StatusCode::INTERNAL_SERVER_ERROR,
            "the daemon failed to answer",
            Some("its log says more".to_owned()),
        )),
        Err(_) => Err(error(StatusCode::GATEWAY_TIMEOUT, "the daemon is too busy to answer", None)),
    }
}

async fn status(State(connection): State<Connection>) -> Response {
    ask(&connection, |source| source.status()).await.map_or_else(|error| error, |status| Json(status).into_response())
}

async fn health(State(connection): State<Connection>) -> Response {
    match ask(&connection, |source| source.health()).await {
        Ok(health) => {
            let code = if health.healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
            (code, Json(health)).into_response()
        }
        Err(error) => error,
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct To {
    to: String,
}

async fn explain(State(connection): State<Connection>, query: Result<Query<To>, QueryRejection>) -> Response {
    let to = match query {
        Ok(Query(To { to })) if to.len() <= DESTINATION_MAX => to,
        Ok(_) => return error(StatusCode::BAD_REQUEST, "`to` is too long for a destination", None),
        Err(rejection) => {
            let hint = "write /v1/explain?to=NAME-or-ADDRESS[:PORT][/PROTO]".to_owned();
            return error(StatusCode::BAD_REQUEST, rejection.body_text(), Some(hint));
        }
    };
    match ask(&connection, move |source| source.explain(&to)).await {
        Ok(Ok(explanation)) => Json(explanation).into_response(),
        Ok(Err(wrong)) => error(StatusCode::BAD_REQUEST, wrong.message, wrong.hint),
        Err(error) => error,
    }
}

async fn packet(
    State(connection): State<Connection>,
    Extension(peer): Extension<Peer>,
    query: Result<Query<PacketQuestion>, QueryRejection>,
) -> Response {
    // For an instant the programs are told that a packet of this kind may come: that is more than reading.
    if peer.role != Role::Root {
        return error(StatusCode::FORBIDDEN, "only root may run the attached programs", None);
    }
    let question = match query {
        Ok(Query(question)) => question,
        Err(rejection) => {
            let hint = "write /v1/packet?packet=tcp%20192.0.2.1:443".to_owned();
            return error(StatusCode::BAD_REQUEST, rejection.body_text(), Some(hint));
        }
    };
    match ask(&connection, move |source| source.packet(&question)).await {
        Ok(Ok(explanation)) => Json(explanation).into_response(),
        Ok(Err(wrong)) => error(StatusCode::BAD_REQUEST, wrong.message, wrong.hint),
        Err(error) => error,
    }
}

async fn events(State(connection): State<Connection>, query: Result<Query<EventFilter>, QueryRejection>) -> Response {
    let filter = match query {
        Ok(Query(filter)) => filter,
        Err(rejection) => {
            let hint = "write /v1/events?follow=true&dropped=true&recent=10".to_owned();
            return error(StatusCode::BAD_REQUEST, rejection.body_text(), Some(hint));
        }
    };
    let wanted = match filter.parse() {
        Ok(wanted) => wanted,
        Err(wrong) => return error(StatusCode::BAD_REQUEST, wrong.what, wrong.hint),
    };
    let permit = if filter.follow {
        let Ok(permit) = Arc::clone(&connection.followers).try_acquire_owned() else {
            let hint = "end one of them".to_owned();
            return error(StatusCode::SERVICE_UNAVAILABLE, "too many clients follow the events already", Some(hint));
        };
        connection.lasts.store(true, Ordering::Relaxed);
        Some(permit)
    } else {
        None
    };
    let (recent, subscription) = connection.source.hub().subscribe_with_recent();
    let mut recent: Vec<_> = recent.into_iter().filter(|event| wanted.wants(event)).collect();
    let keep = filter.recent.unwrap_or(if filter.follow { 0 } else { usize::MAX });
    recent.drain(..recent.len().saturating_sub(keep));
    let past: Bytes = recent.iter().flat_map(|event| json_line(event)).collect();
    let first = stream::iter((!past.is_empty()).then_some(Ok::<_, Infallible>(past)));
    let headers = [(header::CONTENT_TYPE, "application/x-ndjson")];
    if !filter.follow {
        return (headers, Body::from_stream(first)).into_response();
    }
    let live = stream::unfold((subscription, wanted, permit), |(mut subscription, wanted, permit)| async move {
        let lines = next_lines(&mut subscription, &wanted).await?;
        Some((Ok::<_, Infallible>(lines), (subscription, wanted, permit)))
    });
    (headers, Body::from_stream(stream::StreamExt::chain(first, live))).into_response()
}

/// The next line that the reader wants; what was lost is told whatever it wants.
async fn next_lines(subscription: &mut Subscription, wanted: &Filter) -> Option<Bytes> {
    loop {
        match subscription.next().await? {
            Item::Event(event) if wanted.wants(&event) => return Some(json_line(&event).into()),
            Item::Event(_) => {}
            Item::Lost(count) => {
                let lost = Kind::Lost(Lost { count, place: LostWhere::Subscriber });
                return Some(json_line(&Event::new(Timestamp::now(), lost)).into());
            }
        }
    }
}

fn json_line(event: &Event) -> Vec<u8> {
    // An event is strings and numbers: it always has a JSON form.
    let mut line = serde_json::to_vec(event).unwrap_or_default();
    line.push(b'\n');
    line
}

/// How long a request may take from its first byte to the end of its answer, unless it follows.
pub(super) const WHOLE: Duration = Duration::from_secs(30);
