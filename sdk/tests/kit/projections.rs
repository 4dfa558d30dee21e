//! Scenarios of projections.

use std::collections::HashMap;

use millstream_sdk::prelude::*;
use millstream_sdk::testing::{Then, event, given, json};

use crate::failure;

#[derive(Default, Serialize, Deserialize)]
struct Spend {
    orders: u64,
    cents: u64,
}

#[derive(Event)]
enum Shop {
    Placed { customer: String, cents: u64 },
    Closed,
}

impl Projection for Spend {
    const SUBJECTS: &'static [&'static str] = &["orders.>"];
    type Event = Shop;

    fn key(event: &Recorded<Shop>) -> Keys<'_> {
        match &event.payload {
            Shop::Placed { customer, .. } => Keys::one(customer),
            Shop::Closed => Keys::none(),
        }
    }

    fn apply(&mut self, event: &Recorded<Shop>) -> Verdict {
        if let Shop::Placed { cents, .. } = &event.payload {
            if *cents == 0 {
                return refuse("for nothing");
            }
            self.orders += 1;
            self.cents += cents;
        }
        keep()
    }
}

fn placed(cents: u64) -> millstream_sdk::testing::TestEvent {
    event("Placed", json!({ "customer": "C42", "cents": cents }))
}

#[test]
fn a_failed_assertion_shows_a_difference_at_the_line_that_asked() {
    let here = line!() + 2;
    let (message, file, line) = failure(|| {
        given::<Spend>([placed(5)]).when(placed(7)).then_document("C42", &Spend { orders: 2, cents: 13 });
    });
    assert_eq!((file.as_str(), line), (file!(), here));
    assert_eq!(
        message,
        "document `C42` differs (- expected, + actual):\n    {\n  -   \"cents\": 13,\n  +   \"cents\": 12,\n      \"orders\": 2\n    }\n"
    );
}

#[test]
fn every_assertion_can_fail() {
    type Ask = fn(Then) -> Then;
    let refused = || given::<Spend>([placed(5)]).when(placed(0));
    let applied = || given::<Spend>([]).when(placed(5));
    let cases: [(Then, Ask, &str); 9] = [
        (applied(), |then| then.then_document("C43", &json!({})), "there is no document `C43` (there are `C42`)"),
        (applied(), |then| then.then_no_document("C42"), "there is a document `C42`"),
        (applied(), |then| then.then_refused(""), "expected a refusal with ``, but the event was applied to `C42`"),
        (refused(), |then| then.then_refused("other"), "but the event was refused for `C42`: for nothing"),
        (refused(), |then| then.then_rejected(""), "expected a rejection"),
        (refused(), |then| then.then_irrelevant(), "expected an irrelevant event, but it was refused"),
        (applied(), |then| then.then_untouched(), "  + C42: {\"orders\":1,\"cents\":5}"),
        (applied(), |then| then.then_logged("x"), "expected a line with `x`"),
        (
            refused(),
            |then| then.then_document("C42", &json!({})),
            "differs (- expected, + actual); the event was refused for `C42`: for nothing",
        ),
    ];
    for (then, ask, expected) in cases {
        let (message, ..) = failure(|| {
            ask(then);
        });
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn what_is_given_must_have_been_accepted() {
    for (bad, expected) in [
        (placed(0), "given event 2 (`Placed`) was refused for `C42`: for nothing"),
        (event("Placed", json!({})), "given event 2 (`Placed`) was rejected: payload of event type `Placed`"),
    ] {
        let (message, ..) = failure(|| {
            given::<Spend>([placed(1), bad]).when(placed(1));
        });
        assert!(message.contains(expected), "{message}");
    }
    given::<Spend>([event("Closed", json!(null))]).when(event("Closed", json!(null))).then_irrelevant();
}

/// Its JSON has no order of its own.
#[derive(Default, Serialize, Deserialize)]
struct Unordered(HashMap<String, u32>);

impl Projection for Unordered {
    const SUBJECTS: &'static [&'static str] = &[">"];
    type Event = Raw;

    fn key(_event: &Recorded<Raw>) -> Keys<'_> {
        Keys::one("all")
    }

    fn apply(&mut self, event: &Recorded<Raw>) -> Verdict {
        *self.0.entry(event.id().to_owned()).or_default() += 1;
        keep()
    }
}

/// Counts in a field that does not survive being written.
#[derive(Default, Serialize, Deserialize)]
struct Forgetful {
    even: bool,
    #[serde(skip)]
    count: u32,
}

impl Projection for Forgetful {
    const SUBJECTS: &'static [&'static str] = &[">"];
    type Event = Raw;

    fn key(_event: &Recorded<Raw>) -> Keys<'_> {
        Keys::one("all")
    }

    fn apply(&mut self, _event: &Recorded<Raw>) -> Verdict {
        self.count += 1;
        self.even = self.count.is_multiple_of(2);
        keep()
    }
}

#[test]
fn a_document_whose_bytes_vary_fails_every_scenario() {
    let (message, ..) = failure(|| {
        let past: Vec<_> = (0..20).map(|_| event("x", json!(null))).collect();
        given::<Unordered>(past).when(event("x", json!(null)));
    });
    assert!(message.contains("the result depends on how events are batched"), "{message}");
}

#[test]
fn a_document_that_does_not_survive_being_written_fails_every_scenario() {
    let (message, file, line) = failure(|| {
        given::<Forgetful>([event("x", json!(null))]).when(event("x", json!(null)));
    });
    assert_eq!((file.as_str(), line), (file!(), line!() - 2));
    assert!(message.contains("documents read back each time, differs"), "{message}");
    assert!(message.contains("  - all: {\"even\":true}\n  + all: {\"even\":false}"), "{message}");
}
