//! Sagas and reactions in the same engine: effects per route, timers, and what the host is told.

use millstream_sdk::contract::{Batch, Kind, Outcome};
use millstream_sdk::guest::{Handler, ReactionOf, Runtime, SagaOf};
use millstream_sdk::prelude::*;
use serde_json::{Value, json};

use crate::tally::{batch, changes, documents, keys, refusals, text};

/// Counts the events of a key; what it asks for depends on the event type alone.
#[derive(Default, Serialize, Deserialize)]
struct Counter {
    count: u32,
}

#[derive(Event)]
enum Step {
    #[event(name = "start")]
    Start(Vec<String>),
    #[event(name = "go")]
    Go(Vec<String>),
    /// Asks, then refuses.
    #[event(name = "refuse")]
    Refuse(Vec<String>),
    /// Forgets to say how the step is undone.
    #[event(name = "careless")]
    Careless(Vec<String>),
    #[event(name = "millstream.timer")]
    NoTimer(Vec<String>),
}

impl Saga for Counter {
    const NAME: &'static str = "counter";
    const SUBJECTS: &'static [&'static str] = &["steps.>"];
    const SENDS: &'static [&'static str] = &["commands.*"];
    const LATE: Late = Late::Park;
    const STATE_VERSION: u32 = 3;
    type Event = Step;

    fn correlate(event: &Recorded<Step>) -> Keys<'_> {
        match &event.payload {
            Step::Start(keys) | Step::Go(keys) | Step::Refuse(keys) | Step::Careless(keys) | Step::NoTimer(keys) => {
                Keys::many(keys)
            }
        }
    }

    fn starts(event: &Recorded<Step>) -> bool {
        matches!(event.payload, Step::Start(_))
    }

    fn react(&mut self, event: &Recorded<Step>, effects: &mut Effects) -> Result<(), Refusal> {
        self.count += 1;
        effects.send("commands.count", &self.count);
        match &event.payload {
            Step::Start(_) => {
                effects.after(seconds(5), "later").payload(&self.count);
            }
            Step::Go(_) | Step::NoTimer(_) => {}
            Step::Refuse(_) => return refuse("no more"),
            Step::Careless(_) => {
                #[allow(unused_must_use, reason = "the mistake that is tested")]
                {
                    effects.send("commands.pay", &1).step("pay").within(seconds(1));
                }
            }
        }
        Ok(())
    }

    fn wake(&mut self, timer: &Timer, effects: &mut Effects) -> Result<(), Refusal> {
        self.count += timer.payload::<Option<u32>>()?.unwrap_or(100);
        effects.publish("commands.woken", &json!([timer.key(), timer.name(), timer.due(), timer.due_rfc3339()]));
        Ok(())
    }
}

fn timer(payload: &Value) -> Batch {
    let mut fired = batch(&[("millstream.timer", &[])]);
    let mut append = |bytes: &[u8]| {
        let start = u32::try_from(fired.blob.len()).unwrap();
        fired.blob.extend_from_slice(bytes);
        millstream_sdk::contract::Span { start, length: u32::try_from(bytes.len()).unwrap() }
    };
    fired.source = append(b"MILLSTREAM_TIMERS");
    fired.events[0].payload = append(payload.to_string().as_bytes());
    fired.events[0].time = 5_007_000_001;
    fired
}

fn effects(outcome: &Outcome) -> Vec<(u32, Value)> {
    let body = |body| serde_json::from_str(text(&outcome.blob, body)).unwrap();
    outcome.effects.iter().map(|effect| (effect.route, body(effect.body))).collect()
}

fn count(count: u32) -> Value {
    json!({ "send": { "subject": "commands.count", "type": "count", "payload": count } })
}

#[test]
fn effects_name_their_route_and_come_in_the_order_asked() {
    let mut runtime = Runtime::<SagaOf<Counter>>::new();
    let staged = runtime.stage(batch(&[("start", &["a", "b"]), ("go", &["a"])]));
    let starts: Vec<_> = staged.routes.iter().map(|route| (route.key, route.starts)).collect();
    assert_eq!(starts, [(0, true), (1, true), (0, false)]);
    let outcome = runtime.apply(&documents(&[(0, None), (1, Some(r#"{"count":4}"#))]), &[]);
    assert_eq!(changes(&outcome), [(0, 2, r#"{"count":2}"#), (1, 1, r#"{"count":5}"#)]);
    let later = |payload: u32| json!({ "timer": { "name": "later", "after": 5000, "payload": payload } });
    assert_eq!(effects(&outcome), [(0, count(1)), (0, later(1)), (1, count(5)), (1, later(5)), (2, count(2))]);
}

#[test]
fn a_refused_unit_has_no_effects_and_those_before_it_have_theirs_once() {
    for (kind, reason) in [
        ("refuse", "no more"),
        (
            "careless",
            "step `pay` does not say how it is taken back: add `.undo(…)`, or `.irreversible()` if it cannot be",
        ),
    ] {
        let mut runtime = Runtime::<SagaOf<Counter>>::new();
        runtime.stage(batch(&[("go", &["a"]), (kind, &["a", "b"]), ("go", &["a"]), ("go", &["c"])]));
        let outcome = runtime.apply(&documents(&[(0, None), (1, None), (2, None)]), &[]);
        assert_eq!(refusals(&outcome), [(1, reason), (2, reason)]);
        assert_eq!(changes(&outcome), [(0, 0, r#"{"count":1}"#), (2, 4, r#"{"count":1}"#)]);
        assert_eq!(effects(&outcome), [(0, count(1)), (4, count(1))]);
    }
}

#[test]
fn a_fired_timer_wakes_the_instance_that_set_it() {
    let mut runtime = Runtime::<SagaOf<Counter>>::new();
    for (payload, after) in [(json!(7), 11), (json!(null), 104)] {
        let staged = runtime.stage(timer(&json!({ "key": "a", "name": "later", "payload": payload })));
        assert_eq!((keys(&staged)[0].0, staged.routes[0].starts), ("a", false));
        let outcome = runtime.apply(&documents(&[(0, Some(r#"{"count":4}"#))]), &[]);
        assert_eq!(changes(&outcome), [(0, 0, &*json!({ "count": after }).to_string())]);
        let woken = json!(["a", "later", 5_007_000_001_u64, "1970-01-01T00:00:05.007Z"]);
        let publish = json!({ "subject": "commands.woken", "type": "woken", "payload": woken });
        assert_eq!(effects(&outcome), [(0, json!({ "publish": publish }))]);
    }
    let staged = runtime.stage(timer(&json!({ "key": "a", "name": "later", "payload": "seven" })));
    assert!(staged.rejections.is_empty());
    let outcome = runtime.apply(&documents(&[]), &[]);
    let expected =
        "payload of timer `later` does not fit: invalid type: string \"seven\", expected u32 at line 1 column 7";
    assert_eq!(refusals(&outcome), [(0, expected)]);
}

#[test]
fn only_the_timer_stream_has_timers() {
    let mut runtime = Runtime::<SagaOf<Counter>>::new();
    let staged = runtime.stage(batch(&[("millstream.timer", &["x"])]));
    assert_eq!(keys(&staged), [("x", false)]);
    let staged = runtime.stage(timer(&json!({ "key": "a" })));
    let reason = text(&staged.blob, staged.rejections[0].reason);
    assert!(reason.starts_with("not a timer: missing field `name`"), "{reason}");
}

struct Confirm;

impl Reaction for Confirm {
    const SUBJECTS: &'static [&'static str] = &["steps.>"];
    const SENDS: &'static [&'static str] = &["commands.confirm"];
    type Event = Step;

    fn react(event: &Recorded<Step>, effects: &mut Effects) -> Result<(), Refusal> {
        if matches!(event.payload, Step::Refuse(_)) {
            return refuse("no");
        }
        effects.send("commands.confirm", event.id());
        Ok(())
    }
}

#[test]
fn a_reaction_needs_no_document_and_has_none() {
    let mut runtime = Runtime::<ReactionOf<Confirm>>::new();
    for _ in 0..2 {
        let staged = runtime.stage(batch(&[("go", &[]), ("refuse", &[])]));
        assert_eq!(keys(&staged), [("id-1", true), ("id-2", true)]);
        assert!(staged.routes.iter().all(|route| route.starts));
        let outcome = runtime.apply(&documents(&[]), &[]);
        assert_eq!((changes(&outcome), refusals(&outcome)), (vec![], vec![(1, "no")]));
        let send = json!({ "subject": "commands.confirm", "type": "confirm", "payload": "id-1" });
        assert_eq!(effects(&outcome), [(0, json!({ "send": send }))]);
    }
}

#[test]
fn the_host_learns_what_it_must_know_before_a_saga_runs() {
    let saga = SagaOf::<Counter>::describe("crate-name");
    assert_eq!((saga.name.as_str(), saga.kind, saga.state_version), ("counter", Kind::Saga, 3));
    assert_eq!(saga.subjects, ["steps.>"]);
    let extra: Value = serde_json::from_str(&saga.extra).unwrap();
    assert_eq!(
        extra["saga"],
        json!({ "late": "park", "sends": ["commands.*"], "stateless": false, "keep_completed_seconds": 86_400 })
    );
    let reaction = ReactionOf::<Confirm>::describe("crate-name");
    assert_eq!((reaction.name.as_str(), reaction.kind), ("crate-name", Kind::Saga));
    let extra: Value = serde_json::from_str(&reaction.extra).unwrap();
    assert_eq!(
        extra["saga"],
        json!({ "late": "start", "sends": ["commands.confirm"], "stateless": true, "keep_completed_seconds": 0 })
    );
}
