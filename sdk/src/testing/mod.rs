//! Given, when, then: tests of a handler, natively, without a broker and without WASM.
//!
//! ```
//! use millstream_sdk::prelude::*;
//! use millstream_sdk::testing::{event, given, json};
//!
//! #[derive(Default, Serialize, Deserialize)]
//! struct CustomerSpend {
//!     cents: u64,
//! }
//!
//! #[derive(Event)]
//! enum Shop {
//!     OrderPlaced { customer: String, cents: u64 },
//! }
//!
//! impl Projection for CustomerSpend {
//!     const SUBJECTS: &'static [&'static str] = &["orders.>"];
//!     type Event = Shop;
//!     fn key(event: &Recorded<Shop>) -> Keys<'_> {
//!         let Shop::OrderPlaced { customer, .. } = &event.payload;
//!         Keys::one(customer)
//!     }
//!     fn apply(&mut self, event: &Recorded<Shop>) -> Verdict {
//!         let Shop::OrderPlaced { cents, .. } = &event.payload;
//!         if *cents == 0 {
//!             return refuse("an order for nothing");
//!         }
//!         self.cents += cents;
//!         keep()
//!     }
//! }
//!
//! let placed = |cents: u64| event("OrderPlaced", json!({ "customer": "C42", "cents": cents }));
//!
//! given::<CustomerSpend>([placed(1200)])
//!     .when(placed(300).at("2026-01-01T00:00:00Z"))
//!     .then_document("C42", &CustomerSpend { cents: 1500 })
//!     .then_no_document("C43");
//!
//! given::<CustomerSpend>([placed(1200)]).when(placed(0)).then_refused("for nothing").then_untouched();
//! given::<CustomerSpend>([]).when(event("OrderPlaced", json!({}))).then_rejected("missing field `customer`");
//! given::<CustomerSpend>([]).when(event("OrderShipped", json!({}))).then_irrelevant();
//! ```
//!
//! Sagas and reactions have scenarios of their own, with a clock to move and services to play: see [`fn@saga`].
//!
//! Events and documents go through the engine that runs in a module, as JSON. Each scenario also runs with other batch sizes,
//! and with documents read back for every batch; the results must be the same to the byte. That finds a `HashMap` whose order
//! varies, and fields that serde skips.

mod event;
mod fate;
mod host;
mod replay;
mod saga;

use std::collections::BTreeMap;
use std::fmt::Display;
use std::marker::PhantomData;

use serde::Serialize;
use serde_json::Value;
use similar::{ChangeTag, TextDiff};

pub use event::{TestEvent, event, event_line};
pub use replay::replay;
pub use saga::{Replayed, Scenario, Sent, reaction, replay_saga, saga};
pub use serde_json::json;

use crate::{Projection, log};
use fate::Fate;
use host::{Batches, Run};

/// A scenario's past: events that were applied before. A test fails if one of them is rejected or refused.
#[must_use = "a scenario goes on with `.when(event)`"]
pub struct Given<P> {
    events: Vec<TestEvent>,
    projection: PhantomData<fn() -> P>,
}

/// Begins a scenario with what happened before, in stream order. `given::<P>([])`: nothing did.
pub fn given<P: Projection>(events: impl IntoIterator<Item = TestEvent>) -> Given<P> {
    Given { events: events.into_iter().collect(), projection: PhantomData }
}

impl<P: Projection> Given<P> {
    /// The event that the scenario is about.
    ///
    /// # Panics
    /// If an earlier event was not accepted, or the result depends on how events are batched.
    #[track_caller]
    pub fn when(self, event: TestEvent) -> Then {
        let mut events = self.events;
        let past = events.len();
        events.push(event);

        let (run, logged) = log::capture(|| host::run::<P>(&events, Batches::LastAlone));
        for (number, (event, fate)) in events.iter().zip(&run.fates).take(past).enumerate() {
            if let Some(problem) = fate.problem() {
                fail(format_args!("given event {} (`{}`) {problem}", number + 1, event.event_type()));
            }
        }
        for batches in [Batches::One, Batches::OnePerEvent, Batches::OnePerEventUncached] {
            let (other, _) = log::capture(|| host::run::<P>(&events, batches));
            same_or_fail(&run, batches, &other);
        }

        let (before, _) = log::capture(|| host::run::<P>(events.get(..past).unwrap_or(&[]), Batches::One));
        Then {
            before: before.documents,
            documents: run.documents,
            fate: run.fates.into_iter().next_back().unwrap_or(Fate::Irrelevant),
            logged,
        }
    }
}

/// A scenario's result. Each assertion fails at the line that calls it.
pub struct Then {
    before: BTreeMap<String, Vec<u8>>,
    documents: BTreeMap<String, Vec<u8>>,
    fate: Fate,
    logged: Vec<String>,
}

impl Then {
    /// The key has this document: the type itself, or `&json!({…})`. The order of JSON fields does not matter.
    ///
    /// # Panics
    /// If there is none, or it differs.
    #[track_caller]
    pub fn then_document(self, key: &str, expected: &impl Serialize) -> Self {
        let Some(document) = self.documents.get(key) else {
            fail(format_args!("there is no document `{key}`{}{}", self.keys(), self.last_problem()));
        };
        let expected = match serde_json::to_value(expected) {
            Ok(expected) => expected,
            Err(error) => fail(format_args!("the expected document is not JSON: {error}")),
        };
        let actual = value(document);
        if actual != expected {
            fail(format_args!(
                "document `{key}` differs (- expected, + actual){}:\n{}",
                self.last_problem(),
                difference(&pretty(&expected), &pretty(&actual))
            ));
        }
        self
    }

    /// The key has no document.
    ///
    /// # Panics
    /// If it has one.
    #[track_caller]
    pub fn then_no_document(self, key: &str) -> Self {
        if let Some(document) = self.documents.get(key) {
            fail(format_args!("there is a document `{key}`:\n{}", pretty(&value(document))));
        }
        self
    }

    /// `apply` refused the event for at least one of its keys, for a reason that contains this.
    ///
    /// # Panics
    /// If it did not, or for another reason.
    #[track_caller]
    pub fn then_refused(self, part: &str) -> Self {
        if !self.fate.refusals().any(|reason| reason.contains(part)) {
            fail(format_args!("expected a refusal with `{part}`, but the event {}", self.fate));
        }
        self
    }

    /// The event could not be decoded or gave no proper key, for a reason that contains this.
    ///
    /// # Panics
    /// If it could, or for another reason.
    #[track_caller]
    pub fn then_rejected(self, part: &str) -> Self {
        match &self.fate {
            Fate::Rejected(reason) if reason.contains(part) => self,
            fate => fail(format_args!("expected a rejection with `{part}`, but the event {fate}")),
        }
    }

    /// The event touches no key: another event type, or `Keys::none()`.
    ///
    /// # Panics
    /// If it touches one, or was rejected.
    #[track_caller]
    pub fn then_irrelevant(self) -> Self {
        match &self.fate {
            Fate::Irrelevant => self,
            fate => fail(format_args!("expected an irrelevant event, but it {fate}")),
        }
    }

    /// Every document is, byte for byte, what it was before the event.
    ///
    /// # Panics
    /// If one differs.
    #[track_caller]
    pub fn then_untouched(self) -> Self {
        if self.documents != self.before {
            fail(format_args!(
                "expected no document to change (- before, + after):\n{}",
                difference(&listing(&self.before), &listing(&self.documents))
            ));
        }
        self
    }

    /// The handler logged a line that contains this, in this scenario; lines begin with their level, as `Info: …`.
    ///
    /// # Panics
    /// If it did not.
    #[track_caller]
    pub fn then_logged(self, part: &str) -> Self {
        logged_or_fail(&self.logged, part);
        self
    }

    fn keys(&self) -> String {
        match self.documents.keys().take(10).map(|key| format!("`{key}`")).collect::<Vec<_>>() {
            keys if keys.is_empty() => String::from(" (there are none at all)"),
            keys => format!(" (there are {})", keys.join(", ")),
        }
    }

    fn last_problem(&self) -> String {
        self.fate.problem().map_or_else(String::new, |problem| format!("; the event {problem}"))
    }
}

#[track_caller]
fn same_or_fail(run: &Run, batches: Batches, other: &Run) {
    if run.documents != other.documents || run.fates != other.fates {
        fail(format_args!(
            "the result depends on how events are batched; {batches} differs (-, +):\n{}\
             hint: a HashMap, a field that serde skips, or state outside the document",
            difference(&run.to_string(), &other.to_string())
        ));
    }
}

#[track_caller]
fn logged_or_fail(logged: &[String], part: &str) {
    if !logged.iter().any(|line| line.contains(part)) {
        fail(format_args!("expected a line with `{part}` in the log:\n{}", logged.join("\n")));
    }
}

#[track_caller]
#[allow(clippy::panic, reason = "a test kit reports by panicking")]
fn fail(message: impl Display) -> ! {
    panic!("{message}")
}

fn value(document: &[u8]) -> Value {
    serde_json::from_slice(document).unwrap_or_default()
}

fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}

fn listing(documents: &BTreeMap<String, Vec<u8>>) -> String {
    documents.iter().map(|(key, document)| format!("{key}: {}\n", String::from_utf8_lossy(document))).collect()
}

fn difference(before: &str, after: &str) -> String {
    TextDiff::from_lines(before, after)
        .iter_all_changes()
        .map(|change| {
            let sign = match change.tag() {
                ChangeTag::Delete => '-',
                ChangeTag::Insert => '+',
                ChangeTag::Equal => ' ',
            };
            format!("  {sign} {change}")
        })
        .collect()
}
