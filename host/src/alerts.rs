//! The stream of what happens to handlers that a person should know. In: what a host has to tell; sagas' alerts are effects like any
//! other, and `outbox.rs` publishes them. Out: a stream that holds all of it, so that none is lost while nobody looks. Never: takes the subjects from
//! a stream that a user made for them.

use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::context::GetStreamByNameErrorKind;
use async_nats::jetstream::stream::{Config, StorageType};

use crate::clock;
use crate::names;
use crate::publication::Outline;

/// What nobody has looked at for so long is not looked at any more.
const KEEP: Duration = Duration::from_secs(90 * 24 * 3600);

/// The stream cannot be had.
#[derive(Debug, thiserror::Error)]
#[error("stream of alerts: {0}")]
pub struct Error(String);

/// Makes the stream where no stream holds this handler's alerts.
///
/// # Errors
/// When the server refuses, or is away.
pub async fn open(jetstream: &Context, handler: &str, replicas: usize) -> Result<(), Error> {
    match jetstream.stream_by_subject(names::event_subject(handler, "compensation-failed")).await {
        Ok(_) => return Ok(()),
        Err(error) if error.kind() == GetStreamByNameErrorKind::NotFound => {}
        Err(error) => return Err(Error(error.to_string())),
    }
    let config = Config {
        name: names::EVENTS.to_owned(),
        subjects: vec![names::event_subjects()],
        description: Some("What happened to Millstream's handlers".to_owned()),
        max_age: KEEP,
        allow_direct: true,
        storage: StorageType::File,
        num_replicas: replicas,
        metadata: names::ours(names::EVENTS),
        ..Config::default()
    };
    jetstream.get_or_create_stream(config).await.map(drop).map_err(|error| Error(error.to_string()))
}

/// Tells what happened to a handler, in the stream of such news.
///
/// # Errors
/// When the server refuses, or is away.
pub async fn tell(
    jetstream: &Context,
    handler: &str,
    what: &str,
    replicas: usize,
    news: &serde_json::Value,
) -> Result<(), Error> {
    let id = format!("{handler}.{what}.{}", clock::now());
    tell_once(jetstream, handler, what, &id, replicas, news).await
}

/// The same under an id of its own: said again within the stream's duplicate window, it is told once.
///
/// # Errors
/// When the server refuses, or is away.
pub async fn tell_once(
    jetstream: &Context,
    handler: &str,
    what: &str,
    id: &str,
    replicas: usize,
    news: &serde_json::Value,
) -> Result<(), Error> {
    open(jetstream, handler, replicas).await?;
    let time = clock::now();
    let event_type = format!("millstream.{what}");
    let outline =
        Outline { id, event_type: &event_type, handler, aggregate: handler, time, correlation: id, causation: "" };
    let mut headers = outline.headers();
    headers.insert("Nats-Msg-Id", id);
    let refused = |error: async_nats::jetstream::context::PublishError| Error(error.to_string());
    let subject = names::event_subject(handler, what);
    let ack = jetstream.publish_with_headers(subject, headers, news.to_string().into()).await.map_err(refused)?;
    ack.await.map(drop).map_err(refused)
}
