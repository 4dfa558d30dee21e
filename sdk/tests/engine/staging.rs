//! What `stage` answers: keys, routes, rejections, and which documents it still holds.

use millstream_sdk::guest::{ProjectionOf, Runtime};

use crate::tally::*;

#[test]
fn keys_come_once_in_order_of_first_use_and_routes_in_order_of_events() {
    let mut runtime = Runtime::<ProjectionOf<Tally>>::new();
    let staged =
        runtime.stage(batch(&[("add", &["b", "a", "b"]), ("other", &["x"]), ("+", &["c", "a"]), ("add", &[])]));
    assert_eq!(keys(&staged), [("b", false), ("a", false), ("c", false)]);
    assert_eq!(routes(&staged), [(0, 0), (0, 1), (2, 2), (2, 1)]);
    assert!(staged.rejections.is_empty());
}

#[test]
fn an_event_that_cannot_be_decoded_or_has_an_empty_key_is_rejected_alone() {
    let mut runtime = Runtime::<ProjectionOf<Tally>>::new();
    let mut events = batch(&[("add", &["a"]), ("add", &["b"]), ("add", &["a", ""])]);
    events.events[1].payload.length -= 1;
    let staged = runtime.stage(events);
    let rejections: Vec<_> =
        staged.rejections.iter().map(|rejection| (rejection.event, text(&staged.blob, rejection.reason))).collect();
    assert_eq!(
        rejections,
        [
            (1, "payload of event type `add` does not fit: EOF while parsing a list at line 1 column 4"),
            (2, "event type `add` gives an empty key (does the event name its aggregate?)"),
        ]
    );
    assert_eq!((keys(&staged), routes(&staged)), (vec![("a", false)], vec![(0, 0)]));
}

#[test]
fn documents_are_sent_once_and_absence_is_remembered_too() {
    let mut runtime = Runtime::<ProjectionOf<Tally>>::new();
    let steps: &[(&str, &[&str])] = &[("add", &["a"]), ("delete", &["b"])];
    runtime.stage(batch(steps));
    let outcome = runtime.apply(&documents(&[(0, Some(r#"{"count":4}"#)), (1, None)]), &[]);
    assert_eq!(changes(&outcome), [(0, 0, r#"{"count":5}"#)]);

    let staged = runtime.stage(batch(&[("add", &["b"]), ("add", &["a"])]));
    assert_eq!(keys(&staged), [("b", true), ("a", true)]);
    let outcome = runtime.apply(&documents(&[]), &[]);
    assert_eq!(changes(&outcome), [(0, 0, r#"{"count":1}"#), (1, 1, r#"{"count":6}"#)]);
}

#[test]
fn a_skipped_key_needs_no_document_and_is_asked_for_again() {
    let mut runtime = Runtime::<ProjectionOf<Tally>>::new();
    runtime.stage(batch(&[("add", &["a"]), ("add", &["b"])]));
    let outcome = runtime.apply(&documents(&[(1, None)]), &[0]);
    assert_eq!(changes(&outcome), [(1, 1, r#"{"count":1}"#)]);
    let staged = runtime.stage(batch(&[("add", &["a"]), ("add", &["b"])]));
    assert_eq!(keys(&staged), [("a", false), ("b", true)]);
}

#[test]
fn a_batch_that_is_staged_again_replaces_the_one_before() {
    let mut runtime = Runtime::<ProjectionOf<Tally>>::new();
    runtime.stage(batch(&[("add", &["a"]), ("add", &["b"])]));
    let staged = runtime.stage(batch(&[("add", &["b"])]));
    assert_eq!(keys(&staged), [("b", false)]);
    let outcome = runtime.apply(&documents(&[(0, None)]), &[]);
    assert_eq!(changes(&outcome), [(0, 0, r#"{"count":1}"#)]);
}
