//! The stream of what happens to handlers that a person should know. In: nothing; sagas' alerts are effects like any other, and
//! `outbox.rs` publishes them. Out: a stream that holds them, so that none is lost while nobody looks. Never: takes the subjects from
//! a stream that a user made for them.

use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::context::GetStreamByNameErrorKind;
use async_nats::jetstream::stream::{Config, StorageType};

use crate::names;

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
