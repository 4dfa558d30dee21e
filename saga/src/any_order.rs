//! For tests: a saga of four steps under any sequence of answers, refusals, deadlines, retries, duplicates and strangers, all of
//! them also when nobody waits any more. What must hold is computed anew, from what went out and what the handler was asked.

use std::collections::BTreeSet;

use proptest::prelude::*;
use serde_json::value::RawValue;

use crate::instance::StepState;
use crate::trial::{Answer, COMPENSATE, COMPLETE, Given, Trial, done, due, firm, reject, step, timer};
use crate::{Outgoing, Status};

const STEPS: [&str; 4] = ["a", "b", "c", "d"];

/// Which steps are irreversible, and whether all are sent at once.
#[derive(Clone, Copy, Debug)]
struct Plan {
    firm: [bool; 4],
    at_once: bool,
}

#[derive(Clone, Debug)]
enum Move {
    /// The nth of the commands sent so far is carried out, or refused; undos are carried out.
    Answer(usize, bool),
    /// The nth of the timers set so far fires, cancelled or not.
    Fire(usize),
    /// The nth of the events so far comes again.
    Again(usize),
    Stranger,
    Resume,
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let one = prop_oneof![
        6 => (0..64_usize, prop::bool::weighted(0.85)).prop_map(|(nth, well)| Move::Answer(nth, well)),
        6 => (0..64_usize).prop_map(Move::Fire),
        2 => (0..64_usize).prop_map(Move::Again),
        1 => Just(Move::Stranger),
        1 => Just(Move::Resume),
    ];
    prop::collection::vec(one, 0..40)
}

struct Play {
    trial: Trial,
    plan: Plan,
    twice: bool,
    given: Vec<Given>,
    rejected: BTreeSet<String>,
    undone: Vec<String>,
}

impl Play {
    fn new(plan: Plan, twice: bool) -> Self {
        let mut play =
            Self { trial: Trial::new(), plan, twice, given: Vec::new(), rejected: BTreeSet::new(), undone: Vec::new() };
        play.give(event("begin", "Begin", ""));
        play
    }

    fn make(&mut self, number: usize, played: &Move) {
        match *played {
            Move::Answer(nth, well) => {
                let commands: Vec<_> = self.trial.messages().filter(|message| message.command).collect();
                let Some(message) = commands.get(nth % commands.len().max(1)) else { return };
                let what = if well || message.id.contains(".undo") { "Ok" } else { "No" };
                let given =
                    event(&format!("m{number}"), &format!("{what} {}", message.step.as_ref().unwrap()), &message.id);
                self.give(given);
            }
            Move::Fire(nth) => {
                let timers: Vec<_> = self.trial.out.iter().filter_map(timer_of).collect();
                if let Some(given) = timers.get(nth % timers.len().max(1)) {
                    self.give(given.clone());
                }
            }
            Move::Again(nth) => {
                let given = self.given[nth % self.given.len()].clone();
                let (before, sent) = (self.trial.instance.as_ref().unwrap().write(), self.trial.out.len());
                let due = given.due.is_some();
                // A timer that found its instance not yet ready for it may come again and find it ready: no duplicate.
                if !due && self.trial.instance.as_ref().unwrap().knows(&given.id) {
                    self.give(given);
                    assert_eq!(self.trial.instance.as_ref().unwrap().write(), before);
                    assert_eq!(self.trial.out.len(), sent);
                }
            }
            Move::Stranger => self.give(event(&format!("m{number}"), "Stranger", "")),
            Move::Resume => {
                self.trial.resume(&format!("m{number}"));
            }
        }
    }

    fn give(&mut self, given: Given) {
        let (plan, undoing) = (self.plan, self.undoing());
        let mut rejects = None;
        let fate = self.trial.give(&given, |state, given| {
            rejects = given.event_type.strip_prefix("No ").map(String::from);
            handler(plan, state, given)
        });
        assert!(!fate.starts_with("refused"), "{given:?} {fate}");
        if let ("react", Some(step)) = (&*fate, rejects) {
            self.rejected.insert(step);
        }
        if let ("settled", None, Some(step)) = (&*fate, &given.due, undoing) {
            self.undone.push(step);
        }
        if self.twice {
            let again = self.trial.give(&given, |_, _| unreachable!("{given:?}"));
            let expected = if given.due.is_some() || fate == "ignored" { "ignored" } else { "duplicate" };
            assert_eq!(again, expected, "{given:?}");
        }
        self.given.push(given);
        self.one_at_a_time();
    }

    fn undoing(&self) -> Option<String> {
        let steps = &self.trial.instance.as_ref()?.steps;
        steps.iter().find(|step| step.state == StepState::Undoing).map(|step| step.step.clone())
    }

    fn one_at_a_time(&self) {
        let begun: BTreeSet<_> = self.undos().collect();
        assert!(begun.len() <= self.undone.len() + 1, "{begun:?} {:?}", self.undone);
    }

    /// First attempts to undo, in the order sent.
    fn undos(&self) -> impl Iterator<Item = &str> {
        self.trial
            .messages()
            .filter(|message| message.id.ends_with(".undo"))
            .filter_map(|message| message.step.as_deref())
    }

    /// Lets all that waits be answered until it is over.
    fn end(&mut self) {
        for number in 0..100 {
            let instance = self.trial.instance.as_ref().unwrap();
            if instance.status.has_ended() {
                return;
            }
            if instance.status == Status::CompensationFailed {
                self.trial.resume(&format!("r{number}"));
                continue;
            }
            let undoing = instance.status == Status::Compensating;
            let waiting = instance.steps.iter().find_map(|step| {
                let command = step.command_id(step.awaits().filter(|attempt| attempt.undo == undoing)?);
                Some(event(&format!("l{number}"), &format!("Ok {}", step.step), &command))
            });
            let waiting = waiting.unwrap();
            self.give(waiting);
        }
        panic!("it does not end: {}", String::from_utf8(self.trial.instance.as_ref().unwrap().write()).unwrap());
    }

    fn check(&self) {
        let instance = self.trial.instance.as_ref().unwrap();
        let unique: BTreeSet<_> = self.trial.messages().map(|message| &message.id).collect();
        assert_eq!(unique.len(), self.trial.messages().count(), "an id twice");
        let timers: Vec<_> = self.trial.out.iter().filter_map(timer_of).map(|given| given.id).collect();
        assert_eq!(timers.iter().collect::<BTreeSet<_>>().len(), timers.len(), "a timer twice");

        let is_firm = |step: &str| STEPS.iter().zip(self.plan.firm).any(|(name, firm)| firm && *name == step);
        let commands = self.trial.messages().filter(|message| message.command && !message.id.contains(".undo"));
        let sent = commands.filter(|message| message.attempt == 1).filter_map(|message| message.step.as_deref());
        let mut expected: Vec<&str> = std::iter::once("order")
            .chain(sent)
            .filter(|step| !self.rejected.contains(*step) && !is_firm(step))
            .collect();
        expected.reverse();
        match instance.status {
            Status::Compensated => {
                assert_eq!(self.undos().collect::<Vec<_>>(), expected);
                assert_eq!(self.undone, expected, "each once, and each answered");
            }
            Status::Completed => assert_eq!(self.undos().count(), 0),
            status => panic!("it ended {status}"),
        }
        for step in &instance.steps {
            let well = match step.state {
                StepState::Confirmed => instance.status == Status::Completed,
                StepState::Undone | StepState::Kept => instance.status == Status::Compensated,
                StepState::Rejected => self.rejected.contains(&step.step),
                StepState::Sent | StepState::TimedOut | StepState::Undoing | StepState::UndoFailed => false,
            };
            assert!(well, "{} {:?}", step.step, step.state);
        }
        assert!(instance.timers.is_empty());
    }
}

fn event(id: &str, event_type: &str, causation: &str) -> Given {
    Given { id: id.into(), event_type: event_type.into(), causation: causation.into(), depth: 0, due: None }
}

fn timer_of(outgoing: &Outgoing) -> Option<Given> {
    match outgoing {
        Outgoing::Timer { id, .. } | Outgoing::Wait { id, .. } => due(outgoing, id),
        Outgoing::Message(_) | Outgoing::Cancel { .. } => None,
    }
}

/// One step after the other, or all at once; it completes when all are done. Its state: one letter for each step done.
fn handler(plan: Plan, state: Option<&RawValue>, given: &Given) -> Answer {
    let mut state: String = state.map(|state| serde_json::from_str(state.get()).unwrap()).unwrap_or_default();
    let send = |number: usize| match plan.firm[number] {
        true => firm(STEPS[number]),
        false => step(STEPS[number]),
    };
    let mut effects = Vec::new();
    match given.event_type.split_once(' ') {
        None if given.event_type == "Begin" => {
            effects.push(done("order"));
            effects.extend((0..if plan.at_once { 4 } else { 1 }).map(send));
            effects.push(timer("patience", 1000));
        }
        None if given.due.is_some() => effects.push(COMPENSATE.into()),
        // It does not ask whether it knows that already: a second answer must not come here.
        Some(("Ok", step)) => {
            state.push_str(step);
            match (state.len(), plan.at_once) {
                (4, _) => effects.push(COMPLETE.into()),
                (number, false) => effects.extend([send(number), timer("patience", 1000)]),
                (_, true) => {}
            }
        }
        // Even if it said yes before to the same attempt: the service has the last word.
        Some(("No", step)) => effects.extend([reject(step), COMPENSATE.into()]),
        _ => {}
    }
    (Some(serde_json::to_string(&state).unwrap()), effects)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn any_sequence_ends_with_exactly_the_compensations_due(firm: [bool; 4], at_once: bool, moves in moves()) {
        let plan = Plan { firm, at_once };
        let mut once = Play::new(plan, false);
        let mut twice = Play::new(plan, true);
        for play in [&mut once, &mut twice] {
            for (number, played) in moves.iter().enumerate() {
                play.make(number, played);
            }
            play.end();
            play.check();
        }
        prop_assert_eq!(&once.trial.out, &twice.trial.out);
        let document = |play: &Play| String::from_utf8(play.trial.instance.as_ref().unwrap().write());
        prop_assert_eq!(document(&once), document(&twice));
    }
}
