//! How a request is refused. In: what is wrong. Out: JSON with the fault and what to do next, and the status. Pure. Never: tells what
//! the asker did not know.

use axum::Json;
use axum::extract::Request;
use axum::http::{Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::actions::ACTIONS;
use crate::fault::Fault;

/// Longest refusal of the framework.
const TOLD_BYTES: usize = 4096;

#[derive(Serialize)]
struct Told {
    error: String,
    hint: String,
}

/// A refusal.
pub(super) fn refuse(status: StatusCode, error: impl Into<String>, hint: impl Into<String>) -> Response {
    (status, Json(Told { error: error.into(), hint: hint.into() })).into_response()
}

/// What a command could not do. Where its code says that the asker is wrong, this is how.
pub(super) struct Failed(Fault, StatusCode);

impl Failed {
    /// What is asked for is there, and does not allow it.
    pub(super) const fn conflict(fault: Fault) -> Self {
        Self(fault, StatusCode::CONFLICT)
    }
}

impl<E: Into<Fault>> From<E> for Failed {
    fn from(fault: E) -> Self {
        Self(fault.into(), StatusCode::NOT_FOUND)
    }
}

impl IntoResponse for Failed {
    fn into_response(self) -> Response {
        let (error, hint) = self.0.told();
        let status = if self.0.code() == 2 { self.1 } else { StatusCode::BAD_GATEWAY };
        refuse(status, error, hint.unwrap_or_default())
    }
}

pub(super) async fn not_found(request: Request) -> Response {
    refuse(StatusCode::NOT_FOUND, format!("there is nothing at {}", request.uri().path()), "the page is at /")
}

pub(super) async fn not_allowed(request: Request) -> Response {
    let (wrong, right) = match *request.method() {
        Method::POST => ("POST", "GET"),
        Method::GET | Method::HEAD => ("GET", "POST"),
        _ => ("this method", if is_action(request.uri().path()) { "POST" } else { "GET" }),
    };
    let error = format!("{wrong} is not for {}", request.uri().path());
    refuse(StatusCode::METHOD_NOT_ALLOWED, error, format!("ask with {right}"))
}

fn is_action(path: &str) -> bool {
    path.starts_with("/api/handlers/") && ACTIONS.iter().any(|action| path.ends_with(&format!("/{action}")))
}

/// What the framework refused in plain text, as everything else is told.
pub(super) async fn in_json(response: Response) -> Response {
    let headers = response.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    if !response.status().is_client_error() || !headers.is_some_and(|kind| kind.starts_with("text/plain")) {
        return response;
    }
    let status = response.status();
    let told = axum::body::to_bytes(response.into_body(), TOLD_BYTES).await.unwrap_or_default();
    refuse(status, String::from_utf8_lossy(&told), "docs/metrics-and-dashboard.md says what can be asked")
}

/// Too many ask.
pub(super) fn busy(what: &str) -> Response {
    let hint = "try again in a moment";
    let mut response = refuse(StatusCode::SERVICE_UNAVAILABLE, format!("too many look at {what} already"), hint);
    response.headers_mut().insert(header::RETRY_AFTER, header::HeaderValue::from_static("2"));
    response
}
