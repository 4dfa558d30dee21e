//! Decoding: a stored JetStream message in, its envelope out. Pure: no NATS, no clock.
//!
//! What the fields come from, the first that has it: CloudEvents headers (`ce-*`), CloudEvents JSON in the body, the plain JSON
//! envelope in the body, and else what JetStream knows: the message id or stream and sequence, the subject, the stored time.
//! A body that is no envelope is just a payload, never an error; an envelope with a wrong field is one.

mod cloudevents;
mod scalar;

use std::borrow::Cow;
use std::fmt;
use std::sync::LazyLock;

use jiff::Timestamp;
use memchr::memmem::Finder;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use scalar::Scalar;

pub use cloudevents::cloudevent;

/// A stored message, as the stream has it.
#[derive(Debug, Clone, Copy)]
pub struct Arrival<'a> {
    /// The stream's name.
    pub stream: &'a str,
    /// Its sequence in the stream.
    pub sequence: u64,
    /// When it was stored, in nanoseconds since 1970.
    pub stored: i64,
    /// Its subject.
    pub subject: &'a str,
    /// Its body.
    pub payload: &'a [u8],
}

/// The standard fields of an event, borrowed from the message wherever that is possible.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope<'a> {
    /// Unique per event. Default: the message id, else `STREAM:SEQUENCE`.
    pub id: Cow<'a, str>,
    /// Default: the last subject token that is a name (a letter, then letters, `_` or `-`), else the whole subject.
    pub event_type: Cow<'a, str>,
    /// What the event is about; empty if it does not say.
    pub aggregate_id: Cow<'a, str>,
    /// When it happened, in nanoseconds since 1970. Default: when it was stored.
    pub time: i64,
    /// Default: 1.
    pub schema_version: u32,
    /// The root of the chain of events; the event's own id if it starts one.
    pub correlation_id: Cow<'a, str>,
    /// The event that caused this one; empty if it does not say.
    pub causation_id: Cow<'a, str>,
    /// What handlers decode: the envelope's payload as it stands there, else the whole body. A plain envelope without `payload`
    /// is flat, so the whole body is its payload.
    pub payload: Cow<'a, [u8]>,
    /// A JSON object, names sorted, of the CloudEvents attributes that have no field above; empty if there are none.
    pub extra: Cow<'a, str>,
}

/// Why a message is not an event.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A required field is absent.
    #[error("the {form} has no {field:?}")]
    Missing {
        /// Which kind of envelope.
        form: Form,
        /// Which field.
        field: &'static str,
    },
    /// A field is there, but cannot be used.
    #[error("field {field:?} of the {form} {problem}")]
    Field {
        /// Which kind of envelope.
        form: Form,
        /// Which field.
        field: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The body says that it is an envelope, but cannot be read as one.
    #[error("the body is no {form}: {problem}")]
    Body {
        /// Which kind of envelope.
        form: Form,
        /// What is wrong with it.
        problem: String,
    },
}

/// The kinds of envelope.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// CloudEvents attributes in `ce-*` headers.
    Headers,
    /// A CloudEvent in JSON.
    CloudEvent,
    /// `eventId`, `eventType` and so on in the body.
    Plain,
}

impl fmt::Display for Form {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Headers => "CloudEvents headers",
            Self::CloudEvent => "CloudEvent",
            Self::Plain => "event envelope",
        })
    }
}

/// Decodes a message. `headers` are its names and values, in any order; for a message without any, an empty array costs nothing.
pub fn decode<'a>(
    arrival: &Arrival<'a>,
    headers: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> Result<Envelope<'a>, Error> {
    let headers = cloudevents::Headers::read(headers)?;
    if headers.is_complete {
        return Ok(headers.parts.envelope(arrival, headers.message_id));
    }
    let body = parts_of_body(arrival.payload, headers.says_cloudevent)?;
    let parts = headers.parts.or(body);
    Ok(parts.envelope(arrival, headers.message_id))
}

fn parts_of_body(body: &[u8], says_cloudevent: bool) -> Result<Parts<'_>, Error> {
    // Most events are bare: two searches are an eighth of a parse.
    static SPECVERSION: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"\"specversion\""));
    static EVENT_TYPE: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"\"eventType\""));
    if says_cloudevent {
        return cloudevents::parts(body);
    }
    if body.iter().find(|byte| !byte.is_ascii_whitespace()) != Some(&b'{') {
        return Ok(Parts::default());
    }
    if SPECVERSION.find(body).is_some() && cloudevents::is_cloudevent(body) {
        return cloudevents::parts(body);
    }
    if EVENT_TYPE.find(body).is_some() {
        return plain(body);
    }
    Ok(Parts::default())
}

/// What an envelope said; what it did not say is nothing.
#[derive(Debug, Default)]
struct Parts<'a> {
    id: Option<Cow<'a, str>>,
    event_type: Option<Cow<'a, str>>,
    aggregate_id: Option<Cow<'a, str>>,
    time: Option<i64>,
    schema_version: Option<u32>,
    correlation_id: Option<Cow<'a, str>>,
    causation_id: Option<Cow<'a, str>>,
    payload: Option<Cow<'a, [u8]>>,
    extra: Cow<'a, str>,
}

impl<'a> Parts<'a> {
    fn or(self, other: Self) -> Self {
        Self {
            id: self.id.or(other.id),
            event_type: self.event_type.or(other.event_type),
            aggregate_id: self.aggregate_id.or(other.aggregate_id),
            time: self.time.or(other.time),
            schema_version: self.schema_version.or(other.schema_version),
            correlation_id: self.correlation_id.or(other.correlation_id),
            causation_id: self.causation_id.or(other.causation_id),
            payload: self.payload.or(other.payload),
            extra: if self.extra.is_empty() { other.extra } else { self.extra },
        }
    }

    fn envelope(self, arrival: &Arrival<'a>, message_id: Option<&'a str>) -> Envelope<'a> {
        let id = self.id.or(message_id.map(Cow::Borrowed));
        let id = id.unwrap_or_else(|| Cow::Owned(place(arrival.stream, arrival.sequence)));
        Envelope {
            event_type: self.event_type.unwrap_or_else(|| Cow::Borrowed(type_from_subject(arrival.subject))),
            aggregate_id: self.aggregate_id.unwrap_or_default(),
            time: self.time.unwrap_or(arrival.stored),
            schema_version: self.schema_version.unwrap_or(1),
            correlation_id: self.correlation_id.unwrap_or_else(|| id.clone()),
            causation_id: self.causation_id.unwrap_or_default(),
            payload: self.payload.unwrap_or(Cow::Borrowed(arrival.payload)),
            extra: self.extra,
            id,
        }
    }
}

/// `STREAM:SEQUENCE`. Digits by hand: formatting costs more than all the rest of a bare event.
fn place(stream: &str, sequence: u64) -> String {
    let mut digits = [0_u8; 20];
    let mut rest = sequence;
    let mut length = 0;
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + u8::try_from(rest % 10).unwrap_or_default();
        rest /= 10;
        length += 1;
        if rest == 0 {
            break;
        }
    }
    let mut place = String::with_capacity(stream.len() + 1 + length);
    place.push_str(stream);
    place.push(':');
    place.extend(digits.iter().skip(digits.len() - length).map(|digit| char::from(*digit)));
    place
}

/// Subjects end in ids as often as in types: `orders.placed`, `fines.S38735`. So a type holds no digit.
fn type_from_subject(subject: &str) -> &str {
    let is_name = |token: &&str| {
        token.starts_with(|letter: char| letter.is_ascii_alphabetic())
            && token.bytes().all(|byte| byte.is_ascii_alphabetic() || byte == b'_' || byte == b'-')
    };
    subject.rsplit('.').find(is_name).unwrap_or(subject)
}

#[derive(Deserialize)]
struct Plain<'a> {
    #[serde(borrow, default, rename = "eventType")]
    event_type: Scalar<'a>,
    #[serde(borrow, default, rename = "eventId")]
    event_id: Scalar<'a>,
    #[serde(borrow, default, rename = "aggregateId")]
    aggregate_id: Scalar<'a>,
    #[serde(borrow, default)]
    timestamp: Scalar<'a>,
    #[serde(borrow, default)]
    version: Scalar<'a>,
    #[serde(borrow, default, rename = "correlationId")]
    correlation_id: Scalar<'a>,
    #[serde(borrow, default, rename = "causationId")]
    causation_id: Scalar<'a>,
    #[serde(borrow, default, deserialize_with = "as_it_stands")]
    payload: Option<&'a RawValue>,
}

/// A payload that is null is the text `null`; only an absent one is nothing.
fn as_it_stands<'de: 'a, 'a, D: Deserializer<'de>>(deserializer: D) -> Result<Option<&'a RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

fn plain(body: &[u8]) -> Result<Parts<'_>, Error> {
    const FORM: Form = Form::Plain;
    let plain: Plain<'_> = match serde_json::from_slice(body) {
        Ok(plain) => plain,
        // Each field takes any value, so this can only be a field that is there twice.
        Err(error) if error.is_data() => return Err(Error::Body { form: FORM, problem: error.to_string() }),
        Err(_) => return Ok(Parts::default()),
    };
    let Scalar::Text(event_type) = plain.event_type else { return Ok(Parts::default()) };
    Ok(Parts {
        event_type: Some(not_empty(FORM, "eventType", event_type)?),
        id: plain.event_id.id(FORM, "eventId")?.map(|id| not_empty(FORM, "eventId", id)).transpose()?,
        aggregate_id: plain.aggregate_id.id(FORM, "aggregateId")?,
        time: plain.timestamp.text(FORM, "timestamp")?.map(|text| time(FORM, "timestamp", &text)).transpose()?,
        schema_version: plain.version.version(FORM, "version")?,
        correlation_id: plain.correlation_id.id(FORM, "correlationId")?.filter(|id| !id.is_empty()),
        causation_id: plain.causation_id.id(FORM, "causationId")?,
        payload: plain.payload.map(|payload| Cow::Borrowed(payload.get().as_bytes())),
        extra: Cow::Borrowed(""),
    })
}

fn wrong(form: Form, field: &str, problem: impl Into<String>) -> Error {
    Error::Field { form, field: field.to_owned(), problem: problem.into() }
}

fn not_empty<'a>(form: Form, field: &str, text: Cow<'a, str>) -> Result<Cow<'a, str>, Error> {
    if text.is_empty() { Err(wrong(form, field, "is empty")) } else { Ok(text) }
}

/// RFC 3339, strictly, in nanoseconds since 1970; digits beyond those are cut off. The library's own parser also takes shorter and
/// longer forms, hence the shape.
fn time(form: Form, field: &str, text: &str) -> Result<i64, Error> {
    /// Seconds, a point, and nine digits.
    const FINEST: usize = 29;
    if !has_shape_of_time(text.as_bytes()) {
        return Err(wrong(form, field, format!("is {text:?}, not a time like 2026-01-31T12:00:00Z")));
    }
    let years = || wrong(form, field, format!("is {text:?}, not within 1678 to 2261"));
    // The library knows no more of these than that they are too far off.
    if text.get(..4).is_some_and(|year| year > "2262") {
        return Err(years());
    }
    let zone = text.rfind(|letter: char| !letter.is_ascii_digit() && letter != ':').unwrap_or_default();
    let finest = match (text.get(..FINEST), text.get(zone..)) {
        (Some(start), Some(zone_text)) if zone > FINEST => Cow::Owned(format!("{start}{zone_text}")),
        _ => Cow::Borrowed(text),
    };
    let time: Timestamp =
        finest.parse().map_err(|_| wrong(form, field, format!("is {text:?}, a day or hour that there is not")))?;
    i64::try_from(time.as_nanosecond()).map_err(|_| years())
}

fn has_shape_of_time(text: &[u8]) -> bool {
    let follows = |text: &[u8], shape: &[u8]| {
        text.len() == shape.len()
            && text.iter().zip(shape).all(|(byte, shape)| match shape {
                b'0' => byte.is_ascii_digit(),
                _ => byte.eq_ignore_ascii_case(shape),
            })
    };
    let Some((start, rest)) = text.split_at_checked(19) else { return false };
    let fraction = rest.strip_prefix(b".").map(|rest| rest.iter().take_while(|byte| byte.is_ascii_digit()).count());
    let zone = match fraction {
        None => rest,
        Some(0) => return false,
        Some(digits) => rest.get(digits + 1..).unwrap_or_default(),
    };
    let is_offset = |zone: &[u8]| {
        let at_most = |range, most: &[u8]| zone.get(range).is_some_and(|part| part <= most);
        (follows(zone, b"+00:00") || follows(zone, b"-00:00")) && at_most(1..3, b"23") && at_most(4..6, b"59")
    };
    follows(start, b"0000-00-00t00:00:00") && (follows(zone, b"z") || is_offset(zone))
}

#[cfg(test)]
mod tests {
    use super::*;

    const STORED: i64 = 1_700_000_000_000_000_000;

    fn arrival<'a>(subject: &'a str, payload: &'a [u8]) -> Arrival<'a> {
        Arrival { stream: "ORDERS", sequence: 7, stored: STORED, subject, payload }
    }

    fn bare(body: &str) -> Envelope<'_> {
        decode(&arrival("orders.C42.placed", body.as_bytes()), []).unwrap()
    }

    fn bad(body: &str) -> String {
        decode(&arrival("orders.placed", body.as_bytes()), []).unwrap_err().to_string()
    }

    #[test]
    fn a_bare_message_has_defaults() {
        let event = bare(r#"{"customer":"C42"}"#);
        let expected = Envelope {
            id: "ORDERS:7".into(),
            event_type: "placed".into(),
            aggregate_id: "".into(),
            time: STORED,
            schema_version: 1,
            correlation_id: "ORDERS:7".into(),
            causation_id: "".into(),
            payload: br#"{"customer":"C42"}"#.into(),
            extra: "".into(),
        };
        assert_eq!(event, expected);
        let arrival = arrival("orders.placed", b"x");
        let event = decode(&arrival, [("Nats-Msg-Id", "m1"), ("Other", "y")]).unwrap();
        assert_eq!((event.id.as_ref(), event.correlation_id.as_ref()), ("m1", "m1"));
    }

    #[test]
    fn the_type_is_the_last_token_that_is_a_name() {
        let table = [
            ("orders.placed", "placed"),
            ("fines.S38735", "fines"),
            ("orders.C42.line-added", "line-added"),
            ("a.b_c.-x", "b_c"),
            ("1.2", "1.2"),
            ("orders", "orders"),
            ("a.é", "a"),
        ];
        for (subject, expected) in table {
            assert_eq!(type_from_subject(subject), expected, "{subject}");
        }
    }

    #[test]
    fn places_are_written_in_full() {
        for sequence in [0, 1, 9, 10, 1_234_567, u64::MAX] {
            assert_eq!(place("S", sequence), format!("S:{sequence}"));
        }
    }

    #[test]
    fn a_plain_envelope_is_read_without_copies() {
        let body = r#" {"eventId":"e1","eventType":"CreateFine","aggregateId":"S1","timestamp":"2000-01-01T00:00:00.000Z",
            "version":2,"correlationId":"c","causationId":"p","payload":{"a": 1},"other":[{}]}"#;
        let event = bare(body);
        let texts = [&event.id, &event.event_type, &event.aggregate_id, &event.correlation_id, &event.causation_id];
        assert!(texts.iter().all(|text| matches!(text, Cow::Borrowed(_))));
        assert_eq!(texts.map(AsRef::as_ref), ["e1", "CreateFine", "S1", "c", "p"]);
        assert_eq!((event.time, event.schema_version), (946_684_800_000_000_000, 2));
        assert!(matches!(event.payload, Cow::Borrowed(payload) if payload == br#"{"a": 1}"#));
    }

    #[test]
    fn what_a_plain_envelope_leaves_out_has_defaults() {
        let body = r#"{"eventType":"A\u0042","eventId":7,"aggregateId":-1,"timestamp":null,"version":null,"correlationId":""}"#;
        let event = bare(body);
        assert_eq!((event.event_type.as_ref(), event.id.as_ref(), event.aggregate_id.as_ref()), ("AB", "7", "-1"));
        assert_eq!((event.correlation_id.as_ref(), event.time, event.schema_version), ("7", STORED, 1));
        assert_eq!(event.payload, body.as_bytes(), "without a payload the whole body is it");
        assert_eq!(bare(r#"{"eventType":"A","payload":null}"#).payload, b"null".as_slice());
        assert_eq!(bare(r#"{"eventType":"A"}"#).id, "ORDERS:7");
    }

    #[test]
    fn a_plain_envelope_with_a_wrong_field_is_an_error() {
        let table = [
            (r#""eventId":{}"#, "field \"eventId\" of the event envelope is an object, not a text"),
            (r#""eventId":"""#, "field \"eventId\" of the event envelope is empty"),
            (r#""aggregateId":1.5"#, "field \"aggregateId\" of the event envelope is a number, not a text"),
            (r#""correlationId":true"#, "field \"correlationId\" of the event envelope is a boolean, not a text"),
            (r#""causationId":[1]"#, "field \"causationId\" of the event envelope is an array, not a text"),
            (r#""timestamp":5"#, "field \"timestamp\" of the event envelope is a number, not a text"),
            (
                r#""version":"2""#,
                "field \"version\" of the event envelope is a text, not a whole number from 0 to 4294967295",
            ),
            (
                r#""version":-2"#,
                "field \"version\" of the event envelope is -2, not a whole number from 0 to 4294967295",
            ),
        ];
        for (field, expected) in table {
            assert_eq!(bad(&format!(r#"{{"eventType":"A",{field}}}"#)), expected);
        }
        assert!(bad(r#"{"eventType":""}"#).ends_with("is empty"));
        assert!(bad(r#"{"eventType":"A","timestamp":"soon"}"#).contains("\"soon\""));
        assert!(bad(r#"{"eventType":"A","eventId":"1","eventId":"2"}"#).contains("duplicate field"));
    }

    #[test]
    fn a_body_that_is_no_envelope_is_just_a_payload() {
        let bodies = [
            "",
            "text \"eventType\"",
            "[{\"eventType\":\"A\"}]",
            "{\"eventType\":7}",
            "{\"eventType\":\"A\"",
            "{\"inner\":{\"eventType\":\"A\",\"specversion\":\"1.0\"}}",
            "{\"specversion\":",
        ];
        for body in bodies {
            let event = bare(body);
            assert_eq!((event.event_type.as_ref(), event.payload.as_ref()), ("placed", body.as_bytes()), "{body}");
        }
        let no_text = [b'{', 0xff, b'}'];
        assert_eq!(decode(&arrival("a.b", &no_text), []).unwrap().payload, no_text.as_slice());
    }

    #[test]
    fn headers_with_a_specversion_are_a_whole_cloudevent() {
        let whole = [
            ("ce-id", "1"),
            ("ce-source", "/s"),
            ("CE-Type", "Sm%C3%B8rrebr%20%22%25"),
            ("ce-specversion", "1.0"),
            ("ce-subject", "C42"),
            ("ce-schemaversion", "4"),
            ("ce-tenant", "\"x\""),
            ("Content-Type", "text/plain"),
            ("Nats-Msg-Id", "m"),
        ];
        let body = br#"{"eventType":"Ignored"}"#;
        let event = decode(&arrival("a.b", body), whole).unwrap();
        assert_eq!((event.id.as_ref(), event.event_type.as_ref()), ("1", "Smørrebr \"%"));
        assert_eq!((event.aggregate_id.as_ref(), event.schema_version, event.time), ("C42", 4, STORED));
        assert_eq!(event.payload, body.as_slice());
        assert_eq!(event.extra, r#"{"datacontenttype":"text/plain","source":"/s","tenant":"\"x\""}"#);
        let reversed = whole.into_iter().rev();
        assert_eq!(decode(&arrival("a.b", body), reversed).unwrap(), event, "order matters");
        for missing in ["ce-id", "ce-source", "CE-Type"] {
            let headers = whole.into_iter().filter(|(name, _)| *name != missing);
            assert!(matches!(decode(&arrival("a.b", body), headers), Err(Error::Missing { .. })), "{missing}");
        }
        for (name, value) in
            [("ce-id", "a%zz"), ("ce-id", "%ff"), ("ce-time", "x"), ("ce-a_b", "x"), ("ce-schemaversion", "x")]
        {
            assert!(decode(&arrival("a.b", body), [(name, value)]).is_err(), "{name} {value}");
        }
    }

    #[test]
    fn empty_headers_that_may_be_left_out_are() {
        let whole = [("ce-specversion", "1.0"), ("ce-id", "1"), ("ce-source", "s"), ("ce-type", "T")];
        let empty =
            ["correlationid", "causationid", "subject", "time", "datacontenttype", "dataschema", "schemaversion"];
        let names: Vec<String> = empty.iter().map(|name| format!("ce-{name}")).collect();
        let with = |headers: &[(&'static str, &'static str)]| {
            let all = headers.iter().copied().chain(names.iter().map(|name| (name.as_str(), "")));
            decode(&arrival("a.b", b"x"), all.collect::<Vec<_>>()).unwrap().extra.into_owned()
        };
        assert_eq!(with(&whole), decode(&arrival("a.b", b"x"), whole).unwrap().extra);
        let event = decode(&arrival("a.b", b"x"), [("ce-correlationid", ""), ("ce-source", "")]).unwrap();
        assert_eq!((event.correlation_id.as_ref(), event.causation_id.as_ref()), ("ORDERS:7", ""));
        for required in ["ce-id", "ce-source", "ce-type", "ce-specversion"] {
            let headers = whole.map(|(name, value)| (name, if name == required { "" } else { value }));
            assert!(decode(&arrival("a.b", b"x"), headers).is_err(), "{required}");
        }
        let body = r#"{"specversion":"1.0","id":"1","source":"s","type":"T","correlationid":"","causationid":""}"#;
        assert_eq!(bare(body).correlation_id, "1");
    }

    #[test]
    fn single_headers_go_before_the_body() {
        let body = br#"{"eventType":"Body","eventId":"b","payload":1}"#;
        let event = decode(&arrival("a.b", body), [("ce-type", "Header"), ("ce-correlationid", "root")]).unwrap();
        assert_eq!(
            (event.event_type.as_ref(), event.id.as_ref(), event.correlation_id.as_ref()),
            ("Header", "b", "root")
        );
        assert_eq!(event.payload, b"1".as_slice());
        let event = decode(&arrival("a.b", b"x"), [("ce-id", "h"), ("Nats-Msg-Id", "m")]).unwrap();
        assert_eq!((event.id.as_ref(), event.correlation_id.as_ref()), ("h", "h"));
    }

    #[test]
    fn a_cloudevent_in_the_body_is_found_by_type_or_by_key() {
        let body = r#"{"specversion":"1.0","id":"1","source":"s","type":"T","data":5,"eventType":"Not"}"#;
        assert!(bad(body).contains("eventType"), "an extension's name is checked");
        let body = body.replace(r#","eventType":"Not""#, "");
        assert_eq!(bare(&body).event_type, "T");
        let says = [("content-type", "application/cloudevents+json; charset=UTF-8")];
        assert_eq!(decode(&arrival("a.b", body.as_bytes()), says).unwrap().payload, b"5".as_slice());
        assert!(decode(&arrival("a.b", b"{}"), says).is_err());
        let batch = [("Content-Type", "application/cloudevents-batch+json")];
        assert!(decode(&arrival("a.b", b"[]"), batch).unwrap_err().to_string().contains("batch"));
    }

    #[test]
    fn times_are_rfc_3339_and_nothing_else() {
        let good = [
            ("1970-01-01T00:00:00Z", 0),
            ("1970-01-01t00:00:00z", 0),
            ("1969-12-31T23:59:59.999999999Z", -1),
            ("1970-01-01T00:30:00.25+00:30", 250_000_000),
            ("1970-01-01T00:00:00-23:59", 86_340_000_000_000),
            ("2016-12-31T23:59:59Z", 1_483_228_799_000_000_000),
            ("1970-01-01T00:00:00.1234567899Z", 123_456_789),
            ("1970-01-01T00:00:00.123456789123456789123456789-00:01", 60_123_456_789),
        ];
        for (text, expected) in good {
            assert_eq!(time(Form::Plain, "t", text), Ok(expected), "{text}");
        }
        let wrong = [
            "",
            "Z",
            "1970-01-01",
            "1970-01-01T00:00Z",
            "1970-01-01 00:00:00Z",
            "1970-01-01T00:00:00",
            "1970-01-01T00:00:00+01",
            "1970-01-01T00:00:00+0100",
            "1970-01-01T00:00:00+24:00",
            "1970-01-01T00:00:00+00:60",
            "1970-01-01T00:00:00.Z",
            "1970-13-01T00:00:00Z",
            "1970-02-30T00:00:00Z",
            "1970-01-01T24:00:00Z",
            "1970-01-01T00:60:00Z",
            "1970-01-01T00:00:00Z[UTC]",
            "+001970-01-01T00:00:00Z",
            "1500-01-01T00:00:00Z",
            "2300-01-01T00:00:00Z",
            "9999-12-31T23:59:59Z",
            "1970-01-01T00:00:00Zé",
        ];
        for text in wrong {
            assert!(time(Form::Plain, "t", text).is_err(), "{text}");
        }
        for (text, told) in [
            ("9999-12-31T23:59:59Z", "not within 1678 to 2261"),
            ("2262-12-31T23:59:59Z", "not within 1678 to 2261"),
            ("0000-01-01T00:00:00Z", "not within 1678 to 2261"),
            ("2026-02-30T00:00:00Z", "a day or hour that there is not"),
        ] {
            let said = time(Form::Headers, "time", text).unwrap_err().to_string();
            assert_eq!(said, format!("field \"time\" of the CloudEvents headers is {text:?}, {told}"));
        }
    }
}
