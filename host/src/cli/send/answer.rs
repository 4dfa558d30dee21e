//! The answer to a command: the first event of a stream whose causation id is the command's id. In: where it comes, and from
//! where on to look. Out: the event, or nothing in time. Never: leaves a consumer behind.

use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::consumer::DeliverPolicy;
use async_nats::jetstream::consumer::pull::OrderedConfig;
use async_nats::{HeaderMap, Message};
use futures::StreamExt as _;
use serde::Serialize;
use serde_json::value::RawValue;

use crate::acks::Ack;
use crate::clock;
use crate::envelope::{self, Arrival};

/// An answer, for programs.
#[derive(Serialize)]
pub(super) struct Reply {
    pub(super) id: String,
    #[serde(rename = "type")]
    pub(super) event_type: String,
    subject: String,
    pub(super) stream: String,
    pub(super) sequence: u64,
    time: String,
    pub(super) payload: Box<RawValue>,
}

/// What is looked for.
pub(super) struct Wanted<'a> {
    pub(super) stream: &'a str,
    /// Where the answer comes, wildcards allowed.
    pub(super) subject: &'a str,
    /// The command's id.
    pub(super) command: &'a str,
}

/// From behind this sequence on.
pub(super) fn after(sequence: u64) -> DeliverPolicy {
    DeliverPolicy::ByStartSequence { start_sequence: sequence + 1 }
}

/// From when the command was stored; from the first event where nobody knows.
pub(super) async fn since_command(jetstream: &Context, ack: &Ack) -> DeliverPolicy {
    let Ok(stream) = jetstream.get_stream(&*ack.stream).await else { return after(0) };
    let Ok(command) = stream.get_raw_message(ack.sequence).await else { return after(0) };
    DeliverPolicy::ByStartTime { start_time: command.time - Duration::from_nanos(clock::SKEW.unsigned_abs()) }
}

/// The first answer from there on that is there in time.
pub(super) async fn first(
    jetstream: &Context,
    wanted: &Wanted<'_>,
    from: DeliverPolicy,
    within: Duration,
) -> anyhow::Result<Option<Reply>> {
    let stream = jetstream.get_stream(wanted.stream).await?;
    let config =
        OrderedConfig { filter_subject: wanted.subject.to_owned(), deliver_policy: from, ..OrderedConfig::default() };
    let consumer = stream.create_consumer(config).await?;
    let name = consumer.cached_info().name.clone();
    let mut messages = consumer.messages().await?;
    let answer = async {
        while let Some(message) = messages.next().await {
            let message = message?;
            let place = message.info().map_err(|error| anyhow::anyhow!(error))?;
            let stored = i64::try_from(place.published.unix_timestamp_nanos()).unwrap_or_default();
            if let Some(reply) = reply(wanted, place.stream_sequence, stored, &message) {
                return Ok(reply);
            }
        }
        Err(anyhow::anyhow!("stream {} was closed", wanted.stream))
    };
    let found = tokio::time::timeout(within, answer).await.ok().transpose();
    drop(messages);
    // One that was made anew meanwhile goes by itself when nobody asks it.
    let _ = stream.delete_consumer(&name).await;
    found
}

/// The message as the answer, if it is one.
fn reply(wanted: &Wanted<'_>, sequence: u64, stored: i64, message: &Message) -> Option<Reply> {
    let none = HeaderMap::new();
    let headers = message.headers.as_ref().unwrap_or(&none);
    let pairs = headers.iter().flat_map(|(name, values)| values.iter().map(|value| (name.as_ref(), value.as_str())));
    let arrival =
        Arrival { stream: wanted.stream, sequence, stored, subject: &message.subject, payload: &message.payload };
    let event = envelope::decode(&arrival, pairs).ok().filter(|event| event.causation_id == wanted.command)?;
    let payload = String::from_utf8_lossy(&event.payload).into_owned();
    Some(Reply {
        id: event.id.to_string(),
        event_type: event.event_type.to_string(),
        subject: message.subject.to_string(),
        stream: wanted.stream.to_owned(),
        sequence,
        time: clock::text(event.time),
        // A payload that is not JSON is shown as a text.
        payload: RawValue::from_string(payload)
            .or_else(|_| serde_json::value::to_raw_value(&String::from_utf8_lossy(&event.payload)))
            .ok()?,
    })
}
