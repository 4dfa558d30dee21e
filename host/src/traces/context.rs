//! W3C trace contexts. In: headers of a message. Out: the context that they carry, and headers for messages that it causes. Pure.
//! Never: takes half a header for a whole one; makes up an id where one was given.

use async_nats::HeaderMap;
use async_nats::header::HeaderName;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// Bytes of `tracestate` that must be passed on; a longer one may be left out, and is.
const STATE_BYTES: usize = 512;

/// Someone records this trace.
const SAMPLED: u8 = 1;

/// The trace's id is random.
const RANDOM: u8 = 2;

/// Where something stands in a trace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Context {
    /// The trace.
    pub trace: [u8; 16],
    /// The span that caused it; zeroes where the trace begins here.
    pub parent: [u8; 8],
    flags: u8,
    /// A host that records spans decided it: between cause and effect stands a span of its own.
    recorded: bool,
    state: String,
}

impl Context {
    /// What a publisher said, if it did. Go's clients write header names in their own way, hence in any case.
    #[must_use]
    pub fn read(headers: &HeaderMap) -> Option<Self> {
        let named = |name: &'static str| {
            let is_named = move |header: &HeaderName| AsRef::<str>::as_ref(header).eq_ignore_ascii_case(name);
            headers.iter().filter(move |(header, _)| is_named(header)).flat_map(|(_, values)| values)
        };
        let mut parents = named("traceparent");
        let parent = parents.next()?;
        // Which of two would it be?
        if parents.next().is_some() {
            return None;
        }
        let (trace, parent, flags) = parse(parent.as_str().trim())?;
        let mut state = String::new();
        for value in named("tracestate") {
            if !state.is_empty() {
                state.push(',');
            }
            state.push_str(value.as_str().trim());
        }
        if state.len() > STATE_BYTES || !state.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
            state.clear();
        }
        Some(Self { trace, parent, flags: flags & (SAMPLED | RANDOM), recorded: false, state })
    }

    /// The trace of a chain of events whose publisher began none: all hosts find the same for the same correlation id.
    #[must_use]
    pub fn begin(correlation: &str, is_sampled: impl FnOnce([u8; 16]) -> bool) -> Self {
        let trace = first_bytes("trace", correlation);
        let flags = u8::from(is_sampled(trace));
        Self { trace, parent: [0; 8], flags, recorded: false, state: String::new() }
    }

    /// Whether somebody records the trace.
    #[must_use]
    pub fn is_sampled(&self) -> bool {
        self.flags & SAMPLED != 0
    }

    /// The same, of a host that makes a span for each effect, where that is wanted.
    #[must_use]
    pub fn recorded(self, recorded: bool) -> Self {
        Self { recorded: recorded && self.is_sampled(), ..self }
    }

    /// Whether there is a span for each effect.
    #[must_use]
    pub fn is_recorded(&self) -> bool {
        self.recorded
    }

    /// The span of the effect with this id: whoever publishes it, and however often, it is the same.
    #[must_use]
    pub fn span_of(id: &str) -> [u8; 8] {
        first_bytes("span", id)
    }

    /// Gives these headers of the effect with this id to the trace.
    pub fn write(&self, headers: &mut HeaderMap, id: &str) {
        let has_span = self.recorded || self.parent == [0; 8];
        let span = if has_span { Self::span_of(id) } else { self.parent };
        headers.insert(TRACEPARENT, format!("00-{}-{}-{:02x}", hex::encode(self.trace), hex::encode(span), self.flags));
        if !self.state.is_empty() {
            headers.insert(TRACESTATE, self.state.as_str());
        }
    }

    /// Bytes that it takes in a record, at most.
    #[must_use]
    pub fn bytes(&self) -> usize {
        const ROOM: usize = 40;
        self.state.len() + ROOM
    }
}

/// `00-<32 hexadecimal digits>-<16>-<2>`; a later version may have more behind that.
fn parse(text: &str) -> Option<([u8; 16], [u8; 8], u8)> {
    let (head, rest) = text.split_at_checked(55)?;
    let mut parts = head.split('-');
    let mut part = |digits: usize| {
        let part = parts.next().filter(|part| part.len() == digits)?;
        let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        part.bytes().all(is_hex).then_some(part)
    };
    let (version, trace, parent, flags) = (part(2)?, part(32)?, part(16)?, part(2)?);
    let is_whole = rest.is_empty() || (version != "00" && rest.starts_with('-'));
    if version == "ff" || !is_whole {
        return None;
    }
    let (mut trace_id, mut parent_id) = ([0; 16], [0; 8]);
    hex::decode_to_slice(trace, &mut trace_id).ok()?;
    hex::decode_to_slice(parent, &mut parent_id).ok()?;
    let flags = u8::from_str_radix(flags, 16).ok()?;
    (trace_id != [0; 16] && parent_id != [0; 8]).then_some((trace_id, parent_id, flags))
}

/// The first bytes of a hash; never all zeroes, which would be no id.
fn first_bytes<const N: usize>(kind: &str, text: &str) -> [u8; N] {
    let hash =
        Sha256::new().chain_update("millstream ").chain_update(kind).chain_update([0]).chain_update(text).finalize();
    let mut bytes = [0; N];
    for (byte, hashed) in bytes.iter_mut().zip(hash) {
        *byte = hashed;
    }
    if bytes == [0; N] { [1; N] } else { bytes }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, *value);
        }
        headers
    }

    fn written(context: &Context, id: &str) -> (String, Option<String>) {
        let mut headers = HeaderMap::new();
        context.write(&mut headers, id);
        let text = |name: &str| headers.get(name).map(|value| value.as_str().to_owned());
        (text("traceparent").unwrap(), text("tracestate"))
    }

    #[test]
    fn what_is_no_traceparent_is_none() {
        for bad in [
            "",
            "00",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0x",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-x",
            "cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01x",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319cb7ad6b7169203331--01",
            "00-0af7651916cd43dd8448eb211c80319ü-b7ad6b716920333-01",
        ] {
            assert_eq!(Context::read(&headers(&[("traceparent", bad)])), None, "{bad}");
        }
        assert_eq!(Context::read(&headers(&[("traceparent", PARENT), ("Traceparent", PARENT)])), None);
        assert_eq!(Context::read(&headers(&[("tracestate", "a=1")])), None);
        let later = PARENT.replace("00-", "cc-") + "-more";
        assert!(Context::read(&headers(&[("traceparent", &later)])).is_some());
    }

    #[test]
    fn who_records_nothing_passes_on_what_came() {
        let context = Context::read(&headers(&[("Traceparent", PARENT), ("TraceState", "a=1"), ("TraceState", "b=2")]));
        let context = context.unwrap();
        assert!(context.is_sampled());
        assert_eq!(written(&context, "h.1"), (PARENT.to_owned(), Some("a=1,b=2".to_owned())));
        let unsampled = Context::read(&headers(&[("traceparent", &PARENT.replace("-01", "-00"))])).unwrap();
        assert!(!unsampled.clone().recorded(true).is_recorded());
        assert_eq!(written(&unsampled.recorded(true), "h.1").0, PARENT.replace("-01", "-00"));
    }

    #[test]
    fn who_records_puts_a_span_between_which_only_the_effect_s_id_decides() {
        let context = Context::read(&headers(&[("traceparent", PARENT)])).unwrap().recorded(true);
        let (first, again, other) =
            (written(&context, "h.1").0, written(&context, "h.1").0, written(&context, "h.2").0);
        assert_eq!(first, again);
        assert_ne!(first, other);
        assert_eq!(first, format!("00-0af7651916cd43dd8448eb211c80319c-{}-01", hex::encode(Context::span_of("h.1"))));
    }

    #[test]
    fn a_chain_without_a_trace_gets_one_of_its_own() {
        let (one, other) = (Context::begin("c1", |_| true), Context::begin("c2", |_| false));
        assert_eq!(one.trace, Context::begin("c1", |_| false).trace);
        assert_ne!(one.trace, other.trace);
        assert!(one.is_sampled() && !other.is_sampled());
        // A parent of zeroes would be no header.
        let (parent, _) = written(&other, "h.1");
        assert!(parse(&parent).is_some() && parent.ends_with("-00"), "{parent}");
    }

    #[test]
    fn a_state_that_is_too_long_or_no_text_is_left_out() {
        for (state, kept) in [("a".repeat(512), true), ("a".repeat(513), false), ("ü".to_owned(), false)] {
            let context = Context::read(&headers(&[("traceparent", PARENT), ("tracestate", &state)])).unwrap();
            assert_eq!(written(&context, "h.1").1, kept.then_some(state));
        }
    }

    #[test]
    fn none_takes_more_of_a_record_than_was_counted_for_it() {
        let state = "a".repeat(512);
        let context = Context::read(&headers(&[("traceparent", PARENT), ("tracestate", &state)])).unwrap();
        assert!(postcard::to_stdvec(&context).unwrap().len() <= context.bytes());
    }
}
