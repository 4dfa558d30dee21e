//! A message with a whole CloudEvents envelope in its headers. In: the envelope's fields. Out: headers as `envelope.rs`
//! reads them back; what a header cannot carry is percent-encoded, as the CloudEvents binding for NATS says. Pure:
//! times come in as arguments. Never: sends it.

use std::borrow::Cow;

use async_nats::HeaderMap;
use async_nats::header::HeaderName;
use bytes::Bytes;

use crate::clock;

const SPECVERSION: HeaderName = HeaderName::from_static("ce-specversion");
const ID: HeaderName = HeaderName::from_static("ce-id");
const SOURCE: HeaderName = HeaderName::from_static("ce-source");
const TYPE: HeaderName = HeaderName::from_static("ce-type");
const SUBJECT: HeaderName = HeaderName::from_static("ce-subject");
const TIME: HeaderName = HeaderName::from_static("ce-time");
const CORRELATION: HeaderName = HeaderName::from_static("ce-correlationid");
const CAUSATION: HeaderName = HeaderName::from_static("ce-causationid");
const CONTENT_TYPE: HeaderName = HeaderName::from_static("content-type");

/// A message on its way out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publication {
    /// Where it goes.
    pub subject: String,
    /// Envelope, and what JetStream is told.
    pub headers: HeaderMap,
    /// Body.
    pub payload: Bytes,
}

impl Publication {
    /// Bytes of headers and body, as the server counts them against its `max_payload`.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let lines = self.headers.iter().flat_map(|(name, values)| {
            values.iter().map(|value| AsRef::<str>::as_ref(name).len() + value.as_str().len() + ": \r\n".len())
        });
        "NATS/1.0\r\n\r\n".len() + lines.sum::<usize>() + self.payload.len()
    }
}

/// What the envelope says. An empty text is left out.
pub struct Outline<'a> {
    /// Unique per event.
    pub id: &'a str,
    /// Its type.
    pub event_type: &'a str,
    /// The handler that says it.
    pub handler: &'a str,
    /// What it is about.
    pub aggregate: &'a str,
    /// Nanoseconds since 1970.
    pub time: i64,
    /// The root of the chain of events.
    pub correlation: &'a str,
    /// The event that caused it.
    pub causation: &'a str,
}

impl Outline<'_> {
    /// The envelope's headers; the payload is JSON.
    #[must_use]
    pub fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(SPECVERSION, "1.0");
        headers.insert(SOURCE, format!("millstream/{}", self.handler));
        headers.insert(TIME, clock::text(self.time));
        headers.insert(CONTENT_TYPE, "application/json");
        let texts = [
            (ID, self.id),
            (TYPE, self.event_type),
            (SUBJECT, self.aggregate),
            (CORRELATION, self.correlation),
            (CAUSATION, self.causation),
        ];
        for (name, text) in texts {
            if !text.is_empty() {
                headers.insert(name, encoded(text).as_ref());
            }
        }
        headers
    }
}

/// Percent-encodes blanks, controls, quotes, percent signs and what is not ASCII.
#[must_use]
pub fn encoded(text: &str) -> Cow<'_, str> {
    const DIGITS: [char; 16] = ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'A', 'B', 'C', 'D', 'E', 'F'];
    let plain = |byte: &u8| byte.is_ascii_graphic() && *byte != b'%' && *byte != b'"';
    if text.as_bytes().iter().all(plain) {
        return Cow::Borrowed(text);
    }
    let mut encoded = String::with_capacity(text.len() + 16);
    for byte in text.bytes() {
        if plain(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push('%');
            encoded.extend([byte >> 4, byte & 15].map(|digit| DIGITS.get(usize::from(digit)).copied().unwrap_or('0')));
        }
    }
    Cow::Owned(encoded)
}

#[cfg(test)]
pub(crate) fn pairs(headers: &HeaderMap) -> Vec<(&str, &str)> {
    let each = headers.iter().flat_map(|(name, values)| values.iter().map(|value| (name.as_ref(), value.as_str())));
    each.collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::envelope::{Arrival, decode};

    proptest! {
        #[test]
        fn what_is_written_is_read_back(
            texts in prop::array::uniform4("\\PC{1,20}|[\\x00-\\x20%\"]{1,5}"),
            aggregate in "\\PC{0,10}",
            time in any::<i64>(),
        ) {
            let [id, event_type, correlation, causation] = &texts;
            let outline = Outline { id, event_type, handler: "h", aggregate: &aggregate, time, correlation, causation };
            let headers = outline.headers();
            let arrival = Arrival { stream: "S", sequence: 1, stored: 2, subject: "s", payload: br#"{"eventType":"x"}"# };
            let event = decode(&arrival, pairs(&headers)).unwrap();
            prop_assert_eq!(
                [&event.id, &event.event_type, &event.correlation_id, &event.causation_id].map(AsRef::as_ref),
                texts.each_ref().map(String::as_str)
            );
            prop_assert_eq!((event.aggregate_id.as_ref(), event.time), (aggregate.as_str(), time));
            prop_assert_eq!(event.payload.as_ref(), arrival.payload);
            prop_assert_eq!(event.extra.as_ref(), r#"{"datacontenttype":"application/json","source":"millstream/h"}"#);
        }
    }
}
