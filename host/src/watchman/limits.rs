//! How full streams, buckets and the account are. In: handlers, by whose names and input streams they are found; the server's own
//! figures, a few requests at a time. Out: shares of their limits, in numbers and words, and how old they are. Never: calls a stream full
//! that drops its oldest messages on purpose, unless undecided ones are next.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::context::GetStreamError;
use async_nats::jetstream::stream::DiscardPolicy;

use crate::alarm::{Fullness, Near};
use crate::inputs;
use crate::names;
use crate::overview::Handler;

/// How often each is asked about, nanoseconds, and how many in one look.
const ASK_EVERY: i64 = 30_000_000_000;
const ASKS: usize = 40;

/// A server that answers no sooner is left in peace until the next look.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);

/// The part of a stream from its beginning that is dropped next.
const NEXT: u64 = 10;

/// What is asked about.
pub(super) struct Limits {
    jetstream: Context,
    streams: HashMap<String, Known>,
    account: i64,
}

#[derive(Default)]
struct Known {
    asked: i64,
    /// What the server said last, and when: none before it ever did.
    told: Option<(i64, Option<Fill>)>,
}

/// What a stream holds of what it may.
#[derive(Clone, Debug, Default)]
struct Fill {
    share: f64,
    of: &'static str,
    drops_oldest: bool,
    first: u64,
    last: u64,
}

impl Limits {
    pub(super) fn new(jetstream: Context) -> Self {
        Self { jetstream, streams: HashMap::new(), account: 0 }
    }

    /// Asks about those that were not asked about for the longest time. `now` is no later than any answer.
    pub(super) async fn look(&mut self, handlers: &[Handler], now: i64) {
        let wanted: HashSet<String> = handlers.iter().flat_map(streams).collect();
        self.streams.retain(|stream, _| wanted.contains(stream));
        let asked = |stream: &String| self.streams.get(stream).map_or(0, |known| known.asked);
        let mut due: Vec<String> = wanted.into_iter().filter(|stream| now - asked(stream) >= ASK_EVERY).collect();
        due.sort_by_key(&asked);
        for stream in due.into_iter().take(ASKS) {
            // A slow server must not hold up what is looked at besides, nor clear what was seen before.
            let told = tokio::time::timeout(ANSWER_WITHIN, self.ask(&stream)).await;
            let known = self.streams.entry(stream).or_default();
            known.asked = now;
            match told {
                Ok(Ok(fill)) => known.told = Some((now, fill)),
                Ok(Err(_)) => {}
                Err(_) => return,
            }
        }
    }

    /// None: it is not there.
    async fn ask(&self, stream: &str) -> Result<Option<Fill>, GetStreamError> {
        let opened = match self.jetstream.get_stream(stream).await {
            Ok(opened) => opened,
            Err(error) if inputs::is_missing(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        let info = opened.cached_info();
        let share = |held: u64, most: i64| if most > 0 { held as f64 / most as f64 } else { 0.0 };
        let bytes = share(info.state.bytes, info.config.max_bytes);
        let messages = share(info.state.messages, info.config.max_messages);
        let (share, of) = if bytes >= messages { (bytes, "bytes") } else { (messages, "messages") };
        Ok(Some(Fill {
            share,
            of,
            drops_oldest: info.config.discard == DiscardPolicy::Old,
            first: info.state.first_sequence,
            last: info.state.last_sequence,
        }))
    }

    /// How near a handler's streams are to their limits; none before all were asked about.
    pub(super) fn fullness(&self, handler: &Handler) -> Option<Fullness> {
        let mut fullness = Fullness { taken: i64::MAX, near: Vec::new() };
        for stream in streams(handler) {
            let (taken, fill) = self.streams.get(&stream)?.told.as_ref()?;
            fullness.taken = fullness.taken.min(*taken);
            // One that is not there, or does not tell, has no limits.
            fullness.near.extend(fill.as_ref().and_then(|fill| fill.near(&stream, handler)));
        }
        Some(fullness)
    }

    /// How full the account's storage is, now and then.
    pub(super) async fn account(&mut self, now: i64) -> Option<Near> {
        if now - self.account < ASK_EVERY {
            return None;
        }
        self.account = now;
        let account = self.jetstream.query_account().await.ok()?;
        let near = |what: &str, held: u64, most: Option<i64>| {
            let most = most.unwrap_or_default();
            let share = if most > 0 { held as f64 / most as f64 } else { 0.0 };
            Near { share, text: format!("the account's {what} is {:.0} % full: {held} of {most} bytes", share * 100.0) }
        };
        let (disk, memory) = (account.storage, account.memory);
        let disk = near("storage", disk, account.limits.max_storage);
        let memory = near("memory storage", memory, account.limits.max_memory);
        Some(if disk.share >= memory.share { disk } else { memory })
    }
}

impl Fill {
    fn near(&self, stream: &str, handler: &Handler) -> Option<Near> {
        let told = format!("stream {stream} is {:.0} % full ({})", self.share * 100.0, self.of);
        let input = handler.lag.iter().find(|row| row.stream == stream);
        let Some(input) = input.filter(|_| self.drops_oldest) else {
            return (self.share > 0.0).then_some(Near { share: self.share, text: told });
        };
        // It is always full, and that is meant.
        let next = self.first + self.last.saturating_sub(self.first) / NEXT;
        let is_next = input.events > 0 && input.position <= next;
        is_next.then(|| Near { share: self.share, text: format!("{told}, and what it drops next is not decided") })
    }
}

/// The streams that a handler cannot do without.
fn streams(handler: &Handler) -> impl Iterator<Item = String> {
    let ours = [names::journal_stream(&handler.handler), names::bucket_stream(&handler.handler)];
    ours.into_iter().chain(handler.lag.iter().map(|row| row.stream.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lag::Lag;

    #[test]
    fn a_stream_that_drops_its_oldest_is_full_on_purpose_until_undecided_events_are_next() {
        let handler = |events, position| Handler {
            lag: vec![Lag { stream: "IN".to_owned(), events, position, ..Lag::default() }],
            ..Handler::default()
        };
        let fill = |drops_oldest| Fill { share: 1.0, of: "bytes", drops_oldest, first: 1000, last: 2000 };
        for (drops, events, position, told) in [
            (true, 0, 1050, None),
            (true, 500, 1500, None),
            (true, 950, 1050, Some("stream IN is 100 % full (bytes), and what it drops next is not decided")),
            (false, 0, 2000, Some("stream IN is 100 % full (bytes)")),
        ] {
            let near = fill(drops).near("IN", &handler(events, position));
            assert_eq!(near.map(|near| near.text).as_deref(), told);
        }
        let ours = fill(true).near("MILLSTREAM_JOURNAL_h", &handler(0, 0)).expect("a journal is not meant to be full");
        assert_eq!(ours.share, 1.0);
    }
}
