//! Checks what a guest answered before anything is believed. In: an answer and what it must fit. Out: nothing, or a
//! failure that says what was wrong. Pure. After these checks every index and span may be used without asking again.
//! Never: mends an answer.

use std::collections::HashSet;

use super::Failure;
use super::wire::{Outcome, Span, Staged};

/// Checks the answer of `stage` for a batch of `events` events.
///
/// # Errors
/// A failure of class `answer`.
pub fn check_staged(staged: &Staged, events: usize) -> Result<(), Failure> {
    let mut names = HashSet::with_capacity(staged.keys.len());
    for key in &staged.keys {
        if !names.insert(text(&staged.blob, key.name, "a key")?) {
            return Err(Failure::answer("the same key stands twice in one answer"));
        }
    }
    let mut last = None;
    for route in &staged.routes {
        index(route.event, events, "a route's event")?;
        index(route.key, staged.keys.len(), "a route's key")?;
        if last.is_some_and(|last| last > route.event) {
            return Err(Failure::answer("routes are not in the order of events"));
        }
        last = Some(route.event);
    }
    for rejection in &staged.rejections {
        index(rejection.event, events, "a rejection's event")?;
        text(&staged.blob, rejection.reason, "a rejection's reason")?;
    }
    Ok(())
}

/// Checks the answer of `apply` against the keys that `stage` announced and the routes that this call was to fold, each by
/// its key; `None` for those that were skipped or folded before.
///
/// # Errors
/// A failure of class `answer`.
pub fn check_outcome(outcome: &Outcome, keys: usize, routes: &[Option<u32>]) -> Result<(), Failure> {
    let mut seen = vec![false; keys];
    for change in &outcome.changes {
        index(change.key, keys, "a change's key")?;
        if routes.get(change.route as usize) != Some(&Some(change.key)) {
            return Err(Failure::answer("a change names a route that does not touch its key"));
        }
        if seen.get_mut(change.key as usize).is_none_or(|seen| std::mem::replace(seen, true)) {
            return Err(Failure::answer("a key was changed twice in one answer"));
        }
        bytes(&outcome.blob, change.value, "a document")?;
    }
    let mut refused = HashSet::with_capacity(outcome.refusals.len());
    for refusal in &outcome.refusals {
        asked(refusal.route, routes, "a refusal's route")?;
        text(&outcome.blob, refusal.reason, "a refusal's reason")?;
        refused.insert(refusal.route);
    }
    for effect in &outcome.effects {
        asked(effect.route, routes, "an effect's route")?;
        text(&outcome.blob, effect.body, "an effect")?;
        if refused.contains(&effect.route) {
            return Err(Failure::answer("an effect names a route that was refused"));
        }
    }
    Ok(())
}

/// The bytes of a span that a check has passed; empty otherwise.
#[must_use]
pub fn slice(blob: &[u8], span: Span) -> &[u8] {
    let start = span.start as usize;
    blob.get(start..start.saturating_add(span.length as usize)).unwrap_or_default()
}

/// The text of a span that a check has passed; empty otherwise.
#[must_use]
pub fn str_slice(blob: &[u8], span: Span) -> &str {
    std::str::from_utf8(slice(blob, span)).unwrap_or_default()
}

fn index(value: u32, length: usize, what: &str) -> Result<(), Failure> {
    if (value as usize) < length {
        return Ok(());
    }
    Err(Failure::answer(format!("{what} is number {value}, but there are only {length}")))
}

fn asked(route: u32, routes: &[Option<u32>], what: &str) -> Result<(), Failure> {
    index(route, routes.len(), what)?;
    match routes.get(route as usize) {
        Some(Some(_)) => Ok(()),
        _ => Err(Failure::answer(format!("{what} is number {route}, which was not to be folded in this call"))),
    }
}

fn bytes<'a>(blob: &'a [u8], span: Span, what: &str) -> Result<&'a [u8], Failure> {
    let start = span.start as usize;
    blob.get(start..start.saturating_add(span.length as usize)).ok_or_else(|| {
        let (start, length) = (span.start, span.length);
        Failure::answer(format!("{what} lies at {start}+{length}, outside the blob of {} bytes", blob.len()))
    })
}

fn text<'a>(blob: &'a [u8], span: Span, what: &str) -> Result<&'a str, Failure> {
    std::str::from_utf8(bytes(blob, span, what)?).map_err(|_| Failure::answer(format!("{what} is not UTF-8")))
}

#[cfg(test)]
mod tests {
    use super::super::wire::{Change, Effect, Key, Refusal, Rejection, Route};
    use super::*;

    fn span(start: u32, length: u32) -> Span {
        Span { start, length }
    }

    /// Of three routes the last was skipped.
    const ROUTES: [Option<u32>; 3] = [Some(0), Some(1), None];

    fn staged() -> Staged {
        Staged {
            keys: vec![Key { name: span(0, 2), cached: false }, Key { name: span(2, 2), cached: true }],
            routes: vec![Route { event: 0, key: 0, starts: true }, Route { event: 1, key: 1, starts: false }],
            rejections: vec![],
            blob: b"k1k2".to_vec(),
        }
    }

    #[test]
    fn sound_answers_pass() {
        assert_eq!(check_staged(&staged(), 2).map_err(|failure| failure.message), Ok(()));
        let outcome = Outcome {
            changes: vec![Change { key: 1, route: 1, deleted: false, value: span(0, 2) }],
            effects: vec![],
            refusals: vec![Refusal { route: 0, reason: span(0, 2) }],
            blob: b"{}".to_vec(),
        };
        assert_eq!(check_outcome(&outcome, 3, &ROUTES).map_err(|failure| failure.message), Ok(()));
    }

    #[test]
    fn each_garbled_staged_answer_is_named() {
        type Spoil = fn(&mut Staged);
        let spoil: [(&str, Spoil); 8] = [
            ("outside the blob", |s| s.keys[0].name = span(3, 9)),
            ("outside the blob", |s| s.keys[0].name = span(u32::MAX, u32::MAX)),
            ("not UTF-8", |s| s.blob[0] = 0xff),
            ("stands twice", |s| s.blob = b"k1k1".to_vec()),
            ("a route's event is number 2", |s| s.routes[1].event = 2),
            ("a route's key is number 7", |s| s.routes[1].key = 7),
            ("order of events", |s| s.routes.reverse()),
            ("a rejection's event is number 5", |s| s.rejections.push(Rejection { event: 5, reason: span(0, 0) })),
        ];
        for (expected, spoil) in spoil {
            let mut answer = staged();
            spoil(&mut answer);
            let message = check_staged(&answer, 2).unwrap_err().message;
            assert!(message.contains(expected), "{message} should contain {expected}");
        }
    }

    #[test]
    fn each_garbled_outcome_is_named() {
        let change = Change { key: 0, route: 0, deleted: false, value: span(0, 2) };
        let effect = |route| Effect { route, body: span(0, 0) };
        let refusal = |route| Refusal { route, reason: span(0, 0) };
        let with = |changes, effects, refusals| Outcome { changes, effects, refusals, blob: b"{}".to_vec() };
        let cases = [
            ("outside the blob", with(vec![Change { value: span(1, 2), ..change }], vec![], vec![])),
            ("a change's key is number 3", with(vec![Change { key: 3, ..change }], vec![], vec![])),
            ("does not touch its key", with(vec![Change { key: 2, route: 2, ..change }], vec![], vec![])),
            ("does not touch its key", with(vec![Change { route: 1, ..change }], vec![], vec![])),
            ("does not touch its key", with(vec![Change { route: 9, ..change }], vec![], vec![])),
            ("changed twice", with(vec![change, change], vec![], vec![])),
            ("an effect's route is number 3", with(vec![], vec![effect(3)], vec![])),
            ("an effect's route is number 2, which was not to be folded", with(vec![], vec![effect(2)], vec![])),
            ("an effect names a route that was refused", with(vec![], vec![effect(1)], vec![refusal(1)])),
            ("a refusal's route is number 4", with(vec![], vec![], vec![refusal(4)])),
            ("a refusal's route is number 2, which was not to be folded", with(vec![], vec![], vec![refusal(2)])),
        ];
        for (expected, outcome) in cases {
            let message = check_outcome(&outcome, 3, &ROUTES).unwrap_err().message;
            assert!(message.contains(expected), "{message} should contain {expected}");
        }
    }
}
