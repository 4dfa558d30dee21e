//! What a scenario can say. In: its last action and its instances. Out: nothing, or what is different, at the caller's
//! line. Never: changes the scenario.

use std::fmt::Write;

use millstream_saga::Instance;
use serde::Serialize;
use serde_json::Value;

use super::super::fate::{Fate, Unit};
use super::super::{difference, fail, logged_or_fail, pretty};
use super::{Scenario, Sent, history, listing};
use crate::guest::Handler;

impl<H: Handler> Scenario<H> {
    /// The last action sent these commands, by their types, in this order, and no others.
    ///
    /// # Panics
    /// If it did not.
    #[track_caller]
    pub fn then_commands<const N: usize>(self, expected: [&str; N]) -> Self {
        self.names_or_fail("commands", &expected, |sent| sent.command)
    }

    /// The last action published these events, by their types, in this order, and no others.
    ///
    /// # Panics
    /// If it did not.
    #[track_caller]
    pub fn then_published<const N: usize>(self, expected: [&str; N]) -> Self {
        self.names_or_fail("events", &expected, |sent| !sent.command)
    }

    /// The last action sent a message of this type with this payload: the type itself, or `&json!({…})`.
    ///
    /// # Panics
    /// If it did not.
    #[track_caller]
    pub fn then_sent(self, name: &str, payload: &(impl Serialize + ?Sized)) -> Self {
        let expected = json_or_fail(payload);
        let of_name: Vec<&Sent> = self.last_sent().iter().filter(|sent| sent.name == name).collect();
        match of_name.as_slice() {
            [] => fail(format_args!("no `{name}` was sent, but:\n{}{}", listing(self.last_sent()), self.problems())),
            all if all.iter().any(|sent| sent.payload == expected) => self,
            [.., last] => fail(format_args!(
                "the payload of `{name}` differs (- expected, + actual):\n{}",
                difference(&pretty(&expected), &pretty(&last.payload))
            )),
        }
    }

    /// The instance has this state: the type itself, or `&json!({…})`. The order of JSON fields does not matter.
    ///
    /// # Panics
    /// If there is none, or it differs.
    #[track_caller]
    pub fn then_state(self, key: &str, expected: &(impl Serialize + ?Sized)) -> Self {
        let expected = json_or_fail(expected);
        let instance = self.instance_or_fail(key);
        let actual = instance.state().and_then(|state| serde_json::from_str(state.get()).ok()).unwrap_or_default();
        if actual != expected {
            fail(format_args!(
                "the state of `{key}` differs (- expected, + actual){}:\n{}",
                self.problems(),
                difference(&pretty(&expected), &pretty(&actual))
            ));
        }
        self
    }

    /// The instance has this status: `running`, `compensating`, `completed`, `compensated`, `compensation-failed` or `failed`.
    ///
    /// # Panics
    /// If there is none, or it has another one.
    #[track_caller]
    pub fn then_status(self, key: &str, expected: &str) -> Self {
        let instance = self.instance_or_fail(key);
        let actual = instance.status.to_string();
        if actual != expected {
            let reason = instance.reason.map_or_else(String::new, |reason| format!(" ({reason})"));
            fail(format_args!(
                "`{key}` is {actual}{reason}, not {expected}{}; its history:\n{}",
                self.problems(),
                history(&self.instance_or_fail(key))
            ));
        }
        self
    }

    /// The instance has these steps, in the order they began, each as `("reserve", "confirmed")`. A step is `sent`, `confirmed`,
    /// `rejected`, `timed-out`, `undoing`, `undone`, `undo-failed` or `kept`.
    ///
    /// # Panics
    /// If there is none, or they differ.
    #[track_caller]
    pub fn then_steps<const N: usize>(self, key: &str, expected: [(&str, &str); N]) -> Self {
        let lines = expected.iter().map(|(step, state)| format!("{step}: {state}\n"));
        let expected: String = lines.collect();
        let instance = self.instance_or_fail(key);
        let lines = instance.steps.iter().map(|step| {
            let state = serde_json::to_value(step.state).unwrap_or_default();
            format!("{}: {}\n", step.step, state.as_str().unwrap_or_default())
        });
        let actual: String = lines.collect();
        if actual != expected {
            fail(format_args!(
                "the steps of `{key}` differ (- expected, + actual){}:\n{}",
                self.problems(),
                difference(&expected, &actual)
            ));
        }
        self
    }

    /// The instance has set these timers, in this order, and they did not fire yet.
    ///
    /// # Panics
    /// If there is no such instance, or they differ.
    #[track_caller]
    pub fn then_timers<const N: usize>(self, key: &str, expected: [&str; N]) -> Self {
        let instance = self.instance_or_fail(key);
        let actual: Vec<&str> = instance.timers.iter().map(|timer| timer.name.as_str()).collect();
        if actual != expected {
            fail(format_args!("`{key}` has the timers {actual:?}, not {expected:?}{}", self.problems()));
        }
        self
    }

    /// There is no such instance.
    ///
    /// # Panics
    /// If there is one.
    #[track_caller]
    pub fn then_no_instance(self, key: &str) -> Self {
        if let Some(instance) = self.host.instance(key) {
            fail(format_args!("there is an instance `{key}`, {}", instance.status));
        }
        self
    }

    /// An event of the last action was refused, by the handler or for what it asked for, for a reason that contains this.
    ///
    /// # Panics
    /// If none was, or for another reason.
    #[track_caller]
    pub fn then_refused(mut self, part: &str) -> Self {
        if !self.fates.iter().any(|(_, fate)| fate.refusals().any(|reason| reason.contains(part))) {
            fail(format_args!("expected a refusal with `{part}`, but{}", self.story()));
        }
        self.expected_refusal = true;
        self
    }

    /// The last event could not be decoded or gave no proper key, for a reason that contains this.
    ///
    /// # Panics
    /// If it could, or for another reason.
    #[track_caller]
    pub fn then_rejected(mut self, part: &str) -> Self {
        let rejected = |(_, fate): &(String, Fate)| matches!(fate, Fate::Rejected(reason) if reason.contains(part));
        if !self.fates.iter().any(rejected) {
            fail(format_args!("expected a rejection with `{part}`, but{}", self.story()));
        }
        self.expected_refusal = true;
        self
    }

    /// The handler did not see the last event: it was irrelevant, belonged to no instance, was a duplicate, or came too late.
    ///
    /// # Panics
    /// If it did see it.
    #[track_caller]
    pub fn then_ignored(self) -> Self {
        let unseen = |(_, unit): &(String, Unit)| matches!(unit, Unit::Ignored | Unit::Late | Unit::Duplicate);
        let ignored = self.fates.last().is_some_and(|(_, fate)| match fate {
            Fate::Irrelevant => true,
            Fate::Rejected(_) => false,
            Fate::Routed(units) => units.iter().all(unseen),
        });
        if !ignored {
            fail(format_args!("expected that nobody sees the event, but{}", self.story()));
        }
        self
    }

    /// The handler logged a line that contains this because of the last action; lines begin with their level, as `Info: …`.
    ///
    /// # Panics
    /// If it did not.
    #[track_caller]
    pub fn then_logged(self, part: &str) -> Self {
        logged_or_fail(&self.logged, part);
        self
    }

    #[track_caller]
    fn names_or_fail(self, what: &str, expected: &[&str], of: impl Fn(&Sent) -> bool) -> Self {
        let actual: Vec<&Sent> = self.last_sent().iter().filter(|sent| of(sent)).collect();
        if !actual.iter().map(|sent| sent.name.as_str()).eq(expected.iter().copied()) {
            let lines = |names: &[&str]| names.iter().map(|name| format!("{name}\n")).collect::<String>();
            let names: Vec<&str> = actual.iter().map(|sent| sent.name.as_str()).collect();
            fail(format_args!(
                "the {what} of the last action differ (- expected, + actual){}:\n{}",
                self.problems(),
                difference(&lines(expected), &lines(&names))
            ));
        }
        self
    }

    #[track_caller]
    fn instance_or_fail(&self, key: &str) -> Instance {
        let Some(instance) = self.host.instance(key) else {
            let keys: Vec<String> = self.host.instances.keys().take(10).map(|key| format!("`{key}`")).collect();
            let keys =
                if keys.is_empty() { String::from("there are none") } else { format!("there are {}", keys.join(", ")) };
            fail(format_args!("there is no instance `{key}` ({keys}){}", self.problems()))
        };
        instance
    }

    /// What went wrong in the last action, to follow what is said.
    fn problems(&self) -> String {
        let problems = self.fates.iter().filter_map(|(event, fate)| Some(format!("; {event} {}", fate.problem()?)));
        problems.collect()
    }

    /// What became of the events of the last action.
    fn story(&self) -> String {
        if self.fates.is_empty() {
            return String::from(" nothing happened");
        }
        self.fates.iter().fold(String::new(), |mut story, (event, fate)| {
            let _ = write!(story, "\n  {event} {fate}");
            story
        })
    }
}

#[track_caller]
fn json_or_fail(expected: &(impl Serialize + ?Sized)) -> Value {
    match serde_json::to_value(expected) {
        Ok(expected) => expected,
        Err(error) => fail(format_args!("what is expected is not JSON: {error}")),
    }
}
