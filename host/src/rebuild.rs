//! A rebuild: a new generation from the first event, beside the live one. In: a handler and a module in the registry. Out: a
//! generation in the ledger, which the host that runs the handler builds; how far it is; and, when nobody wants it any more, its
//! traces removed. Never: touches the live generation.

use async_nats::jetstream::Context;
use serde::Serialize;

use crate::clock;
use crate::documents;
use crate::generation::Generation;
use crate::generation::ledger::{self, Error, Ledger, Ledgers, Shadow, Wanted};
use crate::inputs;
use crate::intake;
use crate::journal::{Journal, Position};
use crate::names;
use crate::parking::dead::DeadLetters;
use crate::parking::wishes::Wishes;
use crate::policy::Signature;
use crate::promotion;
use crate::registry::{Deployment, Desired, Registry};
use crate::sandbox::Digest;
use crate::settings::Settings;
use crate::survey;

/// What to build.
#[derive(Clone, Debug)]
pub struct Plan {
    /// A module that is in the registry.
    pub digest: Digest,
    /// Its name for people.
    pub label: String,
    /// Its own subject filters.
    pub subjects: Vec<String>,
    /// Who vouches for it under the handler's name.
    pub signature: Option<Signature>,
    /// Upper bound of the rate, events per second. 0: none.
    pub throttle: u64,
}

impl Plan {
    /// The module that is live, once more.
    #[must_use]
    pub fn again(deployment: &Deployment) -> Self {
        let Deployment { digest, label, subjects, signature, .. } = deployment.clone();
        Self { digest, label, subjects, signature, throttle: 0 }
    }
}

/// Begins a generation; answers its number. Whoever runs the handler builds it.
///
/// # Errors
/// While a promotion is under way, when there are too many generations, or the server is away.
pub async fn begin(jetstream: &Context, handler: &str, plan: Plan) -> Result<u32, Error> {
    let Plan { digest, label, subjects, signature, throttle } = plan;
    let shadow = Shadow {
        number: 0,
        digest,
        label,
        subjects,
        signature,
        throttle,
        wanted: Wanted::Building,
        since: clock::now(),
    };
    let used = used(jetstream, handler).await?;
    let ledgers = Ledgers::open(jetstream).await?;
    let begin = |ledger: &mut Ledger| {
        ledger.last = ledger.last.max(used);
        ledger.begin(handler, shadow.clone())
    };
    Ok(ledgers.change(handler, begin).await?.1)
}

/// The highest number that the journal has records of: a ledger that was lost or put back does not know it, and a generation that found
/// another's records would go on from them.
///
/// # Errors
/// When the server is away.
pub(crate) async fn used(jetstream: &Context, handler: &str) -> Result<u32, Error> {
    let unreachable =
        |error: anyhow::Error| Error::Unreachable { handler: handler.to_owned(), reason: error.to_string() };
    let numbers = survey::generations(jetstream, handler).await.map_err(unreachable)?;
    Ok(numbers.into_iter().max().unwrap_or_default())
}

/// A shadow as if it were deployed: with the handler's settings, at its own pace.
#[must_use]
pub(crate) fn deployment(of_handler: &Settings, shadow: &Shadow) -> Deployment {
    let Shadow { digest, label, subjects, signature, throttle, .. } = shadow.clone();
    let settings = Settings { throttle_events_per_second: throttle, ..of_handler.clone() };
    Deployment { digest, label, subjects, settings, desired: Desired::Running, note: String::new(), signature }
}

/// Where a shadow's host tells how it is, in the status bucket.
#[must_use]
pub fn status_key(handler: &str, generation: u32) -> String {
    format!("{handler}.generation.{generation}")
}

/// How far a generation is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reach {
    /// Events that it has decided.
    pub decided: u64,
    /// Events that wait for it.
    pub waiting: u64,
}

/// How far a generation with these subject filters is.
///
/// # Errors
/// When the server does not answer or the inputs cannot be found.
pub async fn reach(
    jetstream: &Context,
    handler: &str,
    generation: u32,
    filters: &[String],
    streams: &[String],
) -> anyhow::Result<Reach> {
    let (positions, counts) = survey::decided_by(jetstream, handler, generation).await?;
    let mut inputs = inputs::resolve(jetstream, filters, streams).await?;
    if positions.iter().any(|position| position.stream == names::TIMERS) {
        inputs.extend(inputs::timers_if_there(jetstream, handler).await?);
    }
    let mut waiting = 0;
    for input in &inputs {
        let position = positions.iter().find(|position| position.stream == input.stream);
        waiting += survey::sample(jetstream, input, position.map_or(0, |position| position.sequence)).await?.events;
    }
    Ok(Reach { decided: counts.delivered, waiting })
}

/// Removes all that a shadow left: consumers, bucket, journal subject, what was said of it. It must have ended on this host; one that runs elsewhere is
/// fenced.
///
/// # Errors
/// When something is in the way; it can be tried again.
pub(crate) async fn clear_away(
    jetstream: &Context,
    registry: &Registry,
    generation: &Generation,
) -> anyhow::Result<()> {
    let Generation { handler, number, .. } = generation;
    registry.forget_generation(handler, *number).await?;
    let name = names::journal_stream(handler);
    if !inputs::is_there(jetstream, &name).await? {
        return Ok(());
    }
    let journal = Journal::open(jetstream, handler, 1).await?.of(*number);
    promotion::close_for_good(&journal, "").await?;
    let (positions, _) = survey::decided_by(jetstream, handler, *number).await?;
    leave(jetstream, generation, &positions).await?;
    DeadLetters::of(jetstream, generation, 1).clear().await?;
    Wishes::of(jetstream, generation).forget().await?;
    // Last, for it names the streams that the consumers are on.
    journal.purge().await?;
    Ok(())
}

/// What a generation beside the live one has on the server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Traces {
    /// Its number.
    pub(crate) generation: u32,
    /// Name of its consumers.
    pub(crate) name: String,
    /// Streams on which it has one.
    pub(crate) consumers: Vec<String>,
    /// The stream of its bucket.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) bucket: Option<String>,
}

/// What a handler's shadows have, on these input streams and on those that they have read.
///
/// # Errors
/// When the server does not answer.
pub(crate) async fn traces(jetstream: &Context, handler: &str, inputs: &[String]) -> anyhow::Result<Vec<Traces>> {
    let ledger = ledger::look(jetstream, handler).await?;
    let mut numbers: Vec<u32> = ledger.shadows.iter().map(|shadow| shadow.number).collect();
    // What a promotion that did not get on has copied.
    numbers.push(ledger.live);
    numbers.sort_unstable();
    let mut all = Vec::new();
    for number in numbers {
        let generation = Generation::shadow(handler, number);
        let mut streams = inputs.to_vec();
        if inputs::is_there(jetstream, &names::journal_stream(handler)).await? {
            let (positions, _) = survey::decided_by(jetstream, handler, number).await?;
            streams.extend(positions.into_iter().map(|position| position.stream));
        }
        streams.sort();
        streams.dedup();
        let mut consumers = Vec::new();
        for stream in streams {
            // One that is not ours is left alone.
            if let Ok(true) = intake::check_consumer(jetstream, &generation, &stream).await {
                consumers.push(stream);
            }
        }
        let bucket = documents::has_bucket(jetstream, &generation).await?;
        let bucket = bucket.then(|| names::bucket_stream(&generation.name()));
        if bucket.is_some() || !consumers.is_empty() {
            all.push(Traces { generation: number, name: generation.name(), consumers, bucket });
        }
    }
    Ok(all)
}

/// Takes a handler's shadows off the streams they read; with their documents, nothing of them is left. The handler must have ended
/// everywhere.
pub(crate) async fn take_off(
    jetstream: &Context,
    registry: &Registry,
    handler: &str,
    inputs: &[String],
    with_documents: bool,
) -> anyhow::Result<()> {
    if !inputs::is_there(jetstream, &names::bucket_stream(names::GENERATIONS)).await? {
        return Ok(());
    }
    let ledgers = Ledgers::open(jetstream).await?;
    let (ledger, _) = ledgers.read(handler).await?;
    for Traces { generation, consumers, .. } in traces(jetstream, handler, inputs).await? {
        for stream in consumers {
            intake::remove_consumer(jetstream, &Generation::shadow(handler, generation), &stream).await?;
        }
    }
    if with_documents {
        for Shadow { number, .. } in ledger.shadows {
            clear_away(jetstream, registry, &Generation::shadow(handler, number)).await?;
        }
        documents::remove_bucket(jetstream, &Generation::shadow(handler, ledger.live)).await?;
        ledgers.remove(handler).await?;
    }
    Ok(())
}

/// Removes consumers and bucket of a shadow that is one no more.
pub(crate) async fn leave(jetstream: &Context, generation: &Generation, positions: &[Position]) -> anyhow::Result<()> {
    leave_streams(jetstream, generation, positions).await?;
    documents::remove_bucket(jetstream, generation).await?;
    Ok(())
}

async fn leave_streams(jetstream: &Context, generation: &Generation, positions: &[Position]) -> anyhow::Result<()> {
    for Position { stream, .. } in positions {
        if inputs::is_there(jetstream, stream).await? {
            intake::remove_consumer(jetstream, generation, stream).await?;
        }
    }
    Ok(())
}
