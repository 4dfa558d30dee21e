//! Scenarios of sagas and reactions.

use std::collections::HashMap;

use millstream_sdk::prelude::*;
use millstream_sdk::testing::{TestEvent, event, json, reaction, saga};

use crate::failure;

/// What it does depends on the event type alone.
#[derive(Default, Serialize, Deserialize)]
struct Shop {
    events: u32,
}

#[derive(Event)]
enum Step {
    Begin,
    Pay,
    Paid,
    Declined,
    /// Declined, but the saga does not care.
    Shrugged,
    Remind,
    Again,
    Publish,
    Refuse,
    Undeclared,
    Restless,
    End,
}

impl Saga for Shop {
    const SUBJECTS: &'static [&'static str] = &["orders.>"];
    const SENDS: &'static [&'static str] = &["commands.*"];
    const LATE: Late = Late::Ignore;
    type Event = Step;

    fn correlate(event: &Recorded<Step>) -> Keys<'_> {
        Keys::one(event.aggregate_id())
    }

    fn starts(event: &Recorded<Step>) -> bool {
        matches!(event.payload, Step::Begin)
    }

    fn react(&mut self, event: &Recorded<Step>, effects: &mut Effects) -> Result<(), Refusal> {
        self.events += 1;
        log::info(event.id());
        match &event.payload {
            Step::Begin | Step::Pay => {
                let pay = effects.send("commands.Pay", &self.events).step("pay");
                pay.within(seconds(10)).undo("commands.Refund", &self.events);
            }
            Step::Paid | Step::Shrugged => {}
            Step::Declined => {
                effects.reject("pay", "declined");
                effects.compensate("declined");
            }
            Step::Remind => {
                effects.after(hours(1), "remind").payload("now");
            }
            Step::Again => {
                effects.after(minutes(10), "again");
            }
            Step::Publish => {
                effects.publish("commands.Said", "so");
            }
            Step::Refuse => return refuse("not that"),
            Step::Undeclared => {
                effects.send("elsewhere", &1);
            }
            Step::Restless => {
                effects.after(seconds(0), "restless");
            }
            Step::End => effects.complete(),
        }
        Ok(())
    }

    fn wake(&mut self, timer: &Timer, effects: &mut Effects) -> Result<(), Refusal> {
        match timer.name() {
            "remind" => {
                effects.send("commands.Remind", &json!([timer.payload::<String>()?, timer.due_rfc3339()]));
            }
            "again" => {
                effects.send("commands.Again", &timer.due_rfc3339());
                effects.after(minutes(10), "again");
            }
            _ => {
                effects.after(seconds(0), "restless");
            }
        }
        Ok(())
    }
}

fn of(event_type: &str) -> TestEvent {
    event(event_type, json!(null)).aggregate("a")
}

/// A scenario that fails, the line that asks, and what is said.
const FAILING: [(fn(), u32, &str); 18] = [
    (|| drop(saga::<Shop>().when(of("Begin")).then_commands(["Pay", "Ship"])), line!(), "    Pay\n  - Ship\n"),
    (|| drop(saga::<Shop>().when(of("Begin")).then_commands([])), line!(), "commands of the last action differ"),
    (|| drop(saga::<Shop>().when(of("Begin")).then_published(["X"])), line!(), "the events of the last action differ"),
    (|| drop(saga::<Shop>().when(of("Begin")).then_sent("Pay", &7)), line!(), "  - 7\n  + 1\n"),
    (
        || drop(saga::<Shop>().when(of("Begin")).then_sent("Ship", &7)),
        line!(),
        "no `Ship` was sent, but:\n  `Pay` of step `pay` of `a`: 1",
    ),
    (
        || drop(saga::<Shop>().when(of("Begin")).then_state("a", &json!({ "events": 2 }))),
        line!(),
        "-   \"events\": 2\n  +   \"events\": 1",
    ),
    (
        || drop(saga::<Shop>().when(of("Begin")).then_state("b", &json!(1))),
        line!(),
        "there is no instance `b` (there are `a`)",
    ),
    (
        || drop(saga::<Shop>().when(of("Begin")).then_status("a", "completed")),
        line!(),
        "`a` is running, not completed; its history:\n  2026-01-01T00:00:00.000Z `Begin`",
    ),
    (
        || drop(saga::<Shop>().when(of("Begin")).then_steps("a", [("pay", "kept")])),
        line!(),
        "  - pay: kept\n  + pay: sent",
    ),
    (|| drop(saga::<Shop>().when(of("Begin")).then_timers("a", ["t"])), line!(), "`a` has the timers [], not [\"t\"]"),
    (|| drop(saga::<Shop>().when(of("Begin")).then_no_instance("a")), line!(), "there is an instance `a`, running"),
    (
        || drop(saga::<Shop>().when(of("Begin")).then_refused("")),
        line!(),
        "expected a refusal with ``, but\n  `Begin` (EVENTS:1) was applied to `a`",
    ),
    (|| drop(saga::<Shop>().when(of("Begin")).then_rejected("")), line!(), "expected a rejection with ``"),
    (|| drop(saga::<Shop>().when(of("Begin")).then_ignored()), line!(), "expected that nobody sees the event"),
    (
        || drop(saga::<Shop>().when(of("Begin")).then_logged("x")),
        line!(),
        "expected a line with `x` in the log:\nInfo: EVENTS:1",
    ),
    (
        || drop(saga::<Shop>().when(of("Begin")).reply("ship", of("Paid"))),
        line!(),
        "no command of step `ship` was sent for `a`, but:\n  `Pay` of step `pay`",
    ),
    (
        || drop(saga::<Shop>().given([of("Begin"), of("Refuse")])),
        line!(),
        "given event `Refuse` (EVENTS:2) was refused for `a`: not that",
    ),
    (
        || drop(saga::<Shop>().given([of("Begin")]).when(of("Refuse")).advance(hours(1))),
        line!(),
        "an earlier event `Refuse` (EVENTS:2) was refused",
    ),
];

#[test]
fn a_failed_assertion_fails_at_the_line_that_asked() {
    for (ask, line, expected) in FAILING {
        let (message, file, failed) = failure(ask);
        assert!(message.contains(expected), "{message}");
        // The formatter may put a case on up to five lines.
        assert!(file == file!() && (line - 4..=line).contains(&failed), "{file}:{failed}, not {line}: {message}");
    }
}

#[test]
fn what_a_saga_asks_for_is_judged_as_in_the_host() {
    saga::<Shop>().given([of("Begin")]).when(of("Undeclared")).then_refused("not among those the handler declares");
    saga::<Shop>().given([of("Begin")]).when(of("Pay")).then_refused("step `pay` is still waiting");
    saga::<Shop>().when(of("Paid")).then_ignored().then_no_instance("a");
    saga::<Shop>().given([of("Begin"), of("End")]).when(of("Begin")).then_ignored().then_commands([]);
    saga::<Shop>().given([of("Begin").id("e-1")]).when(of("Begin").id("e-1")).then_ignored().then_commands([]);
    saga::<Shop>()
        .given([of("Begin")])
        .when(of("Refuse"))
        .then_refused("not that")
        .then_commands([])
        .then_state("a", &json!({ "events": 1 }))
        .when(of("Publish"))
        .then_published([]);
}

#[test]
fn timers_and_deadlines_fire_in_the_order_in_which_they_are_due() {
    saga::<Shop>()
        .given([of("Begin"), of("Remind"), of("Again")])
        .reply("pay", of("Paid"))
        .advance(minutes(65))
        .then_commands(["Again", "Again", "Again", "Again", "Again", "Remind", "Again"])
        .then_sent("Remind", &json!(["now", "2026-01-01T01:00:00.000Z"]))
        .then_timers("a", ["again"]);
    // An event moves the clock as well: what is due before it comes before it, what is due at its time comes after.
    saga::<Shop>()
        .given([of("Begin"), of("Remind")])
        .reply("pay", of("Paid"))
        .when(of("Publish").at("2026-01-01T00:59:59Z"))
        .then_commands([])
        .when(of("End").at("2026-01-01T01:00:00Z"))
        .then_commands([])
        .then_status("a", "completed");
    // Nobody paid in ten seconds, so no reminder is ever sent.
    saga::<Shop>()
        .given([of("Begin"), of("Remind")])
        .advance(hours(2))
        .then_commands(["Refund", "Refund", "Refund", "Refund"]);
}

#[test]
fn a_timer_that_sets_itself_again_at_once_is_found() {
    let (message, ..) = failure(|| {
        saga::<Shop>().given([of("Begin")]).when(of("Restless"));
    });
    assert!(message.contains("does one set itself again at once?"), "{message}");
}

#[test]
fn a_story_that_does_not_end_fails_with_what_was_sent() {
    let tell = |succeed: &'static str, refuse: &'static str| {
        failure(move || {
            saga::<Shop>().for_each_failing_step(of("Begin"), move |_| of(succeed), move |_| of(refuse), |_, _| {});
        })
        .0
    };
    saga::<Shop>().for_each_failing_step(
        of("Begin"),
        |_| of("End"),
        |_| of("Declined"),
        |step, story| {
            assert_eq!(step, "pay");
            story.then_commands(["Pay"]).then_status("a", "compensated");
        },
    );
    let message = tell("Paid", "Declined");
    assert!(
        message.starts_with("with every command answered, `a` does not end: it is running; what was sent:\n  `Pay`")
    );
    let message = tell("End", "Shrugged");
    assert!(message.starts_with("with step `pay` refused, `a` does not end: it is running"), "{message}");
}

/// Its JSON has no order of its own.
#[derive(Default, Serialize, Deserialize)]
struct Unordered(HashMap<String, u32>);

/// Remembers in a field that does not survive being written.
#[derive(Default, Serialize, Deserialize)]
struct Forgetful {
    #[serde(skip)]
    events: u32,
}

macro_rules! careless {
    ($saga:ty, |$state:ident, $event:ident, $effects:ident| $react:expr) => {
        impl Saga for $saga {
            const SUBJECTS: &'static [&'static str] = &[">"];
            const SENDS: &'static [&'static str] = &[">"];
            const LATE: Late = Late::Ignore;
            type Event = Raw;

            fn correlate(_event: &Recorded<Raw>) -> Keys<'_> {
                Keys::one("all")
            }

            fn starts(_event: &Recorded<Raw>) -> bool {
                true
            }

            fn react(&mut self, $event: &Recorded<Raw>, $effects: &mut Effects) -> Result<(), Refusal> {
                let $state = self;
                $react
                Ok(())
            }
        }
    };
}

careless!(Unordered, |state, event, _effects| {
    *state.0.entry(event.id().to_owned()).or_default() += 1;
});

careless!(Forgetful, |state, _event, effects| {
    state.events += 1;
    effects.send("count", &state.events);
});

#[test]
fn a_state_that_does_not_survive_or_has_no_order_fails_every_scenario() {
    let (message, ..) = failure(|| {
        saga::<Unordered>().given((0..20).map(|_| of("x"))).when(of("x"));
    });
    assert!(message.contains("the result depends on how events are handed over"), "{message}");
    let (message, file, line) = failure(|| {
        saga::<Forgetful>().given([of("x")]).when(of("x"));
    });
    assert_eq!((file.as_str(), line), (file!(), line!() - 2));
    assert!(message.contains("with a fresh handler for each event, its state read back, it differs"), "{message}");
}

/// Counts to two, then is over and may begin again.
#[derive(Default, Serialize, Deserialize)]
struct Pair {
    events: u32,
}

impl Saga for Pair {
    const SUBJECTS: &'static [&'static str] = &[">"];
    const SENDS: &'static [&'static str] = &[">"];
    const LATE: Late = Late::Start;
    type Event = Raw;

    fn correlate(event: &Recorded<Raw>) -> Keys<'_> {
        Keys::one(event.aggregate_id())
    }

    fn starts(_event: &Recorded<Raw>) -> bool {
        false
    }

    fn react(&mut self, _event: &Recorded<Raw>, effects: &mut Effects) -> Result<(), Refusal> {
        self.events += 1;
        effects.send("count", &self.events);
        if self.events == 2 {
            effects.complete();
        }
        Ok(())
    }
}

#[test]
fn a_new_life_begins_from_nothing_also_in_the_middle_of_a_batch() {
    saga::<Pair>()
        .given([of("x"), of("x"), of("x").aggregate("b")])
        .when(of("x"))
        .then_sent("count", &1)
        .then_state("a", &Pair { events: 1 })
        .then_status("a", "running")
        .when(of("x"))
        .then_sent("count", &2)
        .then_status("a", "completed")
        .then_status("b", "running");
}

struct Thank;

impl Reaction for Thank {
    const SUBJECTS: &'static [&'static str] = &["orders.>"];
    const SENDS: &'static [&'static str] = &["mail.*"];
    type Event = Step;

    fn react(event: &Recorded<Step>, effects: &mut Effects) -> Result<(), Refusal> {
        match event.payload {
            Step::Refuse => return refuse("no thanks"),
            Step::Remind => {
                effects.after(hours(1), "later");
            }
            _ => {
                effects.send("mail.Thanks", event.aggregate_id());
            }
        }
        Ok(())
    }
}

#[test]
fn a_reaction_is_told_in_the_same_words_and_remembers_nothing() {
    reaction::<Thank>()
        .given([of("Begin")])
        .when(of("Begin"))
        .then_commands(["Thanks"])
        .then_sent("Thanks", "a")
        .then_no_instance("EVENTS:2")
        .when(of("Refuse"))
        .then_refused("no thanks")
        .when(of("Remind"))
        .then_refused("timer `later` needs an instance, and this handler keeps none")
        .when(of("Begin"))
        .then_commands(["Thanks"]);
}
