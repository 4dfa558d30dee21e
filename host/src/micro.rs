//! A NATS service, `millstream`, on every host: lag, status and stories for whoever can send a request, found by `nats micro list`.
//! In: requests; a queue group hands each to one host. Out: JSON, or an error with code, sentence and hint. Never: writes a message on
//! the server, or an answer that the server would not carry.

use std::sync::Arc;
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::Context;
use async_nats::service::error::Error as Refusal;
use async_nats::service::{Request, ServiceExt as _};
use bytes::Bytes;
use futures::StreamExt as _;
use serde::Deserialize;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::cli::explain;
use crate::cli::instances::{Saga, no_instance};
use crate::fault::Fault;
use crate::legible::legible;
use crate::names;
use crate::overview::Overview;
use crate::reader::Reader;
use crate::registry::Registry;

/// The service's name, and what its subjects begin with.
const NAME: &str = "millstream";

/// Requests that are answered at once; others wait.
const AT_ONCE: usize = 8;

/// What is not answered by then is refused: nobody waits for it any more.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// What an answer's subject and headers may need of `max_payload`.
const ROOM: usize = 1024;

/// Messages looked at for one story, as for `millstream explain`.
const SCAN: usize = 100_000;

/// Codes as in HTTP.
const BAD: usize = 400;
const UNKNOWN: usize = 404;
const TOO_LARGE: usize = 413;
const FAILED: usize = 500;
const SILENT: usize = 504;

#[derive(Clone, Copy, Debug)]
enum What {
    Lag,
    Status,
    Explain,
}

/// Whose story.
#[derive(Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
struct Asked {
    handler: String,
    key: String,
}

/// Serves until it is dropped, or the connection has ended.
///
/// # Errors
/// When the service cannot be announced.
pub async fn serve(jetstream: Context, reader: Arc<Reader>) -> anyhow::Result<()> {
    let failed = |error: async_nats::Error| anyhow::anyhow!("the NATS service cannot be served: {error}");
    let service = jetstream
        .client()
        .service_builder()
        .description("Lag, status and stories of Millstream's handlers")
        .start(NAME, env!("CARGO_PKG_VERSION"))
        .await
        .map_err(failed)?;
    let group = service.group(NAME);
    let mut requests = futures::stream::SelectAll::new();
    for (name, what) in [("lag", What::Lag), ("status", What::Status), ("explain", What::Explain)] {
        requests.push(group.endpoint(name).await.map_err(failed)?.map(move |request| (what, request)));
    }
    let room = Arc::new(Semaphore::new(AT_ONCE));
    // They end with us.
    let mut answering = JoinSet::new();
    while let Some((what, request)) = requests.next().await {
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else { break };
        let (jetstream, reader) = (jetstream.clone(), Arc::clone(&reader));
        answering.spawn(async move {
            respond(&jetstream, &reader, what, &request).await;
            drop(permit);
        });
        while answering.try_join_next().is_some() {}
    }
    Ok(())
}

async fn respond(jetstream: &Context, reader: &Reader, what: What, request: &Request) {
    let payload = &request.message.payload;
    let answer = async {
        match what {
            What::Lag => lag(reader, payload).await,
            What::Status => status(reader, payload).await,
            What::Explain => story(jetstream, payload).await.map(|body| (body, HeaderMap::new())),
        }
    };
    let answer = tokio::time::timeout(ANSWER_WITHIN, answer).await.unwrap_or_else(|_| {
        let told = format!("NATS has not answered for {} s", ANSWER_WITHIN.as_secs());
        Err(refusal(SILENT, &told, "ask again; the host's log may say more"))
    });
    let most = jetstream.client().server_info().max_payload.saturating_sub(ROOM);
    let (answer, headers) = match answer {
        Ok((body, _)) if body.len() > most => {
            let hint = match what {
                What::Lag | What::Status => "name handlers in the request, such as 'one another'",
                What::Explain => "read it with `millstream explain`",
            };
            let told = format!("the answer of {} bytes is larger than the server carries ({most})", body.len());
            (Err(refusal(TOO_LARGE, &told, hint)), HeaderMap::new())
        }
        Ok((body, headers)) => (Ok(body), headers),
        Err(refusal) => (Err(refusal), HeaderMap::new()),
    };
    if let Err(error) = request.respond_with_headers(answer, headers).await {
        tracing::debug!(%error, "a request was not answered");
    }
}

fn refusal(code: usize, told: &str, hint: &str) -> Refusal {
    // A header is one line.
    Refusal { code, status: legible(&format!("{told}; hint: {hint}")).into_owned() }
}

/// Rows as of `millstream lag --json`, in an array. Handlers whose lag cannot be told are named in a header.
async fn lag(reader: &Reader, payload: &Bytes) -> Result<(Bytes, HeaderMap), Refusal> {
    let overview = read(reader, payload).await?;
    let mut headers = HeaderMap::new();
    for handler in overview.handlers.iter().filter(|handler| !handler.lag_fault.is_empty()) {
        let fault = legible(&handler.lag_fault);
        headers.append("Millstream-Untold", format!("{}: {fault}", handler.handler));
    }
    let rows: Vec<_> = overview.handlers.iter().flat_map(|handler| &handler.lag).collect();
    Ok((json(&rows)?, headers))
}

async fn status(reader: &Reader, payload: &Bytes) -> Result<(Bytes, HeaderMap), Refusal> {
    Ok((json(&read(reader, payload).await?)?, HeaderMap::new()))
}

/// What is asked for, as the reader saw it a moment ago.
async fn read(reader: &Reader, payload: &Bytes) -> Result<Overview, Refusal> {
    let asked = names_in(payload)?;
    let seen = reader.look().await;
    let Some(overview) = seen.overview() else { return Err(failed(anyhow::anyhow!("{}", seen.fault()))) };
    let overview = overview.only(&asked);
    match asked.iter().find(|name| !overview.handlers.iter().any(|handler| handler.handler == **name)) {
        Some(unknown) => Err(unknown_handler(unknown)),
        None => Ok(overview),
    }
}

fn unknown_handler(name: &str) -> Refusal {
    refusal(UNKNOWN, &format!("handler {name} is not deployed"), "an empty request to millstream.lag tells of all")
}

fn failed(error: anyhow::Error) -> Refusal {
    refusal(FAILED, &format!("{error:#}"), "ask again; the host's log may say more")
}

fn json(value: &impl serde::Serialize) -> Result<Bytes, Refusal> {
    serde_json::to_vec(value).map(Bytes::from).map_err(|error| failed(error.into()))
}

/// Handlers' names: none, some with blanks or commas between, or an array of JSON.
fn names_in(payload: &[u8]) -> Result<Vec<String>, Refusal> {
    let hint = "send nothing, or handlers' names with blanks between";
    let text = std::str::from_utf8(payload).map_err(|_| refusal(BAD, "the request is not UTF-8", hint))?.trim();
    let names: Vec<String> = if text.starts_with('[') {
        serde_json::from_str(text).map_err(|error| refusal(BAD, &format!("no list of names: {error}"), hint))?
    } else {
        let parts = text.split(|letter: char| letter == ',' || letter.is_whitespace());
        parts.filter(|part| !part.is_empty()).map(str::to_owned).collect()
    };
    match names.iter().find_map(|name| names::handler_name_defect(name)) {
        Some(defect) => Err(refusal(BAD, &defect, hint)),
        None => Ok(names),
    }
}

fn asked(payload: &[u8]) -> Result<Asked, Refusal> {
    let hint = r#"send {"handler":"order-fulfilment","key":"o-1"}"#;
    let asked: Asked =
        serde_json::from_slice(payload).map_err(|error| refusal(BAD, &format!("no question: {error}"), hint))?;
    match names::handler_name_defect(&asked.handler) {
        Some(defect) => Err(refusal(BAD, &defect, hint)),
        None => Ok(asked),
    }
}

/// The story as of `millstream explain --json`.
async fn story(jetstream: &Context, payload: &Bytes) -> Result<Bytes, Refusal> {
    let Asked { handler, key } = asked(payload)?;
    let registry = Registry::peek(jetstream).await.map_err(|error| failed(error.into()))?;
    let deployed = match registry {
        Some(registry) => registry.deployment(&handler).await.map_err(|error| failed(error.into()))?,
        None => None,
    };
    if deployed.is_none() {
        return Err(unknown_handler(&handler));
    }
    let told = |fault: Fault| sentence(if fault.code() == 2 { BAD } else { FAILED }, &fault);
    let saga = Saga::of(jetstream.clone(), &handler).await.map_err(told)?;
    match explain::story(&saga, &key, SCAN).await.map_err(told)? {
        Some(story) => json(&story),
        None => Err(sentence(UNKNOWN, &no_instance(&handler, &key))),
    }
}

/// A fault in one line.
fn sentence(code: usize, fault: &Fault) -> Refusal {
    let (told, hint) = fault.told();
    refusal(code, &told, hint.unwrap_or("the host's log may say more"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_in_any_shape_or_are_refused_with_a_hint() {
        for (text, names) in [("", vec![]), (" \n", vec![]), ("a", vec!["a"]), ("a b,c ,", vec!["a", "b", "c"])] {
            assert_eq!(names_in(text.as_bytes()).unwrap(), names);
        }
        assert_eq!(names_in(br#"["a","b"]"#).unwrap(), ["a", "b"]);
        for bad in [&b"a.b"[..], b"[1]", b"[", b"\xff", b"a>"] {
            let refusal = names_in(bad).unwrap_err();
            assert!(refusal.code == BAD && refusal.status.contains("; hint: "), "{refusal}");
        }
    }

    #[test]
    fn a_question_names_handler_and_key() {
        let good = asked(br#"{"handler":"h","key":"k\u001b"}"#).unwrap();
        assert_eq!(good, Asked { handler: "h".to_owned(), key: "k\u{1b}".to_owned() });
        for bad in [r#"{"handler":"h"}"#, "", r#"{"handler":"a.b","key":"k"}"#, r#"{"handler":"h","key":"k","x":1}"#] {
            assert_eq!(asked(bad.as_bytes()).unwrap_err().code, BAD, "{bad}");
        }
    }

    #[test]
    fn a_fault_of_several_lines_becomes_one() {
        let fault = Fault::failed(anyhow::anyhow!("gone").context("no")).hint("look \u{1b}[2J");
        assert_eq!(sentence(404, &fault).status, "no: gone; hint: look \\u{1b}[2J");
    }
}
