//! Deadlines that are not set yet. Most steps are answered long before their deadline; a deadline that is taken back
//! while it stands here was never written, nor is its cancellation. In: deadlines and cancellations. Out: those that
//! are to be written. Pure: times come in as arguments. Never: counts one as acted before it was set or taken back, so
//! a host that dies leaves none behind.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::Duration;

use millstream_saga::Outgoing;
use tokio::time::Instant;

use super::effect::Effect;

/// A deadline stands here so long at most, and a quarter of its own time at most.
const LONGEST: Duration = Duration::from_secs(1);

/// What becomes of a deadline, or of its cancellation.
pub(super) enum Fate {
    /// Both are done, and nothing is written.
    Done(Box<Effect>, Box<Effect>),
    /// It stands here.
    Deferred,
    /// It is to be written.
    Due(Box<Effect>),
}

/// Deadlines on their way.
#[derive(Default)]
pub(super) struct Deferred {
    /// Ids of deadlines whose commands are not acknowledged.
    attached: HashSet<String>,
    /// Cancellations of those.
    early: HashMap<String, Box<Effect>>,
    standing: HashMap<String, (Instant, Box<Effect>)>,
    by_time: BTreeSet<(Instant, String)>,
    /// Nothing is deferred any more: the host is about to stop.
    hurried: bool,
}

impl Deferred {
    /// This deadline goes with its command.
    pub(super) fn attach(&mut self, deadline: &Effect) {
        if !self.hurried {
            self.attached.insert(deadline.id().to_owned());
        }
    }

    /// Its command is acknowledged.
    pub(super) fn acknowledged(&mut self, deadline: Box<Effect>, now: Instant) -> Fate {
        let id = deadline.id().to_owned();
        if !self.attached.remove(&id) {
            return Fate::Due(deadline);
        }
        if let Some(cancel) = self.early.remove(&id) {
            return Fate::Done(deadline, cancel);
        }
        let pause = pause(&deadline);
        if self.hurried || pause.is_zero() {
            return Fate::Due(deadline);
        }
        self.by_time.insert((now + pause, id.clone()));
        self.standing.insert(id, (now + pause, deadline));
        Fate::Deferred
    }

    /// A timer is taken back.
    pub(super) fn cancel(&mut self, cancel: Box<Effect>) -> Fate {
        if let Some((until, deadline)) = self.standing.remove(cancel.id()) {
            self.by_time.remove(&(until, cancel.id().to_owned()));
            return Fate::Done(deadline, cancel);
        }
        if self.attached.contains(cancel.id()) {
            self.early.insert(cancel.id().to_owned(), cancel);
            return Fate::Deferred;
        }
        Fate::Due(cancel)
    }

    /// One that has stood here long enough, its time shorter by that.
    pub(super) fn pop_due(&mut self, now: Instant) -> Option<Box<Effect>> {
        self.by_time.first().filter(|(until, _)| self.hurried || *until <= now)?;
        let (_, id) = self.by_time.pop_first()?;
        let (_, mut deadline) = self.standing.remove(&id)?;
        let stood = u64::try_from(pause(&deadline).as_millis()).unwrap_or(u64::MAX);
        if let Outgoing::Wait { after_ms, .. } = &mut deadline.outgoing {
            *after_ms = after_ms.saturating_sub(stood);
        }
        Some(deadline)
    }

    /// When the next one is due.
    pub(super) fn next(&self) -> Option<Instant> {
        self.by_time.first().map(|(until, _)| *until)
    }

    /// Defers nothing from now on.
    pub(super) fn hurry(&mut self) {
        self.hurried = true;
    }
}

fn pause(deadline: &Effect) -> Duration {
    match &deadline.outgoing {
        Outgoing::Wait { after_ms, .. } => LONGEST.min(Duration::from_millis(after_ms / 4)),
        Outgoing::Message(_) | Outgoing::Timer { .. } | Outgoing::Cancel { .. } => Duration::ZERO,
    }
}
