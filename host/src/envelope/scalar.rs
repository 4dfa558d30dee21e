//! A field of a JSON envelope. In: whatever it holds, read in one pass. Out: what was wanted, judged afterwards, so
//! that an error can name the field. Pure. Never: forgets what kind of value it was.

use std::borrow::Cow;
use std::fmt;

use serde::de::{IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Number;

use super::{Error, Form, wrong};

/// Any JSON value, of which only scalars are of use. Text is borrowed unless it has escapes.
#[derive(Debug, Default)]
pub(super) enum Scalar<'a> {
    #[default]
    Absent,
    Text(Cow<'a, str>),
    Number(Number),
    Bool,
    Other(&'static str),
}

impl<'a> Scalar<'a> {
    pub(super) fn text(self, form: Form, field: &str) -> Result<Option<Cow<'a, str>>, Error> {
        match self {
            Self::Absent => Ok(None),
            Self::Text(text) => Ok(Some(text)),
            other => Err(wrong(form, field, format!("is {}, not a text", other.kind()))),
        }
    }

    /// Ids are often numbers, and a whole number has one text.
    pub(super) fn id(self, form: Form, field: &str) -> Result<Option<Cow<'a, str>>, Error> {
        match self {
            Self::Number(number) if !number.is_f64() => Ok(Some(Cow::Owned(number.to_string()))),
            other => other.text(form, field),
        }
    }

    pub(super) fn version(self, form: Form, field: &str) -> Result<Option<u32>, Error> {
        let found = match self {
            Self::Absent => return Ok(None),
            Self::Number(number) => match number.as_u64().and_then(|number| u32::try_from(number).ok()) {
                Some(version) => return Ok(Some(version)),
                None => number.to_string(),
            },
            other => other.kind().to_owned(),
        };
        Err(wrong(form, field, format!("is {found}, not a whole number from 0 to {}", u32::MAX)))
    }

    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Absent => "null",
            Self::Text(_) => "a text",
            Self::Number(_) => "a number",
            Self::Bool => "a boolean",
            Self::Other(kind) => kind,
        }
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Scalar<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ScalarVisitor)
    }
}

struct ScalarVisitor;

impl<'de> Visitor<'de> for ScalarVisitor {
    type Value = Scalar<'de>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a JSON value")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Scalar::Text(Cow::Borrowed(text)))
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Scalar::Text(Cow::Owned(text.to_owned())))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Self::Value, E> {
        Ok(Scalar::Number(number.into()))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Self::Value, E> {
        Ok(Scalar::Number(number.into()))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Self::Value, E> {
        Ok(Number::from_f64(number).map_or(Scalar::Other("a number"), Scalar::Number))
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
        Ok(Scalar::Bool)
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(Scalar::Absent)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Scalar::Other("an object"))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Scalar::Other("an array"))
    }
}
