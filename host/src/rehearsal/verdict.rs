//! What came of a rehearsal with live instances. In: counts and divergences. Out: the same as JSON, and sentences for people.
//! Pure data.

use std::fmt;

use serde::Serialize;

/// Divergences that are named to people; programs get them all.
const NAMED: usize = 20;

/// What a new version makes of live instances.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// Live instances.
    pub live: u64,
    /// Those that were looked at: all, or a sample.
    pub looked_at: u64,
    /// Those whose whole past is there, and was played.
    pub replayed: u64,
    /// Those whose past is not, so that only their document could be handed over.
    pub handed_over_only: u64,
    /// Recorded events that were read.
    pub events: u64,
    /// Instances whose own state is another under the new module, which goes on from the old one.
    pub other_state: u64,
    /// Instances in whose past it asks for the same with another payload, or for another time.
    pub other_payload: u64,
    /// Instances that it cannot go on with, by key.
    pub diverging: Vec<Divergence>,
}

/// An instance that a new version cannot go on with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Divergence {
    /// The instance.
    pub key: String,
    /// The event where it parts, in its stream; none where it cannot read the document.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at: Option<At>,
    /// What differs.
    pub reason: String,
}

/// An event of the past.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct At {
    /// Its stream.
    pub stream: String,
    /// Its sequence there; none for a timer, which is not kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sequence: Option<u64>,
    /// Its id.
    pub event: String,
    /// Its type.
    #[serde(rename = "type")]
    pub event_type: String,
}

impl Verdict {
    /// A sentence or two for people.
    #[must_use]
    pub fn sentence(&self) -> String {
        let Self { live, looked_at, replayed, handed_over_only, .. } = self;
        let of = if looked_at < live {
            format!("a sample of {looked_at} of {live} live instances")
        } else {
            format!("{live} live instances")
        };
        let mut sentence = format!("{of}: {replayed} replayed from {} events", self.events);
        if *handed_over_only > 0 {
            sentence.push_str(&format!(", {handed_over_only} only handed over, for their past is not whole"));
        }
        match self.diverging.len() {
            0 => sentence.push_str("; none diverges"),
            1 => sentence.push_str("; 1 diverges"),
            several => sentence.push_str(&format!("; {several} diverge")),
        }
        if self.other_state > 0 {
            sentence.push_str(&format!("; {} with another state that it goes on from", self.other_state));
        }
        if self.other_payload > 0 {
            sentence.push_str(&format!("; {} with other payloads or times", self.other_payload));
        }
        sentence
    }

    /// The first divergences, a line each.
    pub fn lines(&self) -> impl Iterator<Item = String> {
        let more = self.diverging.len().saturating_sub(NAMED);
        let more = (more > 0).then(|| format!("and {more} more (--json names them all)"));
        self.diverging.iter().take(NAMED).map(Divergence::line).chain(more)
    }

    /// For the note of a deployment that goes on all the same.
    #[must_use]
    pub fn note(&self) -> String {
        let keys: Vec<&str> = self.diverging.iter().take(NAMED).map(|divergence| divergence.key.as_str()).collect();
        let more = if self.diverging.len() > NAMED { ", ..." } else { "" };
        format!("{} of {} live instances diverge: {}{more}", self.diverging.len(), self.live, keys.join(", "))
    }
}

/// For people.
impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { stream, sequence, event, event_type } = self;
        match sequence {
            Some(sequence) => write!(f, "{stream}:{sequence} ({event_type})"),
            None => write!(f, "timer {event} of {stream}"),
        }
    }
}

impl Divergence {
    fn line(&self) -> String {
        let Self { key, at, reason } = self;
        match at {
            Some(at) => format!("{key} at {at}: {reason}"),
            None => format!("{key}: {reason}"),
        }
    }
}
