//! What happened becomes spans. In: a batch, with the headers of its events, or an effect that is stored. Out: spans on their way to
//! the collector. Never: builds one that nobody samples; waits.

use std::time::{Duration, SystemTime};

use millstream_saga::Outgoing;
use opentelemetry::trace::{Link, SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_sdk::trace::{IdGenerator as _, RandomIdGenerator, SpanData, SpanEvents, SpanLinks};

use super::context::Context;
use super::exporter::{Exporter, exporter};
use crate::decision::Decision;
use crate::intake::Arrival;

/// Publishers that one batch links to; a batch of a thousand events would fill a collector with links.
const LINKS: usize = 32;

/// A batch on its way to a decision.
pub struct Batch {
    exporter: &'static Exporter,
    span: SpanData,
}

impl Batch {
    /// The span of a batch that began then, if this host exports and the batch is sampled: with one of its events, or, where none
    /// says anything, by the host's own ratio.
    pub(crate) fn of(
        begun: Option<SystemTime>,
        handler: &str,
        stream: &str,
        arrivals: &[Arrival],
    ) -> Option<Box<Self>> {
        let (begun, exporter) = (begun?, exporter()?);
        let random = RandomIdGenerator::default();
        let (own_trace, span) = (random.new_trace_id(), random.new_span_id());
        let Causes { links, parent, .. } = causes(arrivals).sampled(exporter.samples(own_trace.to_bytes()))?;
        // One event alone is what the batch is about: it stands in the event's own trace.
        let (trace, parent) =
            parent.map_or((own_trace, SpanId::INVALID), |parent| (parent.trace_id(), parent.span_id()));
        let number = |sequence: u64| i64::try_from(sequence).unwrap_or(i64::MAX);
        let sequence = |arrival: Option<&Arrival>| number(arrival.map_or(0, |arrival| arrival.sequence));
        let attributes = vec![
            KeyValue::new("messaging.system", "nats"),
            KeyValue::new("messaging.operation.type", "process"),
            KeyValue::new("messaging.destination.name", stream.to_owned()),
            KeyValue::new("messaging.batch.message_count", number(arrivals.len() as u64)),
            KeyValue::new("millstream.handler", handler.to_owned()),
            KeyValue::new("millstream.first_sequence", sequence(arrivals.first())),
            KeyValue::new("millstream.last_sequence", sequence(arrivals.last())),
        ];
        let context = SpanContext::new(trace, span, TraceFlags::SAMPLED, false, TraceState::NONE);
        let span = span_data(context, parent, format!("batch {handler}"), begun, attributes);
        Some(Box::new(Self { exporter, span: SpanData { span_kind: SpanKind::Consumer, links, ..span } }))
    }

    /// Notes what was decided by which module.
    pub(crate) fn decided(mut self: Box<Self>, digest: &str, decision: &Decision) -> Box<Self> {
        let Decision { counts, changes, effects, .. } = decision;
        let number = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        self.span.attributes.extend([
            KeyValue::new("millstream.digest", digest.to_owned()),
            KeyValue::new("millstream.applied", number(counts.applied)),
            KeyValue::new("millstream.irrelevant", number(counts.irrelevant)),
            KeyValue::new("millstream.ignored", number(counts.ignored)),
            KeyValue::new("millstream.parked", number(counts.parked)),
            KeyValue::new("millstream.expired", number(counts.expired)),
            KeyValue::new("millstream.changes", number(changes.len() as u64)),
            KeyValue::new("millstream.effects", number(effects.len() as u64)),
        ]);
        self
    }

    /// The record is in the journal; or it is not, or nobody knows.
    pub(crate) fn landed<E: ToString>(span: Option<Box<Self>>, journal: Result<&u64, E>) {
        let Some(mut span) = span else { return };
        match journal {
            Ok(journal) => {
                let journal = KeyValue::new("millstream.journal", i64::try_from(*journal).unwrap_or(i64::MAX));
                span.span.attributes.push(journal);
                span.end(Status::Ok);
            }
            Err(error) => span.failed(error.to_string()),
        }
    }

    /// Nothing of it was decided.
    pub(crate) fn failed(self: Box<Self>, reason: String) {
        self.end(Status::error(reason));
    }

    fn end(self: Box<Self>, status: Status) {
        let Self { exporter, span } = *self;
        exporter.offer(SpanData { end_time: SystemTime::now(), status, ..span });
    }
}

/// What the events of a batch say of their traces.
struct Causes {
    links: SpanLinks,
    /// The only one.
    parent: Option<SpanContext>,
    is_sampled: bool,
    /// One at least says nothing.
    says_nothing: bool,
}

impl Causes {
    fn sampled(self, by_ratio: bool) -> Option<Self> {
        (self.is_sampled || (self.says_nothing && by_ratio)).then_some(self)
    }
}

fn causes(arrivals: &[Arrival]) -> Causes {
    let mut known: Vec<([u8; 16], [u8; 8])> = Vec::new();
    let mut says_nothing = false;
    for arrival in arrivals {
        match arrival.message.headers.as_ref().and_then(Context::read) {
            Some(context) if context.is_sampled() && !known.contains(&(context.trace, context.parent)) => {
                known.push((context.trace, context.parent));
            }
            Some(_) => {}
            None => says_nothing = true,
        }
    }
    let of = |(trace, span): &([u8; 16], [u8; 8])| {
        let (trace, span) = (TraceId::from_bytes(*trace), SpanId::from_bytes(*span));
        SpanContext::new(trace, span, TraceFlags::SAMPLED, true, TraceState::NONE)
    };
    let mut links = SpanLinks::default();
    links.links = known.iter().take(LINKS).map(|cause| Link::new(of(cause), Vec::new(), 0)).collect();
    links.dropped_count = u32::try_from(known.len().saturating_sub(LINKS)).unwrap_or(u32::MAX);
    let parent = known.first().filter(|_| arrivals.len() == 1).map(of);
    Causes { links, parent, is_sampled: !known.is_empty(), says_nothing }
}

/// An effect that is in its stream.
pub(crate) struct Stored<'a> {
    pub(crate) handler: &'a str,
    pub(crate) outgoing: &'a Outgoing,
    /// Journal sequence of its record.
    pub(crate) record: u64,
    /// When it was decided, nanoseconds since 1970.
    pub(crate) decided: i64,
    /// The stream that has it.
    pub(crate) stream: &'a str,
    /// It was there before.
    pub(crate) duplicate: bool,
}

/// Makes the span that the effect's header names, if it has one and this host exports.
pub(crate) fn effect_is_stored(context: Option<&Context>, stored: &Stored<'_>) {
    let Some(context) = context.filter(|context| context.is_recorded()) else { return };
    let Some(exporter) = exporter() else { return };
    let (id, name, kind) = match stored.outgoing {
        Outgoing::Message(message) => (&message.id, format!("send {}", message.event_type), SpanKind::Producer),
        Outgoing::Timer { id, .. } | Outgoing::Wait { id, .. } => (id, "set timer".to_owned(), SpanKind::Internal),
        Outgoing::Cancel { .. } => return,
    };
    let number = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
    let mut attributes = vec![
        KeyValue::new("messaging.system", "nats"),
        KeyValue::new("messaging.operation.type", "send"),
        KeyValue::new("messaging.message.id", id.clone()),
        KeyValue::new("millstream.handler", stored.handler.to_owned()),
        KeyValue::new("millstream.journal", number(stored.record)),
        KeyValue::new("millstream.stream", stored.stream.to_owned()),
        KeyValue::new("millstream.duplicate", stored.duplicate),
    ];
    if let Outgoing::Message(message) = stored.outgoing {
        attributes.extend([
            KeyValue::new("messaging.destination.name", message.subject.clone()),
            KeyValue::new("messaging.message.conversation_id", message.correlation.clone()),
            KeyValue::new("millstream.causation", message.causation.clone()),
            KeyValue::new("millstream.key", message.key.clone()),
            KeyValue::new("millstream.command", message.command),
            KeyValue::new("millstream.attempt", number(message.attempt.into())),
        ]);
        attributes.extend(message.step.as_ref().map(|step| KeyValue::new("millstream.step", step.clone())));
    }
    let (trace, span) = (TraceId::from_bytes(context.trace), SpanId::from_bytes(Context::span_of(id)));
    let own = SpanContext::new(trace, span, TraceFlags::SAMPLED, false, TraceState::NONE);
    let since = Duration::from_nanos(u64::try_from(stored.decided).unwrap_or_default());
    let span = span_data(own, SpanId::from_bytes(context.parent), name, SystemTime::UNIX_EPOCH + since, attributes);
    let end_time = SystemTime::now().max(span.start_time);
    exporter.offer(SpanData { span_kind: kind, end_time, status: Status::Ok, ..span });
}

fn span_data(
    span_context: SpanContext,
    parent_span_id: SpanId,
    name: String,
    begun: SystemTime,
    attributes: Vec<KeyValue>,
) -> SpanData {
    SpanData {
        span_context,
        parent_span_id,
        parent_span_is_remote: parent_span_id != SpanId::INVALID,
        span_kind: SpanKind::Internal,
        name: name.into(),
        start_time: begun,
        end_time: begun,
        attributes,
        dropped_attributes_count: 0,
        events: SpanEvents::default(),
        links: SpanLinks::default(),
        status: Status::Unset,
        instrumentation_scope: InstrumentationScope::builder("millstream")
            .with_version(env!("CARGO_PKG_VERSION"))
            .build(),
    }
}
