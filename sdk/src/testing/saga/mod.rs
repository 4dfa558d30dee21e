//! Scenarios of sagas and reactions, natively: given, when, then, with a clock that the test moves and services that the test
//! plays.
//!
//! Events go through the engine that runs in a module; what the handler asks for is judged and folded by the code that does so
//! in the host. So what a scenario shows is what a deployment does, broker and crashes aside.
//!
//! After each `when`, `reply` or `advance`, all that went in so far goes in again: in whole batches, one by one, with a fresh
//! handler each time, and each event twice. The instances must come out the same to the byte, and so must what is sent.

mod clock;
mod engine;
mod failing;
mod replay;
mod then;
mod varying;

use core::time::Duration;

use millstream_saga::{Instance, Outgoing};
use serde_json::Value;

use super::event::DEFAULT_TIME;
use super::fate::Fate;
use super::{TestEvent, fail};
use crate::guest::{Handler, ReactionOf, SagaOf};
use crate::{Reaction, Saga, log};
use clock::Clock;
use engine::{Host, Input};
pub use replay::{Replayed, replay_saga};

/// A timer that sets itself again at once would fire for ever.
const MOST_ALARMS: usize = 10_000;

/// A saga in the middle of its story. Each assertion fails at the line that calls it.
pub struct Scenario<H: Handler> {
    host: Host<H>,
    clock: Clock,
    inputs: Vec<Input>,
    events: u64,
    /// All that was sent so far.
    sent: Vec<Sent>,
    /// How much of it was sent before the last action.
    before: usize,
    /// What became of the events of the last action.
    fates: Vec<(String, Fate)>,
    logged: Vec<String>,
    expected_refusal: bool,
}

/// A message that a saga sent.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Sent {
    /// Its type.
    pub name: String,
    /// Where to.
    pub subject: String,
    /// What it says.
    pub payload: Value,
    /// The instance that sent it.
    pub key: String,
    /// The step that it belongs to, if somebody waits for an answer.
    pub step: Option<String>,
    /// From 1; more where nobody answered in time.
    pub attempt: u32,
    /// It is a command, not an event.
    pub command: bool,
    /// Its id: the causation id of the answer.
    pub id: String,
    /// Its correlation id.
    pub correlation: String,
}

/// Begins a scenario of a saga.
///
/// ```
/// use millstream_sdk::prelude::*;
/// use millstream_sdk::testing::{event, json, saga};
///
/// #[derive(Default, Serialize, Deserialize)]
/// struct Payment {}
///
/// #[derive(Event)]
/// enum Shop {
///     OrderPlaced { order: String },
///     Paid { order: String },
///     Declined { order: String },
/// }
///
/// impl Saga for Payment {
///     const SUBJECTS: &'static [&'static str] = &["orders.>"];
///     const SENDS: &'static [&'static str] = &["commands.*"];
///     const LATE: Late = Late::Ignore;
///     type Event = Shop;
///     fn correlate(event: &Recorded<Shop>) -> Keys<'_> {
///         let (Shop::OrderPlaced { order } | Shop::Paid { order } | Shop::Declined { order }) = &event.payload;
///         Keys::one(order)
///     }
///     fn starts(event: &Recorded<Shop>) -> bool {
///         matches!(event.payload, Shop::OrderPlaced { .. })
///     }
///     fn react(&mut self, event: &Recorded<Shop>, effects: &mut Effects) -> Result<(), Refusal> {
///         match &event.payload {
///             Shop::OrderPlaced { order } => {
///                 let pay = effects.send("commands.Pay", &json!({ "order": order })).step("pay");
///                 pay.within(minutes(5)).retry(1, seconds(10)).undo("commands.Refund", &json!({ "order": order }));
///             }
///             Shop::Paid { .. } => effects.complete(),
///             Shop::Declined { .. } => {
///                 effects.reject("pay", "declined");
///                 effects.compensate("declined");
///             }
///         }
///         Ok(())
///     }
/// }
///
/// let placed = || event("OrderPlaced", json!({ "order": "o-1" }));
/// let paid = || event("Paid", json!({ "order": "o-1" }));
///
/// saga::<Payment>()
///     .when(placed())
///     .then_commands(["Pay"])
///     .then_sent("Pay", &json!({ "order": "o-1" }))
///     .reply("pay", paid())
///     .then_status("o-1", "completed");
///
/// // Nobody answers: asked once more, then taken back, for it may have been carried out.
/// saga::<Payment>()
///     .given([placed()])
///     .advance(minutes(11))
///     .then_commands(["Pay", "Refund"])
///     .reply("pay", paid())
///     .then_steps("o-1", [("pay", "undone")])
///     .then_status("o-1", "compensated");
///
/// let declined = || event("Declined", json!({ "order": "o-1" }));
/// saga::<Payment>().for_each_failing_step(placed(), |_| paid(), |_| declined(), |step, story| {
///     assert_eq!(step, "pay");
///     story.then_status("o-1", "compensated").then_commands(["Pay"]);
/// });
/// ```
#[must_use = "a scenario goes on with `.when(event)`"]
pub fn saga<S: Saga>() -> Scenario<SagaOf<S>> {
    Scenario::new()
}

/// Begins a scenario of a reaction.
#[must_use = "a scenario goes on with `.when(event)`"]
pub fn reaction<R: Reaction>() -> Scenario<ReactionOf<R>> {
    Scenario::new()
}

impl<H: Handler> Scenario<H> {
    fn new() -> Self {
        Self {
            host: Host::new(),
            clock: Clock::default(),
            inputs: Vec::new(),
            events: 0,
            sent: Vec::new(),
            before: 0,
            fates: Vec::new(),
            logged: Vec::new(),
            expected_refusal: false,
        }
    }

    /// What happened before. What is sent because of it is not asserted.
    ///
    /// # Panics
    /// If one of the events is not accepted.
    #[track_caller]
    pub fn given(mut self, events: impl IntoIterator<Item = TestEvent>) -> Self {
        self.begin();
        for event in events {
            self.deliver(event);
        }
        self.accepted_or_fail("given");
        self.before = self.sent.len();
        self
    }

    /// An event happens: at the time that it says, or else now. Timers that are due before it fire first.
    ///
    /// # Panics
    /// If an event before it was not accepted, or the result depends on batches, restarts or duplicates.
    #[track_caller]
    pub fn when(mut self, event: TestEvent) -> Self {
        self.begin();
        self.deliver(event);
        self.check_variations();
        self
    }

    /// A service answers the last command of this step, or its undo: the event gets the command's id as its causation id.
    ///
    /// # Panics
    /// As [`when`](Self::when), and if no such command was sent.
    #[track_caller]
    pub fn reply(mut self, step: &str, event: TestEvent) -> Self {
        self.begin();
        let now = self.clock.now().unwrap_or(DEFAULT_TIME);
        let keys = engine::keys::<H>(&event.clone().settled(self.events + 1, now));
        let of_step = |sent: &&Sent| sent.step.as_deref() == Some(step);
        let mut commands = self.sent.iter().rev().filter(of_step);
        match commands.find(|sent| keys.contains(&sent.key)) {
            Some(Sent { id, correlation, .. }) => {
                let answer = event.answering(id, correlation);
                self.deliver(answer);
            }
            None => fail(format_args!(
                "no command of step `{step}` was sent for {}, but:\n{}",
                keys.iter().map(|key| format!("`{key}`")).collect::<Vec<_>>().join(", "),
                listing(&self.sent)
            )),
        }
        self.check_variations();
        self
    }

    /// Time passes, and what is due fires in its order: timers, deadlines, waits before a retry.
    ///
    /// # Panics
    /// As [`when`](Self::when).
    #[track_caller]
    pub fn advance(mut self, duration: Duration) -> Self {
        self.begin();
        let now = self.clock.now().unwrap_or(DEFAULT_TIME);
        self.advance_to(now.saturating_add(i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)));
        self.check_variations();
        self
    }

    /// What the last action sent, in order.
    #[must_use]
    pub fn last_sent(&self) -> &[Sent] {
        self.sent.get(self.before..).unwrap_or_default()
    }

    /// Begins an action; what was refused before must have been expected.
    #[track_caller]
    fn begin(&mut self) {
        if !self.expected_refusal {
            self.accepted_or_fail("an earlier");
        }
        self.expected_refusal = false;
        self.before = self.sent.len();
        self.fates.clear();
        self.logged.clear();
    }

    #[track_caller]
    fn accepted_or_fail(&self, which: &str) {
        for (event, fate) in &self.fates {
            if let Some(problem) = fate.problem() {
                fail(format_args!("{which} event {event} {problem}"));
            }
        }
    }

    /// Hands an event over, after all that is due before it.
    #[track_caller]
    fn deliver(&mut self, event: TestEvent) {
        self.events += 1;
        let event = event.settled(self.events, self.clock.now().unwrap_or(DEFAULT_TIME));
        self.fire_until(event.time().saturating_sub(1));
        self.clock.move_to(event.time());
        let host = &mut self.host;
        let (mut fates, mut logged) = log::capture(|| host.batch(std::slice::from_ref(&event)));
        let label = format!("`{}` ({})", event.event_type(), event.event_id());
        self.fates.extend(fates.drain(..).map(|fate| (label.clone(), fate)));
        self.logged.append(&mut logged);
        self.inputs.push(Input::Event(event));
        self.take_out();
        let now = self.clock.now().unwrap_or(DEFAULT_TIME);
        self.fire_until(now);
    }

    #[track_caller]
    fn advance_to(&mut self, time: i64) {
        self.fire_until(time);
        self.clock.move_to(time);
    }

    #[track_caller]
    fn fire_until(&mut self, time: i64) {
        for _ in 0..MOST_ALARMS {
            let Some(alarm) = self.clock.fire(time) else { return };
            let timer = TestEvent::timer(&alarm.id, alarm.due, alarm.body.clone());
            let timer = timer.answering(&alarm.causation, &alarm.correlation);
            let host = &mut self.host;
            let (fate, mut logged) = log::capture(|| host.due(&timer, &alarm.body));
            self.fates.push((format!("timer {}", String::from_utf8_lossy(&alarm.body)), fate));
            self.logged.append(&mut logged);
            self.inputs.push(Input::Due(timer, alarm.body));
            self.take_out();
        }
        fail(format_args!("{MOST_ALARMS} timers fired, and there are still more: does one set itself again at once?"));
    }

    /// Does what is to be done: messages are noted, timers set.
    fn take_out(&mut self) {
        for outgoing in self.host.out.drain(..) {
            self.clock.note(&outgoing);
            if let Outgoing::Message(message) = outgoing
                && !self.sent.iter().any(|sent| sent.id == message.id)
            {
                self.sent.push(Sent {
                    name: message.event_type,
                    subject: message.subject,
                    payload: super::value(&message.payload),
                    key: message.key,
                    step: message.step,
                    attempt: message.attempt,
                    command: message.command,
                    id: message.id,
                    correlation: message.correlation,
                });
            }
        }
    }
}

fn listing(sent: &[Sent]) -> String {
    if sent.is_empty() {
        return String::from("  nothing was sent\n");
    }
    let line = |sent: &Sent| {
        let step = sent.step.as_ref().map_or_else(String::new, |step| format!(" of step `{step}`"));
        format!("  `{}`{step} of `{}`: {}\n", sent.name, sent.key, sent.payload)
    };
    sent.iter().map(line).collect()
}

fn history(instance: &Instance) -> String {
    let line = |transition: &millstream_saga::instance::Transition| {
        format!("  {} `{}` ({}): {}\n", transition.at, transition.event_type, transition.event, transition.did)
    };
    instance.history.iter().map(line).collect()
}
