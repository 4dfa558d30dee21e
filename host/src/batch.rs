//! From messages to one flat batch for the sandbox. In: arrivals of one stream. Out: the wire form, or the index of the
//! event whose envelope is broken. Pure but for the message type. One copy: every text and payload goes straight into
//! the blob. Never: leaves an event out.

use std::ops::Range;

use crate::envelope::{self, Envelope};
use crate::intake::Arrival;
use crate::sandbox::wire::{Batch, Event, Span};

/// An event that cannot be read as one.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Undecodable {
    /// Its index in the batch.
    pub(crate) index: usize,
    /// What is wrong.
    pub(crate) reason: String,
}

/// Encodes these arrivals.
///
/// # Errors
/// The first event whose envelope is broken.
pub(crate) fn encode(stream: &str, arrivals: &[Arrival]) -> Result<Batch, Undecodable> {
    let payload: usize = arrivals.iter().map(|arrival| arrival.message.payload.len()).sum();
    let mut blob = Blob(Vec::with_capacity(payload + stream.len() + arrivals.len() * 96));
    let source = blob.push(stream.as_bytes());
    let mut events = Vec::with_capacity(arrivals.len());
    for (index, arrival) in arrivals.iter().enumerate() {
        let arrived = envelope::Arrival {
            stream,
            sequence: arrival.sequence,
            stored: arrival.stored,
            subject: arrival.message.subject.as_str(),
            payload: &arrival.message.payload,
        };
        let headers = arrival.message.headers.iter().flat_map(async_nats::HeaderMap::iter);
        let headers =
            headers.flat_map(|(name, values)| values.iter().map(move |value| (name.as_ref(), value.as_str())));
        let envelope =
            envelope::decode(&arrived, headers).map_err(|error| Undecodable { index, reason: error.to_string() })?;
        events.push(event(&mut blob, arrival, &envelope));
    }
    Ok(Batch { source, events, blob: blob.0 })
}

fn event(blob: &mut Blob, arrival: &Arrival, envelope: &Envelope<'_>) -> Event {
    let id = blob.push(envelope.id.as_bytes());
    // The root of a chain correlates to itself: no need to send the same text twice.
    let correlation_id =
        if envelope.correlation_id == envelope.id { id } else { blob.push(envelope.correlation_id.as_bytes()) };
    let subject = blob.push(arrival.message.subject.as_bytes());
    Event {
        sequence: arrival.sequence,
        time: envelope.time,
        schema_version: envelope.schema_version,
        subject,
        id,
        event_type: blob.push_or_find(envelope.event_type.as_bytes(), subject),
        aggregate_id: blob.push(envelope.aggregate_id.as_bytes()),
        correlation_id,
        causation_id: blob.push(envelope.causation_id.as_bytes()),
        payload: blob.push(&envelope.payload),
        extra: blob.push(envelope.extra.as_bytes()),
    }
}

struct Blob(Vec<u8>);

impl Blob {
    fn push(&mut self, bytes: &[u8]) -> Span {
        let start = self.0.len();
        self.0.extend_from_slice(bytes);
        span(start..self.0.len())
    }

    /// A type taken from the end of the subject is already there.
    fn push_or_find(&mut self, bytes: &[u8], near: Span) -> Span {
        let end = (near.start + near.length) as usize;
        match end.checked_sub(bytes.len()) {
            Some(start) if start >= near.start as usize && self.0.get(start..end) == Some(bytes) => span(start..end),
            _ => self.push(bytes),
        }
    }
}

/// Spans are 32 bits wide; a batch is bounded far below by `batch_bytes` and `max_payload`.
fn span(range: Range<usize>) -> Span {
    let start = u32::try_from(range.start).unwrap_or(u32::MAX);
    Span { start, length: u32::try_from(range.len()).unwrap_or(u32::MAX) }
}
