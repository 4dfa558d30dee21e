//! The engine inside a module, the same natively; `handler.rs` adapts the kinds of handler to it. Calls per batch:
//!
//! - [`Runtime::stage`] (`stage.rs`): events in, the keys they touch out; decodes each event once and keeps it.
//! - [`Runtime::apply`] (`apply.rs`), once or more: documents of uncached keys in, changed documents and effects out.
//!
//! Between batches documents stay in the cache (`cache.rs`). It runs ahead of the host from `apply` on: a host that
//! does not commit an outcome must throw the runtime away. Never: a clock, randomness, or anything that the events do
//! not say.

mod apply;
mod cache;
mod handler;
mod stage;

use crate::Effects;
use crate::contract::Route;
use cache::Cache;
pub use handler::{Handler, Input, ProjectionOf, ReactionOf, SagaOf};

/// Folds the batches of one handler.
pub struct Runtime<H: Handler> {
    cache: Cache<H::Document>,
    staged: Option<Staging<H::Unit>>,
    /// Empty between two units.
    effects: Effects,
}

/// A batch from `stage` on, until each of its routes was folded or the next batch comes.
struct Staging<U> {
    /// As in the batch; `None` for what is irrelevant or was rejected.
    units: Vec<Option<U>>,
    keys: Vec<StagedKey>,
    routes: Vec<Route>,
    /// The routes that earlier calls folded; empty before the second call.
    folded: Vec<bool>,
}

/// A key of the batch.
struct StagedKey {
    slot: u32,
    /// The last route that this call applied.
    applied: Option<u32>,
    /// A route of it was refused: the rest is left alone.
    refused: bool,
}

impl<H: Handler> Runtime<H> {
    /// An engine without any document.
    #[must_use]
    pub fn new() -> Self {
        Self { cache: Cache::new(H::CACHE_BYTES), staged: None, effects: Effects::default() }
    }

    /// Takes back the slots of keys whose document never came.
    fn release(&mut self, keys: &[StagedKey]) {
        for key in keys {
            self.cache.settle(key.slot);
        }
        self.cache.evict();
    }
}

impl<H: Handler> Default for Runtime<H> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::{Batch, Event, Span};
    use crate::{Keys, Projection, Raw, Recorded, Verdict, keep};

    #[derive(Default, serde::Serialize, serde::Deserialize)]
    struct Nothing;

    impl Projection for Nothing {
        const SUBJECTS: &'static [&'static str] = &[">"];
        type Event = Raw;

        fn key(event: &Recorded<Raw>) -> Keys<'_> {
            Keys::one(event.sequence().to_string())
        }

        fn apply(&mut self, _event: &Recorded<Raw>) -> Verdict {
            keep()
        }
    }

    #[test]
    fn a_batch_that_is_never_applied_holds_no_memory_after_the_next() {
        let mut runtime = Runtime::<ProjectionOf<Nothing>>::new();
        let none = Span { start: 0, length: 0 };
        for sequence in 1..=3 {
            let event = Event {
                sequence,
                time: 0,
                schema_version: 1,
                subject: none,
                id: none,
                event_type: none,
                aggregate_id: none,
                correlation_id: none,
                causation_id: none,
                payload: none,
                extra: none,
            };
            runtime.stage(Batch { source: none, events: vec![event], blob: Vec::new() });
            assert_eq!(runtime.cache.len(), 1);
        }
    }
}
