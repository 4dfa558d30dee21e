//! The streams that effects go to. In: subjects and ids. Out: the stream of a subject, found once and remembered, and
//! which of the ids it holds already. Never: creates, alters or purges one. A stream that keeps everything is read
//! through a short-lived consumer, headers only; one that drops what was consumed is read message by message, and
//! cannot tell of what is gone. A replica that answers may be a moment behind: what it lacks is so young that the
//! stream still knows its message id.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, PullConsumer, pull};
use async_nats::jetstream::context::GetStreamByNameErrorKind;
use async_nats::jetstream::stream::{Config, RetentionPolicy};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::StreamExt as _;
use millstream_saga::subject_matches;
use serde::Deserialize;
use serde_json::json;
use time::OffsetDateTime;

use crate::clock;

/// Streams remembered.
const KNOWN: usize = 1000;

/// Messages asked for in one pull.
const PULL: usize = 500;

/// A consumer that is not removed, for its host died, goes away after this.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(30);

/// JetStream's code for a sequence or subject without a message.
const NO_MESSAGE: u64 = 10037;

/// A stream that effects go to.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) stream: String,
    pub(super) window: Duration,
    pub(super) allows_ttl: bool,
    subjects: Vec<String>,
    keeps_all: bool,
    /// Messages lie on other subjects than they were sent to.
    transforms: bool,
}

impl Target {
    fn new(config: &Config) -> Self {
        Self {
            stream: config.name.clone(),
            window: config.duplicate_window,
            allows_ttl: config.allow_message_ttl,
            subjects: config.subjects.clone(),
            keeps_all: config.retention == RetentionPolicy::Limits,
            transforms: config.subject_transform.is_some(),
        }
    }
}

#[cfg(test)]
impl Target {
    pub(super) fn of(stream: &str, window: Duration) -> Self {
        Self::new(&Config { name: stream.to_owned(), duplicate_window: window, ..Config::default() })
    }
}

/// All that are known.
pub(super) struct Targets {
    jetstream: Context,
    known: Mutex<Vec<Arc<Target>>>,
}

impl Targets {
    pub(super) fn new(jetstream: Context) -> Self {
        Self { jetstream, known: Mutex::default() }
    }

    /// The stream that holds a subject, if there is one; or why nobody knows.
    pub(super) async fn find(&self, subject: &str) -> Result<Option<Arc<Target>>, String> {
        let holds = |target: &&Arc<Target>| target.subjects.iter().any(|filter| subject_matches(filter, subject));
        if let Some(known) = self.known().iter().find(holds) {
            return Ok(Some(Arc::clone(known)));
        }
        let name = match self.jetstream.stream_by_subject(subject).await {
            Ok(name) => name,
            Err(error) if error.kind() == GetStreamByNameErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.to_string()),
        };
        let stream = self.jetstream.get_stream(&name).await.map_err(|error| error.to_string())?;
        let target = Arc::new(Target::new(&stream.cached_info().config));
        let mut known = self.known();
        known.retain(|known| known.stream != name);
        if known.len() >= KNOWN {
            known.remove(0);
        }
        known.push(Arc::clone(&target));
        Ok(Some(target))
    }

    /// Asks anew the next time: something did not go as it should with this stream.
    pub(super) fn forget(&self, target: &Target) {
        self.known().retain(|known| known.stream != target.stream);
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Vec<Arc<Target>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Which of these ids are in the stream, on subjects of this filter, stored at `since` (nanoseconds since 1970) or later.
    pub(super) async fn present(
        &self,
        target: &Target,
        filter: &str,
        ids: HashSet<String>,
        since: i64,
    ) -> Result<HashSet<String>, String> {
        let filter = if target.transforms { ">" } else { filter };
        let mut search = Search { missing: ids, found: HashSet::new() };
        if target.keeps_all {
            self.search(target, filter, since, &mut search).await?;
        } else {
            self.walk(target, filter, since, &mut search).await?;
        }
        Ok(search.found)
    }

    async fn search(&self, target: &Target, filter: &str, since: i64, search: &mut Search) -> Result<(), String> {
        let start_time =
            OffsetDateTime::from_unix_timestamp_nanos(i128::from(since)).map_err(|error| error.to_string())?;
        let config = pull::Config {
            description: Some("Millstream looks for what it may have published".to_owned()),
            filter_subject: filter.to_owned(),
            deliver_policy: DeliverPolicy::ByStartTime { start_time },
            ack_policy: AckPolicy::None,
            headers_only: true,
            memory_storage: true,
            num_replicas: 1,
            inactive_threshold: FORGOTTEN_AFTER,
            ..pull::Config::default()
        };
        let created = self.jetstream.create_consumer_on_stream(config, &target.stream).await;
        let consumer = created.map_err(|error| error.to_string())?;
        let read = read(&consumer, search).await;
        let name = consumer.cached_info().name.clone();
        // It would go away by itself.
        let _ = self.jetstream.delete_consumer_from_stream(&name, &target.stream).await;
        read
    }

    async fn walk(&self, target: &Target, filter: &str, since: i64, search: &mut Search) -> Result<(), String> {
        let mut wanted = json!({ "start_time": clock::text(since), "next_by_subj": filter });
        while !search.missing.is_empty() {
            let request = self.jetstream.request(format!("STREAM.MSG.GET.{}", target.stream), &wanted).await;
            let got: Got = request.map_err(|error| error.to_string())?;
            let message = match (got.message, got.error) {
                (Some(message), _) => message,
                (None, Some(error)) if error.err_code == NO_MESSAGE => return Ok(()),
                (None, error) => return Err(error.map(|error| error.description).unwrap_or_default()),
            };
            let headers = STANDARD.decode(message.hdrs.as_bytes()).map_err(|error| error.to_string())?;
            for line in String::from_utf8_lossy(&headers).lines() {
                if let Some((name, value)) = line.split_once(':') {
                    search.saw(name, value.trim());
                }
            }
            wanted = json!({ "seq": message.seq + 1, "next_by_subj": filter });
        }
        Ok(())
    }
}

/// Reads what is there at this moment: what comes later was not there.
async fn read(consumer: &PullConsumer, search: &mut Search) -> Result<(), String> {
    let mut left = consumer.cached_info().num_pending;
    while left > 0 && !search.missing.is_empty() {
        let fetched = consumer.fetch().max_messages(PULL).messages().await.map_err(|error| error.to_string())?;
        let mut messages = std::pin::pin!(fetched);
        let before = left;
        while let Some(message) = messages.next().await {
            let message = message.map_err(|error| error.to_string())?;
            left = left.saturating_sub(1);
            for (name, values) in message.headers.iter().flat_map(async_nats::HeaderMap::iter) {
                values.iter().for_each(|value| search.saw(name.as_ref(), value.as_str()));
            }
        }
        if left == before {
            // Limits of the stream may have removed some meanwhile.
            let pending = consumer.get_info().await.map_err(|error| error.to_string())?.num_pending;
            left = left.min(pending);
        }
    }
    Ok(())
}

struct Search {
    missing: HashSet<String>,
    found: HashSet<String>,
}

impl Search {
    /// A fired timer has lost its message id; its event id stays.
    fn saw(&mut self, name: &str, value: &str) {
        if name.eq_ignore_ascii_case("Nats-Msg-Id") || name.eq_ignore_ascii_case("ce-id") {
            self.found.extend(self.missing.take(value));
        }
    }
}

#[derive(Deserialize)]
struct Got {
    message: Option<GotMessage>,
    error: Option<GotError>,
}

#[derive(Deserialize)]
struct GotMessage {
    seq: u64,
    #[serde(default)]
    hdrs: String,
}

#[derive(Deserialize)]
struct GotError {
    #[serde(default)]
    err_code: u64,
    #[serde(default)]
    description: String,
}
