//! Phase two, once or more. In: the documents that the cache lacks, and the routes to leave alone. Out: a change per
//! key whose bytes differ, the effects, and the refusals. Never: a trace of a refused unit in its document, or an
//! effect of it.

use serde::de::DeserializeOwned;

use super::cache::{Document, Slot};
use super::{Handler, Runtime, Staging};
use crate::contract::{self, Change, Documents, Effect, Outcome, Span, broken};
use crate::{Effects, Refusal, Then};

impl<H: Handler> Runtime<H> {
    /// Folds the staged events into the documents, but for the routes in `skip` and those that an earlier call folded.
    ///
    /// # Panics
    /// If the host breaks the contract (nothing staged, an index out of range, a document missing), or the handler does (a
    /// document that JSON cannot hold, or that does not read back).
    pub fn apply(&mut self, documents: &Documents, skip: &[u32]) -> Outcome {
        let Some(mut staging) = self.staged.take() else {
            broken(format_args!("contract: `apply` without `stage`, or after all of its routes"));
        };
        self.load(&staging, documents);
        let alone = staging.alone(skip);
        let mut outcome = Outcome {
            changes: Vec::with_capacity(staging.keys.len()),
            effects: Vec::new(),
            refusals: Vec::new(),
            blob: Vec::new(),
        };
        for number in 0..staging.routes.len() {
            if is_set(&alone, number) {
                continue;
            }
            match self.apply_route(&mut staging, number, &alone) {
                Ok(()) if H::ASKS => hand_over(&self.effects, number, &mut outcome),
                Ok(()) => {}
                Err(refusal) => {
                    let reason = contract::append(&mut outcome.blob, refusal.reason().as_bytes());
                    let route = contract::number(number);
                    outcome.refusals.push(contract::Refusal { route, reason });
                }
            }
            if H::ASKS {
                self.effects.clear();
            }
        }
        self.collect(&mut staging, &mut outcome);
        if staging.close(&alone) {
            self.release(&staging.keys);
        } else {
            self.staged = Some(staging);
        }
        outcome
    }

    /// Puts the host's documents into their slots, unread, whatever lay there: the host knows better.
    fn load(&mut self, staging: &Staging<H::Unit>, documents: &Documents) {
        for document in &documents.documents {
            let Some(key) = staging.keys.get(document.key as usize) else {
                broken(format_args!(
                    "contract: a document for key {} of a batch with {} keys",
                    document.key,
                    staging.keys.len()
                ));
            };
            let slot = self.cache.slot_mut(key.slot);
            slot.bytes.clear();
            if document.present {
                slot.bytes.extend_from_slice(contract::bytes(&documents.blob, document.value));
                slot.document = Document::Unread;
            } else {
                slot.document = Document::Absent;
            }
        }
    }

    fn apply_route(&mut self, staging: &mut Staging<H::Unit>, number: usize, alone: &[bool]) -> Result<(), Refusal> {
        let Some((route, unit)) = staging.unit(number) else {
            return Ok(());
        };
        let Some(key) = staging.keys.get(route.key as usize) else {
            return Ok(());
        };
        if key.refused {
            return Ok(());
        }
        let slot = self.cache.slot_mut(key.slot);
        let result = read(slot).and_then(|()| fold::<H>(slot, unit, &mut self.effects));
        if result.is_err() {
            restore::<H>(slot, staging, route.key, number, alone);
        }
        if let Some(key) = staging.keys.get_mut(route.key as usize) {
            match &result {
                Ok(()) => key.applied = Some(contract::number(number)),
                Err(_) => key.refused = true,
            }
        }
        result
    }

    /// Writes each touched document and reports those that differ from what the host has.
    fn collect(&mut self, staging: &mut Staging<H::Unit>, outcome: &mut Outcome) {
        for (number, key) in staging.keys.iter_mut().enumerate() {
            let Some(route) = key.applied.take() else { continue };
            let slot = self.cache.slot_mut(key.slot);
            let start = outcome.blob.len();
            let deleted = match &slot.document {
                Document::Present(document) => {
                    if let Err(error) = serde_json::to_writer(&mut outcome.blob, document) {
                        broken(format_args!("the document of `{}` cannot be written as JSON: {error}", slot.key));
                    }
                    false
                }
                Document::Absent | Document::Unread | Document::Unknown => true,
            };
            let value = contract::span_from(&outcome.blob, start);
            let written = contract::bytes(&outcome.blob, value);
            if written == slot.bytes {
                outcome.blob.truncate(start);
                continue;
            }
            slot.bytes.clear();
            slot.bytes.extend_from_slice(written);
            let value = if deleted { Span { start: 0, length: 0 } } else { value };
            outcome.changes.push(Change { key: contract::number(number), route, deleted, value });
        }
    }
}

impl<U> Staging<U> {
    /// The route of that number, with its unit.
    fn unit(&self, number: usize) -> Option<(contract::Route, &U)> {
        let route = *self.routes.get(number)?;
        let unit = self.units.get(route.event as usize)?.as_ref()?;
        Some((route, unit))
    }

    /// The routes that a call leaves alone, as a table; none at all if there are none.
    fn alone(&self, skip: &[u32]) -> Vec<bool> {
        let routes = self.routes.len();
        if skip.is_empty() && self.folded.is_empty() {
            return Vec::new();
        }
        let mut alone = self.folded.clone();
        alone.resize(routes, false);
        for &number in skip {
            match alone.get_mut(number as usize) {
                Some(flag) => *flag = true,
                None => broken(format_args!("contract: route {number} to skip in a batch with {routes} routes")),
            }
        }
        alone
    }

    /// Notes what a call folded, and says whether nothing is left.
    fn close(&mut self, alone: &[bool]) -> bool {
        if alone.is_empty() {
            return true;
        }
        self.folded.resize(alone.len(), false);
        for (folded, alone) in self.folded.iter_mut().zip(alone) {
            *folded |= !alone;
        }
        self.folded.iter().all(|folded| *folded)
    }
}

/// Writes what a unit asked for into the answer.
fn hand_over(effects: &Effects, route: usize, outcome: &mut Outcome) {
    for effect in effects.as_slice() {
        let start = outcome.blob.len();
        if let Err(error) = serde_json::to_writer(&mut outcome.blob, effect) {
            broken(format_args!("an effect cannot be written as JSON: {error}"));
        }
        let body = contract::span_from(&outcome.blob, start);
        outcome.effects.push(Effect { route: contract::number(route), body });
    }
}

/// Makes a value of the bytes, if that has not been done. What cannot be read is asked for again in the next batch.
fn read<D: DeserializeOwned>(slot: &mut Slot<D>) -> Result<(), Refusal> {
    match slot.document {
        Document::Unknown => broken(format_args!("contract: the document of `{}` is missing", slot.key)),
        Document::Absent | Document::Present(_) => Ok(()),
        Document::Unread => match serde_json::from_slice(&slot.bytes) {
            Ok(document) => {
                slot.document = Document::Present(document);
                Ok(())
            }
            Err(error) => {
                slot.document = Document::Unknown;
                slot.bytes.clear();
                Err(Refusal::new(format_args!(
                    "the document of `{}` does not read as this handler's type (raise STATE_VERSION to rebuild): {error}",
                    slot.key
                )))
            }
        },
    }
}

/// Applies one unit to a document that was read. After an error document and effects are undefined.
fn fold<H: Handler>(slot: &mut Slot<H::Document>, unit: &H::Unit, effects: &mut Effects) -> Result<(), Refusal> {
    let verdict = match &mut slot.document {
        Document::Present(document) => H::fold(document, unit, effects),
        other => {
            let mut document = H::Document::default();
            let verdict = H::fold(&mut document, unit, effects);
            *other = Document::Present(document);
            verdict
        }
    };
    let then = verdict?;
    if H::ASKS {
        effects.check()?;
    }
    if then == Then::Delete {
        slot.document = Document::Absent;
    }
    Ok(())
}

/// Goes back to the host's bytes and folds the earlier units of the key in this call again.
fn restore<H: Handler>(
    slot: &mut Slot<H::Document>,
    staging: &Staging<H::Unit>,
    key: u32,
    refused: usize,
    alone: &[bool],
) {
    if !slot.is_known() {
        return;
    }
    slot.document = if slot.bytes.is_empty() { Document::Absent } else { Document::Unread };
    let touched = staging.keys.get(key as usize).is_some_and(|key| key.applied.is_some());
    if !touched {
        return;
    }
    for number in 0..refused {
        if let Some((route, unit)) = staging.unit(number)
            && route.key == key
            && !is_set(alone, number)
            && let Err(refusal) = read(slot).and_then(|()| fold::<H>(slot, unit, &mut Effects::default()))
        {
            broken(format_args!(
                "the handler is not pure: it accepted an event for `{}` and then refused it: {}",
                slot.key,
                refusal.reason()
            ));
        }
    }
}

fn is_set(skipped: &[bool], number: usize) -> bool {
    skipped.get(number).copied().unwrap_or(false)
}
