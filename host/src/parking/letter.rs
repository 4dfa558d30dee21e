//! A dead letter: one parked unit as a plain message, readable with stock tools. In: a unit of a record, or a message of the stream of
//! dead letters. Out: the other. The body is the event's; so are the headers, but for those that mean something to a server or to us,
//! which stand with a prefix. Pure. Never: changes a byte of the event.

use std::str::FromStr as _;

use async_nats::HeaderMap;
use async_nats::header::{HeaderName, NATS_MESSAGE_ID};
use bytes::Bytes;

use crate::clock;
use crate::direct_get::Last;
use crate::intake::Arrival;
use crate::journal::{Park, ParkedUnit};
use crate::keys;
use crate::names;
use crate::publication::{Publication, encoded};

/// In front of the event's own headers whose names begin with one of `RESERVED`.
const OWN: &str = "Millstream-Event-";
const RESERVED: [&str; 2] = ["nats-", "millstream-"];

const HANDLER: &str = "Millstream-Handler";
const GENERATION: &str = "Millstream-Generation";
const KEY: &str = "Millstream-Key";
const CLASS: &str = "Millstream-Class";
const REASON: &str = "Millstream-Reason";
const BACKTRACE: &str = "Millstream-Backtrace";
const UNIT: &str = "Millstream-Unit";
const COUNTS: &str = "Millstream-Counts";
const STREAM: &str = "Millstream-Stream";
const SEQUENCE: &str = "Millstream-Sequence";
const SUBJECT: &str = "Millstream-Subject";
const STORED: &str = "Millstream-Stored";
const PARKED: &str = "Millstream-Parked";
const ORDINAL: &str = "Millstream-Ordinal";

/// Whose unit it is, and from which record.
#[derive(Clone, Copy, Debug)]
pub struct Origin<'a> {
    /// The handler.
    pub handler: &'a str,
    /// The generation.
    pub generation: u32,
    /// Digest of the module, in hexadecimal.
    pub digest: &'a str,
    /// Journal sequence of the record.
    pub journal: u64,
    /// When it was parked, nanoseconds since 1970.
    pub time: i64,
}

/// A dead letter as it lies in its stream.
#[derive(Clone)]
pub struct Letter {
    /// Its sequence in the stream of dead letters.
    pub sequence: u64,
    /// The key; none for an event that never got as far as one.
    pub key: Option<String>,
    /// What it is guilty of.
    pub class: String,
    /// What happened.
    pub reason: String,
    /// Guest frames, or empty.
    pub backtrace: String,
    /// It failed itself.
    pub first: bool,
    /// Its event is counted as parked for this unit.
    pub counts: bool,
    /// The module that failed.
    pub digest: String,
    /// When it was parked, nanoseconds since 1970.
    pub parked: i64,
    /// Journal sequence of the record that parked it, and its number there.
    pub place: (u64, u64),
    /// Name of the event's stream.
    pub stream: String,
    /// The event, as its consumer would deliver it.
    pub event: Arrival,
}

/// Makes the message of a unit; `ordinal` is its number in the record.
#[must_use]
pub fn publication(origin: Origin<'_>, ordinal: u64, park: &Park, unit: &ParkedUnit, counts: bool) -> Publication {
    let Origin { handler, generation, digest, journal, time } = origin;
    let mut headers = HeaderMap::new();
    // With the time: a journal that is made anew counts from one again.
    headers.insert(NATS_MESSAGE_ID, format!("{handler}.{generation}.{journal}.{ordinal}.{time}"));
    headers.insert(HANDLER, handler);
    headers.insert(GENERATION, generation.to_string());
    if let Some(key) = &unit.key {
        headers.insert(KEY, encoded(key).as_ref());
    }
    headers.insert(CLASS, unit.class.as_str());
    headers.insert(REASON, one_line(&unit.reason));
    if !unit.backtrace.is_empty() {
        headers.insert(BACKTRACE, one_line(&unit.backtrace));
    }
    headers.insert(UNIT, if unit.first { "first" } else { "follower" });
    headers.insert(COUNTS, if counts { "yes" } else { "no" });
    headers.insert(names::DIGEST_HEADER, digest);
    headers.insert(names::ATTEMPT_HEADER, "1");
    headers.insert(STREAM, park.stream.as_str());
    headers.insert(SEQUENCE, park.sequence.to_string());
    headers.insert(SUBJECT, park.subject.as_str());
    headers.insert(STORED, clock::text(park.stored));
    headers.insert(PARKED, clock::text(time));
    headers.insert(names::JOURNAL_HEADER, journal.to_string());
    headers.insert(ORDINAL, ordinal.to_string());
    for (name, value) in &park.headers {
        let own = if is_reserved(name) { format!("{OWN}{name}") } else { name.clone() };
        if let Ok(own) = HeaderName::from_str(&own) {
            headers.append(own, value.as_str());
        }
    }
    Publication {
        subject: subject(handler, generation, unit.key.as_deref()),
        headers,
        payload: Bytes::copy_from_slice(&park.payload),
    }
}

/// Where the dead letters of a key lie.
#[must_use]
pub fn subject(handler: &str, generation: u32, key: Option<&str>) -> String {
    let escaped = key.map(keys::escape);
    names::dead_subject(handler, generation, escaped.as_deref().unwrap_or(names::KEYLESS))
}

fn is_reserved(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    RESERVED.iter().any(|reserved| name.starts_with(reserved))
}

/// A header is one line.
fn one_line(text: &str) -> String {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    lines.collect::<Vec<_>>().join(" | ").replace(char::is_control, " ")
}

impl Letter {
    /// Reads a message of the stream of dead letters; nothing where it is none of ours.
    #[must_use]
    pub fn read(message: Last) -> Option<Self> {
        let Last { subject, sequence, headers, payload, .. } = message;
        let text = |name: &str| headers.get(name).map(|value| value.as_str().to_owned());
        let number = |name: &str| text(name)?.parse::<u64>().ok();
        let escaped = subject.splitn(5, '.').nth(4)?.to_owned();
        let key = if escaped == names::KEYLESS { None } else { Some(keys::unescape(&escaped).ok()?) };
        let stored = clock::read(&text(STORED)?)?;
        let own = own_headers(&headers);
        let length = payload.len();
        let message = async_nats::Message {
            subject: text(SUBJECT)?.into(),
            reply: None,
            payload,
            headers: Some(own),
            status: None,
            description: None,
            length,
        };
        Some(Self {
            sequence,
            key,
            class: text(CLASS)?,
            reason: text(REASON).unwrap_or_default(),
            backtrace: text(BACKTRACE).unwrap_or_default(),
            first: text(UNIT)? == "first",
            counts: text(COUNTS)? == "yes",
            digest: text(names::DIGEST_HEADER).unwrap_or_default(),
            parked: clock::read(&text(PARKED)?)?,
            place: (number(names::JOURNAL_HEADER)?, number(ORDINAL)?),
            stream: text(STREAM)?,
            event: Arrival { message, sequence: number(SEQUENCE)?, stored, pending: 0 },
        })
    }
}

/// The event's own headers.
fn own_headers(headers: &HeaderMap) -> HeaderMap {
    let mut own = HeaderMap::new();
    for (name, values) in headers.iter() {
        let name: &str = name.as_ref();
        let name = match name.get(..OWN.len()) {
            Some(prefix) if prefix.eq_ignore_ascii_case(OWN) => name.get(OWN.len()..).unwrap_or_default(),
            _ if is_reserved(name) => continue,
            _ => name,
        };
        for value in values {
            if let Ok(name) = HeaderName::from_str(name) {
                own.append(name, value.as_str());
            }
        }
    }
    own
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_event_comes_back_as_it_was_whatever_its_headers_are() {
        let pairs =
            [("Nats-Msg-Id", "e1"), ("ce-id", "x"), ("Millstream-Depth", "3"), ("Millstream-Event-Nats-TTL", "1")];
        let headers = pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
        let unit = ParkedUnit {
            key: Some("C 42.x".to_owned()),
            class: "trap".to_owned(),
            reason: "two\nlines".to_owned(),
            backtrace: " 0: a\n 1: b\n".to_owned(),
            first: true,
        };
        let park = Park {
            stream: "ORDERS".to_owned(),
            sequence: 7,
            stored: 1_700_000_000_123_456_789,
            subject: "orders.placed".to_owned(),
            headers,
            payload: vec![0, 255],
            units: vec![unit.clone()],
        };
        let origin = Origin { handler: "h", generation: 2, digest: "d", journal: 9, time: 1_700_000_000_000_000_000 };
        let Publication { subject, headers, payload } = publication(origin, 4, &park, &unit, true);
        assert_eq!(subject, "millstream.dead.h.2.C=2042.x");
        assert_eq!(headers.get("Nats-Msg-Id").unwrap().as_str(), "h.2.9.4.1700000000000000000");
        let letter = Letter::read(Last { subject, sequence: 3, stored: 0, headers, payload }).unwrap();
        assert_eq!((letter.key.as_deref(), letter.first, letter.place), (Some("C 42.x"), true, (9, 4)));
        assert_eq!(
            (letter.reason.as_str(), letter.backtrace.as_str()),
            ("two lines".replace(' ', " | ").as_str(), "0: a | 1: b")
        );
        let event = letter.event;
        assert_eq!((event.sequence, event.stored, event.message.payload.as_ref()), (7, park.stored, &[0, 255][..]));
        let back = event.message.headers.unwrap();
        let mut back: Vec<_> = crate::publication::pairs(&back);
        back.sort_unstable();
        let mut expected = pairs.to_vec();
        expected.sort_unstable();
        assert_eq!(back, expected);
    }
}
