//! Which deployments of a handler ran, for whoever goes back: the last ones, under `<handler>.deployments.ran` in the bucket of
//! states. In: revisions, from the host that runs them. Out: the same, the oldest first. Never: one that was refused or given up, or
//! of a bucket of deployments that is gone.

use async_nats::jetstream::kv;
use serde::{Deserialize, Serialize};

use super::{Error, HISTORY, Registry, unreachable};

/// Tries against others who write the same value.
const TRIES: usize = 5;

/// What lies under the key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Ran {
    /// Revisions in the bucket of deployments, ascending.
    revisions: Vec<u64>,
}

impl Ran {
    fn add(&mut self, revision: u64) {
        if let Err(place) = self.revisions.binary_search(&revision) {
            self.revisions.insert(place, revision);
        }
        // As many as the history of deployments has.
        let surplus = self.revisions.len().saturating_sub(HISTORY as usize);
        self.revisions.drain(..surplus);
    }

    fn remove(&mut self, revision: u64) {
        self.revisions.retain(|other| *other != revision);
    }

    /// Leaves out what the bucket of deployments has not counted to.
    fn up_to(mut self, last: u64) -> Self {
        self.revisions.retain(|revision| *revision <= last);
        self
    }
}

impl Registry {
    /// Remembers that this deployment ran.
    ///
    /// # Errors
    /// When the server refuses or is away.
    pub(crate) async fn ran(&self, handler: &str, revision: u64) -> Result<(), Error> {
        self.change(handler, |ran| ran.add(revision)).await
    }

    /// Remembers that this deployment ran and was given up: nobody goes back to it.
    ///
    /// # Errors
    /// When the server refuses or is away.
    pub(crate) async fn gave_up(&self, handler: &str, revision: u64) -> Result<(), Error> {
        self.change(handler, |ran| ran.remove(revision)).await
    }

    /// Revisions of the deployments that ran, the oldest first.
    ///
    /// # Errors
    /// When the server is away.
    pub async fn those_that_ran(&self, handler: &str) -> Result<Vec<u64>, Error> {
        Ok(self.read(handler).await?.0.revisions)
    }

    async fn change(&self, handler: &str, change: impl Fn(&mut Ran)) -> Result<(), Error> {
        const WHAT: &str = "remember what ran";
        let key = key(handler);
        for _ in 0..TRIES {
            let (before, revision) = self.read(handler).await?;
            let mut after = before.clone();
            change(&mut after);
            if after == before {
                return Ok(());
            }
            let value = serde_json::to_vec(&after).map_err(unreachable(WHAT))?;
            match self.status.update(&key, value.into(), revision).await {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == kv::UpdateErrorKind::WrongLastRevision => {}
                Err(error) => return Err(unreachable(WHAT)(error)),
            }
        }
        Err(unreachable(WHAT)("others write to it all the time"))
    }

    /// What is there, and its revision; 0 where nothing is. What cannot be read is written anew, and so is what was said before
    /// deployments were lost: it names revisions of another count.
    async fn read(&self, handler: &str) -> Result<(Ran, u64), Error> {
        const WHAT: &str = "read what ran";
        let Some(entry) = self.status.entry(key(handler)).await.map_err(unreachable(WHAT))? else {
            return Ok(Default::default());
        };
        // Asked anew: a host has opened the bucket long ago.
        let deployments = self.handlers.stream.get_info().await.map_err(unreachable(WHAT))?;
        if entry.created < deployments.created {
            return Ok((Ran::default(), entry.revision));
        }
        let ran: Ran = serde_json::from_slice(&entry.value).unwrap_or_default();
        Ok((ran.up_to(deployments.state.last_sequence), entry.revision))
    }
}

fn key(handler: &str) -> String {
    format!("{handler}.deployments.ran")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_ones_are_kept_in_order_and_once() {
        let mut ran = Ran::default();
        for revision in [5, 3, 5, 9] {
            ran.add(revision);
        }
        assert_eq!(ran.revisions, [3, 5, 9]);
        ran.remove(5);
        for revision in 100..200 {
            ran.add(revision);
        }
        assert_eq!((ran.revisions.len(), ran.revisions.first(), ran.revisions.last()), (64, Some(&136), Some(&199)));
        assert_eq!(ran.up_to(137).revisions, [136, 137]);
    }
}
