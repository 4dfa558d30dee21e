//! Sagas, the pure part: effects that a handler asks for, folded into its instance. No clock, no network, no randomness:
//! the same code decides in the host and in the test kit of the SDK, so that a test there means something.
//!
//! A [`Unit`] is one event for one instance. Its caller asks, in this order:
//! 1. [`Unit::judge`], or [`Unit::due`] for a timer that comes back: is the handler to see it? What needs no handler (a late
//!    event, the answer to an undo, a deadline) is settled there; nothing changes when the answer is to ask the handler.
//! 2. The handler, if so: its state goes in ([`Reaction::state`]), a state and [`Effect`]s come out.
//! 3. [`Unit::fold`]: the effects are checked all together, then folded.
//!
//! A unit that is refused, at any of these, leaves the instance and what goes out as they were. The same units in the same
//! order give the same instance and the same [`Outgoing`], to the byte, however they are cut into batches.

pub mod effect;
pub mod instance;
pub mod outgoing;

mod again;
mod check;
mod compensation;
mod due;
mod fold;
mod id;
mod judge;
mod refusal;
mod subject;
mod timestamp;
mod unit;

#[cfg(test)]
mod any_order;
#[cfg(test)]
mod trial;

pub use due::{Due, DueVerdict, TIMER_STREAM, TIMER_TYPE, Waiting};
pub use effect::{Effect, Retry, Undo};
pub use id::id;
pub use instance::{Instance, Status};
pub use outgoing::{DEADLINE, Message, Outgoing, RETRY};
pub use refusal::Refusal;
pub use subject::{is_subject, subject_matches};
pub use timestamp::rfc3339;
pub use unit::{Cause, Late, NAME_BYTES, Reaction, Rules, Unit, Verdict};
