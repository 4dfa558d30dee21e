//! What a handler sees of an envelope, and what the host learns of a handler.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

use std::collections::BTreeMap;

use millstream_sdk::contract::Kind;
use millstream_sdk::guest::{Handler, ProjectionOf};
use millstream_sdk::prelude::*;
use millstream_sdk::testing::{event, given, json};

/// Remembers what an envelope looks like from inside.
#[derive(Default, Serialize, Deserialize)]
struct Seen(Vec<serde_json::Value>);

impl Projection for Seen {
    const SUBJECTS: &'static [&'static str] = &["steps.>", "more"];
    type Event = Raw;

    fn key(event: &Recorded<Raw>) -> Keys<'_> {
        Keys::one(event.aggregate_id())
    }

    fn apply(&mut self, event: &Recorded<Raw>) -> Verdict {
        self.0.push(json!([
            event.event_type(),
            event.id(),
            event.subject(),
            event.source(),
            event.sequence(),
            event.time(),
            event.time_rfc3339(),
            event.schema_version(),
            event.correlation_id(),
            event.causation_id(),
            String::from_utf8_lossy(event.payload_bytes()),
            event.extra(),
        ]));
        log::info(format_args!("saw {}", event.id()));
        keep()
    }
}

#[test]
fn the_envelope_arrives_field_by_field() {
    let full = event("Placed", json!({}))
        .payload_bytes(*b"\x01raw")
        .aggregate("A")
        .id("e-1")
        .subject("orders.placed")
        .stream("ORDERS")
        .sequence(77)
        .at("2015-09-12T00:46:58.771Z")
        .schema_version(3)
        .correlation("root")
        .causation("parent");
    given::<Seen>([full])
        .when(event("Cancelled", json!(1)).aggregate("A"))
        .then_document(
            "A",
            &json!([
                [
                    "Placed",
                    "e-1",
                    "orders.placed",
                    "ORDERS",
                    77,
                    1_442_018_818_771_000_000_i64,
                    "2015-09-12T00:46:58.771Z",
                    3,
                    "root",
                    "parent",
                    "\u{1}raw",
                    "",
                ],
                [
                    "Cancelled",
                    "EVENTS:2",
                    "events.Cancelled",
                    "EVENTS",
                    2,
                    1_767_225_600_000_000_000_i64,
                    "2026-01-01T00:00:00.000Z",
                    1,
                    null,
                    null,
                    "1",
                    "",
                ],
            ]),
        )
        .then_logged("Info: saw EVENTS:2");
}

/// Says its name itself.
#[derive(Default, Serialize, Deserialize)]
struct Named;

impl Projection for Named {
    const NAME: &'static str = "tally";
    const SUBJECTS: &'static [&'static str] = &[">"];
    const STATE_VERSION: u32 = 7;
    type Event = Raw;

    fn key(_event: &Recorded<Raw>) -> Keys<'_> {
        Keys::none()
    }

    fn apply(&mut self, _event: &Recorded<Raw>) -> Verdict {
        keep()
    }
}

#[test]
fn the_description_says_what_the_host_must_know() {
    let named = ProjectionOf::<Named>::describe("crate-name");
    assert_eq!((named.name.as_str(), named.state_version), ("tally", 7));
    let seen = ProjectionOf::<Seen>::describe("crate-name");
    assert_eq!((seen.name.as_str(), seen.state_version), ("crate-name", 1));
    assert_eq!((seen.kind, seen.subjects), (Kind::Projection, vec!["steps.>".to_owned(), "more".to_owned()]));
    let extra: BTreeMap<String, String> = serde_json::from_str(&seen.extra).unwrap();
    assert!(extra["sdk"].starts_with("millstream-sdk "), "{extra:?}");
}
