//! The log: what happens becomes lines on stderr, for people or for machines. In: `tracing` events and the spans they stand in. Out:
//! a line each, with the handler, stream and sequence that it is about; in JSON if so wanted. One a process. Never: colours
//! what is no terminal; lets a text move the cursor, or make two lines of one.

mod fields;

use std::fmt::Write as _;
use std::io::Write as _;

use jiff::Timestamp;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::legible::{is_hidden, legible};
use fields::{Field, Fields};

/// What filters the log.
const FILTER: &str = "MILLSTREAM_LOG";

/// How lines are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Begins to write, at the level of `MILLSTREAM_LOG` (default: info for us and for guests, warnings of the rest). The client's own
/// account of a lost connection helps only where a program stays: elsewhere the command's error says it.
pub fn start(format: Format, stays: bool) {
    use std::io::IsTerminal as _;
    use tracing_subscriber::EnvFilter;
    let client = if stays { "error" } else { "off" };
    let wanted = std::env::var(FILTER).unwrap_or_default();
    let (filter, fault) = match (!wanted.is_empty()).then(|| EnvFilter::try_new(&wanted)).transpose() {
        Ok(filter) => (filter, None),
        Err(error) => (None, Some(error)),
    };
    let filter =
        filter.unwrap_or_else(|| EnvFilter::new(format!("warn,millstream=info,guest=info,async_nats={client}")));
    let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let _ = tracing_subscriber::registry().with(filter).with(Lines { format, colour }).try_init();
    if let Some(error) = fault {
        tracing::warn!(%error, "{FILTER} is no filter and is passed over; an example: warn,guest=debug");
    }
}

/// Writes lines.
struct Lines {
    format: Format,
    colour: bool,
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Lines {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        if let Some(span) = context.span(id) {
            span.extensions_mut().insert(fields);
        }
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        if let Some(span) = context.span(id)
            && let Some(fields) = span.extensions_mut().get_mut::<Fields>()
        {
            values.record(fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut fields = Fields::default();
        for span in context.event_scope(event).into_iter().flat_map(|scope| scope.from_root()) {
            if let Some(around) = span.extensions().get::<Fields>() {
                fields.extend(around);
            }
        }
        event.record(&mut fields);
        let now = now();
        let line = match self.format {
            Format::Text => text(&now, event.metadata(), &fields, self.colour),
            Format::Json => json(&now, event.metadata(), &fields),
        };
        // In one piece, so that lines of other processes on the same terminal stay whole. Nobody can be told of a lost stderr.
        let _ = std::io::stderr().lock().write_all(line.as_bytes());
    }
}

fn text(now: &str, metadata: &Metadata<'_>, fields: &Fields, colour: bool) -> String {
    let (dim, level_colour, plain) = match (colour, *metadata.level()) {
        (false, _) => ("", "", ""),
        (true, Level::ERROR) => ("\x1b[2m", "\x1b[31m", "\x1b[0m"),
        (true, Level::WARN) => ("\x1b[2m", "\x1b[33m", "\x1b[0m"),
        (true, Level::INFO) => ("\x1b[2m", "\x1b[32m", "\x1b[0m"),
        (true, Level::DEBUG) => ("\x1b[2m", "\x1b[34m", "\x1b[0m"),
        (true, Level::TRACE) => ("\x1b[2m", "\x1b[35m", "\x1b[0m"),
    };
    let target = fields.target().unwrap_or_else(|| metadata.target());
    let message = legible(fields.message());
    let mut line = String::with_capacity(128 + message.len());
    let _ = write!(line, "{dim}{now}{plain} {level_colour}{:>5}{plain} {dim}{target}:{plain}", metadata.level());
    if !message.is_empty() {
        line.push(' ');
        line.push_str(&message);
    }
    for Field { name, value, .. } in fields.others() {
        let _ = write!(line, " {dim}{name}={plain}{value}");
    }
    line.push('\n');
    line
}

fn json(now: &str, metadata: &Metadata<'_>, fields: &Fields) -> String {
    let target = fields.target().unwrap_or_else(|| metadata.target());
    let mut line = format!(r#"{{"time":"{now}","level":"{}","target":{}"#, metadata.level(), quoted(target));
    for Field { name, value, .. } in fields.others() {
        let _ = write!(line, ",{}:{}", quoted(name), inert(value.json().to_string()));
    }
    let _ = writeln!(line, r#","message":{}}}"#, quoted(fields.message()));
    line
}

/// The line for what ends the process.
#[must_use]
pub fn error_in_json(message: &str, hint: Option<&str>) -> String {
    let hint = hint.map(|hint| format!(r#","hint":{}"#, quoted(hint))).unwrap_or_default();
    let now = now();
    format!(r#"{{"time":"{now}","level":"ERROR","target":"millstream"{hint},"message":{}}}"#, quoted(message))
}

/// A text in JSON.
fn quoted(text: &str) -> String {
    inert(serde_json::Value::from(text).to_string())
}

/// JSON that means the same, and moves no cursor where somebody looks at it as it is.
fn inert(json: String) -> String {
    if !json.contains(is_hidden) {
        return json;
    }
    let mut inert = String::with_capacity(json.len() + 16);
    for letter in json.chars() {
        match letter {
            letter if is_hidden(letter) => inert.extend([format!("\\u{:04x}", u32::from(letter))]),
            letter => inert.push(letter),
        }
    }
    inert
}

/// Time with as many digits in each line.
fn now() -> String {
    format!("{:.6}", Timestamp::now())
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tracing::subscriber::with_default;

    use super::*;

    /// What a line would be, without its time.
    struct Seen(Lines, Arc<Mutex<Vec<(String, String)>>>);

    impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Seen {
        fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
            self.0.on_new_span(attributes, id, context);
        }

        fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
            let mut fields = Fields::default();
            for span in context.event_scope(event).into_iter().flat_map(|scope| scope.from_root()) {
                fields.extend(span.extensions().get::<Fields>().unwrap());
            }
            event.record(&mut fields);
            let lines = (text("T", event.metadata(), &fields, false), json("T", event.metadata(), &fields));
            self.1.lock().unwrap().push(lines);
        }
    }

    fn lines(told: impl FnOnce()) -> Vec<(String, String)> {
        let seen = Arc::<Mutex<Vec<_>>>::default();
        let lines = Lines { format: Format::Json, colour: false };
        let subscriber = tracing_subscriber::registry().with(Seen(lines, Arc::clone(&seen)));
        with_default(subscriber, told);
        seen.lock().unwrap().clone()
    }

    #[test]
    fn a_line_has_the_fields_of_its_spans_once_and_in_one_line() {
        let lines = lines(|| {
            let _handler = tracing::error_span!("handler", handler = "spend").entered();
            let _generation = tracing::error_span!("generation", generation = 2).entered();
            tracing::warn!(target: "guest", handler = "spend", sequence = 7, reason = "a\n\"b\"", "it said {}", "\u{1b}[31m\nno");
            tracing::info!(error = %"x\u{9b}y", "");
        });
        let (text, json) = &lines[0];
        assert_eq!(
            text,
            "T  WARN guest: it said \\u{1b}[31m\\nno handler=\"spend\" generation=2 sequence=7 reason=\"a\\n\\\"b\\\"\"\n"
        );
        assert_eq!(
            json,
            "{\"time\":\"T\",\"level\":\"WARN\",\"target\":\"guest\",\"handler\":\"spend\",\"generation\":2,\"sequence\":7,\
             \"reason\":\"a\\n\\\"b\\\"\",\"message\":\"it said \\u001b[31m\\nno\"}\n"
        );
        let (text, json) = &lines[1];
        assert_eq!(text, "T  INFO millstream::logs::tests: handler=\"spend\" generation=2 error=x\\u{9b}y\n");
        let read: serde_json::Value = serde_json::from_str(json).unwrap();
        assert_eq!(read["error"], "x\u{9b}y");
        assert!(json.contains(r"x\u009by") && !json.contains('\u{9b}'), "{json}");
        assert_eq!(read["message"], "");
    }
}
