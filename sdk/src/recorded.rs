//! An event with its envelope. In: the blob that came with the batch, where its text lies. Out: fields, without an
//! allocation. Never: fields of another event.

use std::fmt;
use std::sync::Arc;

use crate::contract::{self, Batch, Span};

/// An event as it was recorded: the decoded payload and the envelope around it.
///
/// ```
/// use millstream_sdk::prelude::*;
///
/// #[derive(Event)]
/// enum Shop {
///     OrderPlaced { customer: String },
/// }
///
/// fn key(event: &Recorded<Shop>) -> Keys<'_> {
///     match &event.payload {
///         Shop::OrderPlaced { customer } => Keys::one(customer),
///     }
/// }
/// ```
pub struct Recorded<E> {
    /// The decoded payload.
    pub payload: E,
    // Atomic, so that a native host may run the engine on any thread; in a module it costs what `Rc` does.
    batch: Arc<Batch>,
    envelope: contract::Event,
}

impl<E> Recorded<E> {
    pub(crate) fn new(payload: E, batch: Arc<Batch>, envelope: contract::Event) -> Self {
        Self { payload, batch, envelope }
    }

    fn text(&self, span: Span) -> &str {
        contract::text(&self.batch.blob, span)
    }

    /// The subject that the message was published to.
    #[must_use]
    pub fn subject(&self) -> &str {
        self.text(self.envelope.subject)
    }

    /// The event id: unique in its stream, or `stream:sequence` if the publisher gave none.
    #[must_use]
    pub fn id(&self) -> &str {
        self.text(self.envelope.id)
    }

    /// The event type: from the envelope, or the last token of the subject that is a name.
    #[must_use]
    pub fn event_type(&self) -> &str {
        self.text(self.envelope.event_type)
    }

    /// The aggregate that the event belongs to; empty if the envelope names none.
    #[must_use]
    pub fn aggregate_id(&self) -> &str {
        self.text(self.envelope.aggregate_id)
    }

    /// The JetStream stream that the event was read from.
    #[must_use]
    pub fn source(&self) -> &str {
        self.text(self.batch.source)
    }

    /// The position in that stream, from 1, ascending but not without gaps.
    #[must_use]
    pub const fn sequence(&self) -> u64 {
        self.envelope.sequence
    }

    /// When it happened, in nanoseconds since 1970-01-01T00:00:00Z.
    #[must_use]
    pub const fn time(&self) -> i64 {
        self.envelope.time
    }

    /// When it happened, in UTC as RFC 3339 with milliseconds: `2015-09-12T00:46:58.771Z`. Finer parts are cut off.
    #[must_use]
    pub fn time_rfc3339(&self) -> String {
        millstream_saga::rfc3339(self.envelope.time)
    }

    /// The version of the payload's shape as the publisher gave it; 1 if it gave none.
    #[must_use]
    pub const fn schema_version(&self) -> u32 {
        self.envelope.schema_version
    }

    /// The event that the whole chain began with, if the envelope names it.
    #[must_use]
    pub fn correlation_id(&self) -> Option<&str> {
        Some(self.text(self.envelope.correlation_id)).filter(|id| !id.is_empty())
    }

    /// The event or command that caused this one, if the envelope names it.
    #[must_use]
    pub fn causation_id(&self) -> Option<&str> {
        Some(self.text(self.envelope.causation_id)).filter(|id| !id.is_empty())
    }

    /// The payload as it was published, usually JSON.
    #[must_use]
    pub fn payload_bytes(&self) -> &[u8] {
        contract::bytes(&self.batch.blob, self.envelope.payload)
    }

    /// What else the envelope said, as a JSON object; empty if nothing.
    #[must_use]
    pub fn extra(&self) -> &str {
        self.text(self.envelope.extra)
    }
}

impl<E: fmt::Debug> fmt::Debug for Recorded<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recorded")
            .field("source", &self.source())
            .field("sequence", &self.sequence())
            .field("event_type", &self.event_type())
            .field("id", &self.id())
            .field("payload", &self.payload)
            .finish_non_exhaustive()
    }
}
