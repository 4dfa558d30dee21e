//! Samples one generation that runs here, about once a second. In: where it stands, and JetStream. Out: lag, rates, sizes and a saga's
//! census, in its progress. A stream is asked once for all handlers that read it, and what waits in it only where something moved.
//! Never: disturbs the pipeline, or fails; what cannot be sampled keeps its old time.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use async_nats::jetstream::Context;
use async_nats::jetstream::stream::State;
use tokio::task::JoinHandle;

use crate::census;
use crate::clock;
use crate::inputs::Input;
use crate::lag::{History, Moment, Sample};
use crate::names;
use crate::numbers::{Measured, Sizes};
use crate::progress::{Ground, Progress, Stand};
use crate::survey;

/// All samples of one look take no longer than this: the host's word that it lives comes after them.
const WITHIN: Duration = Duration::from_millis(500);

/// What one handler has heard of a stream is good enough for others for so long.
const HEAD_LASTS: Duration = Duration::from_millis(250);

/// Samples a second on this host, at most; with more streams to sample, each is sampled less often.
const SAMPLES_PER_SECOND: u32 = 200;

/// A stream that nobody has asked about for so long is read by none of our handlers any more.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(60);

/// A stream that answers no direct gets is sampled less often: to count, a consumer must be made.
const DEAR_EVERY: Duration = Duration::from_secs(5);

/// How often sizes are asked for.
const SIZES_EVERY: Duration = Duration::from_secs(10);

/// Instances are counted so often at most, and so that counting takes no more than a hundredth of the time; where nothing was
/// decided since, rarely.
const CENSUS_EVERY: Duration = Duration::from_secs(10);
const CENSUS_SHARE: u32 = 100;
const QUIET_CENSUS_EVERY: Duration = Duration::from_secs(60);

/// The heads of all streams that are read on this host.
#[derive(Clone, Default)]
pub(crate) struct Heads {
    streams: Arc<Mutex<HashMap<String, Known>>>,
    monitors: Arc<AtomicU32>,
}

/// The head of one stream, and when it was asked for; whoever asks lets the others wait for the answer.
type Known = Arc<tokio::sync::Mutex<Option<(Instant, Head)>>>;

/// What a stream holds. Purged and deleted messages are seen in it, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Head {
    created: i64,
    first: u64,
    last: u64,
    messages: u64,
}

impl Heads {
    async fn of(&self, jetstream: &Context, stream: &str) -> anyhow::Result<Head> {
        let known = {
            let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
            // One that somebody asks about just now is locked.
            streams.retain(|_, known| known.try_lock().map_or(true, |known| is_remembered(&known)));
            Arc::clone(streams.entry(stream.to_owned()).or_default())
        };
        let mut known = known.lock().await;
        if let Some((_, head)) = known.filter(|(asked, _)| asked.elapsed() < HEAD_LASTS) {
            return Ok(head);
        }
        let asked = Instant::now();
        let (created, state) = state(jetstream, stream).await?;
        let State { first_sequence: first, last_sequence: last, messages, .. } = state;
        let head = Head { created, first, last, messages };
        *known = Some((asked, head));
        Ok(head)
    }

    /// How often each stream of a handler is sampled.
    fn every(&self) -> Duration {
        Duration::from_secs(1) * self.monitors.load(Ordering::Relaxed) / SAMPLES_PER_SECOND
    }
}

/// Whether this is worth keeping. What was never asked about is about to be, or its stream is gone.
fn is_remembered(known: &Option<(Instant, Head)>) -> bool {
    known.is_some_and(|(asked, _)| asked.elapsed() < FORGOTTEN_AFTER)
}

/// When a stream was created, and its state, from its leader.
async fn state(jetstream: &Context, stream: &str) -> anyhow::Result<(i64, State)> {
    let opened = jetstream.get_stream_no_info(stream).await?;
    let info = opened.get_info().await.with_context(|| format!("stream {stream} does not answer"))?;
    Ok((i64::try_from(info.created.unix_timestamp_nanos()).unwrap_or_default(), info.state))
}

/// One stream as it was sampled last.
#[derive(Default)]
struct Sampled {
    seen: Option<(Head, u64)>,
    sample: Sample,
    passing: Passing,
    asked: Option<Instant>,
    history: History,
}

/// Up to where nothing of the handler's is undecided. A stream with a limit drops what is not the handler's too, and nobody can tell
/// afterwards whose it was.
#[derive(Default)]
struct Passing {
    passed: u64,
    /// Of the look before: nothing of the handler's lay between its position and the end of the stream.
    clear: Option<(u64, u64)>,
}

impl Passing {
    /// Takes a look, with so many undecided events after the position. Answers up to where all is passed: what was
    /// clear at the look before, if nothing of it had been dropped by now, before it could be counted.
    fn look(&mut self, head: Head, position: u64, events: u64) -> u64 {
        let clear = self.clear.take().filter(|(from, _)| head.first <= from + 1);
        self.passed = clear.map_or(0, |(_, through)| through).max(self.passed);
        if events == 0 {
            self.clear = Some((position.max(self.passed), head.last));
        }
        self.passed
    }
}

/// Whether a position is in the older half of what its stream holds.
fn is_near_its_end(head: Head, position: u64) -> bool {
    position < head.first + (head.last - head.first.min(head.last)) / 2
}

/// Samples one generation.
pub(crate) struct Monitor {
    jetstream: Context,
    heads: Heads,
    progress: Arc<Progress>,
    streams: HashMap<String, Sampled>,
    /// Which of the handler's streams is sampled first the next time: where a look ends early, the next goes on there.
    first: usize,
    sampled: Option<Instant>,
    sized: Option<Instant>,
    counting: Option<JoinHandle<Duration>>,
    /// Not before then, and how many batches were decided when it was done last.
    next_census: Option<(Instant, u64)>,
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.heads.monitors.fetch_sub(1, Ordering::Relaxed);
        if let Some(counting) = &self.counting {
            counting.abort();
        }
    }
}

impl Monitor {
    /// A monitor of what tells its progress there.
    pub(crate) fn new(jetstream: &Context, heads: &Heads, progress: &Arc<Progress>) -> Self {
        heads.monitors.fetch_add(1, Ordering::Relaxed);
        Self {
            jetstream: jetstream.clone(),
            heads: heads.clone(),
            progress: Arc::clone(progress),
            streams: HashMap::new(),
            first: 0,
            sampled: None,
            sized: None,
            counting: None,
            next_census: None,
        }
    }

    /// Samples what is due. Called about once a second.
    pub(crate) async fn look(&mut self) {
        let Some(ground) = self.progress.ground() else { return };
        if self.sampled.is_none_or(|sampled| sampled.elapsed() >= self.heads.every()) {
            self.sampled = Some(Instant::now());
            if tokio::time::timeout(WITHIN, self.sample_all(&ground)).await.is_err() {
                tracing::debug!(handler = ground.handler, "the server is too slow to be asked");
            }
        }
        self.count(&ground).await;
    }

    async fn sample_all(&mut self, ground: &Ground) {
        let failed = |error: anyhow::Error| {
            tracing::debug!(handler = ground.handler, error = format!("{error:#}"), "not sampled");
        };
        self.streams.retain(|stream, _| ground.inputs.iter().any(|input| input.stream == *stream));
        if self.sized.is_none_or(|sized| sized.elapsed() >= SIZES_EVERY) {
            self.sized = Some(Instant::now());
            self.weigh(ground).await.unwrap_or_else(failed);
        }
        let first = self.first % ground.inputs.len().max(1);
        let (before, from) = ground.inputs.split_at(first);
        for (number, input) in (first..).zip(from.iter().chain(before)) {
            // A look that ends within this one begins behind it the next time.
            self.first = number + 1;
            self.sample(input).await.unwrap_or_else(failed);
        }
    }

    async fn weigh(&self, ground: &Ground) -> anyhow::Result<()> {
        let (_, journal) = state(&self.jetstream, &names::journal_stream(&ground.handler)).await?;
        let (_, bucket) = state(&self.jetstream, &names::bucket_stream(&ground.bucket)).await?;
        self.progress.weighs(Sizes {
            time: clock::now(),
            journal_records: journal.messages,
            journal_bytes: journal.bytes,
            documents: bucket.messages,
            documents_bytes: bucket.bytes,
        });
        Ok(())
    }

    async fn sample(&mut self, input: &Input) -> anyhow::Result<()> {
        let head = self.heads.of(&self.jetstream, &input.stream).await?;
        if !self.is_known(input, head) {
            // What was measured is of another stream. Nothing is said, and who wants to know asks JetStream.
            self.streams.remove(&input.stream);
            self.progress.measured(Measured { stream: input.stream.clone(), ..Measured::default() });
            return Ok(());
        }
        // Read after the head: what is decided by now was there by then, or has come since.
        let Stand { position, decided, claim } = self.progress.stand(&input.stream);
        let sampled = self.streams.entry(input.stream.clone()).or_default();
        let last = head.last.max(position);
        if position >= head.last {
            sampled.sample = Sample { position, head: last, ..Sample::default() };
        } else if sampled.seen != Some((head, position)) {
            let is_dear = !input.direct && sampled.asked.is_some_and(|asked| asked.elapsed() < DEAR_EVERY);
            if is_dear {
                return Ok(());
            }
            sampled.asked = Some(Instant::now());
            sampled.seen = None;
            let there = Input { last, ..input.clone() };
            sampled.sample = survey::sample(&self.jetstream, &there, position).await?;
        }
        sampled.seen = Some((head, position));
        if input.stream != names::TIMERS {
            let through = sampled.passing.look(head, position, sampled.sample.events);
            self.progress.passes(&input.stream, through, through > position && is_near_its_end(head, position));
        }
        let time = clock::now();
        let Sample { events, oldest, .. } = sampled.sample;
        // What waits was counted after the head was read: so much is there at least.
        let head = last.max(sampled.sample.head);
        sampled.history.add(Moment { time, events, decided, position, claim });
        let rates = sampled.history.rates();
        let stream = input.stream.clone();
        self.progress.measured(Measured { stream, decided, time, events, oldest, position, head, rates });
        Ok(())
    }

    /// Whether the position is one in this stream: one that was made anew under the same name is another. A claim that cannot go on
    /// where it was has no position.
    fn is_known(&self, input: &Input, head: Head) -> bool {
        let positions = self.progress.positions();
        positions.iter().any(|position| position.stream == input.stream && position.created == head.created)
    }

    /// Has a saga's instances counted beside all else.
    async fn count(&mut self, ground: &Ground) {
        let batches = self.progress.batches();
        if let Some(counting) = self.counting.take_if(|counting| counting.is_finished()) {
            let took = counting.await.unwrap_or_default();
            self.next_census = Some((Instant::now() + CENSUS_EVERY.max(took * CENSUS_SHARE), batches));
        }
        if !ground.has_instances || self.counting.is_some() {
            return;
        }
        if let Some((next, then)) = self.next_census {
            let wait = if then == batches { QUIET_CENSUS_EVERY - CENSUS_EVERY } else { Duration::ZERO };
            if Instant::now() < next + wait {
                return;
            }
        }
        let (jetstream, progress) = (self.jetstream.clone(), Arc::clone(&self.progress));
        let (handler, bucket) = (ground.handler.clone(), ground.bucket.clone());
        self.counting = Some(tokio::spawn(async move {
            let begun = Instant::now();
            match census::take(&jetstream, &bucket).await {
                Ok(census) => progress.counted(census),
                Err(error) => tracing::debug!(handler, %error, "instances not counted"),
            }
            begun.elapsed()
        }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_clear_is_passed_once_nothing_of_it_had_been_dropped_before_it_was_counted() {
        let head = |first, last| Head { created: 1, first, last, messages: last + 1 - first };
        let mut passing = Passing::default();
        assert_eq!(passing.look(head(1, 100), 40, 0), 0, "seen once");
        assert_eq!(passing.look(head(41, 200), 40, 0), 100, "nothing behind 40 is gone");
        assert_eq!(passing.look(head(101, 300), 40, 0), 200);
        assert_eq!(passing.look(head(202, 400), 40, 0), 200, "201 went, and nobody knows whose it was");
        let mut passing = Passing::default();
        assert_eq!(passing.look(head(1, 100), 40, 3), 0);
        assert_eq!(passing.look(head(1, 200), 40, 0), 0, "there were some at the look before");
        assert_eq!(passing.look(head(1, 200), 40, 0), 200);
    }
}
