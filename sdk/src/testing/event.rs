//! Events for tests. In: type and payload, and an envelope field by field. Out: what a batch holds of them. Never:
//! reads a clock.

use millstream_saga::{TIMER_STREAM, TIMER_TYPE};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::fail;
use crate::contract::{self, Span};

/// 2026-01-01T00:00:00Z, in nanoseconds since 1970.
pub(super) const DEFAULT_TIME: i64 = 1_767_225_600_000_000_000;

/// An event as the host would hand it over. What is not set is as [`event`] says.
#[derive(Clone, Debug)]
#[must_use]
pub struct TestEvent {
    event_type: String,
    payload: Vec<u8>,
    subject: Option<String>,
    id: Option<String>,
    aggregate: String,
    stream: String,
    sequence: Option<u64>,
    time: Option<i64>,
    schema_version: u32,
    correlation: String,
    causation: String,
}

/// An event of this type with this payload, usually `json!({…})`.
///
/// Unless set: stream `EVENTS`, sequence = place in the scenario from 1, id `EVENTS:<sequence>`, subject
/// `events.<event type>`, no aggregate, time 2026-01-01T00:00:00Z, schema version 1, no correlation, no causation.
///
/// # Panics
/// If the payload cannot be written as JSON.
#[track_caller]
pub fn event(event_type: impl Into<String>, payload: impl Serialize) -> TestEvent {
    match serde_json::to_vec(&payload) {
        Ok(payload) => TestEvent::new(event_type.into(), payload),
        Err(error) => fail(format_args!("the payload is not JSON: {error}")),
    }
}

/// An event from one line of an NDJSON file: `{"eventId","eventType","aggregateId","timestamp","payload"}`.
///
/// # Panics
/// If the line is something else.
#[track_caller]
pub fn event_line(line: &str) -> TestEvent {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Line<'a> {
        event_id: String,
        event_type: String,
        aggregate_id: String,
        timestamp: String,
        #[serde(borrow)]
        payload: &'a RawValue,
    }
    match serde_json::from_str::<Line>(line) {
        Ok(line) => TestEvent::new(line.event_type, line.payload.get().into())
            .id(line.event_id)
            .aggregate(line.aggregate_id)
            .at(&line.timestamp),
        Err(error) => fail(format_args!("not an event: {error}: {line}")),
    }
}

impl TestEvent {
    fn new(event_type: String, payload: Vec<u8>) -> Self {
        Self {
            event_type,
            payload,
            subject: None,
            id: None,
            aggregate: String::new(),
            stream: String::from("EVENTS"),
            sequence: None,
            time: None,
            schema_version: 1,
            correlation: String::new(),
            causation: String::new(),
        }
    }

    /// The aggregate id.
    pub fn aggregate(mut self, id: impl Into<String>) -> Self {
        self.aggregate = id.into();
        self
    }

    /// The event id.
    pub fn id(mut self, id: impl Into<String>) -> Self {
        self.id = Some(id.into());
        self
    }

    /// The subject.
    pub fn subject(mut self, subject: impl Into<String>) -> Self {
        self.subject = Some(subject.into());
        self
    }

    /// The JetStream stream. Events of different streams never share a batch.
    pub fn stream(mut self, stream: impl Into<String>) -> Self {
        self.stream = stream.into();
        self
    }

    /// The position in the stream.
    pub const fn sequence(mut self, sequence: u64) -> Self {
        self.sequence = Some(sequence);
        self
    }

    /// When it happened, as RFC 3339: `2026-01-01T00:00:00Z`.
    ///
    /// # Panics
    /// If it is no such time, or does not lie between 1678 and 2261.
    #[track_caller]
    pub fn at(mut self, time: &str) -> Self {
        match time.parse::<jiff::Timestamp>().map(|time| i64::try_from(time.as_nanosecond())) {
            Ok(Ok(nanoseconds)) => self.time = Some(nanoseconds),
            Ok(Err(_)) => fail(format_args!("`{time}` does not fit into 64 bits of nanoseconds")),
            Err(error) => fail(format_args!("`{time}` is no RFC 3339 time: {error}")),
        }
        self
    }

    /// The version of the payload's shape.
    pub const fn schema_version(mut self, version: u32) -> Self {
        self.schema_version = version;
        self
    }

    /// The correlation id.
    pub fn correlation(mut self, id: impl Into<String>) -> Self {
        self.correlation = id.into();
        self
    }

    /// The causation id.
    pub fn causation(mut self, id: impl Into<String>) -> Self {
        self.causation = id.into();
        self
    }

    /// A payload of these bytes instead, JSON or not.
    pub fn payload_bytes(mut self, payload: impl Into<Vec<u8>>) -> Self {
        self.payload = payload.into();
        self
    }

    /// A timer that fired, as the host hands it over.
    pub(super) fn timer(id: &str, due: i64, payload: Vec<u8>) -> Self {
        Self::new(String::from(TIMER_TYPE), payload).stream(TIMER_STREAM).id(id).time_is(due)
    }

    /// Sets what the event is given by its place in a scenario, counted from 1, and by the time there.
    pub(super) fn settled(mut self, place: u64, now: i64) -> Self {
        let sequence = self.sequence.unwrap_or(place);
        self.sequence = Some(sequence);
        self.id = self.id.or_else(|| Some(format!("{}:{sequence}", self.stream)));
        self.time = self.time.or(Some(now));
        self
    }

    /// Makes it an answer to this command, unless it says itself what it answers.
    pub(super) fn answering(mut self, command: &str, correlation: &str) -> Self {
        for (own, given) in [(&mut self.causation, command), (&mut self.correlation, correlation)] {
            if own.is_empty() {
                given.clone_into(own);
            }
        }
        self
    }

    pub(super) const fn time_is(mut self, nanoseconds: i64) -> Self {
        self.time = Some(nanoseconds);
        self
    }

    pub(super) fn time(&self) -> i64 {
        self.time.unwrap_or(DEFAULT_TIME)
    }

    pub(super) fn event_id(&self) -> &str {
        self.id.as_deref().unwrap_or_default()
    }

    pub(super) fn correlation_id(&self) -> &str {
        &self.correlation
    }

    pub(super) fn causation_id(&self) -> &str {
        &self.causation
    }

    pub(super) fn event_type(&self) -> &str {
        &self.event_type
    }

    pub(super) fn source(&self) -> &str {
        &self.stream
    }

    /// The event as it crosses into the handler. `place` counts the events of the scenario from 1.
    pub(super) fn encode(&self, place: u64, blob: &mut Vec<u8>) -> contract::Event {
        let sequence = self.sequence.unwrap_or(place);
        let mut text = |text: &str| match text {
            "" => Span { start: 0, length: 0 },
            text => contract::append(blob, text.as_bytes()),
        };
        contract::Event {
            sequence,
            time: self.time.unwrap_or(DEFAULT_TIME),
            schema_version: self.schema_version,
            subject: match &self.subject {
                Some(subject) => text(subject),
                None => text(&format!("events.{}", self.event_type)),
            },
            id: match &self.id {
                Some(id) => text(id),
                None => text(&format!("{}:{sequence}", self.stream)),
            },
            event_type: text(&self.event_type),
            aggregate_id: text(&self.aggregate),
            correlation_id: text(&self.correlation),
            causation_id: text(&self.causation),
            payload: contract::append(blob, &self.payload),
            extra: Span { start: 0, length: 0 },
        }
    }
}
