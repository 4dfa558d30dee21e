//! One batch, several calls of `apply`: what a call leaves alone is there for the next, and nothing is folded twice.

use millstream_sdk::guest::{ProjectionOf, Runtime};

use crate::tally::*;

#[test]
fn a_skipped_route_is_folded_by_a_later_call_and_each_route_once() {
    let mut runtime = Runtime::<ProjectionOf<Tally>>::new();
    runtime.stage(batch(&[("add", &["a", "b"]), ("add", &["a"]), ("add", &["b"]), ("add", &["a"])]));
    // Routes 0 and 1 are the first event's, then one each.
    let first = runtime.apply(&documents(&[(0, Some(r#"{"count":4}"#)), (1, None)]), &[2, 3, 4]);
    assert_eq!(changes(&first), [(0, 0, r#"{"count":5}"#), (1, 1, r#"{"count":1}"#)]);
    let second = runtime.apply(&documents(&[]), &[3, 4]);
    assert_eq!(changes(&second), [(0, 2, r#"{"count":6}"#)]);
    let third = runtime.apply(&documents(&[]), &[]);
    assert_eq!(changes(&third), [(0, 4, r#"{"count":7}"#), (1, 3, r#"{"count":2}"#)]);
    let next = fold(&mut runtime, &[("touch", &["a", "b"]), ("add", &["a"])], &[]);
    assert_eq!(changes(&next), [(0, 2, r#"{"count":8}"#)]);
}

#[test]
fn a_document_comes_with_the_first_call_that_needs_it() {
    let mut runtime = Runtime::<ProjectionOf<Tally>>::new();
    runtime.stage(batch(&[("add", &["a"]), ("add", &["b"])]));
    runtime.apply(&documents(&[(0, None)]), &[1]);
    let second = runtime.apply(&documents(&[(1, Some(r#"{"count":2}"#))]), &[]);
    assert_eq!(changes(&second), [(1, 1, r#"{"count":3}"#)]);
}

#[test]
fn a_document_that_is_sent_again_replaces_what_was_there() {
    let mut runtime = Runtime::<ProjectionOf<Tally>>::new();
    fold(&mut runtime, &[("add", &["a", "b", "c"])], &[]);
    let staged = runtime.stage(batch(&[("add", &["a", "b", "c"])]));
    assert_eq!(keys(&staged), [("a", true), ("b", true), ("c", true)]);
    let outcome = runtime.apply(&documents(&[(0, None), (1, Some(r#"{"count":7}"#))]), &[]);
    assert_eq!(changes(&outcome), [(0, 0, r#"{"count":1}"#), (1, 1, r#"{"count":8}"#), (2, 2, r#"{"count":2}"#)]);

    // Between two calls, also where no route of the key is folded any more.
    runtime.stage(batch(&[("add", &["a", "b"]), ("add", &["b"])]));
    runtime.apply(&documents(&[]), &[2]);
    let outcome = runtime.apply(&documents(&[(0, Some(r#"{"count":30}"#)), (1, None)]), &[]);
    assert_eq!(changes(&outcome), [(1, 2, r#"{"count":1}"#)]);
    assert_eq!(changes(&fold(&mut runtime, &[("add", &["a"])], &[])), [(0, 0, r#"{"count":31}"#)]);
}

#[test]
fn a_refusal_goes_back_to_what_the_earlier_calls_left_and_closes_the_key() {
    let mut runtime = Runtime::<ProjectionOf<Tally>>::new();
    runtime.stage(batch(&[("add", &["a"]), ("add", &["a"]), ("refuse", &["a"]), ("add", &["a"]), ("add", &["b"])]));
    let first = runtime.apply(&documents(&[(0, None)]), &[1, 2, 3, 4]);
    assert_eq!(changes(&first), [(0, 0, r#"{"count":1}"#)]);
    let second = runtime.apply(&documents(&[]), &[3, 4]);
    assert_eq!((changes(&second), refusals(&second)), (vec![(0, 1, r#"{"count":2}"#)], vec![(2, "no more")]));
    let third = runtime.apply(&documents(&[(1, None)]), &[]);
    assert_eq!((changes(&third), refusals(&third)), (vec![(1, 4, r#"{"count":1}"#)], vec![]));
    assert_eq!(changes(&fold(&mut runtime, &[("add", &["a"])], &[])), [(0, 0, r#"{"count":3}"#)]);
}

#[test]
fn what_no_call_folded_is_forgotten_with_the_batch() {
    let mut runtime = Runtime::<ProjectionOf<Tally>>::new();
    runtime.stage(batch(&[("add", &["a"]), ("add", &["b"]), ("add", &["a"])]));
    runtime.apply(&documents(&[(0, None)]), &[1, 2]);
    let staged = runtime.stage(batch(&[("add", &["b"]), ("add", &["a"])]));
    assert_eq!(keys(&staged), [("b", false), ("a", true)]);
    let outcome = runtime.apply(&documents(&[(0, None)]), &[]);
    assert_eq!(changes(&outcome), [(0, 0, r#"{"count":1}"#), (1, 1, r#"{"count":2}"#)]);
}
