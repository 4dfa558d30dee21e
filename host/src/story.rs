//! The story of one instance of a saga, put together from what is left of it: its document, the journal's records, the messages
//! in the streams. In: these. Out: every event with what was decided on it, what was sent, and what came of that. Pure;
//! `scan.rs` reads, `drawing.rs` draws. Never: passes over in silence what it could not find.

pub mod drawing;
pub mod scan;

use std::collections::{HashMap, HashSet};

use millstream_saga::instance::{Step, StepState, Transition};
use millstream_saga::{Instance, Message, Outgoing, Status};
use serde::Serialize;
use serde_json::value::RawValue;

use crate::publication::time;
use crate::timers;

/// Ids named in a sentence about what is missing.
const NAMED: usize = 3;

/// What is left of an instance.
#[derive(Debug)]
pub struct Sources {
    /// The saga.
    pub handler: String,
    /// The instance's key.
    pub key: String,
    /// Its document.
    pub instance: Instance,
    /// What happened to it in this life, in order.
    pub transitions: Vec<Transition>,
    /// Records of the journal that are about it.
    pub decisions: Vec<Decision>,
    /// Messages that may be about it.
    pub letters: Vec<Letter>,
    /// What could not be looked at, in sentences.
    pub gaps: Vec<String>,
    /// Why something may be missing, if something is.
    pub reasons: Vec<String>,
}

/// A journal record, as far as it is about the instance.
#[derive(Debug)]
pub struct Decision {
    /// Its journal sequence.
    pub record: u64,
    /// When, nanoseconds since 1970.
    pub time: i64,
    /// The host that decided.
    pub host: String,
    /// Ids of the events in it that changed the instance.
    pub events: Vec<String>,
    /// What the instance asked for.
    pub effects: Vec<Outgoing>,
}

/// A message in a stream.
#[derive(Clone, Debug)]
pub struct Letter {
    /// Where it lies.
    pub place: Place,
    /// When it was stored, nanoseconds since 1970.
    pub stored: i64,
    /// Event or command id.
    pub id: String,
    /// Its type.
    pub event_type: String,
    /// Who says that it was published by a handler: the handler's name.
    pub sender: Option<String>,
    /// What it is about.
    pub aggregate: String,
    /// The root of its chain.
    pub correlation: String,
    /// What caused it.
    pub causation: String,
    /// The step that it belongs to.
    pub step: Option<String>,
    /// Which attempt, where it is a command.
    pub attempt: Option<u32>,
    /// JSON, or none.
    pub payload: Option<Box<RawValue>>,
}

/// Where a message lies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Place {
    /// Stream.
    pub stream: String,
    /// Sequence.
    pub sequence: u64,
    /// Subject.
    pub subject: String,
}

/// The whole story.
#[derive(Debug, Serialize)]
pub struct Story {
    /// The saga.
    pub handler: String,
    /// The instance's key.
    pub key: String,
    /// Where it stands.
    pub status: Status,
    /// Why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The root of its chain of events.
    pub correlation: String,
    /// Id of the event that began it.
    pub life: String,
    /// The handler's own state.
    pub state: Option<Box<RawValue>>,
    /// Events that came too late.
    pub late: u64,
    /// What happened, in the order in which it was decided.
    pub events: Vec<Chapter>,
    /// What could not be found, in sentences.
    pub missing: Vec<String>,
}

/// An event, and what was decided on it.
#[derive(Debug, Serialize)]
pub struct Chapter {
    /// Its id; a timer's is the timer's.
    pub event: String,
    /// Its type.
    #[serde(rename = "type")]
    pub event_type: String,
    /// When it happened: RFC 3339.
    pub at: String,
    /// Where it lies, if it still does.
    #[serde(flatten)]
    pub place: Option<Place>,
    /// Its payload.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub payload: Option<Box<RawValue>>,
    /// What was decided.
    pub did: String,
    /// The beginning of the module's digest.
    pub digest: String,
    /// The journal record that decided it, if it is still there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub record: Option<u64>,
    /// The host that decided it, if that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// What it led to.
    pub effects: Vec<Deed>,
}

/// Something that the saga did.
#[derive(Debug, Serialize)]
pub struct Deed {
    /// What it is.
    pub kind: Kind,
    /// Its id.
    pub id: String,
    /// Event or command type, or the timer's name.
    pub name: String,
    /// The step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step: Option<String>,
    /// Which attempt, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u32>,
    /// When it was published: RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at: Option<String>,
    /// When the timer is due: RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub due: Option<String>,
    /// Where it lies, if it still does.
    #[serde(flatten)]
    pub place: Option<Place>,
    /// Its payload.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub payload: Option<Box<RawValue>>,
    /// What came of it.
    pub outcome: Outcome,
}

/// What a saga can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// It sent a command.
    Command,
    /// It sent the command that takes a step back.
    Undo,
    /// It published an event.
    Event,
    /// It set a timer.
    Timer,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// An event answered it.
    Answered {
        /// The event's id.
        by: String,
        /// Its type.
        event_type: String,
        /// Milliseconds from command to answer, where both are still there.
        after_ms: Option<i64>,
    },
    /// Its deadline passed.
    NoAnswer,
    /// It still waits.
    Waits,
    /// No answer was found.
    Unknown,
    /// Nobody answers such a thing.
    Sent,
    /// The timer came.
    Fired,
    /// The timer is not set any more, and has not come.
    Cancelled,
}

impl Sources {
    /// Puts it together.
    #[must_use]
    pub fn tell(self) -> Story {
        let Self { handler, key, instance, transitions, decisions, letters, gaps, reasons } = self;
        let letters = chosen(&handler, &key, &instance, &transitions, letters);
        let teller = Teller { instance: &instance, transitions: &transitions, letters: &letters };
        let mut events = Vec::with_capacity(transitions.len());
        for transition in &transitions {
            let decision = decisions.iter().find(|decision| decision.events.contains(&transition.event));
            events.push(teller.chapter(transition, decision));
        }
        let mut missing = missing(&instance, &events);
        if !missing.is_empty() {
            missing.extend(reasons);
        }
        missing.extend(gaps);
        Story {
            handler,
            key,
            status: instance.status,
            reason: instance.reason.clone(),
            correlation: instance.correlation.clone(),
            life: instance.life.clone(),
            state: instance.state().map(ToOwned::to_owned),
            late: instance.late,
            events,
            missing,
        }
    }
}

/// The messages that are about the instance, by id: its events, what it sent, and what answers that. Its correlation id alone
/// says too little, for other handlers and other instances may share it.
fn chosen(
    handler: &str,
    key: &str,
    instance: &Instance,
    transitions: &[Transition],
    letters: Vec<Letter>,
) -> HashMap<String, Letter> {
    let events: HashSet<&str> = transitions.iter().map(|transition| &*transition.event).collect();
    let is_ours = |letter: &Letter| {
        letter.sender.as_deref() == Some(handler)
            && letter.aggregate == key
            && letter.correlation == instance.correlation
    };
    let ours: HashSet<String> =
        letters.iter().filter(|letter| is_ours(letter)).map(|letter| letter.id.clone()).collect();
    let concerns =
        |letter: &Letter| events.contains(&*letter.id) || ours.contains(&letter.id) || ours.contains(&letter.causation);
    letters.into_iter().filter(concerns).map(|letter| (letter.id.clone(), letter)).collect()
}

struct Teller<'a> {
    instance: &'a Instance,
    transitions: &'a [Transition],
    letters: &'a HashMap<String, Letter>,
}

impl Teller<'_> {
    fn chapter(&self, transition: &Transition, decision: Option<&Decision>) -> Chapter {
        let Transition { event, event_type, at, digest, did } = transition;
        let letter = self.letters.get(event);
        Chapter {
            event: event.clone(),
            event_type: event_type.clone(),
            at: at.clone(),
            place: letter.map(|letter| letter.place.clone()),
            payload: letter.and_then(|letter| letter.payload.clone()),
            did: did.clone(),
            digest: digest.clone(),
            record: decision.map(|decision| decision.record),
            host: decision.map(|decision| decision.host.clone()),
            effects: self.deeds(event, decision),
        }
    }

    /// What an event led to: as the journal has it, and what else the streams have.
    fn deeds(&self, event: &str, decision: Option<&Decision>) -> Vec<Deed> {
        let mut deeds = Vec::new();
        for effect in decision.map(|decision| &*decision.effects).unwrap_or_default() {
            match effect {
                Outgoing::Message(message) if message.causation == event => deeds.push(self.sent(message)),
                Outgoing::Timer { id, due, body, causation, .. } if causation == event => {
                    deeds.push(self.timer(id, *due, body));
                }
                // Deadlines and waits belong to their commands; what was cancelled is seen where it was set.
                Outgoing::Message(_) | Outgoing::Timer { .. } | Outgoing::Wait { .. } | Outgoing::Cancel { .. } => {}
            }
        }
        let known: HashSet<String> = deeds.iter().map(|deed| deed.id.clone()).collect();
        let is_new =
            |letter: &&Letter| letter.causation == event && letter.sender.is_some() && !known.contains(&letter.id);
        let mut others: Vec<&Letter> = self.letters.values().filter(is_new).collect();
        others.sort_by(|one, other| (one.stored, &one.id).cmp(&(other.stored, &other.id)));
        deeds.extend(others.into_iter().map(|letter| self.found(letter)));
        deeds
    }

    fn sent(&self, message: &Message) -> Deed {
        let letter = self.letters.get(&message.id);
        Deed {
            kind: kind(&message.id, message.command),
            id: message.id.clone(),
            name: message.event_type.clone(),
            step: message.step.clone(),
            attempt: message.step.is_some().then_some(message.attempt),
            at: letter.map(|letter| time(letter.stored)),
            due: None,
            place: letter.map(|letter| letter.place.clone()),
            payload: serde_json::from_slice(&message.payload).ok(),
            outcome: self.outcome(&message.id, message.step.is_some()),
        }
    }

    fn found(&self, letter: &Letter) -> Deed {
        Deed {
            kind: kind(&letter.id, letter.attempt.is_some()),
            id: letter.id.clone(),
            name: letter.event_type.clone(),
            step: letter.step.clone(),
            attempt: letter.attempt.filter(|_| letter.step.is_some()),
            at: Some(time(letter.stored)),
            due: None,
            place: Some(letter.place.clone()),
            payload: letter.payload.clone(),
            outcome: self.outcome(&letter.id, letter.step.is_some()),
        }
    }

    fn timer(&self, id: &str, due: i64, body: &[u8]) -> Deed {
        let outcome = if self.happened(id) {
            Outcome::Fired
        } else if self.instance.timers.iter().any(|timer| timer.id == id) {
            Outcome::Waits
        } else {
            Outcome::Cancelled
        };
        let name = match serde_json::from_slice(body) {
            Ok(millstream_saga::Due { timer: millstream_saga::Waiting::User { name, .. }, .. }) => name,
            _ => String::new(),
        };
        Deed {
            kind: Kind::Timer,
            id: id.to_owned(),
            name,
            step: None,
            attempt: None,
            at: None,
            due: Some(time(due)),
            place: None,
            payload: None,
            outcome,
        }
    }

    fn happened(&self, event: &str) -> bool {
        self.transitions.iter().any(|transition| transition.event == event)
    }

    fn outcome(&self, id: &str, is_step: bool) -> Outcome {
        if !is_step {
            return Outcome::Sent;
        }
        let answer = self.answer(id);
        if answer.is_none() && self.happened(&format!("{id}.deadline")) {
            return Outcome::NoAnswer;
        }
        if let Some(answer) = answer.or_else(|| self.noted(id)) {
            let letters = self.letters.get(&answer.event).zip(self.letters.get(id));
            return Outcome::Answered {
                by: answer.event.clone(),
                event_type: answer.event_type.clone(),
                after_ms: letters.map(|(answer, command)| (answer.stored - command.stored) / 1_000_000),
            };
        }
        let waits = self
            .instance
            .steps
            .iter()
            .any(|step| matches!(step.state, StepState::Sent | StepState::Undoing) && id.starts_with(&*step.id));
        if waits { Outcome::Waits } else { Outcome::Unknown }
    }

    /// The first event that answers a command, by its causation id.
    fn answer(&self, id: &str) -> Option<&Transition> {
        let answers = |letter: &Letter| letter.causation == id;
        self.transitions.iter().find(|transition| self.letters.get(&transition.event).is_some_and(answers))
    }

    /// The event that the instance noted as the answer to a step, where its message is gone: to the last attempt, most likely.
    fn noted(&self, id: &str) -> Option<&Transition> {
        let last =
            |step: &Step| if step.attempt > 1 { format!("{}.{}", step.id, step.attempt) } else { step.id.clone() };
        let step = self.instance.steps.iter().find(|step| last(step) == id)?;
        let reply = step.reply.as_ref().filter(|reply| !self.letters.contains_key(*reply))?;
        self.transitions.iter().find(|transition| transition.event == *reply)
    }
}

/// The ids of undos say so.
fn kind(id: &str, command: bool) -> Kind {
    let mut parts = id.rsplit('.');
    let last = parts.next();
    match (command, last, parts.next()) {
        (false, ..) => Kind::Event,
        (true, Some("undo"), _) | (true, _, Some("undo")) => Kind::Undo,
        (true, ..) => Kind::Command,
    }
}

/// Sentences about what is not there any more.
fn missing(instance: &Instance, events: &[Chapter]) -> Vec<String> {
    let mut missing = Vec::new();
    if events.first().is_none_or(|chapter| chapter.event != instance.life) {
        missing.push(format!(
            "its beginning ({}): an instance keeps its last 32 transitions, and the journal has no more of them",
            instance.life
        ));
    }
    let gone = |chapter: &&Chapter| chapter.place.is_none() && chapter.event_type != timers::TYPE;
    let gone: Vec<&str> = events.iter().filter(gone).map(|chapter| &*chapter.event).collect();
    if !gone.is_empty() {
        missing.push(format!(
            "{} that no stream has any more, or not where it was looked for: {}",
            count(gone.len(), "event"),
            named(&gone)
        ));
    }
    let untold: Vec<&str> =
        events.iter().filter(|chapter| chapter.record.is_none()).map(|chapter| &*chapter.event).collect();
    if !untold.is_empty() {
        missing.push(format!(
            "the journal's records of {}: timers that they set, and what of theirs no stream has, cannot be told ({})",
            count(untold.len(), "decision"),
            named(&untold)
        ));
    }
    let deeds = events.iter().flat_map(|chapter| &chapter.effects);
    let unseen: Vec<&str> =
        deeds.filter(|deed| deed.kind != Kind::Timer && deed.place.is_none()).map(|deed| &*deed.id).collect();
    if !unseen.is_empty() {
        missing.push(format!(
            "{} that no stream has: consumed, expired, removed, or not delivered yet ({})",
            count(unseen.len(), "message"),
            named(&unseen)
        ));
    }
    missing
}

fn count(count: usize, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

fn named(ids: &[&str]) -> String {
    let more = ids.len().saturating_sub(NAMED);
    let named: Vec<&str> = ids.iter().take(NAMED).copied().collect();
    if more > 0 { format!("{}, and {more} more", named.join(", ")) } else { named.join(", ") }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    const INSTANCE: &str = r#"{"status":"compensated","reason":"no money","state":{"cents":5},"correlation":"e1","life":"e1",
        "steps":[{"step":"reserve","state":"undone","id":"h.aa","attempt":1,"reply":"r1","undo_attempt":1},
                 {"step":"charge","state":"rejected","id":"h.bb","attempt":2,"reply":"r2"}],
        "history":[{"event":"e1","type":"Placed","at":"2026-01-01T00:00:00.000Z","digest":"0123456789ab","did":"begin"},
                   {"event":"r1","type":"Reserved","at":"2026-01-01T00:00:00.010Z","digest":"0123456789ab","did":"step reserve confirmed"},
                   {"event":"h.bb.deadline","type":"millstream.timer","at":"2026-01-01T00:00:01.010Z","digest":"0123456789ab","did":"step charge: no answer within 1 s, attempt 1"},
                   {"event":"h.bb.retry","type":"millstream.timer","at":"2026-01-01T00:00:02.010Z","digest":"0123456789ab","did":"step charge sent again"},
                   {"event":"r2","type":"Declined","at":"2026-01-01T00:00:02.020Z","digest":"0123456789ab","did":"step charge rejected; compensating"},
                   {"event":"r3","type":"Released","at":"2026-01-01T00:00:02.030Z","digest":"0123456789ab","did":"step reserve undone; compensated"}]}"#;

    pub(crate) fn sources() -> Sources {
        let instance = Instance::read(INSTANCE.as_bytes()).unwrap();
        let transitions = instance.history.clone();
        let begun = 1_767_225_600_000_000_000;
        let letter = |id: &str, kind: &str, causation: &str, ms: i64| {
            let is_ours = id.starts_with("h.");
            Letter {
                place: Place { stream: "S".into(), sequence: ms as u64, subject: format!("s.{kind}") },
                stored: begun + ms * 1_000_000,
                id: id.into(),
                event_type: kind.into(),
                sender: is_ours.then(|| "h".into()),
                aggregate: if is_ours { "o-1".into() } else { String::new() },
                correlation: "e1".into(),
                causation: causation.into(),
                step: is_ours.then(|| if id.starts_with("h.aa") { "reserve".into() } else { "charge".into() }),
                attempt: is_ours.then_some(if id.ends_with(".2") { 2 } else { 1 }),
                payload: None,
            }
        };
        let letters = vec![
            letter("e1", "Placed", "", 0),
            letter("h.aa", "Reserve", "e1", 5),
            letter("r1", "Reserved", "h.aa", 10),
            letter("h.bb", "Charge", "r1", 12),
            letter("h.bb.2", "Charge", "h.bb.retry", 2012),
            letter("r2", "Declined", "h.bb.2", 2020),
            letter("h.aa.undo", "Release", "r2", 2022),
            letter("r3", "Released", "h.aa.undo", 2030),
            Letter { sender: Some("other".into()), ..letter("other.cc", "Mail", "e1", 7) },
            Letter { aggregate: "o-2".into(), ..letter("h.dd", "Reserve", "e1", 6) },
            letter("r9", "Reserved", "h.dd", 11),
        ];
        let body = br#"{"key":"o-1","life":"e1","timer":{"user":{"name":"abandoned","id":"h.ee"}}}"#.to_vec();
        let timer = Outgoing::Timer {
            id: "h.ee".into(),
            due: begun + 86_400_000_000_000,
            body,
            correlation: "e1".into(),
            causation: "e1".into(),
        };
        let decisions = vec![Decision {
            record: 7,
            time: begun + 1_000_000,
            host: "a".into(),
            events: vec!["e1".into()],
            effects: vec![timer],
        }];
        Sources {
            handler: "h".into(),
            key: "o-1".into(),
            instance,
            transitions,
            decisions,
            letters,
            gaps: Vec::new(),
            reasons: Vec::new(),
        }
    }

    /// Each event with its effects, in words.
    fn in_words(story: &Story) -> Vec<String> {
        let effect = |deed: &Deed| {
            let outcome = match &deed.outcome {
                Outcome::Answered { .. } => "answered",
                Outcome::NoAnswer => "no answer",
                Outcome::Waits => "waits",
                Outcome::Unknown => "unknown",
                Outcome::Sent => "sent",
                Outcome::Fired => "fired",
                Outcome::Cancelled => "cancelled",
            };
            format!("; {:?} {} {outcome}", deed.kind, deed.id)
        };
        let event = |chapter: &Chapter| {
            let effects: String = chapter.effects.iter().map(effect).collect();
            format!("{}{effects}", chapter.event)
        };
        story.events.iter().map(event).collect()
    }

    #[test]
    fn each_event_has_what_it_led_to_and_what_came_of_that() {
        let story = sources().tell();
        let expected = [
            "e1; Timer h.ee cancelled; Command h.aa answered",
            "r1; Command h.bb no answer",
            "h.bb.deadline",
            "h.bb.retry; Command h.bb.2 answered",
            "r2; Undo h.aa.undo answered",
            "r3",
        ];
        assert_eq!(in_words(&story), expected);
        let Outcome::Answered { by, after_ms, .. } = &story.events[0].effects[1].outcome else { panic!("answered") };
        assert_eq!((&**by, *after_ms), ("r1", Some(5)));
        assert_eq!((story.events[0].record, story.events[1].record), (Some(7), None));
    }

    #[test]
    fn what_is_not_there_is_said() {
        let story = sources().tell();
        assert_eq!(story.missing.len(), 1, "{:?}", story.missing);
        assert!(story.missing[0].starts_with("the journal's records of 5 decisions"), "{:?}", story.missing);

        let mut trimmed = sources();
        trimmed.letters.retain(|letter| letter.stored % 10_000_000 != 0 && letter.id != "e1");
        trimmed.transitions.remove(0);
        trimmed.gaps.push("the rest".to_owned());
        let story = trimmed.tell();
        assert_eq!(story.missing.len(), 4, "{:?}", story.missing);
        assert!(story.missing[0].starts_with("its beginning (e1): "), "{:?}", story.missing);
        assert!(story.missing[1].starts_with("3 events that no stream has any more"), "{:?}", story.missing);
        assert!(story.missing[1].ends_with(": r1, r2, r3"), "{:?}", story.missing);
        assert_eq!(story.missing[3], "the rest");
        let charged =
            story.events.iter().flat_map(|chapter| &chapter.effects).find(|deed| deed.id == "h.bb.2").unwrap();
        let Outcome::Answered { by, after_ms, .. } = &charged.outcome else { panic!("{charged:?}") };
        assert_eq!((&**by, *after_ms), ("r2", None), "by what the instance noted");
    }

    #[test]
    fn an_undo_is_known_by_its_id() {
        for (id, command, expected) in [
            ("h.aa", true, Kind::Command),
            ("h.aa.2", true, Kind::Command),
            ("h.aa.undo", true, Kind::Undo),
            ("h.aa.undo.3", true, Kind::Undo),
            ("h.aa.undo.alert", false, Kind::Event),
        ] {
            assert_eq!(kind(id, command), expected, "{id}");
        }
    }
}
