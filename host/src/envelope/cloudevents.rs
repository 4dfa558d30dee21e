//! CloudEvents 1.0. In: attributes in headers (the NATS binding's binary mode), or a JSON object in the body
//! (structured mode). Out: an envelope, or the attribute that is wrong. Pure. Never: takes for an event what does not
//! call itself one.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::scalar::Scalar;
use super::{Arrival, Envelope, Error, Form, Parts, not_empty, time, wrong};

const CONTENT_TYPE: &str = "application/cloudevents+json";
const BATCH: &str = "application/cloudevents-batch";

/// Decodes a CloudEvent in JSON alone, without a message around it: an absent time is 1970.
pub fn cloudevent(json: &[u8]) -> Result<Envelope<'_>, Error> {
    let nowhere = Arrival { stream: "", sequence: 0, stored: 0, subject: "", payload: b"" };
    Ok(parts(json)?.envelope(&nowhere, None))
}

/// What the headers of a message say.
#[derive(Debug, Default)]
pub(super) struct Headers<'a> {
    pub(super) parts: Parts<'a>,
    pub(super) message_id: Option<&'a str>,
    /// The headers are a whole CloudEvent and the body is its data.
    pub(super) is_complete: bool,
    /// The body is a CloudEvent.
    pub(super) says_cloudevent: bool,
}

impl<'a> Headers<'a> {
    /// With `ce-specversion` they are a CloudEvent and must be a whole one; single `ce-*` headers just go before anything else.
    pub(super) fn read(headers: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Self, Error> {
        let mut read = Self::default();
        // Not made for a message without any: it is large, and this runs for each event.
        let mut attributes = None;
        let mut content_type = None;
        for (name, value) in headers {
            if let Some(attribute) = strip_prefix_ignoring_case(name, "ce-") {
                let attribute = lower_case(attribute);
                let value = percent_decoded(&attribute, value)?;
                let attributes = attributes.get_or_insert_with(|| Attributes::new(Form::Headers));
                attributes.take(attribute, Value::Scalar(Scalar::Text(value)))?;
            } else if name.eq_ignore_ascii_case("nats-msg-id") {
                read.message_id = Some(value).filter(|id| !id.is_empty());
            } else if name.eq_ignore_ascii_case("content-type") {
                content_type = Some(value);
            }
        }
        if let Some(content_type) = content_type {
            if strip_prefix_ignoring_case(content_type, BATCH).is_some() {
                let problem = "it is a batch; publish its events one by one".to_owned();
                return Err(Error::Body { form: Form::CloudEvent, problem });
            }
            read.says_cloudevent = strip_prefix_ignoring_case(content_type, CONTENT_TYPE).is_some();
        }
        let Some(mut attributes) = attributes else { return Ok(read) };
        read.is_complete = attributes.specversion.is_some();
        if read.is_complete {
            attributes.check_complete()?;
            if attributes.content_type.is_none() && !read.says_cloudevent {
                attributes.content_type = content_type.map(Cow::Borrowed);
            }
        }
        read.parts = attributes.parts(None)?;
        Ok(read)
    }
}

fn strip_prefix_ignoring_case<'a>(text: &'a str, prefix: &str) -> Option<&'a str> {
    let (start, rest) = text.split_at_checked(prefix.len())?;
    start.eq_ignore_ascii_case(prefix).then_some(rest)
}

fn lower_case(name: &str) -> Cow<'_, str> {
    if name.bytes().any(|byte| byte.is_ascii_uppercase()) {
        Cow::Owned(name.to_ascii_lowercase())
    } else {
        Cow::Borrowed(name)
    }
}

fn percent_decoded<'a>(attribute: &str, value: &'a str) -> Result<Cow<'a, str>, Error> {
    if !value.contains('%') {
        return Ok(Cow::Borrowed(value));
    }
    let broken = || wrong(Form::Headers, attribute, format!("is {value:?}, which is not percent-encoded UTF-8"));
    let mut decoded = Vec::with_capacity(value.len());
    let mut bytes = value.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            decoded.push(byte);
            continue;
        }
        let mut digit = || bytes.next().and_then(|digit| char::from(digit).to_digit(16));
        let (high, low) = (digit().ok_or_else(broken)?, digit().ok_or_else(broken)?);
        decoded.push(u8::try_from(high * 16 + low).map_err(|_| broken())?);
    }
    String::from_utf8(decoded).map(Cow::Owned).map_err(|_| broken())
}

/// Whether the object has a `specversion` of its own, not one somewhere inside. What is no JSON is no CloudEvent.
pub(super) fn is_cloudevent(body: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Probe {
        specversion: Option<IgnoredAny>,
    }
    match serde_json::from_slice(body) {
        Ok(Probe { specversion }) => specversion.is_some(),
        // A field that is there twice: an error of the event, to be found when it is read.
        Err(error) => error.is_data(),
    }
}

/// Reads a body that is a CloudEvent in JSON.
pub(super) fn parts(body: &[u8]) -> Result<Parts<'_>, Error> {
    const FORM: Form = Form::CloudEvent;
    let bad_body = |error: serde_json::Error| Error::Body { form: FORM, problem: error.to_string() };
    let Members(members) = serde_json::from_slice(body).map_err(bad_body)?;
    let mut attributes = Attributes::new(FORM);
    let (mut data, mut encoded) = (None, None);
    for (name, raw) in members {
        match name.as_ref() {
            "data" => once(FORM, "data", &mut data, raw)?,
            "data_base64" => once(FORM, "data_base64", &mut encoded, raw)?,
            _ => {
                let scalar = serde_json::from_str(raw.get()).map_err(bad_body)?;
                attributes.take(name, Value::Json(scalar, raw))?;
            }
        }
    }
    attributes.check_complete()?;
    let is_there = |raw: &&RawValue| raw.get() != "null";
    let payload = match (data.filter(is_there), encoded.filter(is_there)) {
        (Some(_), Some(_)) => return Err(wrong(FORM, "data_base64", "is there beside \"data\"")),
        (Some(data), None) => Cow::Borrowed(data.get().as_bytes()),
        (None, Some(encoded)) => Cow::Owned(base64_decoded(encoded)?),
        (None, None) => Cow::Borrowed(b"".as_slice()),
    };
    attributes.parts(Some(payload))
}

fn base64_decoded(raw: &RawValue) -> Result<Vec<u8>, Error> {
    let problem = || wrong(Form::CloudEvent, "data_base64", "is not a text in base64");
    let Ok(Scalar::Text(text)) = serde_json::from_str(raw.get()) else { return Err(problem()) };
    STANDARD.decode(text.as_bytes()).map_err(|_| problem())
}

fn once<T>(form: Form, name: &str, place: &mut Option<T>, value: T) -> Result<(), Error> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(wrong(form, name, "is there twice")),
    }
}

/// An attribute's value, and how it stood in the JSON if it came from there.
enum Value<'a> {
    Scalar(Scalar<'a>),
    Json(Scalar<'a>, &'a RawValue),
}

/// The context attributes of one event.
struct Attributes<'a> {
    form: Form,
    specversion: Option<Cow<'a, str>>,
    id: Option<Cow<'a, str>>,
    source: Option<Cow<'a, str>>,
    event_type: Option<Cow<'a, str>>,
    subject: Option<Cow<'a, str>>,
    time: Option<Cow<'a, str>>,
    content_type: Option<Cow<'a, str>>,
    schema: Option<Cow<'a, str>>,
    correlation_id: Option<Cow<'a, str>>,
    causation_id: Option<Cow<'a, str>>,
    schema_version: Option<u32>,
    /// Sorted, for headers come in no order and the same event must always give the same bytes.
    extensions: BTreeMap<Cow<'a, str>, Cow<'a, str>>,
}

impl<'a> Attributes<'a> {
    fn new(form: Form) -> Self {
        Self {
            form,
            specversion: None,
            id: None,
            source: None,
            event_type: None,
            subject: None,
            time: None,
            content_type: None,
            schema: None,
            correlation_id: None,
            causation_id: None,
            schema_version: None,
            extensions: BTreeMap::new(),
        }
    }

    fn take(&mut self, name: Cow<'a, str>, value: Value<'a>) -> Result<(), Error> {
        let form = self.form;
        let (scalar, raw) = match value {
            Value::Scalar(scalar) => (scalar, None),
            Value::Json(scalar, raw) => (scalar, Some(raw)),
        };
        if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit()) {
            return Err(wrong(form, &name, "has a name of other letters than a-z and 0-9"));
        }
        if matches!(scalar, Scalar::Absent) || is_left_out(form, &name, &scalar) {
            return Ok(());
        }
        let place = match name.as_ref() {
            "specversion" => &mut self.specversion,
            "id" => &mut self.id,
            "source" => &mut self.source,
            "type" => &mut self.event_type,
            "subject" => &mut self.subject,
            "time" => &mut self.time,
            "datacontenttype" => &mut self.content_type,
            "dataschema" => &mut self.schema,
            "correlationid" => &mut self.correlation_id,
            "causationid" => &mut self.causation_id,
            "schemaversion" => return once(form, &name, &mut self.schema_version, schema_version(form, scalar)?),
            _ => return self.take_extension(name, scalar, raw),
        };
        let text = match scalar {
            Scalar::Text(text) => not_empty(form, &name, text)?,
            other => return Err(wrong(form, &name, format!("is {}, not a text", other.kind()))),
        };
        once(form, &name, place, text)
    }

    fn take_extension(
        &mut self,
        name: Cow<'a, str>,
        scalar: Scalar<'a>,
        raw: Option<&'a RawValue>,
    ) -> Result<(), Error> {
        let json = match (&scalar, raw) {
            (Scalar::Text(text), None) => Cow::Owned(serde_json::Value::from(text.as_ref()).to_string()),
            (Scalar::Text(_) | Scalar::Bool, Some(raw)) => Cow::Borrowed(raw.get()),
            (Scalar::Number(number), Some(raw))
                if number.as_i64().is_some_and(|number| i32::try_from(number).is_ok()) =>
            {
                Cow::Borrowed(raw.get())
            }
            _ => return Err(wrong(self.form, &name, format!("is {}, not a text, integer or boolean", scalar.kind()))),
        };
        match self.extensions.insert(name, json) {
            None => Ok(()),
            Some(_) => Err(wrong(self.form, "an extension", "is there twice")),
        }
    }

    fn check_complete(&self) -> Result<(), Error> {
        let required = [
            ("specversion", &self.specversion),
            ("id", &self.id),
            ("source", &self.source),
            ("type", &self.event_type),
        ];
        for (field, value) in required {
            if value.is_none() {
                return Err(Error::Missing { form: self.form, field });
            }
        }
        Ok(())
    }

    fn parts(mut self, payload: Option<Cow<'a, [u8]>>) -> Result<Parts<'a>, Error> {
        if let Some(version) = self.specversion.as_deref().filter(|version| *version != "1.0") {
            return Err(wrong(self.form, "specversion", format!("is {version:?}, not \"1.0\"")));
        }
        if let Some(text) = self.content_type.as_deref().filter(|text| !is_media_type(text)) {
            return Err(wrong(self.form, "datacontenttype", format!("is {text:?}, not a media type")));
        }
        let extra = self.extra();
        Ok(Parts {
            time: self.time.map(|text| time(self.form, "time", &text)).transpose()?,
            id: self.id,
            event_type: self.event_type,
            aggregate_id: self.subject,
            schema_version: self.schema_version,
            correlation_id: self.correlation_id,
            causation_id: self.causation_id,
            payload,
            extra: Cow::Owned(extra),
        })
    }

    fn extra(&mut self) -> String {
        let own = [
            ("source", self.source.take()),
            ("datacontenttype", self.content_type.take()),
            ("dataschema", self.schema.take()),
        ];
        for (name, value) in own {
            if let Some(value) = value {
                let json = serde_json::Value::from(value.as_ref()).to_string();
                self.extensions.insert(Cow::Borrowed(name), Cow::Owned(json));
            }
        }
        if self.extensions.is_empty() {
            return String::new();
        }
        // Names are a-z and 0-9 and values are JSON already.
        let members: Vec<String> = self.extensions.iter().map(|(name, json)| format!("\"{name}\":{json}")).collect();
        format!("{{{}}}", members.join(","))
    }
}

/// Whether an empty text stands for nothing. Services copy headers that are not there, and so send empty ones; ids of a chain are
/// extensions, for which CloudEvents leaves it to us in JSON, too. What an event must have, and its other attributes in JSON, may
/// not be empty.
fn is_left_out(form: Form, name: &str, scalar: &Scalar<'_>) -> bool {
    let Scalar::Text(text) = scalar else { return false };
    text.is_empty()
        && match name {
            "correlationid" | "causationid" => true,
            "source" | "subject" | "time" | "datacontenttype" | "dataschema" | "schemaversion" => form == Form::Headers,
            _ => false,
        }
}

/// A text of digits is taken too: that is how a header, and whoever copies it, writes an integer.
fn schema_version(form: Form, scalar: Scalar<'_>) -> Result<u32, Error> {
    const FIELD: &str = "schemaversion";
    if let Scalar::Text(text) = &scalar {
        let digits = text.bytes().all(|byte| byte.is_ascii_digit());
        return text
            .parse()
            .ok()
            .filter(|_| digits)
            .ok_or_else(|| wrong(form, FIELD, format!("is {text:?}, not a whole number")));
    }
    let version = scalar.version(form, FIELD)?;
    version.ok_or_else(|| wrong(form, FIELD, "is null"))
}

/// `type/subtype`, then anything after a semicolon (RFC 2046).
fn is_media_type(text: &str) -> bool {
    let is_token = |part: &str| {
        let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        !part.is_empty() && part.bytes().all(legal)
    };
    let (media, _) = text.split_once(';').unwrap_or((text, ""));
    media.trim_end().split_once('/').is_some_and(|(kind, subkind)| is_token(kind) && is_token(subkind))
}

/// The members of a JSON object in their order, values as they stand.
struct Members<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(MembersVisitor)
    }
}

struct MembersVisitor;

impl<'de> Visitor<'de> for MembersVisitor {
    type Value = Members<'de>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut members = Vec::with_capacity(12);
        while let Some((name, value)) = map.next_entry::<Scalar<'de>, &'de RawValue>()? {
            let Scalar::Text(name) = name else { continue };
            members.push((name, value));
        }
        Ok(Members(members))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data;

    const HEAD: &str = r#""specversion":"1.0","id":"i","type":"t","source":"s""#;

    fn with(rest: &str) -> String {
        format!("{{{HEAD}{rest}}}")
    }

    #[test]
    fn good_events_decode() {
        let nothing = cloudevent(with("").as_bytes()).unwrap().extra.into_owned();
        assert_eq!(nothing, r#"{"source":"s"}"#);
        let json = with(
            r#","subject":"C42","time":"2018-04-05T18:31:00.5+01:00","datacontenttype":"application/json; charset=utf-8",
            "dataschema":"u","correlationid":"root","causationid":"parent","schemaversion":3,"zed":true,"alpha":-7,
            "beta":"a \"quoted\" text","data": {"a" : [1, 2.50]} "#,
        );
        let event = cloudevent(json.as_bytes()).unwrap();
        assert_eq!((event.id.as_ref(), event.event_type.as_ref()), ("i", "t"));
        assert_eq!((event.aggregate_id.as_ref(), event.schema_version), ("C42", 3));
        assert_eq!((event.correlation_id.as_ref(), event.causation_id.as_ref()), ("root", "parent"));
        assert_eq!(event.time, 1_522_949_460_500_000_000);
        assert!(matches!(event.payload, Cow::Borrowed(payload) if payload == br#"{"a" : [1, 2.50]}"#));
        assert_eq!(
            event.extra,
            r#"{"alpha":-7,"beta":"a \"quoted\" text","datacontenttype":"application/json; charset=utf-8","dataschema":"u","source":"s","zed":true}"#
        );
    }

    #[test]
    fn data_comes_in_three_ways() {
        let payload = |rest: &str| cloudevent(with(rest).as_bytes()).unwrap().payload.into_owned();
        assert_eq!(payload(""), b"");
        assert_eq!(payload(r#","data":"text","datacontenttype":"text/plain""#), br#""text""#);
        assert_eq!(payload(r#","data":null"#), b"");
        assert_eq!(payload(r#","data_base64":"AP8=""#), [0, 255]);
        assert_eq!(payload(r#","data_base64":null,"data":1"#), b"1");
    }

    #[test]
    fn bad_events_are_refused_by_name() {
        let table = [
            (r#"{"specversion":"1.0","id":"i","type":"t"}"#.to_owned(), "source"),
            (r#"{"specversion":"1.0","id":"i","source":"s","type":null}"#.to_owned(), "type"),
            (r#"{"id":"i","type":"t","source":"s"}"#.to_owned(), "specversion"),
            (r#"{"specversion":"0.3","id":"i","type":"t","source":"s"}"#.to_owned(), "specversion"),
            (r#"{"specversion":"1.0","id":25,"type":"t","source":"s"}"#.to_owned(), "id"),
            (with(r#","id":"twice""#), "id"),
            (with(r#","time":"lunchtime""#), "time"),
            (with(r#","time":"2018-04-05T18:31Z""#), "time"),
            (with(r#","subject":"""#), "subject"),
            (with(r#","datacontenttype":"xyz""#), "datacontenttype"),
            (with(r#","Capital":"x""#), "Capital"),
            (with(r#","fraction":1.5"#), "fraction"),
            (with(r#","large":3000000000"#), "large"),
            (with(r#","object":{}"#), "object"),
            (with(r#","schemaversion":-1"#), "schemaversion"),
            (with(r#","schemaversion":"+1""#), "schemaversion"),
            (with(r#","data":1,"data_base64":"AP8=""#), "data_base64"),
            (with(r#","data_base64":"?""#), "data_base64"),
            (with(r#","data_base64":7"#), "data_base64"),
        ];
        for (json, field) in table {
            let error = cloudevent(json.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(&format!("\"{field}\"")), "{json}: {error}");
        }
        assert!(matches!(cloudevent(b"[1]"), Err(Error::Body { .. })));
        assert!(matches!(cloudevent(b"{"), Err(Error::Body { .. })));
    }

    /// The single events of the public conformance suite, if that folder is on this machine.
    fn conformance(file: &str) -> Option<Vec<(String, String)>> {
        #[derive(Deserialize)]
        struct Suite {
            tests: Vec<Case>,
        }
        #[derive(Deserialize)]
        struct Case {
            id: String,
            event: Box<RawValue>,
        }
        let text = std::fs::read(data::file(&format!("conformance/cloudevents/{file}"))?).unwrap();
        let suite: Suite = serde_json::from_slice(&text).unwrap();
        Some(suite.tests.into_iter().map(|case| (case.id, case.event.get().to_owned())).collect())
    }

    #[test]
    fn each_valid_event_of_the_conformance_suite_is_taken() {
        let Some(cases) = conformance("valid-events.json") else { return };
        assert_eq!(cases.len(), 10);
        for (name, json) in &cases {
            let event = cloudevent(json.as_bytes()).unwrap_or_else(|error| panic!("{name}: {error}"));
            // The suite's own sample ids say which facts the event must have.
            let facts: serde_json::Value = serde_json::from_str(json).unwrap();
            assert_eq!(facts["id"], event.id.as_ref());
            assert_eq!(facts["type"], event.event_type.as_ref());
            let expected = if facts["time"].is_string() { 1_522_949_460_000_000_000 } else { 0 };
            assert_eq!(event.time, expected, "{name}");
        }
    }

    #[test]
    fn each_invalid_event_of_the_conformance_suite_is_refused() {
        let Some(cases) = conformance("invalid-events.json") else { return };
        assert_eq!(cases.len(), 25);
        for (name, json) in &cases {
            assert!(cloudevent(json.as_bytes()).is_err(), "{name}");
        }
    }
}
