//! What the page may do: pause, resume, roll back, as the commands of these names. In: a POST that shows the token. Out: what became of it.
//! Never: anything without a token, for a page of another origin (`guard.rs`), or with a body.

use axum::Json;
use axum::body::{Body, HttpBody as _};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::Host;
use super::answer::{Failed, refuse};
use crate::cli::pause::turn;
use crate::cli::rollback::roll_back;
use crate::cli::versions::not_deployed;
use crate::names;
use crate::registry::Desired;

/// What can be done.
pub(super) const ACTIONS: [&str; 3] = ["pause", "resume", "rollback"];

/// `POST /api/handlers/{handler}/{action}`.
pub(super) async fn act(
    State(host): State<Host>,
    Path((name, action)): Path<(String, String)>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Failed> {
    let Some(token) = &host.token else {
        let hint = "start the host with --http-token or MILLSTREAM_HTTP_TOKEN, or use the command line";
        return Ok(refuse(StatusCode::FORBIDDEN, "this host only shows", hint));
    };
    if !token.is_shown_by(&headers) {
        let mut response =
            refuse(StatusCode::UNAUTHORIZED, "the token is missing or wrong", "it is the host's --http-token");
        response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        return Ok(response);
    }
    // Who sends one means something by it, such as the version to go back to, and would get something else.
    if !body.is_end_stream() {
        let hint = "send none; what an action over HTTP cannot be told, the command of its name can";
        return Ok(refuse(StatusCode::BAD_REQUEST, "an action takes no body, and nothing was done", hint));
    }
    if let Some(defect) = names::handler_name_defect(&name) {
        return Ok(refuse(StatusCode::NOT_FOUND, defect, "see what is deployed at /api/overview"));
    }
    if host.registry.current(&name).await?.is_none() {
        return Err(not_deployed(&name).into());
    }
    if ACTIONS.contains(&action.as_str()) {
        tracing::info!(handler = name, action, "asked for over HTTP");
    }
    let registry = &host.registry;
    Ok(match action.as_str() {
        "pause" => Json(turn(registry, &name, Desired::Paused, true).await.map_err(Failed::conflict)?).into_response(),
        "resume" => {
            Json(turn(registry, &name, Desired::Running, true).await.map_err(Failed::conflict)?).into_response()
        }
        "rollback" => {
            Json(roll_back(&host.jetstream, &name, None, true).await.map_err(Failed::conflict)?).into_response()
        }
        _ => {
            let hint = "there are pause, resume and rollback";
            refuse(StatusCode::NOT_FOUND, format!("there is no action {action}"), hint)
        }
    })
}
