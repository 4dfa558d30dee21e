//! The stream of what happens to handlers that a person should know. In: what a host has to tell; sagas' alerts are effects like any
//! other, and `outbox.rs` publishes them. Out: a stream that holds all of it, so that none is lost while nobody looks. Never: takes the subjects from
//! a stream that a user made for them.

use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::context::{GetStreamByNameErrorKind, PublishErrorKind};
use async_nats::jetstream::stream::{Config, LastRawMessageErrorKind, StorageType};
use bytes::Bytes;

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
    let time = clock::now();
    let id = format!("{handler}.{what}.{time}");
    tell_once(jetstream, handler, what, replicas, &News { id: &id, time, body: news }).await.map(drop)
}

/// Something that several hosts may tell.
pub(crate) struct News<'a> {
    /// The same from whoever tells it.
    pub(crate) id: &'a str,
    /// When it happened, nanoseconds since 1970.
    pub(crate) time: i64,
    pub(crate) body: &'a serde_json::Value,
}

/// Tells it. False: somebody else has told it within the stream's duplicate window.
///
/// # Errors
/// When the server refuses, or is away.
pub(crate) async fn tell_once(
    jetstream: &Context,
    handler: &str,
    what: &str,
    replicas: usize,
    news: &News<'_>,
) -> Result<bool, Error> {
    let event_type = format!("millstream.{what}");
    let outline = Outline {
        id: news.id,
        event_type: &event_type,
        handler,
        aggregate: handler,
        time: news.time,
        correlation: news.id,
        causation: "",
    };
    let mut headers = outline.headers();
    headers.insert("Nats-Msg-Id", news.id);
    let (subject, body) = (names::event_subject(handler, what), Bytes::from(news.body.to_string()));
    let publish = async || jetstream.publish_with_headers(subject.clone(), headers.clone(), body.clone()).await?.await;
    // To ask for the stream each time would cost the server a walk over all its streams. Where there is none, nobody acknowledges, and where
    // somebody listens there is not even an error.
    let (ack, was_silent) = match publish().await {
        Err(error) if matches!(error.kind(), PublishErrorKind::StreamNotFound | PublishErrorKind::TimedOut) => {
            open(jetstream, handler, replicas).await?;
            (publish().await, error.kind() == PublishErrorKind::TimedOut)
        }
        answer => (answer, false),
    };
    // After silence it may be our own that is stored. Told twice is better than not at all.
    ack.map(|ack| !ack.duplicate || was_silent).map_err(|error| Error(error.to_string()))
}

/// The id of the last news of this kind, if there is any.
///
/// # Errors
/// When the server refuses, or is away.
pub(crate) async fn last_told(jetstream: &Context, handler: &str, what: &str) -> Result<Option<String>, Error> {
    let subject = names::event_subject(handler, what);
    let holder = match jetstream.stream_by_subject(subject.clone()).await {
        Ok(holder) => holder,
        Err(error) if error.kind() == GetStreamByNameErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error(error.to_string())),
    };
    let stream = jetstream.get_stream_no_info(holder).await.map_err(|error| Error(error.to_string()))?;
    match stream.get_last_raw_message_by_subject(&subject).await {
        Ok(message) => Ok(message.headers.get("Nats-Msg-Id").map(ToString::to_string)),
        Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
        Err(error) => Err(Error(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use async_nats::jetstream;

    use super::*;
    use crate::server::Server;

    #[tokio::test]
    async fn news_that_were_stored_but_not_acknowledged_in_time_were_told_by_us() {
        let server = Server::builder().start().await.unwrap();
        let mut jetstream = jetstream::new(async_nats::connect(server.url()).await.unwrap());
        jetstream.set_timeout(Duration::from_secs(2));
        let subjects = vec![names::event_subjects()];
        let silent = Config { name: "NEWS".to_owned(), subjects, no_ack: true, ..Config::default() };
        let stream = jetstream.create_stream(silent.clone()).await.unwrap();
        let stored = async || stream.get_info().await.unwrap().state.messages;
        let body = serde_json::json!({});
        let news = News { id: "one", time: 1, body: &body };
        let is_mended = async {
            while stored().await == 0 {
                tokio::task::yield_now().await;
            }
            jetstream.update_stream(Config { no_ack: false, ..silent }).await.unwrap();
        };
        let (told, ()) = tokio::join!(tell_once(&jetstream, "h", "key-parked", 1, &news), is_mended);
        assert_eq!((told.unwrap(), stored().await), (true, 1), "nobody else did");
        assert!(!tell_once(&jetstream, "h", "key-parked", 1, &news).await.unwrap(), "it is told");
        assert_eq!(stored().await, 1);
    }
}
