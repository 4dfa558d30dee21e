//! Bytes that others wrote, thrown at everything that decodes them: headers and bodies of events, answers of guests, records, dead
//! letters, values of the registry, capsules, effects, timers. Whatever comes: no panic, nothing that grows beyond what came in, and
//! what was written here is read again as it was. `PROPTEST_CASES` says how often (256 of each by default).

use async_nats::HeaderMap;
use async_nats::header::HeaderName;
use millstream_saga::{Due, Effect, Instance, Message, Outgoing};
use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::{Value, json};
use std::str::FromStr as _;

use crate::direct_get::Last;
use crate::envelope::{self, Arrival};
use crate::generation::ledger::{self, Ledger};
use crate::journal::{Change, Counts, Kind, Park, ParkedUnit, Parking, Position, Record, Unparked};
use crate::overview::Alert;
use crate::parking::capsule::Capsule;
use crate::parking::letter::{self, Letter, Origin};
use crate::parking::wishes;
use crate::progress::Report;
use crate::publication::pairs;
use crate::registry::{self, Deployment, Host, Verdict};
use crate::saga::Facts;
use crate::sandbox::wire::{Change as Changed, Effect as Asked, Key, Outcome, Refusal, Rejection, Route, Span, Staged};
use crate::sandbox::{self, Digest};
use crate::settings::Settings;
use crate::{clock, keys};

/// Texts with what decoders trip over.
fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<String>(),
        "[ -~]{0,40}",
        prop::sample::select(vec![
            "",
            ".",
            "..",
            "*",
            ">",
            "=",
            "=0",
            "=0Z",
            "~",
            "\0",
            "\r\n",
            "\u{202e}",
            "null",
            "-0",
            "1e400",
            "NaN",
            "9223372036854775808",
            "2026-02-30T00:00:00Z",
            "9999-12-31T23:59:59.999999999Z",
            "-9999-01-01T00:00:00Z",
        ])
        .prop_map(str::to_owned),
    ]
}

/// Any JSON, with the names that ours has.
fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(|number| json!(number)),
        text().prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 40, 6, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..6).prop_map(Value::from),
            vec((name(), inner), 0..6).prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

fn name() -> impl Strategy<Value = String> {
    let known = [
        "eventId",
        "eventType",
        "aggregateId",
        "timestamp",
        "version",
        "correlationId",
        "causationId",
        "payload",
        "specversion",
        "id",
        "source",
        "type",
        "time",
        "data",
        "data_base64",
        "datacontenttype",
        "digest",
        "label",
        "settings",
        "limits",
        "desired",
        "live",
        "last",
        "shadows",
        "promotion",
        "number",
        "wanted",
        "kind",
        "key",
        "life",
        "timer",
        "user",
        "deadline",
        "retry",
        "step",
        "status",
        "state",
        "steps",
        "timers",
        "millstream_capsule",
        "events",
        "document",
        "text",
        "hex",
        "headers",
        "body",
        "send",
        "undo",
        "within_ms",
        "saga",
        "late",
        "sends",
        "keep_completed_seconds",
        "counts",
    ];
    prop_oneof![4 => prop::sample::select(known.to_vec()).prop_map(str::to_owned), 1 => text()]
}

/// JSON that is whole, or torn, or no JSON at all.
fn body() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        3 => value().prop_map(|value| value.to_string().into_bytes()),
        2 => (value(), any::<prop::sample::Index>(), any::<u8>()).prop_map(|(value, at, byte)| {
            let mut bytes = value.to_string().into_bytes();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            bytes
        }),
        1 => vec(any::<u8>(), 0..300),
    ]
}

/// Header names and values as a server lets them through: neither holds an end of a line.
fn headers() -> impl Strategy<Value = Vec<(String, String)>> {
    let known = [
        "Nats-Msg-Id",
        "ce-id",
        "ce-type",
        "ce-source",
        "ce-specversion",
        "ce-time",
        "ce-subject",
        "ce-data",
        "ce-correlationid",
        "ce-causationid",
        "ce-schemaversion",
        "Content-Type",
        "Millstream-Key",
        "Millstream-Class",
        "Millstream-Unit",
        "Millstream-Counts",
        "Millstream-Stream",
        "Millstream-Sequence",
        "Millstream-Subject",
        "Millstream-Stored",
        "Millstream-Parked",
        "Millstream-Ordinal",
        "Millstream-Journal",
        "Millstream-Event-x",
        "Millstream-Event-Nats-TTL",
        "Millstream-Depth",
        "Millstream-Deadline",
        "millstream-event-",
        "Nats-Sequence",
    ];
    let name = prop_oneof![5 => prop::sample::select(known.to_vec()).prop_map(str::to_owned), 1 => "[!-9;-~]{1,20}"];
    vec((name, text().prop_map(|text| text.replace(['\r', '\n'], " "))), 0..12)
}

fn map(headers: &[(String, String)]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        if let Ok(name) = HeaderName::from_str(name) {
            map.append(name, value.as_str());
        }
    }
    map
}

fn span() -> impl Strategy<Value = Span> {
    let number = || prop_oneof![0..40_u32, any::<u32>(), Just(u32::MAX)];
    (number(), number()).prop_map(|(start, length)| Span { start, length })
}

fn index() -> impl Strategy<Value = u32> {
    prop_oneof![5 => 0..4_u32, 1 => any::<u32>()]
}

fn staged() -> impl Strategy<Value = Staged> {
    let key = (span(), any::<bool>()).prop_map(|(name, cached)| Key { name, cached });
    let route = (index(), index(), any::<bool>()).prop_map(|(event, key, starts)| Route { event, key, starts });
    let rejection = (index(), span()).prop_map(|(event, reason)| Rejection { event, reason });
    (vec(key, 0..4), vec(route, 0..4), vec(rejection, 0..3), vec(any::<u8>(), 0..60))
        .prop_map(|(keys, routes, rejections, blob)| Staged { keys, routes, rejections, blob })
}

fn outcome() -> impl Strategy<Value = Outcome> {
    let change = (index(), index(), any::<bool>(), span()).prop_map(|(key, route, deleted, value)| Changed {
        key,
        route,
        deleted,
        value,
    });
    let effect = (index(), span()).prop_map(|(route, body)| Asked { route, body });
    let refusal = (index(), span()).prop_map(|(route, reason)| Refusal { route, reason });
    (vec(change, 0..4), vec(effect, 0..4), vec(refusal, 0..3), vec(any::<u8>(), 0..60))
        .prop_map(|(changes, effects, refusals, blob)| Outcome { changes, effects, refusals, blob })
}

/// What a record holds of its own, beside what it borrows.
#[derive(Clone, Debug)]
struct Held {
    positions: Vec<Position>,
    changes: Vec<HeldChange>,
    effects: Vec<Outgoing>,
    parking: Parking,
    counts: [u64; 7],
}

#[derive(Clone, Debug)]
struct HeldChange(String, u64, Option<Vec<u8>>, Option<u64>);

impl HeldChange {
    fn change(&self) -> Change<'_> {
        Change { key: &self.0, sequence: self.1, value: self.2.as_deref(), keep_seconds: self.3 }
    }
}

fn held() -> impl Strategy<Value = Held> {
    let position = (text(), any::<i64>(), any::<u64>()).prop_map(|(stream, created, sequence)| Position {
        stream,
        created,
        sequence,
    });
    let change = (text(), any::<u64>(), prop::option::of(vec(any::<u8>(), 0..50)), any::<Option<u64>>())
        .prop_map(|(key, sequence, value, keep)| HeldChange(key, sequence, value, keep));
    let message = (text(), text(), vec(any::<u8>(), 0..50), any::<Option<u64>>(), any::<u32>()).prop_map(
        |(id, key, payload, within_ms, depth)| {
            let (subject, event_type) = (key.clone(), id.clone());
            let (correlation, causation, step) = (id.clone(), key.clone(), Some(id.clone()));
            Outgoing::Message(Message {
                id,
                subject,
                event_type,
                command: depth % 2 == 0,
                payload,
                key,
                correlation,
                causation,
                step,
                attempt: depth,
                depth,
                within_ms,
            })
        },
    );
    let unit = (prop::option::of(text()), text(), any::<bool>()).prop_map(|(key, reason, first)| ParkedUnit {
        key,
        class: "trap".to_owned(),
        backtrace: reason.clone(),
        reason,
        first,
    });
    let park = (text(), any::<u64>(), any::<i64>(), headers(), vec(any::<u8>(), 0..50), vec(unit, 0..3)).prop_map(
        |(stream, sequence, stored, headers, payload, units)| Park {
            subject: stream.clone(),
            stream,
            sequence,
            stored,
            headers,
            payload,
            units,
        },
    );
    let unparked = (prop::option::of(text()), any::<u64>(), any::<u64>(), prop::option::of(text()))
        .prop_map(|(key, through, units, discarded)| Unparked { key, through, units, discarded });
    let parking = (any::<u64>(), vec(any::<u64>(), 0..4), vec(park, 0..3), prop::option::of(unparked))
        .prop_map(|(through, recent, parks, unparked)| Parking { through, recent, parks, unparked });
    (vec(position, 0..3), vec(change, 0..4), vec(message, 0..3), parking, any::<[u64; 7]>()).prop_map(
        |(positions, changes, effects, parking, counts)| Held { positions, changes, effects, parking, counts },
    )
}

impl Held {
    fn record(&self) -> Record<'_> {
        let mut record = Record::new(Kind::Batch, self.counts[0], "host", Digest([7; 32]));
        record.positions.clone_from(&self.positions);
        record.effects.clone_from(&self.effects);
        record.parking.clone_from(&self.parking);
        let [delivered, applied, irrelevant, ignored, parked, expired, lost] = self.counts;
        record.counts = Counts { delivered, applied, irrelevant, ignored, parked, expired, lost };
        record.changes = self.changes.iter().map(HeldChange::change).collect();
        record
    }
}

/// A list that says it is as long as nothing can be.
const ENDLESS: [u8; 10] = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01];

/// What a decoded record takes is bounded by what came in: a list's length is what is there, not what is announced.
fn fits(record: &Record<'_>, bytes: usize) -> bool {
    let lists = [record.positions.len(), record.changes.len(), record.effects.len(), record.parking.parks.len()];
    lists.iter().all(|length| *length <= bytes)
}

proptest! {
    #[test]
    fn any_message_is_an_event_or_an_error(headers in headers(), payload in body(), subject in text(), stored in any::<i64>()) {
        let arrival = Arrival { stream: "S", sequence: 1, stored, subject: &subject, payload: &payload };
        let headers = map(&headers);
        if let Ok(envelope) = envelope::decode(&arrival, pairs(&headers)) {
            prop_assert!(envelope.extra.is_empty() || serde_json::from_str::<serde_json::Map<String, Value>>(&envelope.extra).is_ok());
        }
        let _ = envelope::cloudevent(&payload);
    }

    #[test]
    fn what_a_guest_answers_is_refused_or_can_be_used_without_asking_again(
        staged in staged(), outcome in outcome(), events in 0..4_usize, routes in vec(any::<Option<u8>>(), 0..4)
    ) {
        if sandbox::check_staged(&staged, events).is_ok() {
            for key in &staged.keys {
                prop_assert_eq!(sandbox::slice(&staged.blob, key.name).len(), key.name.length as usize);
            }
            prop_assert!(staged.routes.iter().all(|route| (route.event as usize) < events));
        }
        let routes: Vec<Option<u32>> = routes.iter().map(|key| key.map(|key| u32::from(key % 4))).collect();
        if sandbox::check_outcome(&outcome, 4, &routes).is_ok() {
            for change in &outcome.changes {
                prop_assert_eq!(routes[change.route as usize], Some(change.key));
                prop_assert_eq!(sandbox::slice(&outcome.blob, change.value).len(), change.value.length as usize);
            }
            prop_assert!(outcome.effects.iter().all(|effect| routes[effect.route as usize].is_some()));
        }
        for span in staged.keys.iter().map(|key| key.name).chain(outcome.effects.iter().map(|effect| effect.body)) {
            let _ = sandbox::str_slice(&staged.blob, span);
        }
    }

    #[test]
    fn a_record_is_read_as_it_was_written_and_a_damaged_one_is_told(
        held in held(), at in any::<prop::sample::Index>(), byte in any::<u8>(), garbage in vec(any::<u8>(), 0..200)
    ) {
        let record = held.record();
        let bytes = record.encode().unwrap();
        prop_assert_eq!(&Record::decode(&bytes, 1).unwrap(), &record);
        let at = at.index(bytes.len());
        prop_assert!(Record::decode(&bytes[..at], 1).is_err(), "a part is no record");
        let mut damaged = bytes.to_vec();
        damaged[at] = byte;
        if let Ok(read) = Record::decode(&damaged, 1) {
            prop_assert!(fits(&read, damaged.len()));
        }
        let mut endless = bytes[..at].to_vec();
        endless.extend(ENDLESS);
        endless.extend(&bytes[at..]);
        if let Ok(read) = Record::decode(&endless, 1) {
            prop_assert!(fits(&read, endless.len()));
        }
        for format in [2, 3, 4] {
            let _ = Record::decode(&[&[format], &garbage[..]].concat(), 1);
        }
        let _ = Record::decode(&garbage, 1);
    }

    #[test]
    fn a_dead_letter_is_read_as_it_was_written_and_others_messages_are_none(
        headers in headers(), payload in vec(any::<u8>(), 0..50), key in prop::option::of("\\PC{1,20}"), reason in text(),
        sequence in any::<u64>(), time in any::<i64>()
    ) {
        let message = Last { subject: "s".into(), sequence, stored: 0, headers: map(&headers), payload: payload.clone().into() };
        if let Some(letter) = Letter::read(message) {
            prop_assert_eq!(letter.event.message.payload.as_ref(), &payload[..]);
        }
        let unit = ParkedUnit {
            key: key.clone(), class: "trap".to_owned(), backtrace: reason.clone(), reason, first: true,
        };
        let park = Park {
            stream: "S".to_owned(), sequence, stored: time, subject: "a.b".to_owned(), headers, payload, units: vec![unit.clone()],
        };
        let origin = Origin { handler: "h", generation: 1, digest: "d", journal: sequence, time };
        let sent = letter::publication(origin, 3, &park, &unit, true);
        prop_assert!(crate::subject::is_valid_filter(&sent.subject), "{}", sent.subject);
        let message = Last { subject: sent.subject, sequence: 9, stored: 0, headers: sent.headers, payload: sent.payload };
        let letter = Letter::read(message).expect("a letter of ours");
        prop_assert_eq!((letter.key, letter.place, letter.parked), (key, (sequence, 3), time));
        prop_assert_eq!((letter.event.sequence, letter.event.stored), (sequence, time));
        prop_assert_eq!(letter.event.message.payload.as_ref(), &park.payload[..]);
        let back = letter.event.message.headers.unwrap_or_default();
        let (mut back, written) = (pairs(&back), map(&park.headers));
        let mut written = pairs(&written);
        back.sort_unstable();
        written.sort_unstable();
        prop_assert_eq!(back, written);
    }

    #[test]
    fn values_of_the_registry_are_read_or_told(body in body()) {
        if let Ok(deployment) = registry::parse("h", &body) {
            let again = serde_json::to_vec(&deployment).unwrap();
            prop_assert_eq!(registry::parse("h", &again).unwrap(), deployment);
        }
        if let Ok(ledger) = ledger::parse("h", &body) {
            prop_assert_eq!(ledger::parse("h", &serde_json::to_vec(&ledger).unwrap()).unwrap(), ledger);
        }
        let _ = serde_json::from_slice::<Verdict>(&body);
        let _ = serde_json::from_slice::<Host>(&body);
        let _ = serde_json::from_slice::<Report>(&body);
        let _ = serde_json::from_slice::<Alert>(&body);
        let _ = serde_json::from_slice::<wishes::Entry>(&body);
    }

    #[test]
    fn a_sound_value_of_the_registry_with_one_member_exchanged_is_read_or_told(name in name(), member in value(), deep in any::<bool>()) {
        let deployment = Deployment {
            digest: Digest([7; 32]), label: "x".into(), subjects: vec!["a.>".into()], settings: Settings::default(),
            desired: registry::Desired::Running, note: String::new(), signature: None,
        };
        let mut whole = serde_json::to_value(&deployment).unwrap();
        let place = if deep { &mut whole["settings"] } else { &mut whole };
        place[name.as_str()] = member.clone();
        let _ = registry::parse("h", whole.to_string().as_bytes());
        let mut whole = serde_json::to_value(Ledger::default()).unwrap();
        whole[name.as_str()] = member;
        let _ = ledger::parse("h", whole.to_string().as_bytes());
    }

    #[test]
    fn a_capsule_is_read_as_it_was_written_or_told(
        body in body(), name in name(), member in value(), headers in headers(), payload in vec(any::<u8>(), 0..50),
        document in prop::option::of(vec(any::<u8>(), 0..50)), sequence in any::<u64>()
    ) {
        let _ = Capsule::read(&body);
        let unit = ParkedUnit {
            key: Some("k".into()), class: "trap".into(), reason: "r".into(), backtrace: String::new(), first: true,
        };
        let park = Park {
            stream: "S".into(), sequence, stored: 5, subject: "a.b".into(), headers, payload, units: vec![unit.clone()],
        };
        let origin = Origin { handler: "h", generation: 1, digest: "d", journal: 2, time: 3 };
        let sent = letter::publication(origin, 0, &park, &unit, true);
        let message = Last { subject: sent.subject, sequence: 9, stored: 0, headers: sent.headers, payload: sent.payload };
        let letters = [Letter::read(message).expect("a letter of ours")];
        let capsule = Capsule::of("h", 1, &letters, document.as_deref(), &Settings::default()).expect("a capsule");
        let mut written = serde_json::to_value(&capsule).unwrap();
        prop_assert_eq!(Capsule::read(written.to_string().as_bytes()).unwrap(), capsule);
        written[name.as_str()] = member;
        let _ = Capsule::read(written.to_string().as_bytes());
    }

    #[test]
    fn effects_timers_instances_and_descriptions_are_read_or_told(body in body(), text in text()) {
        let _ = serde_json::from_slice::<Effect>(&body);
        if let Ok(due) = serde_json::from_slice::<Due>(&body) {
            prop_assert_eq!(serde_json::from_slice::<Due>(&serde_json::to_vec(&due).unwrap()).unwrap(), due);
        }
        if let Ok(instance) = Instance::read(&body) {
            prop_assert!(Instance::read(&instance.write()).is_ok());
        }
        let _ = Facts::parse(&String::from_utf8_lossy(&body));
        let _ = Facts::parse(&text);
    }

    #[test]
    fn texts_in_subjects_keys_and_times_are_read_or_told(text in text()) {
        prop_assert_eq!(&keys::unescape(&keys::escape(&text)).unwrap(), &text);
        let _ = keys::unescape(&text);
        let _ = keys::unescape_token(&text);
        let _ = crate::subject::covers(&text, "a.b");
        let _ = crate::subject::overlaps(&text, &text);
        if let Some(time) = clock::read(&text) {
            prop_assert_eq!(clock::read(&clock::text(time)), Some(time));
        }
    }
}
