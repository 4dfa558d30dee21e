//! A refused unit leaves no trace, and nothing of its key follows in the batch.

use millstream_sdk::guest::{ProjectionOf, Runtime};

use crate::tally::*;

#[test]
fn a_refusal_leaves_the_document_as_before_the_unit_and_later_units_alone() {
    let mut runtime = Runtime::<ProjectionOf<Tally>>::new();
    runtime.stage(batch(&[
        ("add", &["a", "b"]),
        ("add", &["a"]),
        ("refuse", &["a"]),
        ("add", &["a", "b"]),
        ("refuse", &["a"]),
    ]));
    let outcome = runtime.apply(&documents(&[(0, Some(r#"{"count":4}"#)), (1, None)]), &[]);
    assert_eq!(refusals(&outcome), [(3, "no more")]);
    assert_eq!(changes(&outcome), [(0, 2, r#"{"count":6}"#), (1, 5, r#"{"count":2}"#)]);

    // The first unit of a batch, on a cached document, then on a key that has none.
    let outcome = fold(&mut runtime, &[("refuse", &["a", "new"]), ("add", &["a", "new"])], &[]);
    assert_eq!(refusals(&outcome), [(0, "no more"), (1, "no more")]);
    assert_eq!(changes(&outcome), []);

    // After a deletion in the same batch.
    let outcome = fold(&mut runtime, &[("delete", &["a"]), ("add", &["a"]), ("refuse", &["a"])], &[]);
    assert_eq!(changes(&outcome), [(0, 1, r#"{"count":1}"#)]);
    let outcome = fold(&mut runtime, &[("add", &["a", "b", "new"])], &[]);
    assert_eq!(changes(&outcome), [(0, 0, r#"{"count":2}"#), (1, 1, r#"{"count":3}"#), (2, 2, r#"{"count":1}"#)]);
}

#[test]
fn a_document_that_does_not_read_refuses_the_first_unit_of_its_key() {
    let mut runtime = Runtime::<ProjectionOf<Tally>>::new();
    for _ in 0..2 {
        let staged = runtime.stage(batch(&[("add", &["b"]), ("add", &["old"]), ("add", &["old"])]));
        assert!(!staged.keys[1].cached, "a document that did not read is asked for again");
        let known: Vec<_> =
            [(0, None), (1, Some(r#"{"cnt":1}"#))].into_iter().skip(usize::from(staged.keys[0].cached)).collect();
        let outcome = runtime.apply(&documents(&known), &[]);
        assert_eq!(
            refusals(&outcome),
            [(
                1,
                "the document of `old` does not read as this handler's type (raise STATE_VERSION to rebuild): \
                 missing field `count` at line 1 column 9"
            )]
        );
        assert_eq!(outcome.changes.len(), 1);
    }
}
