//! An effect becomes a message. In: an effect, and the time, for deadlines count from publication. Out: the message
//! with its whole envelope. Pure. Never: changes an id.

use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::header::{HeaderName, NATS_MESSAGE_ID, NATS_MESSAGE_TTL};
use bytes::Bytes;
use millstream_saga::{Message, Outgoing};

use crate::clock;
use crate::names;
use crate::publication::{Outline, Publication, encoded};
use crate::timers::{self, Timer};

const DEPTH: HeaderName = HeaderName::from_static(names::DEPTH_HEADER);
const ATTEMPT: HeaderName = HeaderName::from_static(names::ATTEMPT_HEADER);
const STEP: HeaderName = HeaderName::from_static(names::STEP_HEADER);
const DEADLINE: HeaderName = HeaderName::from_static(names::DEADLINE_HEADER);

/// The message for an effect whose payload is `body`, decided and published at these times.
pub(super) fn publication(
    outgoing: &Outgoing,
    body: &Bytes,
    handler: &str,
    decided: i64,
    now: i64,
    allows_ttl: bool,
) -> Publication {
    let timer = |id, due, correlation, causation| {
        Timer { id, due, body: body.clone(), correlation, causation }.publication(handler, now)
    };
    match outgoing {
        Outgoing::Timer { id, due, correlation, causation, .. } => timer(id, *due, correlation, causation),
        Outgoing::Wait { id, after_ms, correlation, causation, .. } => {
            timer(id, later(now, *after_ms), correlation, causation)
        }
        Outgoing::Cancel { id } => timers::cancel(handler, id),
        Outgoing::Message(message) => Publication {
            subject: message.subject.clone(),
            headers: headers(message, handler, decided, now, allows_ttl),
            payload: body.clone(),
        },
    }
}

fn headers(message: &Message, handler: &str, decided: i64, now: i64, allows_ttl: bool) -> HeaderMap {
    let Message { id, event_type, key, correlation, causation, .. } = message;
    let outline = Outline { id, event_type, handler, aggregate: key, time: decided, correlation, causation };
    let mut headers = outline.headers();
    headers.insert(NATS_MESSAGE_ID, id.as_str());
    headers.insert(DEPTH, message.depth.to_string());
    if message.command {
        headers.insert(ATTEMPT, message.attempt.to_string());
    }
    if let Some(step) = &message.step {
        headers.insert(STEP, encoded(step).as_ref());
    }
    if let Some(within) = message.within_ms.filter(|_| message.command) {
        headers.insert(DEADLINE, clock::text(later(now, within)));
        if allows_ttl {
            headers.insert(NATS_MESSAGE_TTL, within.div_ceil(1000).max(1).to_string());
        }
    }
    headers
}

fn later(now: i64, milliseconds: u64) -> i64 {
    let nanoseconds = Duration::from_millis(milliseconds).as_nanos();
    now.saturating_add(i64::try_from(nanoseconds).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::envelope::{Arrival, decode};
    use crate::publication::pairs;

    const DECIDED: i64 = 1_700_000_000_123_000_000;

    fn command(within_ms: Option<u64>) -> Outgoing {
        Outgoing::Message(Message {
            id: "h.0a.2".into(),
            subject: "inventory.reserve".into(),
            event_type: "Reserve 100 %".into(),
            command: true,
            payload: Vec::new(),
            key: "C 42 ü".into(),
            correlation: "root".into(),
            causation: "ORDERS:7".into(),
            step: Some("reservé".into()),
            attempt: 2,
            depth: 3,
            within_ms,
        })
    }

    fn render(outgoing: &Outgoing, allows_ttl: bool) -> Publication {
        publication(outgoing, &Bytes::from_static(b"{\"a\": 1}"), "h", DECIDED, DECIDED + 5_000_000, allows_ttl)
    }

    #[test]
    fn a_command_is_read_back_in_full() {
        let publication = render(&command(Some(1500)), true);
        let arrival = Arrival {
            stream: "S",
            sequence: 1,
            stored: 2,
            subject: &publication.subject,
            payload: &publication.payload,
        };
        let event = decode(&arrival, pairs(&publication.headers)).unwrap();
        assert_eq!((event.id.as_ref(), event.event_type.as_ref()), ("h.0a.2", "Reserve 100 %"));
        assert_eq!((event.aggregate_id.as_ref(), event.time), ("C 42 ü", DECIDED));
        assert_eq!((event.correlation_id.as_ref(), event.causation_id.as_ref()), ("root", "ORDERS:7"));
        assert_eq!(event.payload.as_ref(), b"{\"a\": 1}");
        assert_eq!(event.extra.as_ref(), r#"{"datacontenttype":"application/json","source":"millstream/h"}"#);
        let header = |name: &str| publication.headers.get(name).map(|value| value.as_str().to_owned());
        assert_eq!(header("Nats-Msg-Id").as_deref(), Some("h.0a.2"));
        assert_eq!(header("Millstream-Depth").as_deref(), Some("3"));
        assert_eq!(header("Millstream-Attempt").as_deref(), Some("2"));
        assert_eq!(header("Millstream-Step").as_deref(), Some("reserv%C3%A9"));
        assert_eq!(header("Millstream-Deadline").as_deref(), Some("2023-11-14T22:13:21.628Z"));
        assert_eq!(header("Nats-TTL").as_deref(), Some("2"));
    }

    #[test]
    fn a_time_to_live_needs_a_deadline_and_a_stream_that_allows_it() {
        let ttl = |within, allows| {
            let publication = render(&command(within), allows);
            publication.headers.get("Nats-TTL").map(|value| value.as_str().to_owned())
        };
        let table =
            [(Some(0), true, Some("1")), (Some(60_001), true, Some("61")), (Some(9), false, None), (None, true, None)];
        for (within, allows, expected) in table {
            assert_eq!(ttl(within, allows).as_deref(), expected, "{within:?}");
        }
    }

    #[test]
    fn a_wait_counts_from_its_publication() {
        let (correlation, causation) = ("root".to_owned(), "e1".to_owned());
        let wait = Outgoing::Wait { id: "h.0a.retry".into(), after_ms: 1000, body: Vec::new(), correlation, causation };
        let publication = render(&wait, true);
        assert_eq!(publication.subject, "millstream.timers.h.set.h.0a.retry");
        let schedule = publication.headers.get("Nats-Schedule").unwrap();
        assert_eq!(schedule.as_str(), "@at 2023-11-14T22:13:21.128Z");
        let cancel = render(&Outgoing::Cancel { id: "h.0a.retry".into() }, true);
        assert_eq!(cancel.headers.get("Nats-Scheduler").unwrap().as_str(), publication.subject);
    }
}
