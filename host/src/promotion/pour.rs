//! Makes one bucket hold what another holds. In: two buckets in outline. Out: puts and deletions for what differs, in atomic
//! batches (ADR-50), each key against its own revision. Whoever reads the bucket sees a batch whole or not at all; whoever pours
//! late, or twice, writes nothing that is not so. Never: touches a key that is equal.

use std::collections::HashMap;

use async_nats::HeaderMap;
use async_nats::header::{NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, NATS_MESSAGE_TTL};
use async_nats::jetstream::Context;
use async_nats::jetstream::stream::Config;
use bytes::Bytes;
use serde::Deserialize;

use crate::claim;
use crate::clock;
use crate::crash;
use crate::direct_get::Last;
use crate::names;
use crate::outline::{self, Outline};

/// Keys of one batch; the server takes 1,000 messages.
const BATCH: usize = 500;

/// Bytes of one batch, about: a server holds it in memory until it is complete.
const BATCH_BYTES: usize = 4 << 20;

/// Tries against others who write, or documents that expire.
const TRIES: usize = 5;

/// What the server says where a key's revision is not the expected one.
const WRONG_LAST_SEQUENCE: [u64; 2] = [10_071, 10_164];

const SECOND: i64 = 1_000_000_000;

/// Why a bucket could not be filled.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// A bucket cannot be read.
    #[error(transparent)]
    Outline(#[from] outline::Error),
    /// The server refused, or is away; what became of a batch is seen at the next try.
    #[error("bucket {bucket} cannot be written: {reason}")]
    Write {
        /// Its name.
        bucket: String,
        /// The server's words.
        reason: String,
    },
}

/// A put or a deletion.
struct Put {
    subject: String,
    headers: HeaderMap,
    payload: Bytes,
}

/// How documents are marked.
#[derive(Clone, Copy)]
pub(super) enum Mark {
    /// As they are; deletions with this record.
    Kept(u64),
    /// With this record of the journal, which is newer than all that led to what is there.
    With(u64),
}

/// Pours until nothing differs; answers how many keys were written. The source stands still.
pub(super) async fn pour(
    jetstream: &Context,
    source: &mut Outline,
    target: &mut Outline,
    mark: Mark,
) -> Result<u64, Error> {
    let mut written = 0;
    let mut reason = String::new();
    for _ in 0..TRIES {
        let round = pour_once(jetstream, source, target, mark).await?;
        written += round.written;
        match round.refusal {
            Some(refusal) => reason = refusal,
            None if round.differed == 0 => return Ok(written),
            None => {}
        }
    }
    Err(Error::Write { bucket: target.bucket.clone(), reason: format!("it changes all the time ({reason})") })
}

/// What one look at both buckets led to.
#[derive(Default)]
pub(super) struct Round {
    /// Keys that were not equal.
    differed: usize,
    /// Keys that were written.
    written: u64,
    /// Why the rest were not: something expired, or somebody else pours the same.
    refusal: Option<String>,
}

/// Pours what differs now. A source that goes on changing is not waited for.
pub(super) async fn pour_once(
    jetstream: &Context,
    source: &mut Outline,
    target: &mut Outline,
    mark: Mark,
) -> Result<Round, Error> {
    source.update().await?;
    target.update().await?;
    let keys = unequal(source, target);
    let mut round = Round { differed: keys.len(), ..Round::default() };
    for part in keys.chunks(BATCH) {
        match pour_part(jetstream, source, target, part, mark).await? {
            Ok(count) => round.written += count,
            Err(refusal) => {
                target.begin_anew();
                round.refusal = Some(refusal);
                break;
            }
        }
        crash::point("pouring");
    }
    Ok(round)
}

/// Keys whose documents differ, in order.
fn unequal(source: &Outline, target: &Outline) -> Vec<String> {
    let differs = |key: &&String| source.digest(key) != target.digest(key);
    let mut keys: Vec<String> = target.entries.keys().filter(differs).cloned().collect();
    keys.extend(source.entries.keys().filter(|key| !target.entries.contains_key(*key)).filter(differs).cloned());
    keys.sort_unstable();
    keys
}

/// Pours these keys; the inner error is a refusal because of revisions.
async fn pour_part(
    jetstream: &Context,
    source: &mut Outline,
    target: &Outline,
    keys: &[String],
    mark: Mark,
) -> Result<Result<u64, String>, Error> {
    let wanted: Vec<&str> = keys.iter().map(String::as_str).collect();
    let documents = source.fetch(&wanted).await?;
    let mut batch = Vec::with_capacity(keys.len());
    let (mut bytes, mut written) = (0, 0);
    for key in keys {
        if !documents.contains_key(key) {
            source.entries.remove(key);
        }
        let put = put(target, key, &documents, mark);
        bytes += put.payload.len() + put.subject.len();
        batch.push(put);
        if bytes >= BATCH_BYTES {
            bytes = 0;
            written += batch.len() as u64;
            if let Err(reason) = publish(jetstream, target, std::mem::take(&mut batch)).await? {
                return Ok(Err(reason));
            }
        }
    }
    written += batch.len() as u64;
    Ok(publish(jetstream, target, batch).await?.map(|()| written))
}

fn put(target: &Outline, key: &str, documents: &HashMap<String, Last>, mark: Mark) -> Put {
    let document = documents.get(key).filter(|message| !message.is_deletion());
    let mut headers = HeaderMap::new();
    let known = document.into_iter().flat_map(|document| {
        [names::JOURNAL_HEADER, names::POSITION_HEADER, names::DIGEST_HEADER]
            .into_iter()
            .filter_map(|name| Some((name, document.headers.get(name)?.clone())))
    });
    for (name, value) in known {
        headers.insert(name, value);
    }
    match (mark, document) {
        (Mark::Kept(_), Some(_)) => {}
        (Mark::With(record), _) | (Mark::Kept(record), None) => {
            headers.insert(names::JOURNAL_HEADER, record.to_string());
        }
    }
    match document {
        None => headers.insert("KV-Operation", "DEL"),
        Some(document) => {
            if let Some(left) = seconds_left(document) {
                headers.insert(NATS_MESSAGE_TTL, left.to_string());
            }
        }
    }
    let revision = target.entries.get(key).map_or(0, |entry| entry.revision);
    headers.insert(NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, revision.to_string());
    Put {
        subject: names::bucket_subject(&target.bucket, key),
        headers,
        payload: document.map(|document| document.payload.clone()).unwrap_or_default(),
    }
}

/// What is left of a document's time, at least a second; none where it stays.
fn seconds_left(document: &Last) -> Option<i64> {
    let seconds: i64 = document.headers.get(NATS_MESSAGE_TTL)?.as_str().trim_end_matches('s').parse().ok()?;
    Some((seconds - (clock::now() - document.stored) / SECOND).max(1))
}

#[derive(Deserialize)]
struct Said {
    error: Option<SaidError>,
}

#[derive(Deserialize)]
struct SaidError {
    err_code: u64,
    description: String,
}

/// Publishes one atomic batch; the inner error is a refusal because of revisions.
async fn publish(jetstream: &Context, target: &Outline, batch: Vec<Put>) -> Result<Result<(), String>, Error> {
    let failed = |reason: String| Error::Write { bucket: target.bucket.clone(), reason };
    let client = jetstream.client();
    let id = format!("{:016x}{:016x}", claim::fresh_id(), claim::fresh_id());
    let last = batch.len();
    for (number, Put { subject, mut headers, payload }) in (1..).zip(batch) {
        headers.insert("Nats-Batch-Id", id.as_str());
        headers.insert("Nats-Batch-Sequence", number.to_string());
        if number < last {
            client.publish_with_headers(subject, headers, payload).await.map_err(|error| failed(error.to_string()))?;
            continue;
        }
        headers.insert("Nats-Batch-Commit", "1");
        let answer = client.request_with_headers(subject, headers, payload).await;
        let answer = answer.map_err(|error| failed(error.to_string()))?;
        let said: Said = serde_json::from_slice(&answer.payload).map_err(|error| failed(error.to_string()))?;
        return match said.error {
            None => Ok(Ok(())),
            Some(error) if WRONG_LAST_SEQUENCE.contains(&error.err_code) => Ok(Err(error.description)),
            Some(error) => Err(failed(format!("{} ({})", error.description, error.err_code))),
        };
    }
    Ok(Ok(()))
}

/// Lets a bucket take atomic batches.
///
/// # Errors
/// When the server refuses or is away.
pub(super) async fn allow_batches(jetstream: &Context, bucket: &str) -> Result<(), Error> {
    let failed = |reason: String| Error::Write { bucket: bucket.to_owned(), reason };
    let stream = jetstream.get_stream(names::bucket_stream(bucket)).await.map_err(|error| failed(error.to_string()))?;
    let config = &stream.cached_info().config;
    if config.allow_atomic_publish {
        return Ok(());
    }
    let config = Config { allow_atomic_publish: true, ..config.clone() };
    jetstream.update_stream(config).await.map(drop).map_err(|error| failed(error.to_string()))
}
