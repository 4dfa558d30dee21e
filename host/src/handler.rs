//! One handler as it runs: open what it needs, claim, recover, run the pipeline; on trouble begin again from the last
//! record. In: the version to run, and those that follow it. Out: how it ended. Never: tries to repair a running claim; there is one way to begin, and
//! recovery is it.

mod bounded;
mod publisher;
mod settling;

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::Context;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::acks::{self, Acks};
use crate::alerts;
use crate::claim::{self, Claim, Claimant};
use crate::documents::{self, Decided, Documents, Origin};
use crate::generation::{Bound, Generation};
use crate::hint;
use crate::inputs::{self, Input};
use crate::intake::{self, Intake};
use crate::journal::{self, Journal, Record, Standing};
use crate::outbox::{self, Outbox};
use crate::parking::dead::DeadLetters;
use crate::parking::wishes::{Entry, Wishes};
use crate::parking::{self, Parked};
use crate::pipeline::{self, Found, Parts, Pipeline};
use crate::positions;
use crate::progress::{Ground, Progress, State};
use crate::sandbox::{self, Digest};
use crate::settings::Settings;
use crate::show;
use crate::timers;
use crate::traces::Effects;
use crate::version::Version;
use crate::waits;
use publisher::Publisher;

pub(crate) use settling::{Held, Unsettled};

/// Waits between two tries, doubling from the first to the last.
const FIRST_WAIT: Duration = Duration::from_millis(50);
const LAST_WAIT: Duration = Duration::from_secs(2);

/// How long a handler that shall stop waits for its effects to be published.
const PUBLISH_WITHIN: Duration = Duration::from_secs(2);

/// What to do with a saga whose journal or bucket is damaged: what is good for a projection would send every command again.
const RESTORE: &str = "restore journal and bucket of the saga from one backup, then go on with `millstream adopt`; do not delete them: a \
                       saga that begins anew sends all its commands again (see docs/when-it-fails.md)";

/// A handler to run.
#[derive(Clone)]
pub struct Handler {
    /// Its name.
    pub name: String,
    /// Which of its generations.
    pub generation: Generation,
    /// Where to stop, if that is known.
    pub bound: Option<Arc<Bound>>,
    /// This host's name.
    pub host: String,
    /// The module and its settings: the newest counts. One that follows another here must be one that can be swapped in.
    pub versions: watch::Receiver<Arc<Version>>,
    /// Where progress is told.
    pub progress: Arc<Progress>,
}

/// How a handler's life on this host ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Ended {
    /// It was told to stop; everything decided is shown.
    Stopped,
    /// It was told to stop while it was in trouble: what is decided but not shown is shown at the next start.
    Interrupted(String),
    /// Another host claimed it.
    Fenced(String),
    /// It cannot go on until a person does something.
    Failing {
        /// Why.
        reason: String,
        /// It is the module that cannot take an event.
        by_module: bool,
    },
}

/// The parts of one claim.
struct Opened {
    claim: Claim,
    journal: Journal,
    documents: Arc<Documents>,
    dead: DeadLetters,
    inputs: Vec<Input>,
    recovered: Recovered,
}

/// What earlier owners left to do.
#[derive(Default)]
struct Recovered {
    /// The last order number that was used for documents.
    order: u64,
    /// Records whose effects may not be published: journal sequence, time, effects.
    effects: Vec<(u64, i64, Effects)>,
    /// The parked keys.
    parked: Parked,
}

/// Why one claim ended.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Inputs(#[from] inputs::Error),
    #[error(transparent)]
    Journal(#[from] journal::Error),
    #[error(transparent)]
    Outbox(#[from] outbox::Error),
    #[error(transparent)]
    Timers(#[from] timers::Error),
    #[error(transparent)]
    Waits(#[from] waits::Error),
    #[error(transparent)]
    Alerts(#[from] alerts::Error),
    #[error(transparent)]
    Parking(#[from] parking::Error),
    #[error("documents cannot be written: {0}")]
    Acks(#[from] acks::Error),
    #[error(transparent)]
    Documents(#[from] documents::Error),
    #[error(transparent)]
    Pipeline(#[from] pipeline::Error),
    #[error(transparent)]
    Intake(#[from] intake::Error),
    #[error("{0}")]
    Position(String),
}

/// What to do about an error.
enum Class {
    Retry,
    Fence,
    Stop,
}

impl Error {
    fn class(&self) -> Class {
        match self {
            Self::Journal(error) | Self::Pipeline(pipeline::Error::Journal(error)) => match error {
                journal::Error::Fenced(_) | journal::Error::Standing { .. } => Class::Fence,
                journal::Error::Unreachable(_) | journal::Error::Refused(_) => Class::Retry,
                journal::Error::NotOurs(_)
                | journal::Error::TooLarge(_)
                | journal::Error::Damaged { .. }
                | journal::Error::Gone { .. }
                | journal::Error::OtherBucket(_)
                | journal::Error::Makes { .. }
                | journal::Error::Format { .. }
                | journal::Error::Encode(_) => Class::Stop,
            },
            Self::Documents(error)
            | Self::Waits(waits::Error::Documents(error))
            | Self::Pipeline(pipeline::Error::Documents(error)) => match error {
                documents::Error::NotOurs(_) | documents::Error::Foreign { .. } => Class::Stop,
                documents::Error::Refused { .. } | documents::Error::Unreachable { .. } => Class::Retry,
            },
            Self::Intake(error) | Self::Pipeline(pipeline::Error::Intake(error)) => match error {
                intake::Error::NotOurs { .. } => Class::Stop,
                intake::Error::Consumer { .. } | intake::Error::Interrupted { .. } => Class::Retry,
            },
            Self::Parking(error) | Self::Pipeline(pipeline::Error::Parking(error)) => match error {
                parking::Error::NotOurs(_) | parking::Error::Surplus { .. } => Class::Stop,
                parking::Error::Refused(_) | parking::Error::Foreign { .. } => Class::Retry,
                parking::Error::Fenced => Class::Fence,
            },
            Self::Outbox(outbox::Error::Fenced) => Class::Fence,
            Self::Timers(timers::Error::NotOurs(_) | timers::Error::Altered(..)) => Class::Stop,
            Self::Outbox(outbox::Error::Unreachable(_))
            | Self::Timers(timers::Error::Refused(_))
            | Self::Alerts(_)
            | Self::Waits(waits::Error::Unlisted(_) | waits::Error::Refused(_))
            | Self::Acks(_)
            | Self::Inputs(_)
            | Self::Pipeline(pipeline::Error::Inputs(_) | pipeline::Error::Lost { .. }) => Class::Retry,
            // The host has no room for it at present: no fault of the module's.
            Self::Pipeline(pipeline::Error::Instance(failure)) if failure.class == sandbox::Class::Host => Class::Retry,
            Self::Position(_) | Self::Pipeline(pipeline::Error::Failing { .. } | pipeline::Error::Instance(_)) => {
                Class::Stop
            }
        }
    }

    /// Whether another module might do better.
    fn is_the_module_s(&self) -> bool {
        matches!(self, Self::Pipeline(pipeline::Error::Failing { .. } | pipeline::Error::Instance(_)))
    }

    /// Whether what is left of journal and bucket does not fit together.
    fn is_of_what_is_left(&self) -> bool {
        matches!(
            self,
            Self::Documents(documents::Error::Foreign { .. })
                | Self::Waits(waits::Error::Documents(documents::Error::Foreign { .. }))
                | Self::Pipeline(pipeline::Error::Documents(documents::Error::Foreign { .. }))
                | Self::Journal(journal::Error::Gone { .. } | journal::Error::OtherBucket(_))
                | Self::Pipeline(pipeline::Error::Journal(
                    journal::Error::Gone { .. } | journal::Error::OtherBucket(_)
                ))
        )
    }

    /// The sentence for people, with what to do where we know it.
    fn explain(&self, is_saga: bool, generation: &Generation) -> String {
        if generation.standing == Standing::Shadow && self.is_of_what_is_left() {
            let text = self.to_string();
            let (fact, _) = hint::split(&text);
            return format!("{fact}; hint: {}", abandon(generation));
        }
        if is_saga && self.is_of_what_is_left() {
            let text = self.to_string();
            let (fact, _) = hint::split(&text);
            return format!("{fact}; hint: {RESTORE}");
        }
        let hint = match self {
            Self::Inputs(error) => Some(error.hint()),
            Self::Intake(error) | Self::Pipeline(pipeline::Error::Intake(error)) => error.hint(),
            _ => None,
        };
        match hint {
            Some(hint) => format!("{self}; hint: {hint}"),
            None => self.to_string(),
        }
    }
}

/// What to do about a generation beside the live one that cannot go on: its journal is also that of the live one.
fn abandon(generation: &Generation) -> String {
    let Generation { handler, number, .. } = generation;
    format!(
        "remove it with `millstream abandon {handler} --generation {number}`, and build another with `millstream rebuild {handler}`"
    )
}

impl Handler {
    /// Runs until told to stop, fenced, or stuck.
    pub async fn run(mut self, jetstream: Context, mut stop: watch::Receiver<bool>) -> Ended {
        let mut claimant = self.claimant();
        let mut wait = FIRST_WAIT;
        loop {
            let before = self.progress.delivered();
            let result = self.live(&jetstream, &mut claimant, &mut stop).await;
            // Only events decided count as success: an error that comes back at once must not be tried at full speed.
            if self.progress.delivered() > before {
                wait = FIRST_WAIT;
            }
            let error = match result {
                Ok(Some(_)) => return Ended::Stopped,
                // An earlier life may have left something to show.
                Ok(None) => return Ended::Interrupted("told to stop before it was claimed".to_owned()),
                Err(error) => error,
            };
            let reason = error.explain(self.versions.borrow().saga.is_some(), &self.generation);
            match error.class() {
                Class::Fence => {
                    self.progress.set(State::StandingBy, &reason);
                    return Ended::Fenced(reason);
                }
                Class::Stop => {
                    self.progress.set(State::Failing, &reason);
                    return Ended::Failing { reason, by_module: error.is_the_module_s() };
                }
                Class::Retry => {
                    tracing::warn!(handler = self.name, reason, "trying again from the last record");
                    self.progress.set(State::Retrying, &reason);
                }
            }
            if tokio::time::timeout(wait, pipeline::told_to_stop(&mut stop)).await.is_ok() {
                return Ended::Interrupted(reason);
            }
            wait = (wait * 2).min(LAST_WAIT);
        }
    }

    /// What it runs, or would.
    pub(crate) fn version(&self) -> Arc<Version> {
        Arc::clone(&self.versions.borrow())
    }

    pub(crate) fn claimant(&self) -> Claimant {
        Claimant {
            handler: self.name.clone(),
            host: self.host.clone(),
            digest: self.versions.borrow().digest,
            makes: Some(self.versions.borrow().makes()),
            standing: self.generation.standing,
            id: claim::fresh_id(),
            held: false,
            begins: Vec::new(),
        }
    }

    /// Effects of a shadow are folded like any, and nobody sees them.
    fn acts(&self, version: &Version) -> bool {
        version.saga.is_some() && self.generation.acts()
    }

    fn outbox(&self, jetstream: &Context, settings: &Settings, acted_through: u64) -> Outbox {
        let Settings { queued_effects, queued_effect_bytes: queued_bytes, .. } = *settings;
        let limits = outbox::Limits { queued_effects, queued_bytes, ..outbox::Limits::default() };
        Outbox::new(jetstream, &self.name, acted_through, limits)
    }

    /// One claim, from open to end; what it leaves, unless it was told to stop before it began.
    async fn live(
        &mut self,
        jetstream: &Context,
        claimant: &mut Claimant,
        stop: &mut watch::Receiver<bool>,
    ) -> Result<Option<Held>, Error> {
        let version = Arc::clone(&self.versions.borrow_and_update());
        (claimant.digest, claimant.makes) = (version.digest, Some(version.makes()));
        self.progress.runs(&version);
        let opened = tokio::select! {
            biased;
            () = pipeline::told_to_stop(stop) => return Ok(None),
            opened = self.open(jetstream, &version, claimant) => opened?,
        };
        self.work(jetstream, version, opened, stop).await.map(Some)
    }

    /// Finds, checks, claims, recovers.
    async fn open(&self, jetstream: &Context, version: &Version, claimant: &mut Claimant) -> Result<Opened, Error> {
        let Settings { streams, replicas, known_revisions, .. } = &version.settings;
        let filters = version.filters();
        let found = inputs::resolve(jetstream, filters, streams).await?;
        claimant.begins = found.iter().map(positions::begin).collect();
        // Looked at before the claim, so that what a person must mend stops us before anything is written.
        let bucket = Documents::of(jetstream, &self.generation, *replicas, *known_revisions).await?;
        let journal = Journal::open(jetstream, &self.name, *replicas).await?.of(self.generation.number);
        if !bucket.is_new() && journal.last().await?.is_none() {
            let anew = match self.generation.standing {
                Standing::Shadow => abandon(&self.generation),
                _ => {
                    format!("to build the documents anew, `nats kv del -f {}` and start again", self.generation.name())
                }
            };
            return Err(Error::Position(format!(
                "bucket {name} has documents but the journal {journal} is empty: the handler's positions are gone; \
                 hint: {hint}",
                name = self.generation.name(),
                journal = crate::names::journal_stream(&self.name),
                hint =
                    if version.saga.is_some() && self.generation.standing == Standing::Live { RESTORE } else { &anew },
            )));
        }
        let claim = claim::take(&journal, claimant, bucket.created()).await?;
        claimant.held = true;
        // Read again after the claim: an earlier owner went on until then, and later reads must know what leaders know now.
        let mut inputs = inputs::resolve(jetstream, filters, streams).await?;
        if version.has_timers() {
            inputs.push(inputs::timers(jetstream, &self.name, *replicas).await?);
            alerts::open(jetstream, &self.name, *replicas).await?;
        } else if self.generation.acts()
            && let Err(error) = alerts::open(jetstream, &self.name, *replicas).await
        {
            // Whoever tells something makes it too; but only after nobody has acknowledged it for seconds.
            tracing::debug!(handler = self.name, %error, "no stream for alerts yet");
        }
        let documents = Arc::new(Documents::of(jetstream, &self.generation, *replicas, *known_revisions).await?);
        let acts = self.acts(version);
        let dead = DeadLetters::of(jetstream, &self.generation, *replicas);
        if claim.counts.delivered == 0 {
            self.forget_parked(jetstream, &dead).await?;
        }
        let recovered = recover(&journal, &documents, &dead, &claim, acts).await?;
        if recovered.parked.missing() > 0 {
            dead.tell_gone(recovered.parked.missing(), documents.created()).await;
        }
        // Claims are records too: a handler that never gets further must not fill its journal.
        let done = undone(&claim, acts);
        let keep_from = claim.last.saturating_sub(version.settings.journal_keep_records).min(done + 1);
        journal.trim(keep_from).await?;
        Ok(Opened { claim, journal, documents, dead, inputs, recovered })
    }

    /// Where nothing was decided nothing is parked: letters and wishes that are there are of a journal that was removed.
    async fn forget_parked(&self, jetstream: &Context, dead: &DeadLetters) -> Result<(), Error> {
        dead.clear().await?;
        let wishes = Wishes::of(jetstream, &self.generation);
        if matches!(wishes.entry().await, Ok(entry) if entry == Entry::default()) {
            return Ok(());
        }
        wishes.forget().await.map_err(|error| parking::Error::Refused(error.to_string()).into())
    }

    async fn work(
        &mut self,
        jetstream: &Context,
        version: Arc<Version>,
        opened: Opened,
        stop: &mut watch::Receiver<bool>,
    ) -> Result<Held, Error> {
        let Opened { mut claim, journal, documents, dead, inputs, recovered } = opened;
        let acted_through = claim.acted_through;
        let acts = self.acts(&version);
        let outbox = acts.then(|| Arc::new(self.outbox(jetstream, &version.settings, acted_through)));
        let acts = recovered.effects.iter().rev().find(|(_, _, effects)| !effects.outgoing.is_empty());
        let mut acting = acts.map_or(0, |(sequence, _, _)| *sequence);
        if let Some(outbox) = &outbox {
            self.progress.acts_through(outbox);
            for (sequence, time, effects) in recovered.effects {
                outbox.republish(sequence, time, effects);
            }
        }
        let acks = Arc::new(Acks::open(&jetstream.client()).await?);
        if version.saga.is_some() && waits::are_lost(&claim, &inputs) {
            self.set_again(&mut claim, &inputs, &documents, &acks).await?;
            // As if the claim had effects, so that a record tells the new positions soon.
            acting = claim.last;
        }
        let mut publisher = Publisher::start(outbox.clone(), &journal, claim.id);
        let placed = positions::place(&self.name, &mut claim, &inputs, version.settings.on_lost_events);
        let ground = Ground {
            inputs: inputs.clone(),
            handler: self.name.clone(),
            bucket: documents.bucket.clone(),
            has_instances: version.saga.as_ref().is_some_and(|facts| !facts.stateless),
        };
        self.progress.begins_on(ground, &claim.positions, &claim.counts);
        let at: Vec<(Input, u64)> =
            inputs.into_iter().zip(&claim.positions).map(|(input, position)| (input, position.sequence)).collect();
        let (pace, shown) = (Arc::default(), Arc::clone(&documents));
        let parts = Parts { documents: shown, journal, pace, outbox: outbox.clone(), dead };
        let (host, progress, bound) = (self.host.clone(), Arc::clone(&self.progress), self.bound.clone());
        let owner = pipeline::Owner { host, progress, bound };
        let settings = version.settings.clone();
        let found = Found { order: recovered.order, acting, parked: recovered.parked };
        let mut pipeline = Pipeline::new(owner, version, claim, parts, found);
        let ended = match placed {
            Ok(()) => tokio::select! {
                ended = self.decide(&mut pipeline, &settings, &at, &acks, stop) => ended,
                error = publisher.failed() => Err(error),
            },
            Err(error) => Err(Error::Position(error.to_string())),
        };
        // What is decided stays decided, even if nothing more can be: it is shown and done, by us if we still can, else by the
        // next claim.
        if matches!(&ended, Ok(()) | Err(Error::Position(_) | Error::Pipeline(pipeline::Error::Failing { .. }))) {
            show::round(&documents, &acks, documents.presentable()).await?;
            if let Some(outbox) = &outbox {
                self.publish_rest(&ended, outbox, &mut publisher, &mut pipeline, stop).await?;
            }
        }
        ended.map(|()| Held::of(self, &pipeline))
    }

    /// Sets what instances wait for in a stream of timers that does not have it.
    async fn set_again(
        &self,
        claim: &mut Claim,
        inputs: &[Input],
        documents: &Documents,
        acks: &Acks,
    ) -> Result<(), Error> {
        show::round(documents, acks, documents.presentable()).await?;
        let set = waits::set_again(documents, acks).await?;
        waits::begin_anew(claim, inputs);
        tracing::warn!(
            handler = self.name,
            set,
            "the stream of timers is not the one that timers were set in; all that instances wait for is set again"
        );
        Ok(())
    }

    /// Decides and shows until something ends it.
    async fn decide(
        &mut self,
        pipeline: &mut Pipeline,
        settings: &Settings,
        at: &[(Input, u64)],
        acks: &Arc<Acks>,
        stop: &mut watch::Receiver<bool>,
    ) -> Result<(), Error> {
        let Parts { documents, pace, .. } = pipeline.parts();
        pipeline.tell();
        let mut bounded = self.bounded(&documents.jetstream, at, stop).await;
        let stop = bounded.as_mut().map_or(stop, |bounded| &mut bounded.stop);
        if *stop.borrow() {
            return Ok(());
        }
        let mut intake = Intake::open(&documents.jetstream, &self.generation, at, settings).await?;
        let interval = Duration::from_millis(settings.show_interval_milliseconds);
        // Ends with this.
        let mut shower = JoinSet::new();
        shower.spawn(show::run(documents, Arc::clone(acks), pace, interval));
        self.progress.set(State::Running, "");
        let ended = tokio::select! {
            ended = pipeline.run(&mut intake, &mut self.versions, stop) => ended.map_err(Error::from),
            Some(failed) = shower.join_next() => match failed {
                Ok(Ok(())) => Ok(()),
                Ok(Err(error)) => Err(error.into()),
                Err(error) => Err(journal::Error::Unreachable(error.to_string()).into()),
            },
        };
        shower.shutdown().await;
        ended
    }

    /// Publishes what is left: as long as it takes where nothing else can be done, a while where the handler shall stop.
    async fn publish_rest(
        &self,
        ended: &Result<(), Error>,
        outbox: &Outbox,
        publisher: &mut Publisher,
        pipeline: &mut Pipeline,
        stop: &mut watch::Receiver<bool>,
    ) -> Result<(), Error> {
        if let Err(error) = ended {
            self.progress.set(State::Failing, error.explain(true, &self.generation));
        }
        outbox.hurry();
        let too_long = async {
            pipeline::told_to_stop(stop).await;
            tokio::time::sleep(PUBLISH_WITHIN).await;
        };
        tokio::select! {
            () = outbox.has_acted(pipeline.last()) => {}
            error = publisher.failed() => return Err(error),
            () = too_long => {}
        }
        Ok(pipeline.rest().await?)
    }
}

/// Journal sequence after which something may be left to do.
fn undone(claim: &Claim, acts: bool) -> u64 {
    let done = if acts { claim.shown_through.min(claim.acted_through) } else { claim.shown_through };
    done.min(claim.parking.through)
}

/// Takes the changes of records whose documents may not be in the bucket, and effects that may not be published; stores dead letters
/// that may not be.
async fn recover(
    journal: &Journal,
    documents: &Documents,
    dead: &DeadLetters,
    claim: &Claim,
    acts: bool,
) -> Result<Recovered, Error> {
    documents.begin(claim.shown_through);
    let mut recovered = Recovered::default();
    for (sequence, bytes) in journal.read(undone(claim, acts), claim.last).await? {
        let record = Record::decode(&bytes, sequence)?;
        if sequence > claim.parking.through {
            let digest = Digest(record.digest).to_string();
            dead.settle(sequence, record.time, &digest, &record.parking, true).await?;
        }
        if acts && sequence > claim.acted_through {
            let effects = Effects { outgoing: record.effects, carried: record.carried };
            recovered.effects.push((sequence, record.time, effects));
        }
        if sequence <= claim.shown_through {
            continue;
        }
        let changes = record.changes.iter().map(|change| Decided {
            key: change.key.to_owned(),
            value: change.value.map(bytes::Bytes::copy_from_slice),
            sequence: change.sequence,
            keep_seconds: change.keep_seconds,
        });
        recovered.order += 1;
        let order = recovered.order;
        documents.decide(order, changes.collect());
        let stream = record.positions.get(record.input as usize).map_or("", |position| position.stream.as_str());
        documents.commit(Origin { order, journal: sequence, stream: stream.into(), digest: Digest(record.digest) });
    }
    recovered.parked = parked(journal, dead, claim).await?;
    Ok(recovered)
}

/// The parked keys, of which there must be as many units as the last record counts.
async fn parked(journal: &Journal, dead: &DeadLetters, claim: &Claim) -> Result<Parked, Error> {
    let found = async || {
        let (units, oldest) = dead.census().await?;
        Ok::<_, Error>(Parked::new(units, claim.parking.recent.clone(), oldest))
    };
    let all = found().await?;
    if all.beyond(claim.in_line) == 0 {
        return Ok(all.of_so_many(claim.in_line, 0));
    }
    let (removed, foreign) = dead.sort_out(journal, claim.last).await?;
    let all = if removed > 0 { found().await? } else { all };
    match all.beyond(claim.in_line + foreign) {
        0 => Ok(all.of_so_many(claim.in_line, foreign)),
        units => Err(parking::Error::Surplus { handler: dead.generation.handler.clone(), units }.into()),
    }
}
