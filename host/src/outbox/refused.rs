//! Effects that their streams refuse for what they are: too large, or with too large headers. In: such an effect, and why. Out: the
//! same a while later, to be tried again, and the list of them. Pure: times come in as arguments. Never: holds up the lane that it
//! was taken from. It keeps its instance's turn, so what that instance sends later waits behind it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::Undelivered;
use super::effect::Effect;
use crate::acks;

/// Somebody must change the stream, or the server; so there is no hurry.
const PAUSE: Duration = Duration::from_secs(10);

/// JetStream's codes for a message that is too large for its stream, and for one whose headers no stream takes.
const TOO_LARGE: u64 = 10_054;
const HEADERS_TOO_LARGE: u64 = 10_097;

/// All of one outbox.
#[derive(Default)]
pub(super) struct Refused {
    aside: BTreeMap<(Instant, u64), (Arc<str>, Box<Effect>)>,
    /// By their order, from the first refusal until they are stored.
    known: BTreeMap<u64, Undelivered>,
    /// Hashes of their keys, and their orders.
    keys: HashMap<u64, u64>,
}

impl Refused {
    /// Takes one out of its lane.
    pub(super) fn set_aside(&mut self, lane: &Arc<str>, effect: Box<Effect>, reason: String, now: Instant) {
        let (key, id) = (effect.key().to_owned(), effect.id().to_owned());
        self.keys.insert(effect.hash(), effect.order);
        self.known.insert(effect.order, Undelivered { key, subject: lane.to_string(), id, reason });
        self.aside.insert((now + PAUSE, effect.order), (Arc::clone(lane), effect));
    }

    /// One that is to be tried again, and its lane.
    pub(super) fn pop_due(&mut self, now: Instant) -> Option<(Arc<str>, Box<Effect>)> {
        self.aside.first_key_value().filter(|((until, _), _)| *until <= now)?;
        self.aside.pop_first().map(|(_, due)| due)
    }

    /// When the next one is due.
    pub(super) fn next(&self) -> Option<Instant> {
        self.aside.first_key_value().map(|((until, _), _)| *until)
    }

    /// It is stored after all.
    pub(super) fn forget(&mut self, effect: &Effect) {
        if self.known.remove(&effect.order).is_some() {
            self.keys.remove(&effect.hash());
        }
    }

    /// All that are not stored, in their order.
    pub(super) fn listed(&self) -> impl Iterator<Item = &Undelivered> {
        self.known.values()
    }

    /// What is said of an effect that is one of these, or waits behind one of the same instance.
    pub(super) fn concerns(&self, effect: &Effect) -> Option<Said<'_>> {
        if self.known.contains_key(&effect.order) {
            return Some(Said::Itself);
        }
        self.keys.get(&effect.hash()).and_then(|order| self.known.get(order)).map(|before| Said::Behind(&before.id))
    }
}

/// Why an effect is not delivered.
pub(super) enum Said<'a> {
    /// It is refused itself.
    Itself,
    /// The one with this id goes first.
    Behind(&'a str),
}

/// The reason with a hint, if it is the message that is refused and no other on its subject need be.
pub(super) fn reason(error: &acks::Error, stream: &str) -> Option<String> {
    let hint = match error {
        acks::Error::Refused { code: TOO_LARGE, .. } => {
            format!("let stream {stream} take larger messages: `nats stream edit {stream} --max-msg-size=-1`")
        }
        acks::Error::Refused { code: HEADERS_TOO_LARGE, .. } => {
            "its ids, key, type and step must fit 64 KiB of headers; nothing but shorter ones will help".to_owned()
        }
        acks::Error::TooLarge => "raise max_payload in the configuration of the server".to_owned(),
        acks::Error::NoStream | acks::Error::Refused { .. } | acks::Error::TimedOut | acks::Error::Connection(_) => {
            return None;
        }
    };
    Some(format!("{error}; hint: {hint}"))
}
