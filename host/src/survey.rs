//! Reads from JetStream what `lag.rs` computes with: the last record, the streams' heads, what waits behind the position.
//! In: a handler's name. Out: its lag per input stream. Works without any host running. Never: writes a message.

use std::collections::HashMap;
use std::iter;
use std::time::Duration;

use anyhow::Context as _;
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, pull};
use async_nats::jetstream::stream::{Info, LastRawMessageErrorKind};
use async_nats::jetstream::{Context, ErrorCode};
use bytes::Bytes;
use futures::TryStreamExt as _;

use crate::clock;
use crate::direct_get::{self, Waiting};
use crate::generation::ledger::{self, Ledger};
use crate::inputs::{self, Input};
use crate::journal::{Counts, Makes, Position, Record, Standing};
use crate::lag::{self, Lag, Said, Sample};
use crate::names;
use crate::progress::Report;
use crate::registry::Deployment;

/// What the lags of all handlers are computed with, read once for all of them.
pub(crate) struct Ground {
    streams: Vec<Info>,
    /// Live generations, where they are not the first.
    live: HashMap<String, u32>,
}

impl Ground {
    /// Reads it.
    ///
    /// # Errors
    /// When the server does not answer.
    pub(crate) async fn read(jetstream: &Context) -> anyhow::Result<Self> {
        let (streams, live) = tokio::join!(inputs::list(jetstream), ledger::all_live(jetstream));
        Ok(Self { streams: streams?, live: live? })
    }

    /// Positions and outcomes in the live generation's last record; nothing when the handler never ran.
    ///
    /// # Errors
    /// When the server does not answer or the record cannot be read.
    pub(crate) async fn decided(&self, jetstream: &Context, name: &str) -> anyhow::Result<(Vec<Position>, Counts)> {
        let journal = names::journal_stream(name);
        if !self.streams.iter().any(|info| info.config.name == journal) {
            return Ok(Default::default());
        }
        decided_by(jetstream, name, self.live.get(name).copied().unwrap_or(1)).await
    }

    /// The lag of a handler that stands at these positions, a row per input stream.
    ///
    /// # Errors
    /// When the server does not answer, the handler's inputs cannot be found, or one of them is not the stream that it has read.
    pub(crate) async fn lag(
        &self,
        jetstream: &Context,
        name: &str,
        deployment: &Deployment,
        positions: &[Position],
        report: Option<&Report>,
    ) -> anyhow::Result<Vec<Lag>> {
        let mut inputs = inputs::among(&self.streams, deployment.filters(), &deployment.settings.streams)?;
        if positions.iter().any(|position| position.stream == names::TIMERS) {
            inputs.extend(inputs::timers_among(&self.streams, name));
        }
        let said = Said::of(report);
        let mut rows = Vec::with_capacity(inputs.len());
        for input in &inputs {
            let position = position_in(input, positions)?;
            let sample = sample(jetstream, input, position).await?;
            // The streams were listed a moment before the record was read.
            let sample = Sample { decided: !positions.is_empty(), head: sample.head.max(position), ..sample };
            let now = clock::now();
            let measured = report
                .and_then(|report| report.numbers.streams.iter().find(|measured| measured.stream == input.stream));
            let rates =
                measured.filter(|measured| !lag::is_old(measured.time, now)).and_then(|measured| measured.rates);
            // What waits was counted just now, and better.
            let rates = rates.map(|rates| rates.with_end_of(sample.events));
            rows.push(lag::lag(name, &input.stream, &sample, &said, now).with(rates));
        }
        Ok(rows)
    }
}

/// Up to where this stream is decided. A sequence says nothing of another stream of the same name, so nobody can tell what waits there;
/// but a saga sets its timers again in a stream that was made anew, and reads that from its beginning.
fn position_in(input: &Input, positions: &[Position]) -> anyhow::Result<u64> {
    let Input { stream, created, .. } = input;
    match positions.iter().find(|position| position.stream == *stream) {
        Some(known) if known.created == *created => Ok(known.sequence),
        Some(_) if stream == names::TIMERS => Ok(0),
        Some(known) => {
            anyhow::bail!("stream {stream} was deleted and made anew since event {} was decided", known.sequence)
        }
        None => Ok(0),
    }
}

/// Positions and outcomes in the live generation's last record; nothing when the handler never ran.
///
/// # Errors
/// When the server does not answer or the record cannot be read.
pub async fn decided(jetstream: &Context, name: &str) -> anyhow::Result<(Vec<Position>, Counts)> {
    let live = ledger::live(jetstream, name).await?;
    decided_by(jetstream, name, live).await
}

/// The same of one generation.
///
/// # Errors
/// As [`decided`].
pub async fn decided_by(jetstream: &Context, name: &str, generation: u32) -> anyhow::Result<(Vec<Position>, Counts)> {
    let Some((sequence, record)) = last_record(jetstream, name, generation).await? else {
        return Ok(Default::default());
    };
    let record = Record::decode(&record, sequence)?;
    Ok((record.positions, record.counts))
}

/// What the documents under a handler's name are, deployed or not: none where there are none, or nothing says it; two while a generation
/// that makes others is being promoted.
///
/// # Errors
/// When the server does not answer or a record cannot be read.
pub(crate) async fn documents(jetstream: &Context, name: &str) -> anyhow::Result<Vec<Makes>> {
    let Ledger { live, promotion, .. } = ledger::look(jetstream, name).await?;
    let mut found = Vec::new();
    for generation in iter::once(live).chain(promotion.map(|promotion| promotion.to)) {
        let Some((sequence, record)) = last_record(jetstream, name, generation).await? else { continue };
        let record = Record::decode(&record, sequence)?;
        found.extend(record.makes.filter(|_| record.counts.delivered > 0));
    }
    Ok(found)
}

/// Units that a generation has set aside, by its last record; none where that has some whose dead letters may be on their way.
///
/// # Errors
/// As [`decided`].
pub(crate) async fn in_line(jetstream: &Context, name: &str, generation: u32) -> anyhow::Result<Option<u64>> {
    let Some((sequence, record)) = last_record(jetstream, name, generation).await? else { return Ok(Some(0)) };
    let record = Record::decode(&record, sequence)?;
    Ok(record.parking.parks.is_empty().then_some(record.in_line))
}

/// Why nobody can tell which generation of a handler is live: its ledger is gone, and by its journal it is not the first. None where all
/// is well.
///
/// # Errors
/// When the server does not answer or a record cannot be read.
pub(crate) async fn lost_ledger(jetstream: &Context, name: &str) -> anyhow::Result<Option<String>> {
    if ledger::find(jetstream, name).await?.is_some() {
        return Ok(None);
    }
    let numbers = generations(jetstream, name).await?;
    let last = numbers.iter().copied().max().unwrap_or_default();
    for number in numbers.into_iter().filter(|number| *number > 1) {
        let Some((sequence, record)) = last_record(jetstream, name, number).await? else { continue };
        // What cannot be read is no record of ours.
        if Record::decode(&record, sequence).is_ok_and(|record| record.standing == Standing::Live) {
            return Ok(Some(format!(
                "its entry in bucket {0} is gone, and by its journal generation {number} is live; hint: put it back with `nats kv put \
                 {0} {name} '{{\"live\":{number},\"last\":{last}}}'`, or with the generations that were kept, which `nats kv history \
                 {0} {name}` may still show",
                names::GENERATIONS
            )));
        }
    }
    Ok(None)
}

/// The generations that a journal has records of, in order; none where there is no journal.
///
/// # Errors
/// When the server does not answer.
pub(crate) async fn generations(jetstream: &Context, name: &str) -> anyhow::Result<Vec<u32>> {
    let stream = match jetstream.get_stream(names::journal_stream(name)).await {
        Ok(stream) => stream,
        Err(error) if inputs::is_missing(&error) => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    };
    let subjects = stream.info_with_subjects(names::journal_generations(name)).await?;
    let subjects: Vec<(String, usize)> = subjects.try_collect().await?;
    let mut numbers: Vec<u32> =
        subjects.iter().filter_map(|(subject, _)| subject.split('.').nth(3)?.parse().ok()).collect();
    numbers.sort_unstable();
    Ok(numbers)
}

/// The last record of a generation, with its journal sequence.
async fn last_record(jetstream: &Context, name: &str, generation: u32) -> anyhow::Result<Option<(u64, Bytes)>> {
    let stream = jetstream.get_stream_no_info(names::journal_stream(name)).await?;
    match stream.get_last_raw_message_by_subject(&names::journal_subject(name, generation)).await {
        Ok(message) => Ok(Some((message.sequence, message.payload))),
        Err(error) => match error.kind() {
            LastRawMessageErrorKind::NoMessageFound => Ok(None),
            LastRawMessageErrorKind::JetStream(refusal) if refusal.error_code() == ErrorCode::STREAM_NOT_FOUND => {
                Ok(None)
            }
            _ => Err(error).context("the journal does not answer"),
        },
    }
}

pub(crate) async fn sample(jetstream: &Context, input: &Input, position: u64) -> anyhow::Result<Sample> {
    let mut sample = Sample { position, head: input.last, ..Sample::default() };
    for filter in &input.filters {
        let Waiting { messages, oldest } = if input.direct {
            direct_get::waiting(jetstream, &input.stream, filter, position + 1).await?
        } else {
            waiting_at_leader(jetstream, &input.stream, filter, position + 1).await?
        };
        sample.events += messages;
        sample.oldest = match (sample.oldest, oldest) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        };
    }
    // What came since the head was read was counted, too, and lies behind the position: the head is there at least.
    sample.head = sample.head.max(position + sample.events);
    Ok(sample)
}

/// The same for a stream that does not answer direct gets: a consumer that lives for seconds counts, the leader gives the age.
async fn waiting_at_leader(jetstream: &Context, stream: &str, filter: &str, from: u64) -> anyhow::Result<Waiting> {
    let stream = jetstream.get_stream_no_info(stream).await?;
    let counter = pull::Config {
        filter_subject: filter.to_owned(),
        deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: from },
        ack_policy: AckPolicy::None,
        inactive_threshold: Duration::from_secs(5),
        memory_storage: true,
        ..pull::Config::default()
    };
    let messages = stream.create_consumer(counter).await?.cached_info().num_pending;
    if messages == 0 {
        return Ok(Waiting::default());
    }
    let oldest = stream.get_first_raw_message_by_subject(filter, from).await?;
    Ok(Waiting { messages, oldest: i64::try_from(oldest.time.unix_timestamp_nanos()).ok() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_counts_in_the_stream_that_it_was_taken_in() {
        let input = |stream: &str, created| Input {
            stream: stream.to_owned(),
            filters: Vec::new(),
            created,
            first: 1,
            last: 200,
            direct: true,
        };
        let at = |stream: &str| Position { stream: stream.to_owned(), created: 7, sequence: 95 };
        let positions = [at("S"), at(names::TIMERS)];
        let told = |input: Input| position_in(&input, &positions).map_err(|error| error.to_string());
        assert_eq!((told(input("S", 7)), told(input("NEW", 8))), (Ok(95), Ok(0)));
        let anew = "stream S was deleted and made anew since event 95 was decided";
        assert_eq!(told(input("S", 8)), Err(anew.to_owned()));
        assert_eq!((told(input(names::TIMERS, 7)), told(input(names::TIMERS, 8))), (Ok(95), Ok(0)), "it begins anew");
    }
}
