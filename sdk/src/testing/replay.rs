//! Whole files of events through one handler, for checks against answers that were computed elsewhere. In: events. Out:
//! the documents at the end. Never: repeats them as a scenario does; a file is too long for that.

use std::collections::BTreeMap;

use super::host::Host;
use super::{TestEvent, fail};
use crate::{Projection, log};

/// Folds many events in batches of this size and returns all documents by key. A batch never spans two streams.
///
/// # Panics
/// If an event is rejected or refused, or a document does not read back.
#[track_caller]
pub fn replay<P: Projection>(events: impl IntoIterator<Item = TestEvent>, batch_events: usize) -> BTreeMap<String, P> {
    let mut host = Host::<P>::new();
    let mut batch: Vec<TestEvent> = Vec::with_capacity(batch_events);
    for event in events {
        let other_stream = batch.first().is_some_and(|first| first.source() != event.source());
        if batch.len() >= batch_events || other_stream {
            accept(&mut host, &batch);
            batch.clear();
        }
        batch.push(event);
    }
    accept(&mut host, &batch);

    let mut documents = BTreeMap::new();
    for (key, document) in host.documents {
        match serde_json::from_slice(&document) {
            Ok(document) => documents.insert(key, document),
            Err(error) => fail(format_args!("the document of `{key}` does not read back: {error}")),
        };
    }
    documents
}

#[track_caller]
fn accept<P: Projection>(host: &mut Host<P>, batch: &[TestEvent]) {
    let (fates, _) = log::capture(|| host.batch(batch));
    for (event, fate) in batch.iter().zip(fates) {
        if let Some(problem) = fate.problem() {
            fail(format_args!("{event:?} {problem}"));
        }
    }
}
