//! A batch of a saga, folded aside from the host by the same code: what a rehearsal does. In: a batch, a guest, and instances in
//! memory. Out: each unit by itself: what it sent, and how it left its instance. Never: keeps anything of a batch that fails.

use std::collections::HashMap;

use millstream_saga::{Instance, Outgoing, Rules};

use super::work::Work;
use crate::batch::{self, Undecodable};
use crate::decision::{self, Fault, Undecided};
use crate::intake::Arrival;
use crate::names;
use crate::sandbox::{Guest, str_slice, wire};

/// One unit after it was folded, with a caller's view of its instance.
#[derive(Debug)]
pub(crate) struct Unit<V> {
    /// Index of its event.
    pub(crate) event: usize,
    /// Key of its instance.
    pub(crate) key: String,
    /// It changed the instance.
    pub(crate) changed: bool,
    /// What it sent.
    pub(crate) effects: Vec<Outgoing>,
    /// The instance after it.
    pub(crate) view: V,
}

/// A batch that could not be folded.
pub(crate) struct Broken {
    /// Why.
    pub(crate) why: Undecided,
    /// The units that it was to fold, as far as that is known: index of the event, and key.
    pub(crate) units: Vec<(usize, String)>,
}

/// Which units are folded, by the index of the event and the key; and how an instance is looked at after each.
pub(crate) struct Lens<'a, V> {
    pub(crate) wanted: &'a dyn Fn(usize, &str) -> bool,
    pub(crate) view: &'a dyn Fn(Option<&Instance>) -> V,
}

/// Folds the wanted units of a batch of one stream.
///
/// # Errors
/// What the host would stop at; the instances are as they were, the guest is not.
pub(crate) fn fold<V>(
    guest: &mut dyn Guest,
    rules: &Rules<'_>,
    stream: &str,
    arrivals: &[Arrival],
    instances: &mut HashMap<String, Instance>,
    lens: &Lens<'_, V>,
) -> Result<Vec<Unit<V>>, Broken> {
    let (mut work, staged) = begin(guest, stream, arrivals).map_err(|why| Broken { why, units: Vec::new() })?;
    work.retain(lens.wanted);
    for key in work.keys.iter_mut().filter(|key| !key.queue.is_empty()) {
        key.instance = instances.get(&key.name).cloned();
    }
    let units = work.keys.iter().flat_map(|key| key.queue.iter().map(|task| (*task, key.name.clone())));
    let units: Vec<(usize, String)> =
        units.filter_map(|(task, key)| Some((work.tasks.get(task)?.event, key))).collect();
    let folded = run(&mut work, guest, rules, staged.as_ref(), lens.view).map_err(|why| Broken { why, units })?;
    for key in work.keys {
        if let Some(instance) = key.instance {
            instances.insert(key.name, instance);
        }
    }
    Ok(folded)
}

fn begin(guest: &mut dyn Guest, stream: &str, arrivals: &[Arrival]) -> Result<(Work, Option<wire::Staged>), Undecided> {
    let batch = batch::encode(stream, arrivals)
        .map_err(|Undecodable { index, reason }| Undecided::at(index, Fault::Undecodable, &reason))?;
    let depths = arrivals.iter().map(super::depth).collect();
    if stream == names::TIMERS {
        return Ok((Work::of_timers(batch, depths)?, None));
    }
    let staged = guest.stage(&batch).map_err(Undecided::failure)?;
    decision::check_staged(&staged)?;
    Ok((Work::of_events(batch, depths, &staged), Some(staged)))
}

/// A unit of each instance at a time, so that each can be seen by itself.
fn run<V>(
    work: &mut Work,
    guest: &mut dyn Guest,
    rules: &Rules<'_>,
    staged: Option<&wire::Staged>,
    view: &dyn Fn(Option<&Instance>) -> V,
) -> Result<Vec<Unit<V>>, Undecided> {
    let mut folded = Vec::new();
    loop {
        let next: Vec<(usize, usize)> =
            (0..).zip(&work.keys).filter_map(|(number, key)| Some((number, *key.queue.front()?))).collect();
        if next.is_empty() {
            return Ok(folded);
        }
        let calls = work.judge_up_to(1, rules)?;
        if !calls.is_empty() {
            let answers = match staged {
                Some(staged) => work.ask_about_events(guest, staged, &calls),
                None => work.ask_about_timers(guest, &calls),
            }?;
            work.fold(rules, calls, answers)?;
        }
        for (key, number) in next {
            let (Some(key), Some(task), Some(out)) =
                (work.keys.get(key), work.tasks.get(number), work.out.get_mut(number))
            else {
                continue;
            };
            folded.push(Unit {
                event: task.event,
                key: key.name.clone(),
                changed: key.changed == Some(task.event),
                effects: std::mem::take(out),
                view: view(key.instance.as_ref()),
            });
        }
    }
}

/// The states of instances, handed to a guest with a timer each: can it read them? In: key, timer and state of each. Out: for
/// each the guest's refusal, if it refused.
///
/// # Errors
/// A call that failed, or a guest that does not take a timer for its instance.
pub(crate) fn hand_over(
    guest: &mut dyn Guest,
    arrivals: &[Arrival],
    states: &HashMap<&str, Option<&str>>,
) -> Result<Vec<Option<String>>, Undecided> {
    let batch = batch::encode(names::TIMERS, arrivals)
        .map_err(|Undecodable { index, reason }| Undecided::at(index, Fault::Undecodable, &reason))?;
    let staged = guest.stage(&batch).map_err(Undecided::failure)?;
    decision::check_staged(&staged)?;
    let mut documents = wire::Documents { documents: Vec::new(), blob: Vec::new() };
    for (number, key) in (0..).zip(&staged.keys) {
        let name = str_slice(&staged.blob, key.name);
        let state = states.get(name).copied().flatten();
        let bytes = state.unwrap_or_default().as_bytes();
        let index = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
        let value = wire::Span { start: index(documents.blob.len()), length: index(bytes.len()) };
        documents.blob.extend_from_slice(bytes);
        documents.documents.push(wire::Document { key: number, present: state.is_some(), value });
    }
    let outcome = guest.apply(&documents, &[]).map_err(Undecided::failure)?;
    let mut refusals = vec![None; arrivals.len()];
    for refusal in &outcome.refusals {
        let event = staged.routes.get(refusal.route as usize).map_or(0, |route| route.event as usize);
        if let Some(place) = refusals.get_mut(event) {
            *place = Some(str_slice(&outcome.blob, refusal.reason).to_owned());
        }
    }
    Ok(refusals)
}
