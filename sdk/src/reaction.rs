//! What a user writes for a reaction: events in, messages out. Never: remembers anything.

use crate::{Effects, Event, Recorded, Refusal};

/// A reaction: commands and events because of an event, and of nothing else. It has no state, so it has no steps, timers or
/// end either; what needs one of these is a [`Saga`](crate::Saga).
///
/// ```
/// use millstream_sdk::prelude::*;
/// use millstream_sdk::serde_json::json;
///
/// struct Confirm;
///
/// #[derive(Event)]
/// enum Shop {
///     OrderPlaced { mail: String },
/// }
///
/// impl Reaction for Confirm {
///     const SUBJECTS: &'static [&'static str] = &["orders.>"];
///     const SENDS: &'static [&'static str] = &["mail.send"];
///     type Event = Shop;
///
///     fn react(event: &Recorded<Shop>, effects: &mut Effects) -> Result<(), Refusal> {
///         let Shop::OrderPlaced { mail } = &event.payload;
///         effects.send("mail.send", &json!({ "to": mail, "text": "Thank you." }));
///         Ok(())
///     }
/// }
///
/// export!(reaction Confirm);
/// # fn main() {}
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a reaction",
    label = "`Reaction` is not implemented for `{Self}`",
    note = "write `impl Reaction for {Self}`; a projection is exported with `export!({Self})`, a saga with `export!(saga {Self})`"
)]
pub trait Reaction: 'static {
    /// The handler's name unless a deployment says otherwise. Not set: the name of the crate.
    const NAME: &'static str = "";

    /// The NATS subjects to read, with `*` and `>`, unless a deployment says otherwise.
    const SUBJECTS: &'static [&'static str];

    /// The NATS subjects it may send and publish to, with `*` and `>`. An effect for another subject is refused.
    const SENDS: &'static [&'static str];

    /// The events it reads: an enum with `#[derive(Event)]`, or [`Raw`](crate::Raw).
    type Event: Event;

    /// Reacts to an event.
    ///
    /// # Errors
    /// A refusal: nothing that was asked for is done.
    fn react(event: &Recorded<Self::Event>, effects: &mut Effects) -> Result<(), Refusal>;
}
