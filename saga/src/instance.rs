//! The instance: one document per key, which people read too. In: its bytes. Out: the same bytes, unless something
//! happened to it. Pure data, and how it is written.
//!
//! Never: the time of a clock. The times in it are those of events. A step's deadline is a duration that begins when
//! its command is published, so the document does not know when that is.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

use crate::effect::{Retry, Undo};

/// Most transitions that are kept. Older ones are forgotten, and with them that their events were there.
const HISTORY: usize = 32;

/// What the host knows about one instance.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Instance {
    /// Where it stands.
    pub status: Status,
    /// Why it is not, or did not become, what was hoped for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The handler's own state.
    pub(crate) state: Option<Box<RawValue>>,
    /// Correlation id of all it sends.
    pub correlation: String,
    /// Id of the event that began it. A key may have several lives, one after the other.
    pub life: String,
    /// Its steps, in the order they began.
    #[serde(default)]
    pub steps: Vec<Step>,
    /// Its timers.
    #[serde(default)]
    pub timers: Vec<Timer>,
    /// What happened last, oldest first, over all its lives.
    #[serde(default)]
    pub history: Vec<Transition>,
    /// How many events came too late.
    #[serde(default)]
    pub late: u64,
}

/// Where an instance stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    /// Its handler sees its events.
    Running,
    /// Its steps are being taken back.
    Compensating,
    /// Over, and well.
    Completed,
    /// Over, and taken back.
    Compensated,
    /// A step could not be taken back; somebody must help, then resume.
    CompensationFailed,
    /// Over, and nothing is taken back.
    Failed,
}

/// A step: a command somebody waits for, or something that was done already.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Step {
    /// Its name.
    pub step: String,
    /// Where it stands.
    pub state: StepState,
    /// Command id of the first attempt; the ids of later ones and of undos begin with it.
    pub id: String,
    /// Which attempt was sent last; none if it was done without a command.
    pub attempt: u32,
    /// Target subject.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub subject: String,
    /// Command type.
    #[serde(rename = "type", default, skip_serializing_if = "String::is_empty")]
    pub command_type: String,
    /// What further attempts send.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "even_null")]
    pub payload: Option<Box<RawValue>>,
    /// Milliseconds from publication to the deadline.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub within_ms: Option<u64>,
    /// What to do at the deadline.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<Retry>,
    /// The last attempt timed out, and the next waits for its time.
    #[serde(default, skip_serializing_if = "is_false")]
    pub backing_off: bool,
    /// How it is taken back, as long as that may be needed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub undo: Option<Undo>,
    /// It cannot be taken back.
    #[serde(default, skip_serializing_if = "is_false")]
    pub irreversible: bool,
    /// Id of the event that answered it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reply: Option<String>,
    /// That event's type.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reply_type: String,
    /// Which attempt it answered; the last one if it names none.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub reply_attempt: u32,
    /// Why it was rejected or could not be taken back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Which attempt to undo it was sent last.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub undo_attempt: u32,
    /// How many of those were sent before somebody resumed.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub undo_attempts_before: u32,
}

/// Where a step stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StepState {
    /// Its command was sent, and it waits.
    Sent,
    /// It was carried out.
    Confirmed,
    /// It was refused: there is nothing to undo.
    Rejected,
    /// Nobody answered; it may have been carried out.
    TimedOut,
    /// It is being taken back.
    Undoing,
    /// It was taken back.
    Undone,
    /// It could not be taken back.
    UndoFailed,
    /// It is irreversible and stays.
    Kept,
}

/// A timer of the handler.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Timer {
    /// Its name.
    pub name: String,
    /// Its id; one of the same name that is set later has another.
    pub id: String,
    /// When it is due, for people: RFC 3339.
    pub at: String,
    /// What the handler gets with it.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "even_null")]
    pub payload: Option<Box<RawValue>>,
}

/// A unit that changed the instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transition {
    /// Id of its event.
    pub event: String,
    /// The event's type.
    #[serde(rename = "type")]
    pub event_type: String,
    /// The event's time: RFC 3339.
    pub at: String,
    /// Which module: the beginning of its digest.
    pub digest: String,
    /// What happened, for people.
    pub did: String,
}

/// The bytes are no instance.
#[derive(Debug, thiserror::Error)]
#[error("not a saga's instance")]
pub struct Error(#[from] serde_json::Error);

/// One try at a step or at its undo.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Attempt {
    pub(crate) undo: bool,
    /// From 1.
    pub(crate) number: u32,
}

impl Instance {
    /// Reads what [`Instance::write`] wrote.
    ///
    /// # Errors
    /// When it is not such a document.
    pub fn read(document: &[u8]) -> Result<Self, Error> {
        Ok(serde_json::from_slice(document)?)
    }

    /// The document.
    pub fn write(&self) -> Vec<u8> {
        json(self)
    }

    /// The handler's own state, if it has left one.
    pub fn state(&self) -> Option<&RawValue> {
        self.state.as_deref()
    }

    /// Whether it waits for an answer to this command.
    pub fn awaits(&self, command: &str) -> bool {
        let undo = match self.status {
            Status::Running => false,
            Status::Compensating => true,
            Status::Completed | Status::Compensated | Status::CompensationFailed | Status::Failed => return false,
        };
        self.find(command).is_some_and(|(number, attempt)| {
            let step = self.steps.get(number);
            attempt.undo == undo && step.is_some_and(|step| step.awaits() == Some(attempt) && !step.backing_off)
        })
    }

    /// The life that an event begins, with the history of those before.
    pub(crate) fn begin(event: &str, correlation: &str, before: Option<Self>) -> Self {
        let (history, late) = before.map_or((Vec::new(), 0), |before| (before.history, before.late));
        Self {
            status: Status::Running,
            reason: None,
            state: None,
            correlation: correlation.to_owned(),
            life: event.to_owned(),
            steps: Vec::new(),
            timers: Vec::new(),
            history,
            late,
        }
    }

    /// Whether this event was here before, as far back as can be told.
    pub(crate) fn knows(&self, event: &str) -> bool {
        self.life == event
            || self.history.iter().any(|transition| transition.event == event)
            || self.steps.iter().any(|step| step.reply.as_deref() == Some(event))
    }

    /// The step, and the try at it, that this command id belongs to.
    pub(crate) fn find(&self, command: &str) -> Option<(usize, Attempt)> {
        self.steps
            .iter()
            .enumerate()
            .find_map(|(number, step)| step.attempt_of(command).map(|attempt| (number, attempt)))
    }

    pub(crate) fn record(&mut self, transition: Transition) {
        let surplus = (self.history.len() + 1).saturating_sub(HISTORY);
        self.history.drain(..surplus.min(self.history.len()));
        self.history.push(transition);
    }
}

impl Status {
    /// Over for good: only a new life can follow.
    pub const fn has_ended(self) -> bool {
        match self {
            Self::Completed | Self::Compensated | Self::Failed => true,
            Self::Running | Self::Compensating | Self::CompensationFailed => false,
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Running => "running",
            Self::Compensating => "compensating",
            Self::Completed => "completed",
            Self::Compensated => "compensated",
            Self::CompensationFailed => "compensation-failed",
            Self::Failed => "failed",
        })
    }
}

impl Step {
    /// What it waits for, if it waits.
    pub(crate) const fn awaits(&self) -> Option<Attempt> {
        match self.state {
            StepState::Sent => Some(Attempt { undo: false, number: self.attempt }),
            StepState::Undoing => Some(Attempt { undo: true, number: self.undo_attempt }),
            StepState::Confirmed
            | StepState::Rejected
            | StepState::TimedOut
            | StepState::Undone
            | StepState::UndoFailed
            | StepState::Kept => None,
        }
    }

    /// What an answer came for, if one came and this is its last try. One before the last had its deadline.
    pub(crate) fn answered(&self, attempt: Attempt) -> Option<String> {
        let (is_answered, last) = if attempt.undo {
            (self.state == StepState::Undone, self.undo_attempt)
        } else {
            let is_settled = matches!(self.state, StepState::Confirmed | StepState::Rejected);
            (is_settled || self.reply.is_some(), self.attempt)
        };
        let what = if attempt.undo { "the undo of step" } else { "step" };
        (is_answered && attempt.number == last).then(|| format!("{what} {}", self.step))
    }

    /// Whether an answer to this try says nothing new: of the type that came before, or to another try than that one was.
    pub(crate) fn has_answer(&self, attempt: Attempt, event_type: &str) -> bool {
        self.reply.is_some()
            && self.state != StepState::Sent
            && self.reply_attempt != 0
            && (self.reply_attempt != attempt.number || self.reply_type == event_type)
    }

    /// The command id of a try.
    pub(crate) fn command_id(&self, attempt: Attempt) -> String {
        let undo = if attempt.undo { ".undo" } else { "" };
        match attempt.number {
            0 | 1 => format!("{}{undo}", self.id),
            number => format!("{}{undo}.{number}", self.id),
        }
    }

    /// The try that was sent with this command id.
    fn attempt_of(&self, command: &str) -> Option<Attempt> {
        let rest = command.strip_prefix(&*self.id)?;
        let (undo, rest) = rest.strip_prefix(".undo").map_or((false, rest), |rest| (true, rest));
        let number = match rest.strip_prefix('.') {
            None if rest.is_empty() => 1,
            None => return None,
            Some(number) => number.parse().ok()?,
        };
        let attempt = Attempt { undo, number };
        let last = if undo { self.undo_attempt } else { self.attempt };
        // A number can be written in several ways, a command id in one.
        ((1..=last).contains(&number) && (rest.is_empty() || self.command_id(attempt) == command)).then_some(attempt)
    }

    /// Milliseconds that a try has.
    pub(crate) fn within(&self, undo: bool) -> Option<u64> {
        match &self.undo {
            Some(undo_command) if undo => Some(undo_command.within.or(self.within_ms).unwrap_or(30_000)),
            _ => self.within_ms,
        }
    }

    /// What happens when a try had no answer.
    pub(crate) fn retry(&self, undo: bool) -> Retry {
        let of_step = self.retry;
        match &self.undo {
            Some(undo_command) if undo => undo_command.retry.or(of_step).unwrap_or(Retry { times: 3, wait: 1000 }),
            _ => of_step.unwrap_or(Retry { times: 0, wait: 0 }),
        }
    }
}

/// JSON of data that always has one: names, numbers and JSON inside, no maps.
pub(crate) fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_default()
}

/// A payload may be `null`, which is not none.
fn even_null<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Box<RawValue>>, D::Error> {
    Box::<RawValue>::deserialize(deserializer).map(Some)
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde hands over references")]
const fn is_false(value: &bool) -> bool {
    !*value
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde hands over references")]
const fn is_zero(value: &u32) -> bool {
    *value == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trial::{COMPENSATE, Trial, done, step, timer};

    const DOCUMENT: &str = r#"{
  "status": "running",
  "state": null,
  "correlation": "e1",
  "life": "e1",
  "steps": [
    {
      "step": "order",
      "state": "confirmed",
      "id": "ORDER-ID",
      "attempt": 0,
      "undo": {
        "subject": "shop.un.order",
        "type": "unorder",
        "payload": 7
      }
    },
    {
      "step": "pay",
      "state": "sent",
      "id": "PAY-ID",
      "attempt": 1,
      "subject": "shop.pay",
      "type": "pay",
      "payload": {"n":1},
      "within_ms": 30000,
      "retry": {
        "times": 2,
        "wait": 1000
      },
      "undo": {
        "subject": "shop.un.pay",
        "type": "unpay",
        "payload": null
      }
    }
  ],
  "timers": [
    {
      "name": "remind",
      "id": "REMIND-ID",
      "at": "2026-01-02T00:00:00.000Z",
      "payload": {"n":1}
    }
  ],
  "history": [
    {
      "event": "e1",
      "type": "Event",
      "at": "2026-01-01T00:00:00.000Z",
      "digest": "0123456789ab",
      "did": "begin"
    }
  ],
  "late": 0
}"#;

    #[test]
    fn people_can_read_the_document() {
        let mut trial = Trial::new();
        trial.event("e1", &[&done("order"), &step("pay"), &timer("remind", 86_400_000)]);
        let document = serde_json::to_string_pretty(&trial.instance).unwrap();
        let [order, pay, remind] = [0, 1, 2].map(|ordinal| crate::id("orders", "e1", "C42", ordinal));
        let expected = DOCUMENT.replace("ORDER-ID", &order).replace("PAY-ID", &pay).replace("REMIND-ID", &remind);
        assert_eq!(document, expected);
    }

    #[test]
    fn a_payload_of_null_is_still_a_payload() {
        let mut trial = Trial::new();
        trial.event("e1", &[&step("pay").replace(r#"{"n":1}"#, "null")]);
        trial.fire("pay.deadline", &[]);
        assert_eq!(trial.fire("pay.retry", &[]), "settled");
        assert!(trial.messages().all(|message| message.payload == b"null"));
        assert_eq!(trial.messages().count(), 2);
    }

    #[test]
    fn the_history_is_bounded_and_keeps_the_newest() {
        let mut trial = Trial::new();
        for number in 0..50 {
            trial.event(&format!("e{number}"), &[]);
        }
        let history = trial.instance.unwrap().history;
        assert_eq!(history.len(), HISTORY);
        assert_eq!((&*history[0].event, &*history[HISTORY - 1].event), ("e18", "e49"));
    }

    #[test]
    fn a_command_id_is_known_in_one_spelling_only() {
        let mut trial = Trial::new();
        trial.event("e1", &[&step("pay")]);
        trial.fire("pay.deadline", &[]);
        trial.fire("pay.retry", &[]);
        trial.event("e2", &[COMPENSATE]);
        let (id, instance) = (trial.id_of("pay"), trial.instance.unwrap());
        let find =
            |rest: &str| instance.find(&format!("{id}{rest}")).map(|(_, attempt)| (attempt.undo, attempt.number));
        assert_eq!(find(""), Some((false, 1)));
        assert_eq!(find(".2"), Some((false, 2)));
        assert_eq!(find(".undo"), Some((true, 1)));
        for rest in
            [".1", ".3", ".02", ".+2", ".", "2", ".undo.1", ".undo.2", ".undo.", ".undo2", ".deadline", ".undo.undo"]
        {
            assert_eq!(find(rest), None, "{rest}");
        }
        assert!(instance.find("").is_none() && instance.find("orders.").is_none());
    }

    #[test]
    fn what_is_no_instance_is_not_read() {
        for document in ["", "{}", "null", "[]", r#"{"status":"asleep","state":null,"correlation":"","life":""}"#] {
            assert!(Instance::read(document.as_bytes()).is_err(), "{document}");
        }
        let least = r#"{"status":"running","state":{"n": 1.0},"correlation":"c","life":"l"}"#;
        let read = Instance::read(least.as_bytes()).unwrap();
        assert_eq!(read.state().unwrap().get(), r#"{"n": 1.0}"#, "the state is the handler's, to the byte");
    }
}
