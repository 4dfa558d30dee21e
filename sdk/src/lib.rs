//! Write Millstream handlers as plain Rust types. There are three kinds:
//!
//! - a [`Projection`] folds events into documents that others read;
//! - a [`Saga`] reacts to events over time, with a state of its own: it sends commands, waits for their answers, sets timers,
//!   and has what was done taken back when it cannot go on;
//! - a [`Reaction`] sends commands and events because of one event, and remembers nothing.
//!
//! A handler is pure: it sees events and its own documents, and nothing else. What it wants done it asks for ([`Effects`]); the
//! host does it once the event is decided. What happens to an event of a projection, step by step:
//!
//! 1. [`Event::decode`] makes a typed event of event type and payload, or says that it is irrelevant ([`event`]).
//! 2. [`Projection::key`] says which documents it touches ([`Keys`]). The same key twice counts once.
//! 3. [`Projection::apply`] folds it into each of them and answers with a [`Verdict`]: keep, delete or refuse. Units of one
//!    key are handled in stream order, always; a refused unit leaves the document as it was.
//! 4. Changed documents go back to the host as JSON, and only if their bytes differ.
//!
//! ```
//! use millstream_sdk::prelude::*;
//!
//! #[derive(Default, Serialize, Deserialize)]
//! struct CustomerSpend {
//!     orders: u64,
//!     cents: u64,
//! }
//!
//! #[derive(Event)]
//! enum Shop {
//!     OrderPlaced { customer: String, cents: u64 },
//!     OrderCancelled { customer: String, cents: u64 },
//! }
//!
//! impl Projection for CustomerSpend {
//!     const SUBJECTS: &'static [&'static str] = &["orders.>"];
//!     type Event = Shop;
//!
//!     fn key(event: &Recorded<Shop>) -> Keys<'_> {
//!         match &event.payload {
//!             Shop::OrderPlaced { customer, .. } | Shop::OrderCancelled { customer, .. } => Keys::one(customer),
//!         }
//!     }
//!
//!     fn apply(&mut self, event: &Recorded<Shop>) -> Verdict {
//!         match &event.payload {
//!             Shop::OrderPlaced { cents, .. } => {
//!                 self.orders += 1;
//!                 self.cents += cents;
//!             }
//!             Shop::OrderCancelled { cents, .. } => {
//!                 let Some(left) = self.cents.checked_sub(*cents) else {
//!                     return refuse("cancels more than was ordered");
//!                 };
//!                 self.orders -= 1;
//!                 self.cents = left;
//!             }
//!         }
//!         keep()
//!     }
//! }
//!
//! export!(CustomerSpend);
//! # fn main() {}
//! ```
//!
//! Build it with `crate-type = ["cdylib", "rlib"]` for `wasm32-unknown-unknown`. Its tests run natively, without a broker
//! and without WASM: see [`testing`].
//!
//! A saga's steps are the same but for the names: [`Saga::correlate`] says which instances an event belongs to,
//! [`Saga::starts`] whether it may begin one, and [`Saga::react`] changes the state and asks. A timer that fires comes to
//! [`Saga::wake`].
//!
//! The rest of the house: [`contract`] is generated from `wit/handler.wit`, `export!` ties a handler to it, and `guest` is
//! the engine inside a module, the same natively and in the sandbox.

// Generated code says `::millstream_sdk`, also inside this crate.
extern crate self as millstream_sdk;

pub mod contract;
mod duration;
pub mod effects;
pub mod event;
#[doc(hidden)]
pub mod guest;
mod keys;
pub mod log;
mod module;
pub mod prelude;
mod projection;
mod reaction;
mod recorded;
mod saga;
#[cfg(not(target_arch = "wasm32"))]
pub mod testing;
mod timer;
mod verdict;

pub use duration::{days, hours, minutes, seconds};
pub use effects::Effects;
pub use event::{DecodeError, Event, Raw};
pub use keys::Keys;
pub use projection::Projection;
pub use reaction::Reaction;
pub use recorded::Recorded;
pub use saga::{Late, Saga};
pub use timer::Timer;
pub use verdict::{Refusal, Then, Verdict, delete, keep, refuse};

pub use serde;
pub use serde_json;

#[doc(hidden)]
pub use module::private;
