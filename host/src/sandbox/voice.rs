//! What guests of one version say, in the host's log. In: lines, with the batch that they were said about. Out: lines attributed to
//! handler and digest, in bounded number; how many more there were, once a second. Never: lets a guest's text be more than a
//! text; drops a line that nobody is told of.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tracing::Instrument as _;
use tracing::instrument::WithSubscriber as _;

use super::wire::{Batch, Level};
use super::{LogLine, str_slice};
use crate::legible::legible;

/// How often it is told what was dropped.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// The voice of one version of a handler; all its instances share it.
pub struct Voice {
    handler: String,
    digest: String,
    quota: Mutex<Quota>,
}

/// The events that a call is about.
#[derive(Default)]
pub(super) struct Place {
    stream: String,
    first: u64,
    last: u64,
}

/// How many lines may be written now. They come back evenly: none is ever saved up beyond a second's.
struct Quota {
    per_second: u64,
    left: f64,
    at: Instant,
    dropped: u64,
    /// Somebody will say so.
    is_told_soon: bool,
}

impl Place {
    /// A batch begins. Keeps its memory: this is done once for each.
    pub(super) fn set(&mut self, batch: &Batch) {
        self.stream.clear();
        self.stream.push_str(str_slice(&batch.blob, batch.source));
        self.first = batch.events.first().map_or(0, |event| event.sequence);
        self.last = batch.events.last().map_or(0, |event| event.sequence);
    }
}

impl Quota {
    fn new(per_second: u64, now: Instant) -> Self {
        Self { per_second, left: per_second as f64, at: now, dropped: 0, is_told_soon: false }
    }

    fn take(&mut self, now: Instant) -> bool {
        let most = self.per_second as f64;
        let more = now.saturating_duration_since(self.at).as_secs_f64() * most;
        self.left = (self.left + more).min(most);
        self.at = now;
        let has_one = self.left >= 1.0;
        if has_one {
            self.left -= 1.0;
        }
        has_one
    }
}

/// Whether anybody reads lines of this level.
pub(super) fn is_heard(level: Level) -> bool {
    match level {
        Level::Trace => tracing::enabled!(target: "guest", tracing::Level::TRACE),
        Level::Debug => tracing::enabled!(target: "guest", tracing::Level::DEBUG),
        Level::Info => tracing::enabled!(target: "guest", tracing::Level::INFO),
        Level::Warn => tracing::enabled!(target: "guest", tracing::Level::WARN),
        Level::Error => tracing::enabled!(target: "guest", tracing::Level::ERROR),
    }
}

impl Voice {
    pub(super) fn new(handler: &str, digest: String, per_second: u64) -> Self {
        let quota = Mutex::new(Quota::new(per_second, Instant::now()));
        Self { handler: handler.to_owned(), digest, quota }
    }

    /// Writes these lines as far as they may be, and counts the others; `dropped` were not even kept.
    pub(super) fn say(self: &Arc<Self>, place: &Place, lines: impl Iterator<Item = LogLine>, dropped: u64) {
        let (now, mut dropped) = (Instant::now(), dropped);
        for line in lines.filter(|line| is_heard(line.level)) {
            if self.quota().take(now) {
                self.write(place, &line);
            } else {
                dropped += 1;
            }
        }
        if dropped > 0 {
            self.drop_lines(dropped);
        }
    }

    fn quota(&self) -> std::sync::MutexGuard<'_, Quota> {
        self.quota.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn drop_lines(self: &Arc<Self>, count: u64) {
        let mut quota = self.quota();
        quota.dropped += count;
        if quota.is_told_soon {
            return;
        }
        // Without a runtime it is told in the end.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        quota.is_told_soon = true;
        drop(quota);
        let voice = Arc::clone(self);
        let tell = async move {
            tokio::time::sleep(TELL_EVERY).await;
            voice.tell_dropped();
        };
        runtime.spawn(tell.in_current_span().with_current_subscriber());
    }

    fn tell_dropped(&self) {
        let mut quota = self.quota();
        let dropped = std::mem::take(&mut quota.dropped);
        quota.is_told_soon = false;
        drop(quota);
        if dropped > 0 {
            let (handler, digest) = (self.handler.as_str(), self.digest.as_str());
            tracing::warn!(target: "guest", handler, digest, dropped, "{dropped} lines of this handler's log were dropped");
        }
    }

    fn write(&self, place: &Place, line: &LogLine) {
        let (handler, digest) = (self.handler.as_str(), self.digest.as_str());
        let message = legible(&line.message);
        let stream = Some(place.stream.as_str()).filter(|stream| !stream.is_empty());
        // Which event of several it speaks of, only the guest knows.
        let sequence = stream.filter(|_| place.first == place.last).map(|_| place.first);
        let sequences = stream.filter(|_| place.first != place.last).map(|_| format!("{}-{}", place.first, place.last));
        macro_rules! write {
            ($level:ident) => {
                tracing::$level!(target: "guest", handler, digest, stream, sequence, sequences, "{message}")
            };
        }
        match line.level {
            Level::Trace => write!(trace),
            Level::Debug => write!(debug),
            Level::Info => write!(info),
            Level::Warn => write!(warn),
            Level::Error => write!(error),
        }
    }
}

impl Drop for Voice {
    fn drop(&mut self) {
        self.tell_dropped();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_s_lines_may_come_at_once_and_then_come_back_evenly() {
        let begun = Instant::now();
        let mut quota = Quota::new(100, begun);
        let mut taken = |after: Duration| (0..1000).filter(|_| quota.take(begun + after)).count();
        assert_eq!(taken(Duration::ZERO), 100);
        assert_eq!(taken(Duration::from_millis(250)), 25);
        assert_eq!(taken(Duration::from_secs(60)), 100, "nothing is saved up");
        let mut none = Quota::new(0, begun);
        assert!(!none.take(begun + Duration::from_secs(9)));
    }
}
