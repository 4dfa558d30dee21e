//! Reads what a story is made of. In: the journal's records, then the streams that the saga reads and sends to; each is
//! read from the life's first event to its last transition and no further, envelopes in headers before bodies. Out:
//! what is left of the instance, and what could not be looked at. Direct gets, so it needs no consumer on a user's
//! stream. Never: writes a message.

use async_nats::HeaderMap;
use async_nats::jetstream::Context;
use millstream_saga::instance::Transition;
use millstream_saga::{Due, Instance, Message, Outgoing};

use super::{Decision, Letter, Place, Sources};
use crate::clock::{self, SKEW};
use crate::direct_get::{self, From, Last};
use crate::envelope::{self, Arrival};
use crate::inputs::{self, Holder};
use crate::journal::Record;
use crate::names;
use crate::recorded::{Reader, Source};

/// What a transition leads to is published within this, nanoseconds.
const AFTER: i64 = 60_000_000_000;

/// Messages of one request, and their bytes.
const PAGE: usize = 500;
const PAGE_BYTES: usize = 4 << 20;

/// What to look for.
pub struct Wanted<'a> {
    /// The saga.
    pub handler: &'a str,
    /// Its generation that is live.
    pub generation: u32,
    /// The instance's key.
    pub key: &'a str,
    /// Subjects that it reads and sends to.
    pub subjects: &'a [String],
    /// Streams that it reads by name, where it does.
    pub streams: &'a [String],
    /// Most messages to look at.
    pub most: usize,
}

/// The document, if the bucket has it.
pub struct Document {
    /// The instance.
    pub instance: Instance,
    /// Journal sequence of its last record.
    pub record: u64,
    /// When the bucket took it, nanoseconds since 1970.
    pub stored: i64,
}

/// Reads all there is about an instance; none if there is nothing.
///
/// # Errors
/// When the server does not answer.
pub async fn sources(
    jetstream: &Context,
    wanted: &Wanted<'_>,
    document: Option<Document>,
) -> anyhow::Result<Option<Sources>> {
    let (mut gaps, mut reasons) = (Vec::new(), Vec::new());
    let begun = document.as_ref().and_then(|document| begun(&document.instance));
    let records = journal(jetstream, wanted, begun, document.as_ref().map(|document| document.record)).await?;
    let Journalled { mut decisions, documents, last } = records;
    let (instance, end) = match (document, last) {
        (Some(document), _) => (document.instance, document.stored),
        (None, Some((instance, time))) => {
            gaps.push(format!(
                "its document: the bucket has none under this key{}; this is from the journal, {}",
                // An instance is kept for a while after its end.
                if instance.status.has_ended() { " (it has ended, and may have been kept long enough)" } else { "" },
                time_of(time)
            ));
            (instance, time)
        }
        (None, None) => return Ok(None),
    };
    let transitions = merged(&documents, &instance);
    let from = transitions.iter().filter_map(|transition| clock::read(&transition.at));
    let from = from.chain(decisions.iter().map(|decision| decision.time)).min().unwrap_or(end);
    decisions.retain(|decision| !decision.events.is_empty() || !decision.effects.is_empty());
    let mut found = Found { letters: Vec::new(), left: wanted.most, gaps };
    for holder in inputs::holders(jetstream, wanted.subjects, wanted.streams).await? {
        let range = Range { from: from - SKEW, until: end.saturating_add(AFTER) };
        reasons.extend(why_missing(&holder, range));
        read(jetstream, wanted, &holder, range, &instance, &mut found).await?;
    }
    let Found { letters, gaps, .. } = found;
    Ok(Some(Sources {
        handler: wanted.handler.to_owned(),
        key: wanted.key.to_owned(),
        instance,
        transitions,
        decisions,
        letters,
        gaps,
        reasons,
    }))
}

/// When the life began, as far as the document knows.
fn begun(instance: &Instance) -> Option<i64> {
    let first = instance.history.iter().find(|transition| transition.event == instance.life);
    first.and_then(|transition| clock::read(&transition.at))
}

struct Journalled {
    decisions: Vec<Decision>,
    /// The instance as each record left it.
    documents: Vec<Instance>,
    /// The last of them, with its record's time.
    last: Option<(Instance, i64)>,
}

/// The records about the instance, up to and including `through`.
async fn journal(
    jetstream: &Context,
    wanted: &Wanted<'_>,
    begun: Option<i64>,
    through: Option<u64>,
) -> anyhow::Result<Journalled> {
    let mut found = Journalled { decisions: Vec::new(), documents: Vec::new(), last: None };
    let stream = names::journal_stream(wanted.handler);
    if jetstream.get_stream(&stream).await.is_err() {
        return Ok(found);
    }
    let subject = names::journal_subject(wanted.handler, wanted.generation);
    let mut from = begun.map_or(From::Sequence(1), |begun| From::Time(begun - SKEW));
    loop {
        let page = direct_get::page(jetstream, &stream, &subject, from, PAGE, PAGE_BYTES).await?;
        let Some(last) = page.last() else { return Ok(found) };
        from = From::Sequence(last.sequence + 1);
        for message in &page {
            if through.is_some_and(|through| message.sequence > through) {
                return Ok(found);
            }
            decision(message, wanted, &mut found)?;
        }
    }
}

fn decision(message: &Last, wanted: &Wanted<'_>, found: &mut Journalled) -> anyhow::Result<()> {
    let record = Record::decode(&message.payload, message.sequence)?;
    let value = record.changes.iter().find(|change| change.key == wanted.key).and_then(|change| change.value);
    let Some(instance) = value.and_then(|document| Instance::read(document).ok()) else { return Ok(()) };
    let known: Vec<&str> = found
        .documents
        .last()
        .map(|before| before.history.iter().map(|transition| &*transition.event).collect())
        .unwrap_or_default();
    let is_new = |transition: &&Transition| !known.contains(&&*transition.event);
    let new: Vec<&Transition> = instance.history.iter().filter(is_new).collect();
    // The first record at hand has a history that earlier ones decided: of that, only what it acts on and the last is its own.
    let is_first = found.documents.is_empty();
    let acts_on = |event: &str| record.effects.iter().any(|effect| cause_of(effect) == Some(event));
    let is_own = |place: usize, event: &str| !is_first || place + 1 == new.len() || acts_on(event);
    let own = new.iter().enumerate().filter(|(place, transition)| is_own(*place, &transition.event));
    let events: Vec<String> = own.map(|(_, transition)| transition.event.clone()).collect();
    let effects = record.effects.into_iter().filter(|effect| is_of(effect, wanted.key)).collect();
    found.decisions.push(Decision {
        record: message.sequence,
        time: record.time,
        host: record.host.to_owned(),
        events,
        effects,
    });
    found.last = Some((instance.clone(), message.stored));
    found.documents.push(instance);
    Ok(())
}

fn cause_of(effect: &Outgoing) -> Option<&str> {
    match effect {
        Outgoing::Message(Message { causation, .. })
        | Outgoing::Timer { causation, .. }
        | Outgoing::Wait { causation, .. } => Some(causation),
        Outgoing::Cancel { .. } => None,
    }
}

fn is_of(effect: &Outgoing, key: &str) -> bool {
    match effect {
        Outgoing::Message(message) => message.key == key,
        Outgoing::Timer { body, .. } | Outgoing::Wait { body, .. } => {
            serde_json::from_slice::<Due>(body).is_ok_and(|due| due.key == key)
        }
        Outgoing::Cancel { .. } => false,
    }
}

/// The transitions of this life, in order: each document has the last few.
fn merged(documents: &[Instance], last: &Instance) -> Vec<Transition> {
    let mut all: Vec<Transition> = Vec::new();
    for instance in documents.iter().chain([last]) {
        for transition in &instance.history {
            if !all.iter().any(|known| known.event == transition.event) {
                all.push(transition.clone());
            }
        }
    }
    let begin = all.iter().position(|transition| transition.event == last.life).unwrap_or_default();
    all.split_off(begin)
}

#[derive(Clone, Copy)]
struct Range {
    from: i64,
    until: i64,
}

/// What was found in the streams.
struct Found {
    letters: Vec<Letter>,
    /// How many more messages may be looked at.
    left: usize,
    gaps: Vec<String>,
}

/// Why a stream may lack what it once held.
fn why_missing(holder: &Holder, range: Range) -> Option<String> {
    let Holder { stream, first_time, consumes, .. } = holder;
    if *consumes {
        return Some(format!("stream {stream} deletes messages when they are consumed"));
    }
    let first = first_time.filter(|first| *first > range.from + SKEW)?;
    Some(format!("stream {stream} begins at {}: what was before is trimmed", time_of(first)))
}

/// Reads one stream.
async fn read(
    jetstream: &Context,
    wanted: &Wanted<'_>,
    holder: &Holder,
    range: Range,
    instance: &Instance,
    found: &mut Found,
) -> anyhow::Result<()> {
    let Holder { stream, filters, direct, first, .. } = holder;
    let mut seen: Vec<u64> = Vec::new();
    for filter in filters {
        let source = Source { stream, filter, direct: *direct, first: *first };
        let mut reader = Reader::open(jetstream, source, From::Time(range.from)).await?;
        'pages: loop {
            let page = reader.next().await?;
            if page.is_empty() {
                break;
            }
            for message in page {
                if message.stored > range.until {
                    break 'pages;
                }
                if found.left == 0 {
                    found.gaps.push(format!(
                        "what stream {stream} holds after {}: {} messages were looked at (--scan looks at more)",
                        time_of(message.stored),
                        wanted.most
                    ));
                    return Ok(());
                }
                found.left -= 1;
                // Filters of one stream may overlap.
                if filters.len() > 1 && seen.contains(&message.sequence) {
                    continue;
                }
                if let Some(letter) = letter(stream, &message)
                    && may_concern(&letter, wanted, instance)
                {
                    seen.push(message.sequence);
                    found.letters.push(letter);
                }
            }
        }
    }
    Ok(())
}

/// What cannot be about the instance is not kept.
fn may_concern(letter: &Letter, wanted: &Wanted<'_>, instance: &Instance) -> bool {
    let is_ours = |id: &str| id.strip_prefix(wanted.handler).is_some_and(|rest| rest.starts_with('.'));
    letter.correlation == instance.correlation
        || letter.id == instance.life
        || is_ours(&letter.causation)
        || instance.history.iter().any(|transition| transition.event == letter.id)
}

/// Reads the envelope. A message without a readable one is nobody's event.
fn letter(stream: &str, message: &Last) -> Option<Letter> {
    let headers = &message.headers;
    let pairs = headers.iter().flat_map(|(name, values)| values.iter().map(|value| (name.as_ref(), value.as_str())));
    let (subject, payload) = (&*message.subject, &*message.payload);
    let arrival = Arrival { stream, sequence: message.sequence, stored: message.stored, subject, payload };
    let event = envelope::decode(&arrival, pairs).ok()?;
    Some(Letter {
        place: Place { stream: stream.to_owned(), sequence: message.sequence, subject: subject.to_owned() },
        stored: message.stored,
        sender: header(headers, "ce-source").and_then(|source| source.strip_prefix("millstream/")).map(str::to_owned),
        step: header(headers, names::STEP_HEADER).map(str::to_owned),
        attempt: header(headers, names::ATTEMPT_HEADER).and_then(|attempt| attempt.parse().ok()),
        payload: serde_json::from_slice(&event.payload).ok(),
        id: event.id.into_owned(),
        event_type: event.event_type.into_owned(),
        aggregate: event.aggregate_id.into_owned(),
        correlation: event.correlation_id.into_owned(),
        causation: event.causation_id.into_owned(),
    })
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).map(|value| value.as_str())
}

/// To the second, for people.
fn time_of(nanoseconds: i64) -> String {
    clock::text(nanoseconds - nanoseconds.rem_euclid(1_000_000_000))
}
