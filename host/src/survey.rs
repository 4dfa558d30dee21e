//! Reads from JetStream what `lag.rs` computes with: the last record, the streams' heads, what waits behind the position.
//! In: a handler's name. Out: its lag per input stream. Works without any host running. Never: writes a message.

use std::time::Duration;

use anyhow::Context as _;
use async_nats::jetstream::Context;
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, pull};
use async_nats::jetstream::stream::LastRawMessageErrorKind;

use crate::claim;
use crate::direct_get::{self, Waiting};
use crate::inputs::{self, Input};
use crate::journal::{Position, Record};
use crate::lag::{Lag, Sample, Said, lag};
use crate::names;
use crate::registry::{Deployment, Registry};

/// The lag of one handler, a row per input stream.
///
/// # Errors
/// When the server does not answer or the handler's inputs cannot be found.
pub async fn handler(jetstream: &Context, registry: &Registry, name: &str, deployment: &Deployment) -> anyhow::Result<Vec<Lag>> {
    let inputs = inputs::resolve(jetstream, deployment.filters(), &deployment.settings.streams).await?;
    let positions = positions(jetstream, name).await?;
    let report = registry.status(name).await?;
    let said = report.map_or_else(Said::default, |report| Said {
        state: report.state,
        reason: report.reason,
        time: Some(report.time),
    });
    let mut rows = Vec::with_capacity(inputs.len());
    for input in &inputs {
        let position = positions.iter().find(|position| position.stream == input.stream);
        let sample = sample(jetstream, input, position.map_or(0, |position| position.sequence)).await?;
        rows.push(lag(name, &input.stream, &sample, &said, claim::now()));
    }
    Ok(rows)
}

/// Positions in the last record; none when the handler never ran.
async fn positions(jetstream: &Context, name: &str) -> anyhow::Result<Vec<Position>> {
    let Ok(stream) = jetstream.get_stream(names::journal_stream(name)).await else { return Ok(Vec::new()) };
    match stream.get_last_raw_message_by_subject(&names::journal_subject(name, 1, 0)).await {
        Ok(message) => Ok(Record::decode(&message.payload, message.sequence)?.positions),
        Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(Vec::new()),
        Err(error) => Err(error).context("the journal does not answer"),
    }
}

async fn sample(jetstream: &Context, input: &Input, position: u64) -> anyhow::Result<Sample> {
    let mut sample = Sample { position, head: input.last, ..Sample::default() };
    for filter in &input.filters {
        let direct = direct_get::waiting(jetstream, &input.stream, filter, position + 1).await;
        let Waiting { messages, oldest } = match direct {
            // Nobody answers direct reads of a stream that does not allow them.
            Err(direct_get::Error::Refused { status: 503, .. }) => {
                waiting_by_consumer(jetstream, &input.stream, filter, position + 1).await?
            }
            answer => answer?,
        };
        sample.events += messages;
        sample.oldest = match (sample.oldest, oldest) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        };
    }
    Ok(sample)
}

/// The same through a consumer that lives for this question only.
async fn waiting_by_consumer(jetstream: &Context, stream: &str, filter: &str, from: u64) -> anyhow::Result<Waiting> {
    let stream = jetstream.get_stream_no_info(stream).await?;
    let config = pull::Config {
        filter_subject: filter.to_owned(),
        deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: from },
        ack_policy: AckPolicy::None,
        headers_only: true,
        inactive_threshold: Duration::from_secs(5),
        ..pull::Config::default()
    };
    let refused = "the stream can be read neither directly nor by a consumer";
    let consumer = stream.create_consumer(config).await.context(refused)?;
    let messages = consumer.cached_info().num_pending;
    let mut oldest = None;
    if messages > 0 {
        let mut first = consumer.fetch().max_messages(1).messages().await?;
        if let Some(Ok(message)) = futures::StreamExt::next(&mut first).await
            && let Ok(info) = message.info()
        {
            oldest = i64::try_from(info.published.unix_timestamp_nanos()).ok();
        }
    }
    // It ends by itself soon; a failure to end it now changes no number.
    let _ = stream.delete_consumer(&consumer.cached_info().name).await;
    Ok(Waiting { messages, oldest })
}
