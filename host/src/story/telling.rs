//! Puts a story together. In: what is left of an instance. Out: its chapters in the order decided, each with what it led to and
//! what came of that. Pure. Never: takes a message of another instance for one of this, whatever ids they share.

use std::collections::{HashMap, HashSet};

use millstream_saga::instance::{Step, Transition};
use millstream_saga::{DEADLINE, Due, Instance, Message, Outgoing, Waiting};

use super::{Chapter, Decision, Deed, Kind, Letter, Outcome, Sources, Story, missing};
use crate::clock;

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
        let mut missing = missing::sentences(&instance, &events);
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
            at: letter.map(|letter| clock::text(letter.stored)),
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
            at: Some(clock::text(letter.stored)),
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
            Ok(Due { timer: Waiting::User { name, .. }, .. }) => name,
            _ => String::new(),
        };
        Deed {
            kind: Kind::Timer,
            id: id.to_owned(),
            name,
            step: None,
            attempt: None,
            at: None,
            due: Some(clock::text(due)),
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
        if answer.is_none() && self.happened(&format!("{id}{DEADLINE}")) {
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
        if self.instance.awaits(id) { Outcome::Waits } else { Outcome::Unknown }
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

#[cfg(test)]
pub(crate) mod tests {
    use super::super::Place;
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
    fn while_a_step_is_taken_back_its_undo_waits_and_the_step_does_not() {
        let mut sources = sources();
        let document = INSTANCE.replace(r#""status":"compensated""#, r#""status":"compensating""#);
        let document = document.replace(r#""state":"undone""#, r#""state":"undoing""#).replace(r#","reply":"r1""#, "");
        sources.instance = Instance::read(document.as_bytes()).unwrap();
        sources.letters.retain(|letter| letter.id != "r1" && letter.id != "r3");
        let words = in_words(&sources.tell());
        assert!(words[0].ends_with("Command h.aa unknown"), "{words:?}");
        assert!(words[4].ends_with("Undo h.aa.undo waits"), "{words:?}");
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
