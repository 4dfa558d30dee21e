//! The streams that will hold what is published. In: the subjects. Out: the streams, found before the first line goes
//! out, and how far an earlier run came, read back from them. Never: writes to them.

use millstream_saga::subject_matches;
use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, pull};
use async_nats::jetstream::response::Response;
use async_nats::jetstream::stream::Stream;
use futures::StreamExt as _;
use serde::Deserialize;

use super::Error;
use crate::subject;

/// Between two messages of a fetch; and after it the consumer is gone soon.
const SILENCE: Duration = Duration::from_secs(5);

/// The streams whose subjects meet the template's filter.
pub(super) struct Target {
    filter: String,
    streams: Vec<Stream>,
}

impl Target {
    pub(super) async fn find(jetstream: &Context, filter: &str) -> Result<Self, Error> {
        #[derive(Deserialize)]
        struct Names {
            streams: Option<Vec<String>>,
        }
        let question = serde_json::json!({ "subject": filter });
        let names: Response<Names> =
            jetstream.request("STREAM.NAMES", &question).await.map_err(Error::api("look for a stream"))?;
        let names = match names {
            Response::Ok(names) => names.streams.unwrap_or_default(),
            Response::Err { error } => return Err(Error::api("look for a stream")(error)),
        };
        let mut streams = Vec::new();
        for name in names {
            let stream = jetstream.get_stream(&name).await.map_err(Error::api("look at a stream"))?;
            if stream.cached_info().config.no_ack {
                return Err(Error::NoAck { stream: name });
            }
            streams.push(stream);
        }
        if streams.is_empty() {
            return Err(Error::NoStream { filter: filter.to_owned() });
        }
        Ok(Self { filter: filter.to_owned(), streams })
    }

    /// The filters that subjects must be checked against; nothing if all that the template can give is held.
    pub(super) fn filters_to_check(&self) -> Option<Vec<String>> {
        let filters = self.streams.iter().flat_map(|stream| &stream.cached_info().config.subjects);
        let filters: Vec<String> = filters.cloned().collect();
        let all_held = filters.iter().any(|filter| subject::covers(filter, &self.filter));
        if all_held { None } else { Some(filters) }
    }

    /// The stream that takes this subject.
    pub(super) fn stream_of(&self, subject: &str) -> Option<&str> {
        let takes = |filter: &String| subject_matches(filter, subject);
        let mut configs = self.streams.iter().map(|stream| &stream.cached_info().config);
        configs.find(|config| config.subjects.iter().any(takes)).map(|config| config.name.as_str())
    }

    /// How long the streams surely know the ids of what they store.
    pub(super) fn duplicate_window(&self) -> Duration {
        let windows = self.streams.iter().map(|stream| stream.cached_info().config.duplicate_window);
        windows.min().unwrap_or_default()
    }

    /// The ids of the last `count` messages under the filter; nothing if there are no messages.
    pub(super) async fn last_ids(&self, count: usize) -> Result<Option<HashSet<String>>, Error> {
        let (mut ids, mut has_messages) = (HashSet::new(), false);
        for stream in &self.streams {
            let last = last_messages(stream, &self.filter, count).await?;
            has_messages |= !last.is_empty();
            ids.extend(last.into_iter().flatten());
        }
        Ok(has_messages.then_some(ids))
    }
}

/// The ids, if any, of the last messages of one stream. Where they begin is found by asking how many match from a sequence on,
/// further and further back.
async fn last_messages(stream: &Stream, filter: &str, count: usize) -> Result<VecDeque<Option<String>>, Error> {
    let state = &stream.cached_info().state;
    let wanted = count as u64;
    let mut reach = wanted.max(1);
    loop {
        let start = (state.last_sequence + 1).saturating_sub(reach).max(1);
        let config = pull::Config {
            filter_subject: filter.to_owned(),
            deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: start },
            ack_policy: AckPolicy::None,
            headers_only: true,
            inactive_threshold: SILENCE * 2,
            ..pull::Config::default()
        };
        let consumer = stream.create_consumer(config).await.map_err(Error::api("read back what is stored"))?;
        let pending = consumer.cached_info().num_pending;
        let is_enough = pending >= wanted || start <= state.first_sequence.max(1);
        let ids = if is_enough { ids_of(&consumer, pending, count).await } else { Ok(VecDeque::new()) };
        // It would end by itself soon; a failure to end it now is no reason to fail.
        let _ = stream.delete_consumer(&consumer.cached_info().name).await;
        if is_enough {
            return ids;
        }
        reach = reach.saturating_mul(4);
    }
}

async fn ids_of(
    consumer: &async_nats::jetstream::consumer::Consumer<pull::Config>,
    pending: u64,
    count: usize,
) -> Result<VecDeque<Option<String>>, Error> {
    let mut ids = VecDeque::new();
    if pending == 0 {
        return Ok(ids);
    }
    const WHAT: &str = "read back what is stored";
    let batch = consumer.batch().max_messages(usize::try_from(pending).unwrap_or(usize::MAX)).expires(SILENCE);
    let mut messages = batch.messages().await.map_err(Error::api(WHAT))?;
    let mut received = 0;
    while let Some(message) = messages.next().await {
        let message = message.map_err(Error::api(WHAT))?;
        received += 1;
        let id = message.headers.as_ref().and_then(|headers| headers.get(async_nats::header::NATS_MESSAGE_ID));
        ids.push_back(id.map(|id| id.as_str().to_owned()));
        if ids.len() > count {
            ids.pop_front();
        }
    }
    // Half an answer would let the file go on too early.
    if received < pending {
        return Err(Error::api(WHAT)(format!("{received} of {pending} messages came")));
    }
    Ok(ids)
}
