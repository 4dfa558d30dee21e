//! What a user writes for a saga: events and timers in, a state and effects out. Never: does what it asks for.

use serde::{Serialize, de::DeserializeOwned};

use crate::{Effects, Event, Keys, Recorded, Refusal, Timer};

/// A saga: one instance per key, which sees events, remembers what it needs, and asks for effects. The type is its state,
/// written as JSON; the host keeps steps, timers and status beside it.
///
/// Like a projection it is pure: what happens follows from state and event alone. There is no `send` that sends; what is
/// asked for is done by the host after the event was decided, once, also when hosts die.
///
/// ```
/// use millstream_sdk::prelude::*;
/// use millstream_sdk::serde_json::json;
///
/// #[derive(Default, Serialize, Deserialize)]
/// struct Fulfilment {
///     cents: u64,
/// }
///
/// #[derive(Event)]
/// enum Shop {
///     OrderPlaced { order: String, cents: u64 },
///     PaymentTaken { order: String },
///     PaymentRefused { order: String, reason: String },
/// }
///
/// impl Saga for Fulfilment {
///     const SUBJECTS: &'static [&'static str] = &["orders.>", "payments.>"];
///     const SENDS: &'static [&'static str] = &["payment-commands.*", "warehouse.ship"];
///     const LATE: Late = Late::Ignore;
///     type Event = Shop;
///
///     fn correlate(event: &Recorded<Shop>) -> Keys<'_> {
///         match &event.payload {
///             Shop::OrderPlaced { order, .. }
///             | Shop::PaymentTaken { order }
///             | Shop::PaymentRefused { order, .. } => Keys::one(order),
///         }
///     }
///
///     fn starts(event: &Recorded<Shop>) -> bool {
///         matches!(event.payload, Shop::OrderPlaced { .. })
///     }
///
///     fn react(&mut self, event: &Recorded<Shop>, effects: &mut Effects) -> Result<(), Refusal> {
///         match &event.payload {
///             Shop::OrderPlaced { order, cents } => {
///                 self.cents = *cents;
///                 effects
///                     .send("payment-commands.take", &json!({ "order": order, "cents": cents }))
///                     .step("payment")
///                     .within(minutes(5))
///                     .undo("payment-commands.refund", &json!({ "order": order }));
///             }
///             Shop::PaymentTaken { order } => {
///                 effects.send("warehouse.ship", &json!({ "order": order }));
///                 effects.complete();
///             }
///             Shop::PaymentRefused { reason, .. } => {
///                 effects.reject("payment", reason);
///                 effects.compensate(reason);
///             }
///         }
///         Ok(())
///     }
/// }
///
/// export!(saga Fulfilment);
/// # fn main() {}
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a saga",
    label = "`Saga` is not implemented for `{Self}`",
    note = "write `impl Saga for {Self}`; a projection is exported with `export!({Self})`, a reaction with `export!(reaction {Self})`"
)]
pub trait Saga: Default + Serialize + DeserializeOwned + 'static {
    /// The handler's name unless a deployment says otherwise; also the name of its bucket. Not set: the name of the crate.
    const NAME: &'static str = "";

    /// The NATS subjects to read, with `*` and `>`, unless a deployment says otherwise. The answers of services are among them.
    const SUBJECTS: &'static [&'static str];

    /// The NATS subjects it may send and publish to, with `*` and `>`. An effect for another subject is refused.
    const SENDS: &'static [&'static str];

    /// What becomes of an event for an instance that is over, or was never begun.
    const LATE: Late;

    /// The version of the state's shape. Raise it when old instances must not be carried on.
    const STATE_VERSION: u32 = 1;

    /// How much memory may hold states between batches, in bytes, approximately. `0` keeps none.
    const CACHE_BYTES: usize = 32 << 20;

    /// How long an instance that is over is remembered: so long a late event meets [`LATE`](Self::LATE) knowingly.
    const KEEP_COMPLETED_SECONDS: u64 = 86_400;

    /// The events it reads: an enum with `#[derive(Event)]`, or [`Raw`](crate::Raw).
    type Event: Event;

    /// The instances that an event belongs to. Answers are found by it too, those to an undo included: they need a variant in
    /// the event type, and name their instance by a field, their aggregate id or their correlation id.
    fn correlate(event: &Recorded<Self::Event>) -> Keys<'_>;

    /// Whether the event begins an instance where there is none.
    fn starts(event: &Recorded<Self::Event>) -> bool;

    /// Reacts to an event. A new instance starts from `Default`.
    ///
    /// An event whose causation id is the id of a step's command has confirmed the step before this is called.
    ///
    /// # Errors
    /// A refusal: the state stays as it was before this event, and nothing that was asked for is done.
    fn react(&mut self, event: &Recorded<Self::Event>, effects: &mut Effects) -> Result<(), Refusal>;

    /// Reacts to a timer that it set.
    ///
    /// # Errors
    /// A refusal, as in [`react`](Self::react). A saga that sets timers says what they are for: the default refuses.
    fn wake(&mut self, timer: &Timer, effects: &mut Effects) -> Result<(), Refusal> {
        let _ = effects;
        Err(Refusal::new(format_args!("no use for timer `{}`: the saga has no `wake`", timer.name())))
    }
}

/// What becomes of an event that comes for an instance which is over, or which was never begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Late {
    /// It begins a new instance, whatever `starts` says.
    Start,
    /// It is counted, and noted in the instance if there is one.
    Ignore,
    /// It is refused, so that the handler stops at it and somebody looks.
    Park,
}

impl Late {
    /// As the host reads it.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Ignore => "ignore",
            Self::Park => "park",
        }
    }
}
