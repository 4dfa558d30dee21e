//! The effects for one target subject, and the next thing to do about them. In: effects, news of the stream. Out: what to find,
//! look for or send. Pure: times come in as arguments. Never: has two of one key in flight, or anything beside a try after a
//! failure.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use rustc_hash::FxHashSet;
use tokio::time::Instant;

use super::effect::Effect;
use super::stamp::Stamp;
use super::targets::Target;

/// Ids looked for at once.
const LOOK: usize = 1000;

/// Why a lane stands still, and until when.
pub(super) struct Trouble {
    pub(super) reason: String,
    pub(super) pause: Duration,
    pub(super) until: Instant,
    /// Key and id of the one that is being tried again.
    pub(super) trying: Option<(String, String)>,
}

/// The effects for one target subject.
#[derive(Default)]
pub(super) struct Lane {
    pub(super) waiting: VecDeque<Box<Effect>>,
    /// Those whose instance has an earlier one somewhere, by their order.
    pub(super) held: BTreeMap<u64, Box<Effect>>,
    /// Hashes of the keys in flight.
    pub(super) in_flight: FxHashSet<u64>,
    pub(super) target: Option<Arc<Target>>,
    /// Its target, or ids in it, are being looked for.
    pub(super) is_looking: bool,
    /// It stands in the line of lanes that may have something to do.
    pub(super) is_lined_up: bool,
    pub(super) trouble: Option<Trouble>,
    /// No stream holds its subject.
    pub(super) is_homeless: bool,
}

/// The next thing to do. What is done is told to the queue with the lane's name.
#[derive(Debug)]
pub(super) enum Step {
    /// Find the stream of this lane.
    Find(Arc<str>),
    /// See which of these ids the stream holds, stored since then (nanoseconds since 1970).
    Look(Arc<str>, Arc<Target>, HashSet<String>, i64),
    /// Publish this.
    Send(Arc<str>, Arc<Target>, Box<Effect>),
}

impl Lane {
    /// Puts an effect where it was decided.
    pub(super) fn insert(&mut self, effect: Box<Effect>) {
        let place = self.waiting.partition_point(|other| other.order < effect.order);
        self.waiting.insert(place, effect);
    }

    pub(super) fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.held.is_empty() && self.in_flight.is_empty() && !self.is_looking
    }

    /// What to do now in this lane, if anything.
    pub(super) fn step(&mut self, name: &Arc<str>, now: Stamp, instant: Instant) -> Option<Step> {
        if self.is_looking {
            return None;
        }
        if let Some(trouble) = &self.trouble
            && (trouble.until > instant || !self.in_flight.is_empty())
        {
            return None;
        }
        let first = self.waiting.front()?;
        let Some(target) = self.target.clone() else {
            self.is_looking = true;
            return Some(Step::Find(Arc::clone(name)));
        };
        let key = first.hash();
        if self.in_flight.contains(&key) {
            return None;
        }
        let may_be_there = |effect: &Effect| effect.is_unique() && effect.absent.age(now) > target.window / 2;
        if may_be_there(first) {
            self.is_looking = true;
            let asked =
                || self.waiting.iter().chain(self.held.values()).filter(|effect| may_be_there(effect)).take(LOOK);
            let since = asked().map(|effect| effect.absent.wall).min().unwrap_or_default();
            let ids = asked().map(|effect| effect.id().to_owned()).collect();
            return Some(Step::Look(Arc::clone(name), target, ids, since));
        }
        self.in_flight.insert(key);
        if let Some(trouble) = &mut self.trouble {
            trouble.trying = Some((first.key().to_owned(), first.id().to_owned()));
        }
        self.waiting.pop_front().map(|effect| Step::Send(Arc::clone(name), target, effect))
    }
}
