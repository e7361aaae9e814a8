//! Changing the policy through the control socket: what is sent and answered, for root alone.

use std::sync::{Arc, atomic::Ordering};

use axum::{
    Extension, Json, Router,
    body::HttpBody as _,
    extract::{DefaultBodyLimit, FromRequest as _, Request, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::post,
};
use http_body_util::{BodyExt as _, Limited};
use serde::{Deserialize, Serialize};
use tokio::task::spawn_blocking;

use super::Cut;
use super::{Peer, Role, routes::error, server::Connection};
use crate::policy::Diff;

/// The longest request: policies are sent as text.
const BODY_MAX: usize = 64 << 20;
/// The longest one of a member of the socket's group, who may only ask what would change.
const READERS_BODY_MAX: usize = 1 << 20;

/// `POST /v1/policy`: a whole policy, as text.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApplyRequest {
    /// The policy.
    pub texts: Texts,
    /// Put the old policy back after so many seconds, unless confirmed.
    #[serde(default)]
    pub confirm_seconds: Option<u64>,
    /// Only say what would change.
    #[serde(default)]
    pub dry_run: bool,
}

/// A policy as text, with what the command line adds to it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Texts {
    /// Name and text of each file.
    pub files: Vec<(String, String)>,
    /// `--allow DEST`.
    #[serde(default)]
    pub allow: Vec<String>,
    /// `--set KEY=VALUE`.
    #[serde(default)]
    pub set: Vec<(String, String)>,
}

impl Texts {
    /// What `status` calls it.
    pub fn names(&self) -> Vec<String> {
        let files = self.files.iter().map(|(name, _)| name.clone());
        files.chain(self.allow.iter().map(|allow| format!("--allow {allow}"))).collect()
    }
}

/// What a change did, or would do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changed {
    /// Whether it is in force.
    pub applied: bool,
    /// The live generation.
    pub generation: u32,
    /// What changes, by meaning.
    pub diff: Diff,
    /// What to think of, a sentence each: traffic that is cut, what a restart will not keep.
    pub warnings: Vec<String>,
    /// What was reached in the last minutes and will not be any more; absent where the change takes nothing away, and in the answer
    /// to what is no dry run: that would be looked for twice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cut: Option<Cut>,
    /// The old policy comes back in so many seconds, unless confirmed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirm_seconds: Option<u64>,
}

/// Why nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// The policy is wrong, or does not fit.
    #[error("{0}")]
    Wrong(String),
    /// It is not the time for it.
    #[error("{message}")]
    Conflict {
        /// Why.
        message: String,
        /// What to do.
        hint: String,
    },
}

/// What changes the policy. Called on a thread that may block.
pub trait Change: Send + Sync {
    /// Puts a policy in force, or only says what would change.
    fn apply(&self, request: &ApplyRequest) -> Result<Changed, ChangeError>;
    /// Keeps the policy that is on trial.
    fn confirm(&self) -> Result<Changed, ChangeError>;
    /// Goes back to the policy before.
    fn roll_back(&self) -> Result<Changed, ChangeError>;
}

pub(super) fn routes() -> Router<Connection> {
    Router::new()
        .route("/v1/policy", post(apply))
        .route("/v1/confirm", post(confirm))
        .route("/v1/rollback", post(roll_back))
}

async fn apply(
    State(connection): State<Connection>,
    Extension(peer): Extension<Peer>,
    mut request: Request,
) -> Response {
    let root = peer.role == Role::Root;
    let limit = if root { BODY_MAX } else { READERS_BODY_MAX };
    if !root && request.body().size_hint().lower() > limit as u64 {
        // To its end: who is still writing would not see the answer.
        let mut rest = Limited::new(request.into_body(), BODY_MAX);
        while let Some(Ok(_)) = rest.frame().await {}
        let message = format!("the socket's group may ask about policies of up to {} MiB", limit >> 20);
        return error(StatusCode::PAYLOAD_TOO_LARGE, message, Some("root may ask about larger ones".to_owned()));
    }
    DefaultBodyLimit::max(limit).apply(&mut request);
    let request: ApplyRequest = match Json::from_request(request, &()).await {
        Ok(Json(request)) => request,
        Err(rejection) => return error(StatusCode::BAD_REQUEST, rejection.body_text(), None),
    };
    if root {
        return roots_change(&connection, move |change| change.apply(&request)).await;
    }
    // What would change is no more than `status` and the policy tell.
    if !request.dry_run {
        return refuse();
    }
    // It is work all the same: one at a time, whoever of them asks.
    let turn = Arc::clone(&connection.dry_runs).acquire_owned();
    let Ok(Ok(turn)) = tokio::time::timeout(connection.limits.request, turn).await else {
        let hint = Some("try again, or ask as root".to_owned());
        return error(StatusCode::SERVICE_UNAVAILABLE, "others of the socket's group ask what would change", hint);
    };
    change(&connection, move |change| {
        // Until it is done: a client that goes away does not end it.
        let _turn = turn;
        change.apply(&request)
    })
    .await
}

async fn confirm(State(connection): State<Connection>, Extension(peer): Extension<Peer>) -> Response {
    if peer.role != Role::Root {
        return refuse();
    }
    roots_change(&connection, |change| change.confirm()).await
}

async fn roll_back(State(connection): State<Connection>, Extension(peer): Extension<Peer>) -> Response {
    if peer.role != Role::Root {
        return refuse();
    }
    roots_change(&connection, |change| change.roll_back()).await
}

fn refuse() -> Response {
    error(StatusCode::FORBIDDEN, "only root may change the policy", None)
}

/// Root's change is waited for however long it takes: its outcome must be known.
async fn roots_change(
    connection: &Connection,
    what: impl FnOnce(&dyn Change) -> Result<Changed, ChangeError> + Send + 'static,
) -> Response {
    connection.lasts.store(true, Ordering::Relaxed);
    change(connection, what).await
}

async fn change(
    connection: &Connection,
    what: impl FnOnce(&dyn Change) -> Result<Changed, ChangeError> + Send + 'static,
) -> Response {
    let source = Arc::clone(&connection.source);
    let answer = spawn_blocking(move || source.change().map(what)).await;
    match answer {
        Ok(Some(Ok(changed))) => Json(changed).into_response(),
        Ok(Some(Err(ChangeError::Wrong(message)))) => error(StatusCode::UNPROCESSABLE_ENTITY, message, None),
        Ok(Some(Err(ChangeError::Conflict { message, hint }))) => error(StatusCode::CONFLICT, message, Some(hint)),
        Ok(None) => error(StatusCode::NOT_FOUND, "this daemon's policy cannot be changed", None),
        Err(_) => error(StatusCode::INTERNAL_SERVER_ERROR, "the daemon failed", Some("its log says more".to_owned())),
    }
}
