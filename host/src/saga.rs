//! A saga's share of steps 2 to 4: a batch becomes instances and effects. In: a batch of events, or of timers that came back.
//! Out: what a record holds. The units of an instance are judged one after the other (`work.rs`), each after the one before it
//! was folded; those of different instances that the guest must see go to it together, a wave at a time (`asking.rs`).
//! Never: publishes; lets the guest see what is not for it.

mod asking;
mod facts;
mod held;
pub(crate) mod replay;
mod work;

use std::sync::Arc;

use bytes::Bytes;
use millstream_saga::{Instance, Outgoing, Rules};

use crate::batch::{self, Undecodable};
use crate::busy::{Part, Watch};
use crate::crash;
use crate::decision::{self, Bounds, Decision, Fault, Undecided};
use crate::documents::{Decided, Documents};
use crate::intake::Arrival;
use crate::journal::{self, Counts, Park};
use crate::names;
use crate::parking::Parked;
use crate::parking::aside::Aside;
use crate::pipeline::Leave;
use crate::sandbox::Guest;
use crate::settings::Settings;
use crate::traces;

pub use facts::{Error as FactsError, Facts};
use held::Held;
use work::{Key, Work};

/// One saga on this host.
pub(crate) struct Sagas {
    handler: String,
    digest: String,
    facts: Arc<Facts>,
    effect_bytes: usize,
    effects_per_unit: usize,
    max_depth: u32,
    held: Held,
}

impl Sagas {
    /// A saga of these facts.
    pub(crate) fn new(handler: &str, digest: &str, facts: Arc<Facts>, settings: &Settings) -> Self {
        Self {
            handler: handler.to_owned(),
            digest: digest.to_owned(),
            facts,
            effect_bytes: settings.effect_bytes,
            effects_per_unit: settings.effects_per_unit,
            max_depth: settings.max_depth,
            held: Held::new(settings.instance_cache_bytes),
        }
    }

    /// Goes on with another module's code, and with the instances that are held.
    pub(crate) fn succeed(&mut self, digest: &str, facts: Arc<Facts>) {
        digest.clone_into(&mut self.digest);
        self.facts = facts;
    }

    /// Forgets the instances that are held: they may be ahead of what is decided.
    pub(crate) fn forget(&mut self) {
        self.held.clear();
    }

    /// Decides a batch of one stream, but for what is parked or to be left.
    pub(crate) async fn decide(
        &mut self,
        guest: &mut dyn Guest,
        watch: &Arc<Watch>,
        documents: &Documents,
        arrivals: &[Arrival],
        (parked, leave): (&Parked, Leave<'_>),
        bounds: Bounds<'_>,
    ) -> Result<Decision, Undecided> {
        let (stream, mut aside) = (bounds.stream, Aside::default());
        let batch = batch::encode(stream, arrivals)
            .map_err(|Undecodable { index, reason }| Undecided::at(index, Fault::Undecodable, &reason))?;
        let depths = arrivals.iter().map(depth).collect();
        let (mut work, staged) = if stream == names::TIMERS {
            let mut work = Work::of_timers(batch, depths)?;
            work.leave_timers(&mut aside, parked, leave);
            (work, None)
        } else {
            let staging = watch.during(Part::Guest);
            let staged = tokio::task::block_in_place(|| guest.stage(&batch)).map_err(Undecided::failure)?;
            drop(staging);
            crash::point("staged");
            leave.check(&staged)?;
            let skip = leave.routes(&mut aside, &staged, parked);
            let mut work = Work::of_events(batch, depths, &staged);
            work.leave_routes(&skip);
            (work, Some(staged))
        };
        let loading = watch.during(Part::Loading);
        self.load(&mut work, documents).await?;
        drop(loading);
        crash::point("loaded");
        let rules = Rules {
            handler: &self.handler,
            digest: &self.digest,
            late: self.facts.late,
            sends: &self.facts.sends,
            stateless: self.facts.stateless,
            effect_bytes: self.effect_bytes,
            effects_per_unit: self.effects_per_unit,
            max_depth: self.max_depth,
        };
        loop {
            let calls = work.judge(&rules)?;
            if calls.is_empty() {
                break;
            }
            let asking = watch.during(Part::Guest);
            let answers = tokio::task::block_in_place(|| match &staged {
                Some(staged) => work.ask_about_events(guest, staged, &calls),
                None => work.ask_about_timers(guest, &calls),
            })?;
            drop(asking);
            work.fold(&rules, calls, answers)?;
        }
        crash::point("applied");
        self.decision(work, arrivals, aside, bounds)
    }

    /// Gives each key its instance: from here, from what is decided, or from the bucket.
    async fn load(&mut self, work: &mut Work, documents: &Documents) -> Result<(), Undecided> {
        if self.facts.stateless {
            return Ok(());
        }
        let mut missing = Vec::new();
        let Work { keys, tasks, .. } = work;
        for key in keys.iter_mut() {
            // What is parked stays as it is.
            let Some(first) = key.queue.front() else { continue };
            key.instance = self.held.take(&key.name);
            if key.instance.is_none() {
                missing.push((tasks.get(*first).map_or(0, |task| task.event), key));
            }
        }
        let wanted: Vec<&str> = missing.iter().map(|(_, key)| key.name.as_str()).collect();
        let loaded = documents.load(&wanted).await.map_err(|error| Undecided::Trouble(error.into()))?;
        for ((event, key), document) in missing.into_iter().zip(loaded) {
            let Some(document) = document else { continue };
            let unreadable =
                |error| Undecided::at(event, Fault::Unreadable, &format!("the document of {}: {error}", key.name));
            key.instance = Some(Instance::read(&document).map_err(unreadable)?);
        }
        Ok(())
    }

    /// Writes the instances that changed.
    fn decision(
        &mut self,
        work: Work,
        arrivals: &[Arrival],
        aside: Aside,
        bounds: Bounds<'_>,
    ) -> Result<Decision, Undecided> {
        let counts = Counts { parked: aside.events(), ..work.counts(&aside) };
        let parks = aside.parks(bounds.stream, arrivals, bounds.room, bounds.letter_bytes())?;
        let units = work.out.iter().zip(&work.tasks).map(|(out, task)| (out.as_slice(), task.event));
        let carried = traces::of_effects(units, arrivals);
        let effects: Vec<Outgoing> = work.out.into_iter().flatten().collect();
        let parked = parks.iter().map(Park::bytes);
        let mut bytes = effects.iter().map(Outgoing::bytes).chain(parked).sum::<usize>() + carried.bytes();
        let mut changes = Vec::new();
        let mut decided = Vec::new();
        for Key { name, instance, changed, .. } in work.keys {
            let Some(instance) = instance else { continue };
            let document = changed.map(|event| (event, Bytes::from(instance.write())));
            let length = document.as_ref().map_or(0, |(_, document)| document.len());
            if let Some((event, document)) = document {
                bytes += name.len() + length + journal::CHANGE_ROOM;
                changes.push(Decided {
                    key: name.clone(),
                    value: Some(document),
                    sequence: arrivals.get(event).map_or(0, |arrival| arrival.sequence),
                    keep_seconds: instance.status.has_ended().then_some(self.facts.keep_completed_seconds),
                });
            }
            decided.push((name, instance, length));
        }
        decision::check_size(bytes, bounds.record_bytes)?;
        for (name, instance, length) in decided {
            self.held.put(name, instance, length);
        }
        Ok(Decision { changes, counts, effects, carried, parks })
    }
}

/// How many messages of handlers led to this one; services that answer begin anew.
fn depth(arrival: &Arrival) -> u32 {
    let headers = arrival.message.headers.as_ref();
    let depth = headers.and_then(|headers| headers.get(names::DEPTH_HEADER)).map(|depth| depth.as_str().parse());
    depth.and_then(Result::ok).unwrap_or_default()
}
