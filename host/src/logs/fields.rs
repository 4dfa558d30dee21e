//! The fields of a line. In: what `tracing` records of an event and its spans. Out: each name once, the innermost value. Pure. Never:
//! has two fields of one name.

use std::fmt;

use tracing::field::{Field as Recorded, Visit};

use crate::legible::legible;

/// A value as it was given.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    /// A text.
    Text(String),
    /// What something says of itself.
    Shown(String),
    /// A number, or yes or no.
    Plain(serde_json::Value),
}

/// One field.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Field {
    pub(super) name: &'static str,
    pub(super) value: Value,
}

/// All of a line, in the order in which they came.
#[derive(Clone, Debug, Default)]
pub(super) struct Fields(Vec<Field>);

impl Fields {
    /// The sentence.
    pub(super) fn message(&self) -> &str {
        self.text("message").unwrap_or_default()
    }

    /// Where a line of the older `log` says that it is from.
    pub(super) fn target(&self) -> Option<&str> {
        self.text("log.target")
    }

    /// All but those.
    pub(super) fn others(&self) -> impl Iterator<Item = &Field> {
        self.0.iter().filter(|field| field.name != "message" && !field.name.starts_with("log."))
    }

    /// Takes the fields of a span, further in than those before it.
    pub(super) fn extend(&mut self, inner: &Self) {
        for Field { name, value } in &inner.0 {
            self.put(name, value.clone());
        }
    }

    fn text(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|field| field.name == name).and_then(|field| match &field.value {
            Value::Text(text) | Value::Shown(text) => Some(text.as_str()),
            Value::Plain(_) => None,
        })
    }

    fn put(&mut self, name: &'static str, value: Value) {
        match self.0.iter_mut().find(|field| field.name == name) {
            Some(field) => field.value = value,
            None => self.0.push(Field { name, value }),
        }
    }
}

impl Value {
    /// The value in JSON.
    pub(super) fn json(&self) -> serde_json::Value {
        match self {
            Self::Text(text) | Self::Shown(text) => text.as_str().into(),
            Self::Plain(value) => value.clone(),
        }
    }
}

/// For people: texts in quotes, so that one can see where they end.
impl fmt::Display for Value {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => formatter.write_str(&legible(&format!("{text:?}"))),
            Self::Shown(text) => formatter.write_str(&legible(text)),
            Self::Plain(value) => write!(formatter, "{value}"),
        }
    }
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Recorded, value: &str) {
        self.put(field.name(), Value::Text(value.to_owned()));
    }

    fn record_debug(&mut self, field: &Recorded, value: &dyn fmt::Debug) {
        self.put(field.name(), Value::Shown(format!("{value:?}")));
    }

    fn record_u64(&mut self, field: &Recorded, value: u64) {
        self.put(field.name(), Value::Plain(value.into()));
    }

    fn record_i64(&mut self, field: &Recorded, value: i64) {
        self.put(field.name(), Value::Plain(value.into()));
    }

    fn record_f64(&mut self, field: &Recorded, value: f64) {
        self.put(field.name(), Value::Plain(value.into()));
    }

    fn record_bool(&mut self, field: &Recorded, value: bool) {
        self.put(field.name(), Value::Plain(value.into()));
    }
}
