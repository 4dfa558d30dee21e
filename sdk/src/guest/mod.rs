//! The engine of a projection, the same in a module and natively. Two calls per batch:
//!
//! - [`Runtime::stage`] (`stage.rs`): events in, the keys they touch out; decodes each event once and keeps it.
//! - [`Runtime::apply`] (`apply.rs`): documents of uncached keys in, changed documents out.
//!
//! Between batches documents stay in the cache (`cache.rs`). It runs ahead of the host from `apply` on: a host that does not commit an
//! outcome must throw the runtime away.

mod apply;
mod cache;
mod stage;

use crate::contract::{Description, Kind, Route};
use crate::{Projection, Recorded};
use cache::Cache;

/// Folds the batches of one projection.
pub struct Runtime<P: Projection> {
    cache: Cache<P>,
    staged: Option<Staging<P::Event>>,
}

/// A batch between `stage` and `apply`.
struct Staging<E> {
    /// As in the batch; `None` for what is irrelevant or was rejected.
    events: Vec<Option<Recorded<E>>>,
    keys: Vec<StagedKey>,
    routes: Vec<Route>,
}

/// A key of the batch.
struct StagedKey {
    slot: u32,
    /// The last route that was applied.
    applied: Option<u32>,
    /// A route of it was refused: the rest is left alone.
    refused: bool,
}

impl<P: Projection> Runtime<P> {
    /// An engine without any document.
    #[must_use]
    pub fn new() -> Self {
        Self { cache: Cache::new(P::CACHE_BYTES), staged: None }
    }

    /// Takes back the slots of keys whose document never came.
    fn release(&mut self, keys: &[StagedKey]) {
        for key in keys {
            self.cache.settle(key.slot);
        }
        self.cache.evict();
    }
}

impl<P: Projection> Default for Runtime<P> {
    fn default() -> Self {
        Self::new()
    }
}

/// What the host must know of a projection. `crate_name` is its name if it has none of its own.
#[must_use]
pub fn describe<P: Projection>(crate_name: &str) -> Description {
    Description {
        name: if P::NAME.is_empty() { crate_name } else { P::NAME }.to_owned(),
        kind: Kind::Projection,
        subjects: P::SUBJECTS.iter().map(|subject| (*subject).to_owned()).collect(),
        state_version: P::STATE_VERSION,
        extra: concat!(r#"{"sdk":"millstream-sdk "#, env!("CARGO_PKG_VERSION"), r#""}"#).to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::{Batch, Event, Span};
    use crate::{Keys, Raw, Verdict, keep};

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
        let mut runtime = Runtime::<Nothing>::new();
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
