//! A host that breaks the contract meets a trap that says how.

use millstream_sdk::guest::{ProjectionOf, Runtime};

use crate::tally::*;

#[test]
fn a_broken_contract_traps_with_a_sentence() {
    type Break = fn(&mut Runtime<ProjectionOf<Tally>>);
    let cases: [(&str, Break); 8] = [
        ("contract: `apply` without `stage`", |runtime| {
            runtime.apply(&documents(&[]), &[]);
        }),
        ("contract: the document of `a` is missing", |runtime| {
            runtime.stage(batch(&[("add", &["a"])]));
            runtime.apply(&documents(&[]), &[]);
        }),
        ("contract: a document for key 1 of a batch with 1 keys", |runtime| {
            runtime.stage(batch(&[("add", &["a"])]));
            runtime.apply(&documents(&[(1, None)]), &[]);
        }),
        ("contract: `apply` without `stage`, or after all of its routes", |runtime| {
            runtime.stage(batch(&[("add", &["a"])]));
            runtime.apply(&documents(&[(0, None)]), &[]);
            runtime.apply(&documents(&[]), &[]);
        }),
        ("contract: the document of `b` is missing", |runtime| {
            runtime.stage(batch(&[("add", &["a"]), ("add", &["b"])]));
            runtime.apply(&documents(&[(0, None)]), &[1]);
            runtime.apply(&documents(&[]), &[]);
        }),
        ("contract: route 1 to skip in a batch with 1 routes", |runtime| {
            runtime.stage(batch(&[("add", &["a"])]));
            runtime.apply(&documents(&[(0, None)]), &[1]);
        }),
        ("lies outside a blob", |runtime| {
            let mut events = batch(&[("add", &["a"])]);
            events.events[0].payload.start = u32::MAX;
            runtime.stage(events);
        }),
        ("contract: a text field is not UTF-8", |runtime| {
            let mut events = batch(&[("add", &["a"])]);
            let start = events.events[0].event_type.start as usize;
            events.blob[start] = 0xff;
            runtime.stage(events);
        }),
    ];
    for (expected, breach) in cases {
        let caught = std::panic::catch_unwind(|| breach(&mut Runtime::new())).expect_err(expected);
        let message = caught.downcast::<String>().unwrap();
        assert!(message.contains(expected), "{message}");
    }
}
