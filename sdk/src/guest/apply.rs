//! Phase two. In: the documents that the cache lacks, and the routes to leave alone. Out: a change per key whose bytes
//! differ, and the refusals. A refused unit leaves no trace in its document.

use super::cache::{Document, Slot};
use super::{Runtime, Staging};
use crate::contract::{self, Change, Documents, Outcome, Span, broken};
use crate::{Projection, Recorded, Refusal, Then};

impl<P: Projection> Runtime<P> {
    /// Folds the staged events into the documents.
    ///
    /// # Panics
    /// If the host breaks the contract (nothing staged, an index out of range, a document missing), or the handler does (a
    /// document that JSON cannot hold, or that does not read back).
    pub fn apply(&mut self, documents: &Documents, skip: &[u32]) -> Outcome {
        let Some(mut staging) = self.staged.take() else {
            broken(format_args!("contract: `apply` without `stage`"));
        };
        self.load(&staging, documents);
        let skipped = skipped(staging.routes.len(), skip);
        let mut outcome = Outcome {
            changes: Vec::with_capacity(staging.keys.len()),
            effects: Vec::new(),
            refusals: Vec::new(),
            blob: Vec::new(),
        };
        for number in 0..staging.routes.len() {
            if !is_set(&skipped, number)
                && let Err(refusal) = self.apply_route(&mut staging, number, &skipped)
            {
                let reason = contract::append(&mut outcome.blob, refusal.reason().as_bytes());
                let route = contract::number(number);
                outcome.refusals.push(contract::Refusal { route, reason });
            }
        }
        self.collect(&staging, &mut outcome);
        self.release(&staging.keys);
        outcome
    }

    /// Puts the host's documents into their slots, unread.
    fn load(&mut self, staging: &Staging<P::Event>, documents: &Documents) {
        for document in &documents.documents {
            let Some(key) = staging.keys.get(document.key as usize) else {
                broken(format_args!(
                    "contract: a document for key {} of a batch with {} keys",
                    document.key,
                    staging.keys.len()
                ));
            };
            let slot = self.cache.slot_mut(key.slot);
            if slot.is_known() {
                broken(format_args!("contract: the document of `{}` was sent, but is known already", slot.key));
            }
            if document.present {
                slot.bytes.extend_from_slice(contract::bytes(&documents.blob, document.value));
                slot.document = Document::Unread;
            } else {
                slot.document = Document::Absent;
            }
        }
    }

    fn apply_route(&mut self, staging: &mut Staging<P::Event>, number: usize, skipped: &[bool]) -> Result<(), Refusal> {
        let Some((route, event)) = staging.unit(number) else {
            return Ok(());
        };
        let Some(key) = staging.keys.get(route.key as usize) else {
            return Ok(());
        };
        if key.refused {
            return Ok(());
        }
        let slot = self.cache.slot_mut(key.slot);
        let result = read(slot).and_then(|()| fold(slot, event));
        if result.is_err() {
            restore(slot, staging, route.key, number, skipped);
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
    fn collect(&mut self, staging: &Staging<P::Event>, outcome: &mut Outcome) {
        for (number, key) in staging.keys.iter().enumerate() {
            let Some(route) = key.applied else { continue };
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

impl<E> Staging<E> {
    /// The route of that number, with its event.
    fn unit(&self, number: usize) -> Option<(contract::Route, &Recorded<E>)> {
        let route = *self.routes.get(number)?;
        let event = self.events.get(route.event as usize)?.as_ref()?;
        Some((route, event))
    }
}

/// Makes a value of the bytes, if that has not been done. What cannot be read is asked for again in the next batch.
fn read<P: Projection>(slot: &mut Slot<P>) -> Result<(), Refusal> {
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

/// Applies one event to a document that was read. After an error the document is undefined.
fn fold<P: Projection>(slot: &mut Slot<P>, event: &Recorded<P::Event>) -> Result<(), Refusal> {
    let verdict = match &mut slot.document {
        Document::Present(document) => document.apply(event),
        other => {
            let mut document = P::default();
            let verdict = document.apply(event);
            *other = Document::Present(document);
            verdict
        }
    };
    if verdict? == Then::Delete {
        slot.document = Document::Absent;
    }
    Ok(())
}

/// Goes back to the host's bytes and folds the earlier units of the key again.
fn restore<P: Projection>(slot: &mut Slot<P>, staging: &Staging<P::Event>, key: u32, refused: usize, skipped: &[bool]) {
    if !slot.is_known() {
        return;
    }
    slot.document = if slot.bytes.is_empty() { Document::Absent } else { Document::Unread };
    let touched = staging.keys.get(key as usize).is_some_and(|key| key.applied.is_some());
    if !touched {
        return;
    }
    for number in 0..refused {
        if let Some((route, event)) = staging.unit(number)
            && route.key == key
            && !is_set(skipped, number)
            && let Err(refusal) = read(slot).and_then(|()| fold(slot, event))
        {
            broken(format_args!(
                "`apply` is not pure: it accepted an event for `{}` and then refused it: {}",
                slot.key,
                refusal.reason()
            ));
        }
    }
}

/// The routes to leave alone, as a table; none at all if there are none.
fn skipped(routes: usize, skip: &[u32]) -> Vec<bool> {
    let mut skipped = vec![false; if skip.is_empty() { 0 } else { routes }];
    for &number in skip {
        match skipped.get_mut(number as usize) {
            Some(flag) => *flag = true,
            None => broken(format_args!("contract: route {number} to skip in a batch with {routes} routes")),
        }
    }
    skipped
}

fn is_set(skipped: &[bool], number: usize) -> bool {
    skipped.get(number).copied().unwrap_or(false)
}
