//! Second: may a handler ask for this? In: a unit's effects and its instance. Out: nothing, or the refusal. All are
//! checked before the first is folded, so folding cannot fail halfway. Never: changes the instance.

use crate::effect::{Effect, Undo};
use crate::instance::{Instance, StepState};
use crate::refusal::Refusal;
use crate::subject::{is_subject, subject_matches};
use crate::unit::{Meets, NAME_BYTES, Unit};

/// Refuses the first effect that cannot be.
pub(crate) fn effects(
    unit: &Unit<'_>,
    meets: Meets,
    instance: Option<&Instance>,
    effects: &[Effect],
) -> Result<(), Refusal> {
    let limit = unit.rules.effects_per_unit;
    if effects.len() > limit {
        return Err(Refusal::TooMany { effects: effects.len(), limit });
    }
    let mut steps = Steps { meets, instance, changed: Vec::new() };
    let mut end = None;
    for effect in effects {
        if let Some(end) = end {
            return Err(Refusal::AfterEnd { effect: name(effect), end });
        }
        let (bytes, limit) = (size(effect), unit.rules.effect_bytes);
        if bytes > limit {
            return Err(Refusal::TooLarge { effect: name(effect), bytes, limit });
        }
        if unit.rules.stateless && !is_stateless(effect) {
            return Err(Refusal::Stateless { effect: name(effect) });
        }
        if let Some((what, bytes)) = names(effect).find(|(_, bytes)| *bytes > NAME_BYTES) {
            return Err(Refusal::LongName { effect: name(effect), name: what, bytes, limit: NAME_BYTES });
        }
        messages(unit, effect)?;
        steps.check(effect)?;
        end = ending(effect);
    }
    Ok(())
}

const fn ending(effect: &Effect) -> Option<&'static str> {
    match effect {
        Effect::Complete => Some("complete"),
        Effect::Fail(_) => Some("fail"),
        Effect::Compensate(_) => Some("compensate"),
        Effect::Send(_)
        | Effect::Publish(_)
        | Effect::Done(_)
        | Effect::Timer(_)
        | Effect::Cancel(_)
        | Effect::Confirm(_)
        | Effect::Reject(_) => None,
    }
}

const fn is_stateless(effect: &Effect) -> bool {
    match effect {
        Effect::Send(send) => send.step.is_none(),
        Effect::Publish(_) => true,
        Effect::Done(_)
        | Effect::Timer(_)
        | Effect::Cancel(_)
        | Effect::Confirm(_)
        | Effect::Reject(_)
        | Effect::Compensate(_)
        | Effect::Complete
        | Effect::Fail(_) => false,
    }
}

/// Checks where the effect's messages go, and how deep in a chain they are. An undo does not count as deeper: when it is
/// sent, it is sent.
fn messages(unit: &Unit<'_>, effect: &Effect) -> Result<(), Refusal> {
    let (message, undo) = match effect {
        Effect::Send(send) => (Some((&send.subject, &send.command_type)), send.undo.as_ref()),
        Effect::Publish(publish) => (Some((&publish.subject, &publish.event_type)), None),
        Effect::Done(done) => (None, done.undo.as_ref()),
        Effect::Timer(_)
        | Effect::Cancel(_)
        | Effect::Confirm(_)
        | Effect::Reject(_)
        | Effect::Compensate(_)
        | Effect::Complete
        | Effect::Fail(_) => (None, None),
    };
    let limit = unit.rules.max_depth;
    let depth = unit.cause.depth.saturating_add(1);
    if message.is_some() && depth > limit {
        return Err(Refusal::TooDeep { effect: name(effect), depth, limit });
    }
    let undo = undo.map(|Undo { subject, command_type, .. }| (subject, command_type));
    for (subject, message_type) in message.into_iter().chain(undo) {
        if !is_subject(subject) {
            return Err(Refusal::NoSubject { effect: name(effect), subject: subject.clone() });
        }
        if !unit.rules.sends.iter().any(|pattern| subject_matches(pattern, subject)) {
            return Err(Refusal::Undeclared { effect: name(effect), subject: subject.clone() });
        }
        if message_type.is_empty() {
            return Err(Refusal::NoType { effect: name(effect) });
        }
    }
    Ok(())
}

/// Where the steps stand after the effects so far.
struct Steps<'a> {
    meets: Meets,
    instance: Option<&'a Instance>,
    changed: Vec<(&'a str, StepState)>,
}

impl<'a> Steps<'a> {
    fn check(&mut self, effect: &'a Effect) -> Result<(), Refusal> {
        match effect {
            Effect::Send(send) => match &send.step {
                Some(step) => {
                    self.begin(step, effect, StepState::Sent)?;
                    has_one_undo(step, send.undo.is_some(), send.irreversible)?;
                    if send.retry.is_some() && send.within.is_none() {
                        return Err(Refusal::RetryWithoutDeadline { step: step.clone() });
                    }
                }
                None if send.within.is_some() || send.retry.is_some() || send.undo.is_some() || send.irreversible => {
                    return Err(Refusal::NoStep { effect: name(effect) });
                }
                None => {}
            },
            Effect::Done(done) => {
                self.begin(&done.step, effect, StepState::Confirmed)?;
                has_one_undo(&done.step, done.undo.is_some(), done.irreversible)?;
            }
            Effect::Confirm(confirm) => match self.state(&confirm.step) {
                None => return Err(Refusal::UnknownStep { effect: name(effect) }),
                Some(StepState::Rejected) => return Err(Refusal::WasRejected { effect: name(effect) }),
                Some(_) => self.changed.push((&confirm.step, StepState::Confirmed)),
            },
            Effect::Reject(reject) => match self.state(&reject.step) {
                None => return Err(Refusal::UnknownStep { effect: name(effect) }),
                Some(_) => self.changed.push((&reject.step, StepState::Rejected)),
            },
            Effect::Timer(timer) if timer.name.is_empty() => return Err(Refusal::NoName { effect: name(effect) }),
            Effect::Timer(timer) if timer.after.is_some() == timer.at.is_some() => {
                return Err(Refusal::TimerWithoutTime { name: timer.name.clone() });
            }
            Effect::Timer(_)
            | Effect::Cancel(_)
            | Effect::Publish(_)
            | Effect::Compensate(_)
            | Effect::Complete
            | Effect::Fail(_) => {}
        }
        Ok(())
    }

    fn begin(&mut self, step: &'a str, effect: &Effect, state: StepState) -> Result<(), Refusal> {
        if step.is_empty() {
            return Err(Refusal::NoName { effect: name(effect) });
        }
        if self.state(step) == Some(StepState::Sent) {
            return Err(Refusal::StillWaiting { step: step.to_owned() });
        }
        self.changed.push((step, state));
        Ok(())
    }

    fn state(&self, name: &str) -> Option<StepState> {
        if let Some((_, state)) = self.changed.iter().rev().find(|(step, _)| *step == name) {
            return Some(*state);
        }
        if self.meets == Meets::New {
            return None;
        }
        let steps = &self.instance?.steps;
        let (number, step) = steps.iter().enumerate().rev().find(|(_, step)| step.step == name)?;
        Some(if self.meets == Meets::Step(number) { StepState::Confirmed } else { step.state })
    }
}

fn has_one_undo(step: &str, undo: bool, irreversible: bool) -> Result<(), Refusal> {
    match (undo, irreversible) {
        (false, false) => Err(Refusal::NoUndo { step: step.to_owned() }),
        (true, true) => Err(Refusal::UndoOfIrreversible { step: step.to_owned() }),
        (true, false) | (false, true) => Ok(()),
    }
}

/// An effect as people would speak of it.
fn name(effect: &Effect) -> String {
    let (what, which) = match effect {
        Effect::Send(send) => match &send.step {
            Some(step) => ("step", step),
            None => ("command", &send.command_type),
        },
        Effect::Publish(publish) => ("event", &publish.event_type),
        Effect::Done(done) => ("step", &done.step),
        Effect::Timer(timer) => ("timer", &timer.name),
        Effect::Cancel(cancel) => ("cancel", &cancel.name),
        Effect::Confirm(confirm) => ("confirm", &confirm.step),
        Effect::Reject(reject) => ("reject", &reject.step),
        Effect::Compensate(_) => return String::from("`compensate`"),
        Effect::Complete => return String::from("`complete`"),
        Effect::Fail(_) => return String::from("`fail`"),
    };
    // A name may be as long as an effect; a reason is to be read.
    match which.char_indices().nth(100) {
        Some((end, _)) => format!("{what} `{}…`", which.get(..end).unwrap_or_default()),
        None => format!("{what} `{which}`"),
    }
}

/// What a header or a subject must hold, and its bytes.
fn names(effect: &Effect) -> impl Iterator<Item = (&'static str, usize)> {
    let (names, undo) = match effect {
        Effect::Send(send) => (
            [
                Some(("subject", send.subject.len())),
                Some(("type", send.command_type.len())),
                send.step.as_ref().map(|step| ("step", step.len())),
            ],
            send.undo.as_ref(),
        ),
        Effect::Publish(publish) => {
            ([Some(("subject", publish.subject.len())), Some(("type", publish.event_type.len())), None], None)
        }
        Effect::Done(done) => ([Some(("step", done.step.len())), None, None], done.undo.as_ref()),
        Effect::Timer(timer) => ([Some(("name", timer.name.len())), None, None], None),
        Effect::Cancel(_)
        | Effect::Confirm(_)
        | Effect::Reject(_)
        | Effect::Compensate(_)
        | Effect::Complete
        | Effect::Fail(_) => ([None; 3], None),
    };
    let undo = undo.map(|undo| [("subject", undo.subject.len()), ("type", undo.command_type.len())]);
    names.into_iter().flatten().chain(undo.into_iter().flatten())
}

/// The bytes of all texts in an effect.
fn size(effect: &Effect) -> usize {
    let undo = |undo: &Option<Undo>| {
        undo.as_ref().map_or(0, |undo| undo.subject.len() + undo.command_type.len() + undo.payload.get().len())
    };
    match effect {
        Effect::Send(send) => {
            send.subject.len()
                + send.command_type.len()
                + send.payload.get().len()
                + send.step.as_ref().map_or(0, String::len)
                + undo(&send.undo)
        }
        Effect::Publish(publish) => publish.subject.len() + publish.event_type.len() + publish.payload.get().len(),
        Effect::Done(done) => done.step.len() + undo(&done.undo),
        Effect::Timer(timer) => timer.name.len() + timer.payload.as_ref().map_or(0, |payload| payload.get().len()),
        Effect::Cancel(cancel) => cancel.name.len(),
        Effect::Confirm(confirm) => confirm.step.len(),
        Effect::Reject(reject) => reject.step.len() + reject.reason.len(),
        Effect::Compensate(because) | Effect::Fail(because) => because.reason.len(),
        Effect::Complete => 0,
    }
}

#[cfg(test)]
mod tests {
    use crate::trial::{COMPENSATE, COMPLETE, FAIL, Trial, done, firm, reject, step, timer};

    fn send(more: &str) -> String {
        format!(r#"{{"send":{{"subject":"shop.pay","type":"Pay","payload":1{more}}}}}"#)
    }

    const UNDO: &str = r#","undo":{"subject":"shop.unpay","type":"Unpay","payload":1}"#;

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        let confirm = r#"{"confirm":{"step":"pay"}}"#;
        let to = |subject: &str| format!(r#"{{"publish":{{"subject":"{subject}","type":"E","payload":1}}}}"#);
        let undo_to = |subject: &str| {
            format!(r#"{{"done":{{"step":"pay","undo":{{"subject":"{subject}","type":"U","payload":1}}}}}}"#)
        };
        let cases: &[(&[&str], &str)] = &[
            (&[&send(r#","step":"pay""#)], "step `pay` has no undo: say how it is taken back"),
            (
                &[&send(&format!(r#","step":"pay","irreversible":true{UNDO}"#))],
                "step `pay` has an undo and is irreversible",
            ),
            (&[r#"{"done":{"step":"pay"}}"#], "step `pay` has no undo"),
            (&[&send(r#","step":"""#)], "step `` has no name"),
            (
                &[&send(r#","step":"pay","retry":{"times":1,"wait":1},"irreversible":true"#)],
                "step `pay` has a retry, but no",
            ),
            (&[&send(r#","within":5"#)], "command `Pay` is no step"),
            (&[&send(r#","retry":{"times":1,"wait":1}"#)], "command `Pay` is no step"),
            (&[&send(UNDO)], "command `Pay` is no step"),
            (&[&send(r#","irreversible":true"#)], "command `Pay` is no step"),
            (&[&step("pay"), &step("pay")], "step `pay` is still waiting for an answer"),
            (&[&step("pay"), &done("pay")], "step `pay` is still waiting for an answer"),
            (&[confirm], "confirm `pay`: there is no such step"),
            (&[&reject("pay")], "reject `pay`: there is no such step"),
            (&[&step("pay"), &reject("pay"), confirm], "confirm `pay`: the step was rejected"),
            (&[r#"{"timer":{"name":"","after":1}}"#], "timer `` has no name"),
            (&[r#"{"timer":{"name":"t"}}"#], "timer `t` needs either `after` or `at`"),
            (&[r#"{"timer":{"name":"t","after":1,"at":1}}"#], "timer `t` needs either `after` or `at`"),
            (&[COMPLETE, &timer("t", 1)], "timer `t` comes after `complete`"),
            (&[FAIL, COMPLETE], "`complete` comes after `fail`"),
            (&[COMPENSATE, COMPENSATE], "`compensate` comes after `compensate`"),
            (&[&to("shop.*")], "event `E`: \"shop.*\" is not a subject"),
            (&[&to("")], "event `E`: \"\" is not a subject"),
            (&[&to("bank.pay")], "event `E`: subject \"bank.pay\" is not among those the handler declares"),
            (&[&to("shop")], "event `E`: subject \"shop\" is not among"),
            (&[&undo_to("bank.pay")], "step `pay`: subject \"bank.pay\" is not among"),
            (&[&undo_to("shop.>")], "step `pay`: \"shop.>\" is not a subject"),
            (&[r#"{"publish":{"subject":"shop.e","type":"","payload":1}}"#], "event `` has no type"),
        ];
        for (effects, reason) in cases {
            // On a new instance, and on one that is there already.
            let mut trial = Trial::new();
            let fate = trial.event("e1", effects);
            assert!(fate.starts_with(&format!("refused: {reason}")), "{effects:?} {fate}");
            assert!(trial.instance.is_none());
            trial.event("e0", &[]);
            assert_eq!(trial.event("e1", effects), fate);
        }
    }

    #[test]
    fn what_no_header_or_subject_could_hold_is_refused() {
        let long = "x".repeat(1025);
        let cases = [
            (timer(&long, 1), "name"),
            (done(&long), "step"),
            (step(&long), "subject"),
            (format!(r#"{{"publish":{{"subject":"shop.{long}","type":"E","payload":1}}}}"#), "subject"),
            (format!(r#"{{"publish":{{"subject":"shop.e","type":"{long}","payload":1}}}}"#), "type"),
        ];
        for (effect, what) in cases {
            let fate = Trial::new().event("e1", &[&effect]);
            assert!(fate.contains(&format!("has a {what} of 10")) && fate.contains("1024 allowed"), "{fate}");
        }
    }

    #[test]
    fn what_came_before_in_the_unit_counts() {
        let fine: &[&[&str]] = &[
            &[&step("pay"), r#"{"confirm":{"step":"pay"}}"#, &step("pay")],
            &[&step("pay"), &reject("pay"), &reject("pay"), &firm("pay")],
            &[&done("pay"), &step("pay")],
            &[&done("pay"), &reject("pay"), COMPLETE],
            &[r#"{"cancel":{"name":"never set"}}"#],
            &[&send(""), &send(r#","step":"pay","irreversible":true"#)],
        ];
        for effects in fine {
            assert_eq!(Trial::new().event("e1", effects), "react", "{effects:?}");
        }
    }

    #[test]
    fn the_answered_step_counts_as_finished() {
        let mut trial = Trial::new();
        trial.event("e1", &[&step("pay")]);
        assert!(trial.event("e2", &[&step("pay")]).contains("still waiting"));
        assert_eq!(trial.answer("e3", "pay", &[&step("pay")]), "react");
        assert_eq!(trial.steps(), "pay confirmed, pay sent");
        assert_eq!(trial.answer("e4", "pay", &[&reject("pay")]), "react");
        assert_eq!(trial.steps(), "pay confirmed, pay rejected", "the last of that name is meant");
        assert!(trial.event("e5", &[r#"{"confirm":{"step":"pay"}}"#]).contains("was rejected"));
    }

    #[test]
    fn a_new_life_knows_no_steps_of_the_old() {
        let mut trial = Trial::new().late(crate::Late::Start);
        trial.event("e1", &[&step("pay")]);
        trial.event("e2", &[COMPLETE]);
        assert!(trial.event("e3", &[r#"{"confirm":{"step":"pay"}}"#]).contains("no such step"));
        assert_eq!(trial.event("e3", &[&step("pay")]), "react");
        assert_eq!(trial.steps(), "pay sent");
    }

    #[test]
    fn limits() {
        let mut trial = Trial::new();
        trial.rules.effects_per_unit = 2;
        trial.rules.effect_bytes = 100;
        let three: [&str; 3] = [r#"{"cancel":{"name":"t"}}"#; 3];
        assert_eq!(trial.event("e1", &three), "refused: 3 effects at once are more than the 2 allowed");
        assert_eq!(trial.event("e1", &three[..2]), "react");

        // Each has 11 bytes besides: subject and type.
        let payload = |bytes: usize| {
            format!(r#"{{"publish":{{"subject":"shop.event","type":"E","payload":"{}"}}}}"#, "x".repeat(bytes - 13))
        };
        assert_eq!(trial.event("e2", &[&payload(101)]), "refused: event `E` has 101 bytes, more than the 100 allowed");
        assert_eq!(trial.event("e2", &[&payload(100)]), "react");
        let large = "x".repeat(100);
        for effect in [
            send(&format!(r#","step":"p","undo":{{"subject":"shop.u","type":"U","payload":"{large}"}}"#)),
            format!(r#"{{"done":{{"step":"p","undo":{{"subject":"shop.u","type":"U","payload":"{large}"}}}}}}"#),
            format!(r#"{{"timer":{{"name":"t","after":1,"payload":"{large}"}}}}"#),
            format!(r#"{{"timer":{{"name":"t{large}","after":1}}}}"#),
            format!(r#"{{"cancel":{{"name":"t{large}"}}}}"#),
            format!(r#"{{"confirm":{{"step":"t{large}"}}}}"#),
            format!(r#"{{"reject":{{"step":"t","reason":"{large}"}}}}"#),
            format!(r#"{{"fail":{{"reason":"{large}1"}}}}"#),
            format!(r#"{{"compensate":{{"reason":"{large}1"}}}}"#),
        ] {
            let fate = trial.event("e3", &[&effect]);
            assert!(fate.ends_with("more than the 100 allowed"), "{effect} {fate}");
        }
    }

    #[test]
    fn a_chain_of_messages_ends() {
        let mut trial = Trial::new();
        trial.rules.max_depth = 3;
        let mut given = |depth: u32, effects: Vec<String>| {
            let given = crate::trial::Given {
                id: format!("e{depth}"),
                event_type: "Event".into(),
                causation: String::new(),
                depth,
                due: None,
            };
            trial.give(&given, |_, _| (None, effects))
        };
        assert_eq!(given(2, vec![step("pay")]), "react");
        assert_eq!(
            given(3, vec![step("ship")]),
            "refused: step `ship` would be number 4 in a chain of messages that cause each other; 3 are allowed"
        );
        assert_eq!(given(3, vec![timer("t", 1)]), "react", "a timer begins a new chain");
        assert_eq!(given(7, vec![COMPENSATE.into()]), "react", "taking back is always allowed");
        assert_eq!(trial.messages().map(|message| message.depth).collect::<Vec<_>>(), [3, 8]);
    }

    #[test]
    fn without_instances_there_are_only_messages() {
        let mut trial = Trial::new();
        trial.rules.stateless = true;
        assert_eq!(
            trial.event("e1", &[&send(""), r#"{"publish":{"subject":"shop.e","type":"E","payload":1}}"#]),
            "react"
        );
        assert_eq!(trial.lines(), ["send Pay", "publish E"]);
        for effect in [
            &*step("s"),
            &done("s"),
            &timer("s", 1),
            r#"{"cancel":{"name":"s"}}"#,
            &reject("s"),
            COMPENSATE,
            COMPLETE,
            FAIL,
        ] {
            let fate = trial.event("e1", &[effect]);
            assert!(fate.ends_with("needs an instance, and this handler keeps none"), "{fate}");
        }
    }
}
