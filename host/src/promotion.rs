//! A promotion: one generation takes the place of another at one exact position of each input stream. In: the two, and a wish in the
//! ledger. Out: records in their journals, by which the old one stops after event N and the new one goes on from N + 1; the new
//! documents in the handler's bucket. No effect is published twice, none is missing. `phase.rs` has the steps.
//!
//! Every step can be taken again after a crash, by any host, or by two at once: records are fenced by sequence, documents by
//! revision. Until the new generation is closed, a promotion can be given up, and the old one goes on; from then on it goes through.
//! Never: two generations live at once.

mod phase;
mod pour;
mod stand;

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::stream::Stream;
use tokio::sync::watch;

use crate::claim::{self, Claimant};
use crate::clock;
use crate::comparison::{self, Pair};
use crate::crash;
use crate::documents;
use crate::generation::ledger::{Ending, Ledger, Ledgers, Promotion, Shadow};
use crate::generation::{Bound, Generation};
use crate::handler::{Handler, Unsettled};
use crate::journal::{self, Journal, Standing};
use crate::outline::Outline;
use crate::registry::{self, Deployment, Registry};
use crate::sandbox::Digest;
use crate::version::Version;
use phase::{Phase, phase};
use pour::Mark;
use stand::Stand;

/// How long the live generation may take to show and publish what it has decided.
const STOP_WITHIN: Duration = Duration::from_secs(10);

/// How long the other may take to reach the same events.
const CATCH_UP_WITHIN: Duration = Duration::from_secs(30);

/// Instances compared at once.
const COMPARED: usize = 500;

/// Instances named where they stand in the way.
const NAMED: usize = 5;

/// Why a step was not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// Another host has promoted this generation.
    #[error("fenced: generation {0} was promoted by another host")]
    Elsewhere(u32),
    /// It must not be taken: the old generation goes on.
    #[error("{0}")]
    GiveUp(String),
    /// This host shall stop.
    #[error("the host was told to stop")]
    Stopped,
    /// Somebody took it back: the old generation goes on.
    #[error("the promotion was taken back")]
    TakenBack,
    /// A journal, which may mean that another host is faster.
    #[error(transparent)]
    Journal(#[from] journal::Error),
    /// A bucket.
    #[error(transparent)]
    Documents(#[from] documents::Error),
    /// What a bucket holds.
    #[error(transparent)]
    Pour(#[from] pour::Error),
    /// The registry.
    #[error(transparent)]
    Registry(#[from] registry::Error),
    /// The ledger.
    #[error(transparent)]
    Ledger(#[from] crate::generation::ledger::Error),
    /// Something else did not come through.
    #[error("{0:#}")]
    Other(#[from] anyhow::Error),
}

impl From<Unsettled> for Error {
    fn from(error: Unsettled) -> Self {
        match error {
            Unsettled::Stopped => Self::Stopped,
            // The journals say what is so now.
            Unsettled::Fenced(reason) => Self::Other(anyhow::anyhow!(reason)),
            Unsettled::Failing(reason) => Self::GiveUp(reason),
            error @ Unsettled::Late(..) => Self::GiveUp(error.to_string()),
        }
    }
}

/// A promotion under way on this host.
pub(crate) struct Promoting {
    jetstream: Context,
    registry: Registry,
    ledgers: Ledgers,
    promotion: Promotion,
    /// The shadow as the ledger has it.
    shadow: Shadow,
    /// The generation that is live, and the other.
    before: Handler,
    after: Handler,
    journals: [Journal; 2],
    pair: Pair,
    /// The bucket of the generation that was live.
    kept: Outline,
    written: u64,
    /// Keeps the version of the other.
    follower: Option<watch::Sender<Arc<Version>>>,
    /// Which version is live.
    live: Option<watch::Sender<Arc<Version>>>,
}

impl Promoting {
    /// The promotion that the ledger asks for. `after` is prepared as a shadow, at full pace.
    pub(crate) async fn open(
        jetstream: &Context,
        registry: &Registry,
        ledgers: &Ledgers,
        ledger: &Ledger,
        [before, after]: [Handler; 2],
    ) -> Result<Self, Error> {
        let promotion = ledger.promotion.clone().ok_or_else(|| Error::GiveUp("nothing is promoted".to_owned()))?;
        let shadow = ledger.shadow(promotion.to).cloned();
        let shadow = shadow.ok_or_else(|| Error::GiveUp(format!("generation {} is gone", promotion.to)))?;
        let (name, from, to) = (before.name.clone(), promotion.from, promotion.to);
        let replicas = before.version().settings.replicas;
        let journal = Journal::open(jetstream, &name, replicas).await?;
        let pair = Pair::new(jetstream, &name, from, to, before.version().saga.is_some());
        let kept = Outline::new(jetstream, &Generation::shadow(&name, from).name());
        Ok(Self {
            jetstream: jetstream.clone(),
            registry: registry.clone(),
            ledgers: ledgers.clone(),
            promotion,
            shadow,
            before,
            after,
            journals: [journal.clone().of(from), journal.of(to)],
            pair,
            kept,
            written: 0,
            follower: None,
            live: None,
        })
    }

    /// Keeps the other's version, and tells whoever keeps the handler when that is the live one.
    pub(crate) fn follow_with(&mut self, follower: watch::Sender<Arc<Version>>, live: watch::Sender<Arc<Version>>) {
        (self.follower, self.live) = (Some(follower), Some(live));
    }

    /// True while nothing is done that the running generations would notice.
    pub(crate) async fn is_new(&self) -> Result<bool, Error> {
        let (before, after) = self.stands().await?;
        Ok(phase(before.standing, after.standing) == Some(Phase::Stop))
    }

    /// Does beforehand what takes long: the documents that are live now are copied, and both buckets outlined. Both generations
    /// run on meanwhile, so what changes after the look is left for when the old one stands still.
    pub(crate) async fn prepare(&mut self) -> Result<(), Error> {
        self.make_kept_bucket().await?;
        // What this user may not do is better known before the cut than after it.
        pour::allow_batches(&self.jetstream, &self.before.name).await?;
        self.registry.may_deploy(&self.before.name).await?;
        let (before, _) = self.stands().await?;
        pour::pour_once(&self.jetstream, &mut self.pair.live, &mut self.kept, Mark::Kept(before.sequence)).await?;
        self.pair.update().await?;
        Ok(())
    }

    /// Where the other generation stands. A saga's live one must have decided as much before it stops: what only the other has
    /// decided, nobody would ever publish.
    pub(crate) async fn goal(&self) -> Result<Bound, Error> {
        let (before, after) = self.stands().await?;
        Ok(Bound::shared(&after.positions, &before.positions))
    }

    /// Whether the live one may stop anywhere: it publishes nothing.
    pub(crate) fn may_stop_anywhere(&self) -> bool {
        !self.is_saga() || self.promotion.force
    }

    fn is_saga(&self) -> bool {
        self.before.version().saga.is_some() || self.after.version().saga.is_some()
    }

    /// Takes the steps that are left. Answers the new live generation.
    pub(crate) async fn drive(&mut self, stop: &watch::Receiver<bool>) -> Result<Generation, Error> {
        loop {
            let (before, after) = self.stands().await?;
            match phase(before.standing, after.standing) {
                Some(Phase::Stop) => self.stop(stop).await?,
                Some(Phase::CatchUp) => self.catch_up(&before, &after, stop).await?,
                Some(Phase::Keep) => self.keep(&before).await?,
                Some(Phase::TakeOver) => self.take_over(&after).await?,
                Some(Phase::Register) => {
                    self.register(&before, &after).await?;
                    return Ok(Generation::live(&self.before.name, self.promotion.to));
                }
                None => {
                    let (before, after) = (before.standing, after.standing);
                    return Err(Error::GiveUp(format!("one generation is {before} and the other {after}")));
                }
            }
        }
    }

    async fn stands(&self) -> Result<(Stand, Stand), Error> {
        let [before, after] = &self.journals;
        let begun = |stand: Option<Stand>, number: u32| {
            stand.ok_or_else(|| Error::GiveUp(format!("generation {number} has not begun")))
        };
        let before = begun(Stand::read(before).await?, self.promotion.from)?;
        Ok((before, begun(Stand::read(after).await?, self.promotion.to)?))
    }

    async fn stop(&mut self, stop: &watch::Receiver<bool>) -> Result<(), Error> {
        let held = self.before.clone().settle(&self.jetstream, Bound::here(), STOP_WITHIN, stop.clone()).await?;
        crash::point("stopping");
        self.decide_to_cut().await?;
        crash::point("cutting");
        held.close(&Bound::here()).await?;
        crash::point("stopped");
        Ok(())
    }

    /// Whoever takes the promotion back and whoever cuts write the same value by compare-and-set: one of them is first.
    async fn decide_to_cut(&self) -> Result<(), Error> {
        let id = self.promotion.id;
        let (_, cuts) = self.ledgers.change(&self.before.name, |ledger| Ok(ledger.cut(id))).await?;
        if cuts { Ok(()) } else { Err(Error::TakenBack) }
    }

    async fn catch_up(&mut self, before: &Stand, after: &Stand, stop: &watch::Receiver<bool>) -> Result<(), Error> {
        let ahead = after.positions.iter().find(|position| {
            before.positions.iter().any(|other| other.stream == position.stream && other.sequence < position.sequence)
        });
        if let Some(ahead) = ahead.filter(|_| !self.may_stop_anywhere()) {
            return Err(Error::GiveUp(format!(
                "generation {} has already decided {}:{}, which generation {} has not",
                self.promotion.to, ahead.stream, ahead.sequence, self.promotion.from
            )));
        }
        let bound = Bound::cut(&before.positions, &after.positions);
        let after = self.after.clone();
        let held = after.settle(&self.jetstream, bound.clone(), CATCH_UP_WITHIN, stop.clone()).await?;
        crash::point("caught-up");
        self.check_instances().await?;
        held.close(&bound).await?;
        crash::point("closed");
        Ok(())
    }

    /// Instances that go on must be the same: their timers are set and their commands sent by what the old generation knew.
    async fn check_instances(&mut self) -> Result<(), Error> {
        if !self.is_saga() || self.promotion.force {
            return Ok(());
        }
        self.pair.update().await?;
        let mut differing = Vec::new();
        for part in self.pair.unequal().chunks(COMPARED) {
            let samples = self.pair.read(part).await?;
            let alive = samples.into_iter().filter(comparison::Sample::is_alive);
            differing.extend(alive.map(|sample| sample.key));
        }
        if differing.is_empty() { Ok(()) } else { Err(Error::GiveUp(instances_differ(&differing))) }
    }

    async fn keep(&mut self, before: &Stand) -> Result<(), Error> {
        let bucket = self.make_kept_bucket().await?;
        pour::pour(&self.jetstream, &mut self.pair.live, &mut self.kept, Mark::Kept(before.sequence)).await?;
        crash::point("copied");
        let [journal, _] = &self.journals;
        before.go_on(journal, &self.before.host, Standing::Shadow, created(&bucket)).await?;
        crash::point("kept");
        Ok(())
    }

    async fn make_kept_bucket(&self) -> Result<Stream, Error> {
        let generation = Generation::shadow(&self.before.name, self.promotion.from);
        let bucket = documents::make_bucket(&self.jetstream, &generation, self.replicas()).await?;
        pour::allow_batches(&self.jetstream, &generation.name()).await?;
        Ok(bucket)
    }

    async fn take_over(&mut self, after: &Stand) -> Result<(), Error> {
        let generation = Generation::live(&self.before.name, self.promotion.to);
        let bucket = documents::make_bucket(&self.jetstream, &generation, self.replicas()).await?;
        pour::allow_batches(&self.jetstream, &generation.name()).await?;
        let mark = Mark::With(after.sequence);
        self.written += pour::pour(&self.jetstream, &mut self.pair.other, &mut self.pair.live, mark).await?;
        crash::point("poured");
        let [_, journal] = &self.journals;
        after.go_on(journal, &self.before.host, Standing::Live, created(&bucket)).await?;
        crash::point("taken-over");
        Ok(())
    }

    /// The deployment names the new module, then the ledger the new generation.
    async fn register(&mut self, before: &Stand, after: &Stand) -> Result<(), Error> {
        let name = &self.before.name;
        let current = self.registry.current(name).await?;
        let (mut revision, current) =
            current.ok_or_else(|| Error::Other(anyhow::anyhow!("{name} is not deployed any more")))?;
        let Shadow { digest, label, subjects, signature, .. } = self.shadow.clone();
        let note = note(self.promotion.to);
        let deployment = Deployment { digest, label, subjects, signature, note, ..current.clone() };
        let kept = self.kept(before.digest, &deployment).await?;
        self.tell_heir(&deployment).await?;
        if deployment != current {
            revision = self.registry.deploy(name, &deployment).await?;
        }
        crash::point("deployed");
        let ending = Ending {
            id: self.promotion.id,
            from: self.promotion.from,
            to: self.promotion.to,
            reason: String::new(),
            positions: after.positions.clone(),
            written: self.written,
            pause_milliseconds: self.paused_for(before).await?,
            revision,
            time: clock::now(),
        };
        let keep = deployment.settings.keep_generations;
        let done = |ledger: &mut Ledger| {
            ledger.promoted(ending.clone(), kept.clone(), keep);
            Ok(())
        };
        self.ledgers.change(name, done).await?;
        crash::point("promoted");
        self.leave_shadow(after).await;
        Ok(())
    }

    /// What was live, as a shadow. Another module may have been deployed since the promotion was asked for; and where this is done once
    /// more after a crash, the heir is deployed already.
    async fn kept(&self, digest: Digest, heir: &Deployment) -> Result<Shadow, Error> {
        let name = &self.before.name;
        let ran = self.registry.those_that_ran(name).await?;
        let past = self.registry.history(name).await?.into_iter();
        let past = past.filter_map(|past| Some((past.revision, past.deployment?.ok()?)));
        let past = past.filter(|(_, deployment)| deployment != heir).collect();
        Ok(Shadow { since: clock::now(), ..as_deployed(digest, &self.promotion.before, past, &ran) })
    }

    /// Says which version is live before the deployment does, so that whoever keeps the handler takes it for what runs.
    async fn tell_heir(&self, deployment: &Deployment) -> Result<(), Error> {
        let settings = deployment.settings.clone();
        // The deployment that it runs as is not put yet.
        let heir = Version { settings, revision: Arc::default(), ..Version::clone(&self.after.version()) };
        let progress = &self.before.progress;
        progress.makes(heir.kind(), heir.description.state_version);
        progress.runs(&heir);
        self.registry.report(&self.before.name, &progress.report(clock::now())).await?;
        if let Some(live) = &self.live {
            live.send_replace(Arc::new(heir));
        }
        Ok(())
    }

    fn replicas(&self) -> usize {
        self.before.version().settings.replicas
    }

    /// Milliseconds since the old generation was closed; the record says when, for whoever began may not be who ends.
    async fn paused_for(&self, before: &Stand) -> Result<u64, Error> {
        let [journal, _] = &self.journals;
        let closed = journal.read(before.previous.saturating_sub(1), before.previous).await?;
        let Some((sequence, bytes)) = closed.last() else { return Ok(0) };
        let time = journal::Record::decode(bytes, *sequence)?.time;
        Ok(u64::try_from((clock::now() - time) / 1_000_000).unwrap_or_default())
    }

    /// What the new generation had as a shadow; what cannot be removed is overwritten when it is one again.
    async fn leave_shadow(&self, after: &Stand) {
        let generation = Generation::shadow(&self.before.name, self.promotion.to);
        let left = crate::rebuild::leave(&self.jetstream, &generation, &after.positions).await;
        if let Err(error) = left {
            tracing::warn!(handler = self.before.name, %error, "what a shadow had could not be removed");
        }
        if let Err(error) = self.registry.forget_generation(&self.before.name, self.promotion.to).await {
            tracing::warn!(handler = self.before.name, %error, "what was said of a shadow could not be removed");
        }
    }
}

/// The note of the deployment with which a promotion ends.
pub(crate) fn note(generation: u32) -> String {
    format!("generation {generation} was promoted")
}

/// A shadow of this module with label, subjects and signature of one deployment of it: the newest that ran, or else the one that was
/// live when the promotion was asked for, or else the newest. `past` begins with the newest. A host may have refused one of the same
/// module for its signature.
fn as_deployed(digest: Digest, asked: &Shadow, past: Vec<(u64, Deployment)>, ran: &[u64]) -> Shadow {
    let of_module: Vec<(u64, Deployment)> = past.into_iter().filter(|(_, past)| past.digest == digest).collect();
    let newest = (asked.digest != digest).then_some(0);
    let place = of_module.iter().position(|(revision, _)| ran.contains(revision)).or(newest);
    let shadow = Shadow { digest, ..asked.clone() };
    match place.and_then(|place| of_module.into_iter().nth(place)) {
        Some((_, Deployment { label, subjects, signature, .. })) => Shadow { label, subjects, signature, ..shadow },
        None => shadow,
    }
}

/// Closes a generation that shall be removed, so that a host that still runs it is fenced.
pub(crate) async fn close_for_good(journal: &Journal, host: &str) -> Result<(), journal::Error> {
    match Stand::read(journal).await? {
        Some(stand) if stand.standing == Standing::Shadow => {
            stand.go_on(journal, host, Standing::Closed, stand.bucket).await.map(drop)
        }
        _ => Ok(()),
    }
}

/// Gives a promotion up, as long as the new generation is not closed: the old one goes on where it stopped.
pub(crate) async fn give_up(
    jetstream: &Context,
    ledgers: &Ledgers,
    live: &Handler,
    promotion: &Promotion,
    reason: &str,
) -> Result<(), Error> {
    let (Promotion { id, from, to, .. }, name) = (promotion.clone(), &live.name);
    tracing::warn!(handler = name, generation = to, reason, "the promotion is given up");
    let (ledger, _) = ledgers.read(name).await?;
    let is_cut = ledger.promotion.is_some_and(|promotion| promotion.id == id && promotion.cut);
    let journal = Journal::open(jetstream, name, live.version().settings.replicas).await?;
    let [journal, other] = [journal.clone().of(from), journal.of(to)];
    let fence =
        |stand: &Stand| Claimant { digest: stand.digest, makes: None, standing: stand.standing, ..live.claimant() };
    if let (Some(before), Some(after)) = (Stand::read(&journal).await?, Stand::read(&other).await?) {
        match phase(before.standing, after.standing) {
            // Whoever is about to close a generation is fenced first.
            Some(Phase::CatchUp) => {
                claim::take(&other, &fence(&after), after.bucket).await?;
                before.go_on(&journal, &live.host, Standing::Live, before.bucket).await?;
            }
            Some(Phase::Stop) if is_cut => {
                claim::take(&journal, &fence(&before), before.bucket).await?;
            }
            Some(Phase::Stop) | None => {}
            Some(Phase::Keep | Phase::TakeOver | Phase::Register) => {
                return Err(Error::Other(anyhow::anyhow!("it cannot be given up any more: {reason}")));
            }
        }
    }
    let reason = reason.to_owned();
    let ending = Ending::given_up(id, from, to, reason);
    let (_, done) = ledgers.change(name, |ledger| Ok(ledger.given_up(ending.clone(), is_cut))).await?;
    if done { Ok(()) } else { Err(Error::Other(anyhow::anyhow!("another host has begun to cut"))) }
}

/// Why instances stand in the way.
#[must_use]
pub(crate) fn instances_differ(keys: &[String]) -> String {
    let named: Vec<String> = keys.iter().take(NAMED).map(|key| format!("{key:?}")).collect();
    let more = if keys.len() > NAMED { ", …" } else { "" };
    format!("{} instances that have not ended differ: {}{more}", keys.len(), named.join(", "))
}

fn created(bucket: &Stream) -> i64 {
    i64::try_from(bucket.cached_info().created.unix_timestamp_nanos()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generation::ledger::Wanted;
    use crate::policy::Signature;
    use crate::registry::Desired;
    use crate::settings::Settings;

    #[test]
    fn what_is_kept_is_of_one_deployment() {
        let signed = |label: &str| Some(Signature { by: label.to_owned(), signature: String::new() });
        let deployed = |revision: u64, module: u8, label: &str| {
            let (label, signature, desired) = (label.to_owned(), signed(label), Desired::Running);
            let (digest, subjects, settings) = (Digest([module; 32]), vec![label.clone()], Settings::default());
            (revision, Deployment { digest, label, subjects, settings, desired, note: String::new(), signature })
        };
        let asked = Shadow {
            number: 1,
            digest: Digest([1; 32]),
            label: "asked".to_owned(),
            subjects: vec!["asked".to_owned()],
            signature: signed("asked"),
            throttle: 0,
            wanted: Wanted::Kept,
            since: 5,
        };
        let past = [deployed(9, 2, "refused"), deployed(7, 2, "newer"), deployed(5, 1, "again"), deployed(3, 2, "old")];
        for (module, ran, label) in [
            (2, &[3, 5, 7][..], "newer"),
            (2, &[3], "old"),
            (2, &[], "refused"),
            (1, &[5], "again"),
            (1, &[], "asked"),
            (3, &[3, 5, 7], "asked"),
        ] {
            let kept = as_deployed(Digest([module; 32]), &asked, past.to_vec(), ran);
            let (number, digest, wanted, since) = (1, Digest([module; 32]), Wanted::Kept, 5);
            let (label, subjects, signature) = (label.to_owned(), vec![label.to_owned()], signed(label));
            assert_eq!(kept, Shadow { number, digest, label, subjects, signature, throttle: 0, wanted, since });
        }
    }
}
