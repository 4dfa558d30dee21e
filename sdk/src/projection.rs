//! What a user writes for a projection: events in, documents out. Never: effects.

use serde::{Serialize, de::DeserializeOwned};

use crate::{Event, Keys, Recorded, Verdict};

/// A projection: events in, one document per key out. The document is the type itself, written as JSON.
///
/// `apply` must depend on nothing but the document and the event. The module cannot reach a clock or a network anyway; what
/// is left to get wrong is a document whose JSON varies or does not read back: use `BTreeMap` and `BTreeSet`, not `HashMap`,
/// and no `#[serde(skip)]` for what matters. The test kit checks this with every scenario.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a projection",
    label = "`Projection` is not implemented for `{Self}`",
    note = "write `impl Projection for {Self}`; a saga is exported with `export!(saga {Self})`, a reaction with `export!(reaction {Self})`"
)]
pub trait Projection: Default + Serialize + DeserializeOwned + 'static {
    /// The handler's name unless a deployment says otherwise; also the name of its bucket. Not set: the name of the crate.
    const NAME: &'static str = "";

    /// The NATS subjects to read, with `*` and `>`, unless a deployment says otherwise.
    const SUBJECTS: &'static [&'static str];

    /// The version of the document's shape. Raise it when old documents must not be carried on.
    const STATE_VERSION: u32 = 1;

    /// How much memory may hold documents between batches, in bytes, approximately. `0` keeps none.
    const CACHE_BYTES: usize = 32 << 20;

    /// The events it reads: an enum with `#[derive(Event)]`, or [`Raw`](crate::Raw).
    type Event: Event;

    /// The documents that an event touches.
    fn key(event: &Recorded<Self::Event>) -> Keys<'_>;

    /// Folds an event into the document of one of its keys; a key without a document starts from `Default`.
    ///
    /// # Errors
    /// A refusal: the document stays as it was before this event, and the host does not go past the event.
    fn apply(&mut self, event: &Recorded<Self::Event>) -> Verdict;
}
