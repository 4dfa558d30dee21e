//! Batched direct gets (ADR-31): many keys, or a range of a subject, in one request. In: a stream and what to read.
//! Out: messages, and how far the answering replica knew the stream, so that a caller can tell a stale answer. Never:
//! judges whether an answer is fresh enough; the caller does. Own code because the published client extension ends a
//! batch at the first empty payload, which a deleted key has.

use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::message::StreamMessage;
use async_nats::{HeaderMap, Message, StatusCode, Subscriber};
use bytes::Bytes;
use futures::StreamExt as _;
use serde_json::json;

use crate::clock;

/// Keys in one request; the server takes 1,024.
pub const KEYS: usize = 1000;

/// What a subject costs in a request beside its own bytes: quotes and comma, and a few more.
const QUOTES_BYTES: usize = 8;

/// How long a server may stay silent in the middle of an answer.
const SILENCE: Duration = Duration::from_secs(5);

/// Why a read did not come through.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The connection refused.
    #[error("direct get of stream {stream} failed: {reason}")]
    Request {
        /// Stream asked.
        stream: String,
        /// The client's account.
        reason: String,
    },
    /// No answer.
    #[error("direct get of stream {0} got no answer in time")]
    Silence(String),
    /// The server refused.
    #[error("direct get of stream {stream} was refused: {status} {description}")]
    Refused {
        /// Stream asked.
        stream: String,
        /// Status code.
        status: u16,
        /// The server's words.
        description: String,
    },
}

/// A message.
#[derive(Debug)]
pub struct Last {
    /// Its subject.
    pub subject: String,
    /// Its stream sequence: a KV key's revision.
    pub sequence: u64,
    /// When it was stored, nanoseconds since 1970.
    pub stored: i64,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its payload.
    pub payload: Bytes,
}

impl Last {
    /// A message that was asked for by itself.
    #[must_use]
    pub fn of(message: StreamMessage) -> Self {
        let StreamMessage { subject, sequence, headers, payload, time } = message;
        let stored = i64::try_from(time.unix_timestamp_nanos()).unwrap_or_default();
        Self { subject: subject.into_string(), sequence, stored, headers, payload }
    }

    /// Whether it says that a key of a bucket is gone.
    #[must_use]
    pub fn is_deletion(&self) -> bool {
        is_deletion(&self.headers)
    }

    /// Whether it came from this stream itself, not from a mirror that answers in its place (`mirror_direct`).
    #[must_use]
    pub fn is_of(&self, stream: &str) -> bool {
        self.headers.get("Nats-Stream").is_some_and(|name| name.as_str() == stream)
    }
}

/// Whether these are the headers of a message that says that a key of a bucket is gone (ADR-8).
#[must_use]
pub fn is_deletion(headers: &HeaderMap) -> bool {
    headers.get("KV-Operation").is_some_and(|operation| operation.as_str() != "PUT")
}

/// Where to begin to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// At the first message stored at or after this time, nanoseconds since 1970.
    Time(i64),
    /// At this sequence.
    Sequence(u64),
}

/// The last messages of up to `KEYS` subjects, in no particular order, and the last stream sequence the answering replica knew.
///
/// # Errors
/// When the server refuses or stays silent.
pub async fn last_of(
    jetstream: &Context,
    stream: &str,
    subjects: &[impl AsRef<str>],
) -> Result<(Vec<Last>, u64), Error> {
    let subjects: Vec<&str> = subjects.iter().map(AsRef::as_ref).collect();
    let (messages, end) = request(jetstream, stream, &json!({ "multi_last": subjects })).await?;
    let known = end.and_then(|end| number(end.headers.as_ref(), "Nats-UpTo-Sequence")).unwrap_or_default();
    Ok((messages.into_iter().filter_map(whole).collect(), known))
}

/// The last messages of these subjects, in no particular order, each asked for by itself. For several subjects in one request the server
/// walks over all subjects of its stream (2.15: about 0.1 us each); this looks each up. The answers say nothing of how far a replica, or a
/// mirror that answers in the stream's place, knew it; and where there is no message, not even who answered.
///
/// # Errors
/// When the server refuses or stays silent.
pub async fn each_last_of(jetstream: &Context, stream: &str, subjects: &[impl AsRef<str>]) -> Result<Vec<Last>, Error> {
    let failed = |reason: String| Error::Request { stream: stream.to_owned(), reason };
    let client = jetstream.client();
    let inbox = client.new_inbox();
    let mut answers = client.subscribe(format!("{inbox}.*")).await.map_err(|error| failed(error.to_string()))?;
    for (index, subject) in subjects.iter().enumerate() {
        let (to, reply) = (format!("$JS.API.DIRECT.GET.{stream}"), format!("{inbox}.{index}"));
        let wanted = json!({ "last_by_subj": subject.as_ref() }).to_string();
        let sent = client.publish_with_reply(to, reply, wanted.into()).await;
        sent.map_err(|error| failed(error.to_string()))?;
    }
    let mut messages = Vec::with_capacity(subjects.len());
    for _ in subjects {
        let message = answer(&mut answers, stream).await?;
        match message.status {
            None => messages.extend(whole(message)),
            Some(StatusCode::NOT_FOUND) => {}
            Some(status) => return Err(refused(stream, status, message.description)),
        }
    }
    Ok(messages)
}

/// Messages under a filter from there on, whole, at most `count` of them and about `bytes` bytes, in stream order.
///
/// # Errors
/// When the server refuses or stays silent.
pub async fn page(
    jetstream: &Context,
    stream: &str,
    filter: &str,
    from: From,
    count: usize,
    bytes: usize,
) -> Result<Vec<Last>, Error> {
    let wanted = match from {
        From::Time(time) => {
            json!({ "start_time": clock::text(time), "next_by_subj": filter, "batch": count, "max_bytes": bytes })
        }
        From::Sequence(sequence) => {
            json!({ "seq": sequence, "next_by_subj": filter, "batch": count, "max_bytes": bytes })
        }
    };
    let (messages, _) = request(jetstream, stream, &wanted).await?;
    Ok(messages.into_iter().filter_map(whole).collect())
}

fn whole(message: Message) -> Option<Last> {
    let headers = message.headers.as_ref();
    let sequence = number(headers, "Nats-Sequence")?;
    let subject = headers?.get("Nats-Subject")?.to_string();
    let stored = stored(headers).unwrap_or_default();
    Some(Last { subject, sequence, stored, headers: message.headers.unwrap_or_default(), payload: message.payload })
}

fn stored(headers: Option<&HeaderMap>) -> Option<i64> {
    clock::read(headers?.get("Nats-Time-Stamp")?.as_str())
}

/// Messages of a subject from a sequence on, at most `count` of them and about `bytes` bytes, in stream order.
///
/// # Errors
/// When the server refuses or stays silent.
pub async fn range(
    jetstream: &Context,
    stream: &str,
    subject: &str,
    from: u64,
    count: usize,
    bytes: usize,
) -> Result<Vec<(u64, Bytes)>, Error> {
    let wanted = json!({ "seq": from, "next_by_subj": subject, "batch": count, "max_bytes": bytes });
    let (messages, _) = request(jetstream, stream, &wanted).await?;
    let record = |message: Message| Some((number(message.headers.as_ref(), "Nats-Sequence")?, message.payload));
    Ok(messages.into_iter().filter_map(record).collect())
}

/// What waits in a stream from a sequence on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waiting {
    /// Messages under the filter.
    pub messages: u64,
    /// When the first of them was stored, nanoseconds since 1970.
    pub oldest: Option<i64>,
}

/// Counts the messages of a filter from a sequence on, without reading them.
///
/// # Errors
/// When the server refuses or stays silent.
pub async fn waiting(jetstream: &Context, stream: &str, filter: &str, from: u64) -> Result<Waiting, Error> {
    let (messages, _) = request(jetstream, stream, &json!({ "seq": from, "next_by_subj": filter, "batch": 1 })).await?;
    let Some(first) = messages.first() else { return Ok(Waiting::default()) };
    let headers = first.headers.as_ref();
    Ok(Waiting { messages: 1 + number(headers, "Nats-Num-Pending").unwrap_or_default(), oldest: stored(headers) })
}

/// Cuts subjects into parts, in their order, each small enough for one request of [`last_of`] and one subject more: a witness.
pub fn parts<S: AsRef<str>>(subjects: &[S], max_payload: usize) -> impl Iterator<Item = &[S]> {
    let mut rest = subjects;
    std::iter::from_fn(move || {
        // Half of what a server takes leaves room for quoting, and for the witness.
        let mut room = max_payload / 2;
        let fits = |subject: &&S| {
            let length = subject.as_ref().len() + QUOTES_BYTES;
            let fits = length <= room;
            room = room.saturating_sub(length);
            fits
        };
        // A subject that is too long by itself goes alone, for the server to refuse.
        let count = rest.iter().take(KEYS - 1).take_while(fits).count().max(1);
        let (part, later) = rest.split_at_checked(count)?;
        rest = later;
        Some(part)
    })
}

async fn request(
    jetstream: &Context,
    stream: &str,
    wanted: &serde_json::Value,
) -> Result<(Vec<Message>, Option<Message>), Error> {
    let failed = |reason: String| Error::Request { stream: stream.to_owned(), reason };
    let client = jetstream.client();
    let inbox = client.new_inbox();
    let mut answers = client.subscribe(inbox.clone()).await.map_err(|error| failed(error.to_string()))?;
    client
        .publish_with_reply(format!("$JS.API.DIRECT.GET.{stream}"), inbox, wanted.to_string().into())
        .await
        .map_err(|error| failed(error.to_string()))?;
    let mut messages = Vec::new();
    loop {
        let message = answer(&mut answers, stream).await?;
        match message.status {
            None => messages.push(message),
            Some(status) if status.as_u16() == 204 => return Ok((messages, Some(message))),
            Some(StatusCode::NOT_FOUND) => return Ok((messages, Some(message))),
            Some(status) => return Err(refused(stream, status, message.description)),
        }
    }
}

async fn answer(answers: &mut Subscriber, stream: &str) -> Result<Message, Error> {
    let next = tokio::time::timeout(SILENCE, answers.next()).await;
    next.ok().flatten().ok_or_else(|| Error::Silence(stream.to_owned()))
}

fn refused(stream: &str, status: StatusCode, description: Option<String>) -> Error {
    let description = description.unwrap_or_default();
    Error::Refused { stream: stream.to_owned(), status: status.as_u16(), description }
}

fn number(headers: Option<&HeaderMap>, name: &str) -> Option<u64> {
    headers?.get(name)?.as_str().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lengths(subjects: &[String], max_payload: usize) -> Vec<usize> {
        assert_eq!(parts(subjects, max_payload).flatten().collect::<Vec<_>>(), subjects.iter().collect::<Vec<_>>());
        parts(subjects, max_payload).map(<[String]>::len).collect()
    }

    #[test]
    fn a_part_fits_by_bytes_and_by_count_and_each_subject_is_in_one() {
        let subjects = |count: usize, length: usize| vec!["k".repeat(length); count];
        assert_eq!(lengths(&[], 1000), [0_usize; 0]);
        assert_eq!(lengths(&subjects(2500, 10), 1 << 20), [999, 999, 502]);
        assert_eq!(lengths(&subjects(10, 92), 1000), [5, 5], "a hundred bytes each, five hundred in a part");
        assert_eq!(lengths(&subjects(11, 93), 1000), [4, 4, 3]);
        assert_eq!(lengths(&subjects(3, 5000), 1000), [1, 1, 1], "too long by itself");
        let mixed = [subjects(2, 92), subjects(1, 5000), subjects(1, 92)].concat();
        assert_eq!(lengths(&mixed, 1000), [2, 1, 1]);
    }
}
