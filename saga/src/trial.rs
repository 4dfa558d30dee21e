//! For tests: one instance on trial. Each unit runs twice, once on the instance read back from its document; both must agree.
//! A refused unit must leave no trace.

use serde_json::value::RawValue;

use crate::instance::Instance;
use crate::{Cause, Due, DueVerdict, Effect, Late, Message, Outgoing, Reaction, Rules, Unit, Verdict, Waiting};

/// An event, or a timer that came back.
#[derive(Clone, Debug)]
pub(crate) struct Given {
    pub(crate) id: String,
    pub(crate) event_type: String,
    pub(crate) causation: String,
    pub(crate) depth: u32,
    pub(crate) due: Option<Due>,
}

/// What a handler answers: a new state and its effects, as they cross the contract.
pub(crate) type Answer = (Option<String>, Vec<String>);

pub(crate) struct Trial {
    pub(crate) rules: Rules<'static>,
    pub(crate) starts: bool,
    pub(crate) instance: Option<Instance>,
    pub(crate) out: Vec<Outgoing>,
    /// What ids of steps and timers stand for, as the lines of [`Trial::lines`] say it.
    names: Vec<(String, String)>,
    told: usize,
}

pub(crate) const TIME: i64 = 1_767_225_600_000_000_000;

impl Trial {
    pub(crate) fn new() -> Self {
        let sends = Box::leak(Box::new([String::from("shop.>")]));
        Self {
            rules: Rules { handler: "orders", digest: "0123456789abcdef", sends, ..Rules::default() },
            starts: true,
            instance: None,
            out: Vec::new(),
            names: Vec::new(),
            told: 0,
        }
    }

    pub(crate) fn late(mut self, late: Late) -> Self {
        self.rules.late = late;
        self
    }

    /// An event that the handler answers with these effects, should it see it.
    pub(crate) fn event(&mut self, id: &str, effects: &[&str]) -> String {
        self.answer(id, "", effects)
    }

    /// An event that a command caused: `pay`, `pay.2`, `pay.undo`.
    pub(crate) fn answer(&mut self, id: &str, command: &str, effects: &[&str]) -> String {
        self.typed(id, "Event", command, effects)
    }

    /// The same, of this type.
    pub(crate) fn typed(&mut self, id: &str, event_type: &str, command: &str, effects: &[&str]) -> String {
        let causation = if command.is_empty() { String::new() } else { self.id_of(command) };
        let given = Given { id: id.into(), event_type: event_type.into(), causation, depth: 0, due: None };
        let effects = effects.iter().map(|effect| String::from(*effect)).collect();
        self.give(&given, |_, _| (None, effects))
    }

    /// A timer comes back, whether cancelled or not: `pay.deadline`, `pay.retry`, `remind`.
    pub(crate) fn fire(&mut self, timer: &str, effects: &[&str]) -> String {
        let timer = self.id_of(timer);
        let given = self.out.iter().find_map(|outgoing| due(outgoing, &timer)).unwrap();
        let effects = effects.iter().map(|effect| String::from(*effect)).collect();
        self.give(&given, |_, _| (None, effects))
    }

    pub(crate) fn resume(&mut self, id: &str) -> String {
        let instance = self.instance.as_ref().unwrap();
        let due = Due { key: "C42".into(), life: instance.life.clone(), timer: Waiting::Resume };
        let given = Given {
            id: id.into(),
            event_type: crate::TIMER_TYPE.into(),
            causation: String::new(),
            depth: 0,
            due: Some(due),
        };
        self.give(&given, |_, _| unreachable!())
    }

    pub(crate) fn give(&mut self, given: &Given, handler: impl FnOnce(Option<&RawValue>, &Given) -> Answer) -> String {
        let before = self.instance.as_ref().map(Instance::write);
        let mut again = before.as_deref().map(|document| Instance::read(document).unwrap());
        let mut instance = self.instance.take();
        let mut answer = None;
        let mut handler = Some(handler);
        let mut out = Vec::new();
        let fate = run(&self.rules, self.starts, given, &mut instance, &mut out, |state| {
            let answered = handler.take().unwrap()(state, given);
            answer = Some(answered.clone());
            answered
        });

        let mut same = Vec::new();
        let other = run(&self.rules, self.starts, given, &mut again, &mut same, |_| answer.clone().unwrap());
        let after = instance.as_ref().map(Instance::write);
        assert_eq!((&other, &same), (&fate, &out), "{given:?}");
        let text = |document: &Option<Vec<u8>>| document.as_ref().map(|document| String::from_utf8(document.clone()));
        assert_eq!(text(&again.as_ref().map(Instance::write)), text(&after), "{given:?}");
        if fate.starts_with("refused") || matches!(&*fate, "duplicate" | "ignored") {
            assert_eq!(text(&before), text(&after), "{given:?} {fate}");
            assert!(out.is_empty(), "{given:?} {fate} {out:?}");
        }

        self.instance = instance;
        self.out.append(&mut out);
        self.learn();
        fate
    }

    /// What the last units sent, a word for what and a name each.
    pub(crate) fn lines(&mut self) -> Vec<String> {
        let lines = self.out[self.told..].iter().map(|outgoing| self.line(outgoing)).collect();
        self.told = self.out.len();
        lines
    }

    pub(crate) fn status(&self) -> String {
        self.instance.as_ref().unwrap().status.to_string()
    }

    /// Name and state of each step.
    pub(crate) fn steps(&self) -> String {
        let steps = &self.instance.as_ref().unwrap().steps;
        let state = |state| serde_json::to_value(state).unwrap().as_str().unwrap().to_owned();
        let steps: Vec<String> = steps.iter().map(|step| format!("{} {}", step.step, state(step.state))).collect();
        steps.join(", ")
    }

    /// What the history says happened last.
    pub(crate) fn did(&self) -> &str {
        &self.instance.as_ref().unwrap().history.last().unwrap().did
    }

    pub(crate) fn id_of(&self, name: &str) -> String {
        let (first, rest) = name.find('.').map_or((name, ""), |dot| name.split_at(dot));
        let (id, _) = self.names.iter().rev().find(|(_, known)| known == first).unwrap();
        format!("{id}{rest}")
    }

    pub(crate) fn messages(&self) -> impl Iterator<Item = &Message> {
        messages(&self.out)
    }

    fn learn(&mut self) {
        let Some(instance) = &self.instance else { return };
        let steps = instance.steps.iter().map(|step| (&step.id, &step.step));
        for (id, name) in steps.chain(instance.timers.iter().map(|timer| (&timer.id, &timer.name))) {
            if self.names.iter().all(|(known, _)| known != id) {
                self.names.push((id.clone(), name.clone()));
            }
        }
    }

    fn name(&self, id: &str) -> String {
        let known = self.names.iter().find_map(|(known, name)| Some((name, id.strip_prefix(known.as_str())?)));
        known.map_or_else(String::new, |(name, rest)| format!("{name}{rest}"))
    }

    fn line(&self, outgoing: &Outgoing) -> String {
        match outgoing {
            Outgoing::Message(message) if message.step.is_some() => format!("send {}", self.name(&message.id)),
            Outgoing::Message(message) if message.command => format!("send {}", message.event_type),
            Outgoing::Message(message) => format!("publish {}", message.event_type),
            Outgoing::Timer { id, .. } => format!("timer {}", self.name(id)),
            Outgoing::Wait { id, .. } => format!("wait {}", self.name(id)),
            Outgoing::Cancel { id } => format!("cancel {}", self.name(id)),
        }
    }
}

/// A command that can be taken back, with two retries.
pub(crate) fn step(name: &str) -> String {
    format!(
        r#"{{"send":{{"subject":"shop.{name}","type":"{name}","payload":{{"n":1}},"step":"{name}","within":30000,"retry":{{"times":2,"wait":1000}},"undo":{{"subject":"shop.un.{name}","type":"un{name}","payload":null}}}}}}"#
    )
}

/// A command that cannot be taken back, without retries.
pub(crate) fn firm(name: &str) -> String {
    format!(
        r#"{{"send":{{"subject":"shop.{name}","type":"{name}","payload":1,"step":"{name}","within":30000,"irreversible":true}}}}"#
    )
}

/// What was done before.
pub(crate) fn done(name: &str) -> String {
    format!(r#"{{"done":{{"step":"{name}","undo":{{"subject":"shop.un.{name}","type":"un{name}","payload":7}}}}}}"#)
}

pub(crate) fn timer(name: &str, after: u64) -> String {
    format!(r#"{{"timer":{{"name":"{name}","after":{after},"payload":{{"n":1}}}}}}"#)
}

pub(crate) fn reject(name: &str) -> String {
    format!(r#"{{"reject":{{"step":"{name}","reason":"no {name}"}}}}"#)
}

pub(crate) const COMPENSATE: &str = r#"{"compensate":{"reason":"no longer wanted"}}"#;
pub(crate) const COMPLETE: &str = r#""complete""#;
pub(crate) const FAIL: &str = r#"{"fail":{"reason":"nothing to be done"}}"#;

pub(crate) fn messages(out: &[Outgoing]) -> impl Iterator<Item = &Message> {
    out.iter().filter_map(|outgoing| match outgoing {
        Outgoing::Message(message) => Some(message),
        Outgoing::Timer { .. } | Outgoing::Wait { .. } | Outgoing::Cancel { .. } => None,
    })
}

/// The timer as it comes back, if this set it.
pub(crate) fn due(outgoing: &Outgoing, timer: &str) -> Option<Given> {
    match outgoing {
        Outgoing::Timer { id, body, .. } | Outgoing::Wait { id, body, .. } if id == timer => Some(Given {
            id: id.clone(),
            event_type: crate::TIMER_TYPE.into(),
            causation: String::new(),
            depth: 0,
            due: Some(serde_json::from_slice(body).unwrap()),
        }),
        _ => None,
    }
}

fn run(
    rules: &Rules<'_>,
    starts: bool,
    given: &Given,
    instance: &mut Option<Instance>,
    out: &mut Vec<Outgoing>,
    handler: impl FnOnce(Option<&RawValue>) -> Answer,
) -> String {
    let cause = Cause {
        id: &given.id,
        event_type: &given.event_type,
        time: TIME,
        correlation: "",
        causation: &given.causation,
        depth: given.depth,
    };
    let unit = Unit { rules, key: "C42", cause: &cause };
    let react = |reaction: Reaction, instance: &mut Option<Instance>, out: &mut Vec<Outgoing>, fate: &str| {
        let (state, effects) = handler(reaction.state(instance.as_ref()));
        let state = state.map(|state| RawValue::from_string(state).unwrap());
        let effects: Vec<Effect> = effects.iter().map(|effect| serde_json::from_str(effect).unwrap()).collect();
        match unit.fold(reaction, instance, state, effects, out) {
            Ok(()) => String::from(fate),
            Err(refusal) => format!("refused: {refusal}"),
        }
    };
    if let Some(due) = &given.due {
        return match unit.due(due, instance, out) {
            DueVerdict::Wake { reaction, .. } => react(reaction, instance, out, "wake"),
            DueVerdict::Ignored => "ignored".into(),
            DueVerdict::Late => "late".into(),
            DueVerdict::Settled => "settled".into(),
        };
    }
    match unit.judge(starts, instance, out) {
        Ok(Verdict::React(reaction)) => react(reaction, instance, out, "react"),
        Ok(Verdict::Ignored) => "ignored".into(),
        Ok(Verdict::Late) => "late".into(),
        Ok(Verdict::Duplicate) => "duplicate".into(),
        Ok(Verdict::Settled) => "settled".into(),
        Err(refusal) => format!("refused: {refusal}"),
    }
}
