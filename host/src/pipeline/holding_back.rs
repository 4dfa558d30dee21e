//! What a batch waits for before a part of it is decided: room for what is not shown or published yet, a module that is to be left alone,
//! the deployment's throttle. In: the word to stop, and newer versions. Out: whether to go on, and with how many events. Never: decides.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::{Error, Pipeline, told_to_stop};
use crate::busy::Part;
use crate::version::Version;

impl Pipeline {
    /// Waits while too much is decided but not shown or not published. False: the handler shall stop.
    pub(super) async fn wait_for_room(&self, stop: &watch::Receiver<bool>) -> bool {
        const LOOK: Duration = Duration::from_millis(100);
        let _held_back = self.watch.during(Part::HeldBack);
        let settings = &self.version.settings;
        while !*stop.borrow() {
            let (documents, bytes) = self.documents.backlog();
            if documents >= settings.unshown_documents || bytes >= settings.unshown_bytes {
                self.pace.set_urgent(true);
                self.documents.committed.notify_one();
                let _ = tokio::time::timeout(LOOK, self.documents.shown.notified()).await;
                continue;
            }
            self.pace.set_urgent(false);
            let Some(outbox) = self.outbox.as_ref().filter(|outbox| outbox.is_full()) else { return true };
            let _ = tokio::time::timeout(LOOK, outbox.acted.notified()).await;
        }
        false
    }

    /// Waits as long as the module is to be left alone, or until there is another one, which then takes over. False: the handler shall stop.
    pub(super) async fn let_rest(
        &mut self,
        versions: &mut watch::Receiver<Arc<Version>>,
        stop: &mut watch::Receiver<bool>,
    ) -> Result<bool, Error> {
        let guest = self.guest().map_err(Error::Instance)?;
        let rest = guest.rest();
        self.guest = Some(guest);
        if !rest.is_zero() {
            let milliseconds = rest.as_millis();
            tracing::info!(target: "millstream::pipeline", milliseconds, "event after event uses up its call: the handler rests");
            let _held_back = self.watch.during(Part::HeldBack);
            tokio::select! {
                biased;
                () = told_to_stop(stop) => return Ok(false),
                Ok(()) = versions.changed() => versions.mark_changed(),
                () = tokio::time::sleep(rest) => {}
            }
        }
        if versions.has_changed().unwrap_or(false) {
            self.swap(versions).await?;
        }
        Ok(true)
    }

    /// Waits as long as the deployment's throttle asks, and answers how many of `available` events may go.
    pub(super) async fn throttle(&mut self, available: usize) -> usize {
        let rate = self.version.settings.throttle_events_per_second;
        if rate == 0 {
            return available;
        }
        let held_back = self.watch.during(Part::HeldBack);
        tokio::time::sleep_until(self.next_at).await;
        drop(held_back);
        // Twenty portions a second: even enough for people who watch, large enough to stay cheap.
        let part = available.min(usize::try_from(rate / 20).unwrap_or(usize::MAX).max(1));
        self.next_at = Instant::now() + Duration::from_secs_f64(part as f64 / rate as f64);
        part
    }
}
