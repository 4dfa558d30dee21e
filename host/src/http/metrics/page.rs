//! The text format. In: families and their samples. Out: lines. Values are written as they are; labels are escaped. Pure.

use std::borrow::Cow;
use std::fmt::Write as _;

/// Which of the two formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Prometheus text, version 0.0.4.
    Text,
    /// OpenMetrics 1.0: a counter's family has no `_total`, and the text says where it ends.
    OpenMetrics,
}

impl Format {
    /// The one that a client asks for, by its `Accept`.
    #[must_use]
    pub fn accepted(accept: &str) -> Self {
        if accept.contains("application/openmetrics-text") { Self::OpenMetrics } else { Self::Text }
    }

    /// Its media type.
    #[must_use]
    pub const fn media_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// Kinds of family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Gauge,
    Counter,
    Histogram,
}

/// The text so far.
pub(super) struct Page {
    text: String,
    format: Format,
    name: &'static str,
}

impl Page {
    pub(super) fn new(format: Format) -> Self {
        Self { text: String::with_capacity(1 << 16), format, name: "" }
    }

    /// Begins a family; its samples follow. It is announced also where it has none, so that its name is known.
    pub(super) fn family(&mut self, kind: Kind, name: &'static str, help: &str) {
        self.name = name;
        let word = match kind {
            Kind::Gauge => "gauge",
            Kind::Counter => "counter",
            Kind::Histogram => "histogram",
        };
        let family = match (self.format, kind) {
            (Format::OpenMetrics, Kind::Counter) => name.strip_suffix("_total").unwrap_or(name),
            _ => name,
        };
        let _ = writeln!(self.text, "# HELP {family} {help}\n# TYPE {family} {word}");
    }

    /// A sample of the family; `labels` are written out.
    pub(super) fn put(&mut self, labels: &str, value: impl Into<Value>) {
        self.put_as("", labels, value);
    }

    /// A sample whose name has an ending.
    pub(super) fn put_as(&mut self, ending: &str, labels: &str, value: impl Into<Value>) {
        let (name, value) = (self.name, value.into());
        let _ = match labels {
            "" => writeln!(self.text, "{name}{ending} {value}"),
            labels => writeln!(self.text, "{name}{ending}{{{labels}}} {value}"),
        };
    }

    pub(super) fn end(mut self) -> String {
        if self.format == Format::OpenMetrics {
            self.text.push_str("# EOF\n");
        }
        self.text
    }
}

/// A value: a count as it is, or a measurement.
pub(super) enum Value {
    Count(u64),
    Measure(f64),
}

impl From<u64> for Value {
    fn from(count: u64) -> Self {
        Self::Count(count)
    }
}

impl From<f64> for Value {
    fn from(measure: f64) -> Self {
        Self::Measure(measure)
    }
}

impl From<bool> for Value {
    fn from(is_so: bool) -> Self {
        Self::Count(u64::from(is_so))
    }
}

impl std::fmt::Display for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Count(count) => write!(f, "{count}"),
            Self::Measure(measure) if measure.is_nan() => f.write_str("NaN"),
            Self::Measure(measure) if measure.is_infinite() => {
                f.write_str(if *measure > 0.0 { "+Inf" } else { "-Inf" })
            }
            Self::Measure(measure) => write!(f, "{measure}"),
        }
    }
}

/// Labels as they stand between the braces.
pub(super) fn labels(pairs: &[(&str, &str)]) -> String {
    let mut text = String::with_capacity(64);
    for (index, (name, value)) in pairs.iter().enumerate() {
        let comma = if index > 0 { "," } else { "" };
        let _ = write!(text, "{comma}{name}=\"{}\"", escape(value));
    }
    text
}

/// The same after others.
pub(super) fn and(labels: &str, name: &str, value: &str) -> String {
    format!("{labels},{name}=\"{}\"", escape(value))
}

fn escape(value: &str) -> Cow<'_, str> {
    if !value.contains(['\\', '"', '\n']) {
        return Cow::Borrowed(value);
    }
    Cow::Owned(value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"))
}
