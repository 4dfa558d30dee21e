//! A batch of a projection, folded aside from the host: what a rehearsal does. In: a batch, a guest, and documents in memory. Out:
//! each unit by itself, with the document that it left. A unit of each key goes to the guest at a time. Never: keeps anything of
//! a batch that fails.

use std::collections::{HashMap, HashSet, VecDeque};

use crate::batch::{self, Undecodable};
use crate::decision::{self, Fault, Undecided};
use crate::intake::Arrival;
use crate::saga::replay::{Broken, Unit};
use crate::sandbox::{Guest, slice, str_slice, wire};

/// Folds a batch of one stream.
pub(super) fn fold<V>(
    guest: &mut dyn Guest,
    stream: &str,
    arrivals: &[Arrival],
    documents: &mut HashMap<String, Vec<u8>>,
    view: fn(Option<&[u8]>) -> V,
) -> Result<Vec<Unit<V>>, Broken> {
    let broken = |why| Broken { why, units: Vec::new() };
    let batch = batch::encode(stream, arrivals)
        .map_err(|Undecodable { index, reason }| broken(Undecided::at(index, Fault::Undecodable, &reason)))?;
    let staged = guest.stage(&batch).map_err(|failure| broken(Undecided::failure(failure)))?;
    decision::check_staged(&staged).map_err(broken)?;
    let mut keys = keys(&staged, documents);
    let units = run(guest, &staged, &mut keys, view).map_err(broken)?;
    for Key { name, document, .. } in keys {
        match document {
            Some(document) => documents.insert(name, document),
            None => documents.remove(&name),
        };
    }
    Ok(units)
}

/// A key of the batch, and its routes that are not folded.
struct Key {
    name: String,
    at_guest: bool,
    document: Option<Vec<u8>>,
    queue: VecDeque<u32>,
}

fn keys(staged: &wire::Staged, documents: &HashMap<String, Vec<u8>>) -> Vec<Key> {
    let key = |key: &wire::Key| {
        let name = str_slice(&staged.blob, key.name).to_owned();
        Key { document: documents.get(&name).cloned(), name, at_guest: key.cached, queue: VecDeque::new() }
    };
    let mut keys: Vec<Key> = staged.keys.iter().map(key).collect();
    for (number, route) in (0..).zip(&staged.routes) {
        if let Some(key) = keys.get_mut(route.key as usize) {
            key.queue.push_back(number);
        }
    }
    keys
}

fn run<V>(
    guest: &mut dyn Guest,
    staged: &wire::Staged,
    keys: &mut [Key],
    view: fn(Option<&[u8]>) -> V,
) -> Result<Vec<Unit<V>>, Undecided> {
    let mut units = Vec::with_capacity(staged.routes.len());
    loop {
        let mut skip = vec![true; staged.routes.len()];
        let mut sent = wire::Documents { documents: Vec::new(), blob: Vec::new() };
        let mut wave = Vec::new();
        for (number, key) in (0..).zip(keys.iter_mut()) {
            let Some(route) = key.queue.pop_front() else { continue };
            if let Some(skip) = skip.get_mut(route as usize) {
                *skip = false;
            }
            wave.push((number, route));
            if !std::mem::replace(&mut key.at_guest, true) {
                let bytes = key.document.as_deref().unwrap_or_default();
                let index = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
                let value = wire::Span { start: index(sent.blob.len()), length: index(bytes.len()) };
                sent.blob.extend_from_slice(bytes);
                sent.documents.push(wire::Document { key: number, present: key.document.is_some(), value });
            }
        }
        if wave.is_empty() {
            return Ok(units);
        }
        let skip: Vec<u32> = (0..).zip(skip).filter_map(|(route, skip)| skip.then_some(route)).collect();
        let outcome = guest.apply(&sent, &skip).map_err(Undecided::failure)?;
        decision::check_refusals(staged, &outcome)?;
        for change in &outcome.changes {
            if let Some(key) = keys.get_mut(change.key as usize) {
                key.document = (!change.deleted).then(|| slice(&outcome.blob, change.value).to_vec());
            }
        }
        let changed: HashSet<u32> = outcome.changes.iter().map(|change| change.route).collect();
        for (number, route) in wave {
            let Some(key) = keys.get(number as usize) else { continue };
            let event = staged.routes.get(route as usize).map_or(0, |route| route.event as usize);
            let changed = changed.contains(&route);
            let view = view(key.document.as_deref());
            units.push(Unit { event, key: key.name.clone(), changed, effects: Vec::new(), view });
        }
    }
}
