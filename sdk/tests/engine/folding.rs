//! What `apply` answers: one change per key whose bytes differ.

use millstream_sdk::guest::{ProjectionOf, Runtime};

use crate::tally::*;

#[test]
fn a_change_names_the_last_route_and_equal_bytes_are_no_change() {
    let mut runtime = Runtime::<ProjectionOf<Tally>>::new();
    let outcome = fold(&mut runtime, &[("add", &["a", "b"]), ("touch", &["a"]), ("add", &["b"])], &[]);
    assert_eq!(changes(&outcome), [(0, 2, r#"{"count":1}"#), (1, 3, r#"{"count":2}"#)]);
    let outcome = fold(&mut runtime, &[("touch", &["a"]), ("delete", &["b"]), ("add", &["b"]), ("add", &["b"])], &[]);
    assert_eq!(changes(&outcome), []);
}

#[test]
fn after_a_deletion_a_key_starts_anew_and_one_that_came_and_went_is_no_change() {
    let mut runtime = Runtime::<ProjectionOf<Tally>>::new();
    let steps: &[(&str, &[&str])] =
        &[("add", &["a", "b", "c"]), ("add", &["a"]), ("delete", &["a", "b"]), ("add", &["a"]), ("delete", &["d"])];
    let outcome = fold(&mut runtime, steps, &[]);
    assert_eq!(changes(&outcome), [(0, 6, r#"{"count":1}"#), (2, 2, r#"{"count":1}"#)]);
    let outcome = fold(&mut runtime, &[("delete", &["a", "b", "c"])], &[]);
    assert_eq!(changes(&outcome), [(0, 0, "-"), (2, 2, "-")]);
}

#[test]
fn skipped_routes_are_left_alone_also_when_an_earlier_unit_is_folded_again() {
    let mut runtime = Runtime::<ProjectionOf<Tally>>::new();
    let steps: &[(&str, &[&str])] =
        &[("add", &["a"]), ("add", &["a"]), ("add", &["a"]), ("refuse", &["a"]), ("add", &["b"])];
    let outcome = fold(&mut runtime, steps, &[1, 4]);
    assert_eq!(changes(&outcome), [(0, 2, r#"{"count":2}"#)]);
    assert_eq!(refusals(&outcome), [(3, "no more")]);
}
