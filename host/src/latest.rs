//! Reads all values of a KV bucket at once: one request for up to a thousand keys, whoever their reader is. In: a bucket and a pattern of
//! keys. Out: what lies there, by key. Never: a key that was deleted, or more requests at a time than a few.

use async_nats::jetstream::Context;
use async_nats::jetstream::kv::{Operation, Store};
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};

use crate::direct_get;

/// Requests on the way at once, where one is not enough.
const AT_ONCE: usize = 16;

/// What lies under a key.
#[derive(Clone, Debug)]
pub(crate) struct Latest {
    pub(crate) key: String,
    pub(crate) revision: u64,
    pub(crate) value: Bytes,
}

/// All of these keys; `pattern` may have wildcards.
///
/// # Errors
/// The client's words, when the server does not answer.
pub(crate) async fn of(jetstream: &Context, bucket: &Store, pattern: &str) -> Result<Vec<Latest>, String> {
    let mut found =
        match direct_get::last_of(jetstream, &bucket.stream_name, &[format!("{}{pattern}", bucket.prefix)]).await {
            Ok((messages, _)) => messages.into_iter().filter_map(|message| latest(bucket, message)).collect(),
            // More keys than one answer holds, or a bucket that somebody made without direct gets.
            Err(direct_get::Error::Refused { .. }) => one_by_one(bucket, pattern).await?,
            Err(error) => return Err(error.to_string()),
        };
    found.sort_by(|one: &Latest, other| one.key.cmp(&other.key));
    Ok(found)
}

fn latest(bucket: &Store, message: direct_get::Last) -> Option<Latest> {
    if message.is_deletion() {
        return None;
    }
    let key = message.subject.strip_prefix(&bucket.prefix)?.to_owned();
    Some(Latest { key, revision: message.sequence, value: message.payload })
}

async fn one_by_one(bucket: &Store, pattern: &str) -> Result<Vec<Latest>, String> {
    let keys = bucket.keys().await.map_err(|error| error.to_string())?;
    let keys: Vec<String> = keys.try_collect().await.map_err(|error| error.to_string())?;
    let keys = keys.into_iter().filter(|key| crate::subject::covers(pattern, key));
    let entries = futures::stream::iter(keys).map(async |key| bucket.entry(key).await).buffer_unordered(AT_ONCE);
    let entries: Vec<_> = entries.try_collect().await.map_err(|error| error.to_string())?;
    let put = entries.into_iter().flatten().filter(|entry| entry.operation == Operation::Put);
    Ok(put.map(|entry| Latest { key: entry.key, revision: entry.revision, value: entry.value }).collect())
}
