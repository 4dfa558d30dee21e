//! A projection to drive, and the host's side of the contract: batches and documents in, outcomes as plain values out.

use millstream_sdk::contract::{Batch, Document, Documents, Event as Envelope, Outcome, Span, Staged};
use millstream_sdk::guest::{ProjectionOf, Runtime};
use millstream_sdk::prelude::*;

/// Counts; what it does depends on the event type alone. Keys are listed in the payload.
#[derive(Default, Serialize, Deserialize)]
pub(crate) struct Tally {
    count: u32,
}

#[derive(Event)]
pub(crate) enum Step {
    #[event(name = "add", alias = "+")]
    Add(Vec<String>),
    /// Changes the document before it refuses.
    #[event(name = "refuse")]
    Refuse(Vec<String>),
    #[event(name = "touch")]
    Touch(Vec<String>),
    #[event(name = "delete")]
    Delete(Vec<String>),
}

impl Projection for Tally {
    const NAME: &'static str = "tally";
    const SUBJECTS: &'static [&'static str] = &["steps.>", "more"];
    type Event = Step;

    fn key(event: &Recorded<Step>) -> Keys<'_> {
        match &event.payload {
            Step::Add(keys) | Step::Refuse(keys) | Step::Touch(keys) | Step::Delete(keys) => Keys::many(keys),
        }
    }

    fn apply(&mut self, event: &Recorded<Step>) -> Verdict {
        match &event.payload {
            Step::Add(_) => self.count += 1,
            Step::Touch(_) => {}
            Step::Delete(_) => return delete(),
            Step::Refuse(_) => {
                self.count = 999;
                return refuse("no more");
            }
        }
        keep()
    }
}

/// A batch of events given as `(type, keys)`.
pub(crate) fn batch(steps: &[(&str, &[&str])]) -> Batch {
    let mut blob = b"STEPS".to_vec();
    let source = Span { start: 0, length: 5 };
    let events = (1..)
        .zip(steps)
        .map(|(sequence, (event_type, keys))| {
            let mut append = |bytes: &[u8]| {
                let start = blob.len() as u32;
                blob.extend_from_slice(bytes);
                Span { start, length: bytes.len() as u32 }
            };
            let none = Span { start: 0, length: 0 };
            Envelope {
                sequence,
                time: 0,
                schema_version: 1,
                subject: append(b"steps.a"),
                id: append(format!("id-{sequence}").as_bytes()),
                event_type: append(event_type.as_bytes()),
                aggregate_id: none,
                correlation_id: none,
                causation_id: none,
                payload: append(&serde_json::to_vec(keys).unwrap()),
                extra: none,
            }
        })
        .collect();
    Batch { source, events, blob }
}

pub(crate) fn text(blob: &[u8], span: Span) -> &str {
    std::str::from_utf8(&blob[span.start as usize..(span.start + span.length) as usize]).unwrap()
}

pub(crate) fn keys(staged: &Staged) -> Vec<(&str, bool)> {
    staged.keys.iter().map(|key| (text(&staged.blob, key.name), key.cached)).collect()
}

pub(crate) fn routes(staged: &Staged) -> Vec<(u32, u32)> {
    staged.routes.iter().map(|route| (route.event, route.key)).collect()
}

/// Documents for these key numbers: text, or none.
pub(crate) fn documents(given: &[(u32, Option<&str>)]) -> Documents {
    let mut blob = Vec::new();
    let documents = given
        .iter()
        .map(|&(key, document)| {
            let start = blob.len() as u32;
            blob.extend_from_slice(document.unwrap_or_default().as_bytes());
            Document { key, present: document.is_some(), value: Span { start, length: blob.len() as u32 - start } }
        })
        .collect();
    Documents { documents, blob }
}

/// Changes as `(key, route, document or - for a deletion)`.
pub(crate) fn changes(outcome: &Outcome) -> Vec<(u32, u32, &str)> {
    let change = |change: &millstream_sdk::contract::Change| {
        (change.key, change.route, if change.deleted { "-" } else { text(&outcome.blob, change.value) }.to_owned())
    };
    outcome
        .changes
        .iter()
        .map(change)
        .map(|(key, route, value)| (key, route, &*Box::leak(value.into_boxed_str())))
        .collect()
}

pub(crate) fn refusals(outcome: &Outcome) -> Vec<(u32, &str)> {
    outcome.refusals.iter().map(|refusal| (refusal.route, text(&outcome.blob, refusal.reason))).collect()
}

/// Stages and applies, all keys absent unless cached.
pub(crate) fn fold(runtime: &mut Runtime<ProjectionOf<Tally>>, steps: &[(&str, &[&str])], skip: &[u32]) -> Outcome {
    let staged = runtime.stage(batch(steps));
    let missing: Vec<_> =
        (0..).zip(&staged.keys).filter(|(_, key)| !key.cached).map(|(number, _)| (number, None)).collect();
    runtime.apply(&documents(&missing), skip)
}
