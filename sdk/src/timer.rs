//! A timer that fired. In: the batch that it came in. Out: its name, time and payload, as a saga sees them. Never: one
//! that was cancelled; the host drops it before.

use millstream_saga::{TIMER_STREAM, TIMER_TYPE};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::value::RawValue;

use crate::Refusal;
use crate::contract::{self, Batch};

/// A timer that fired: what [`Saga::wake`](crate::Saga::wake) gets.
#[derive(Clone, Debug)]
pub struct Timer {
    key: String,
    name: String,
    due: i64,
    payload: Option<Box<RawValue>>,
}

impl Timer {
    /// The name it was set under.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The key of the instance that set it.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.key
    }

    /// When it was due, in nanoseconds since 1970-01-01T00:00:00Z, however late it fired.
    #[must_use]
    pub const fn due(&self) -> i64 {
        self.due
    }

    /// When it was due, in UTC as RFC 3339 with milliseconds.
    #[must_use]
    pub fn due_rfc3339(&self) -> String {
        millstream_saga::rfc3339(self.due)
    }

    /// The payload that it was set with; `null` if it was set with none.
    ///
    /// # Errors
    /// It is not of this type.
    pub fn payload<T: DeserializeOwned>(&self) -> Result<T, Refusal> {
        let payload = self.payload.as_ref().map_or("null", |payload| payload.get());
        serde_json::from_str(payload)
            .map_err(|error| Refusal::new(format_args!("payload of timer `{}` does not fit: {error}", self.name)))
    }

    /// The timer, if this event of a batch is one.
    pub(crate) fn decode(batch: &Batch, envelope: &contract::Event) -> Result<Option<Self>, String> {
        #[derive(Deserialize)]
        struct Fired {
            key: String,
            name: String,
            payload: Option<Box<RawValue>>,
        }
        if contract::text(&batch.blob, batch.source) != TIMER_STREAM
            || contract::text(&batch.blob, envelope.event_type) != TIMER_TYPE
        {
            return Ok(None);
        }
        match serde_json::from_slice::<Fired>(contract::bytes(&batch.blob, envelope.payload)) {
            Ok(Fired { key, name, payload }) => Ok(Some(Self { key, name, due: envelope.time, payload })),
            Err(error) => Err(format!("not a timer: {error}")),
        }
    }
}
