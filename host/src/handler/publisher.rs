//! The task beside the pipeline that publishes effects while a claim lasts. In: an outbox, and the journal that says whose the
//! handler is. Out: why it ended. Never: outlives its owner.

use std::sync::Arc;

use tokio::task::JoinHandle;

use super::Error;
use crate::journal::{self, Journal};
use crate::outbox::Outbox;

/// The task that publishes effects; ends with its owner.
pub(super) struct Publisher(Option<JoinHandle<Error>>);

impl Publisher {
    pub(super) fn start(outbox: Option<Arc<Outbox>>, journal: &Journal, claim: u64) -> Self {
        let journal = journal.clone();
        Self(outbox.map(|outbox| {
            tokio::spawn(async move {
                let still_ours = || async { journal.belongs_to(claim).await.map_err(|error| error.to_string()) };
                match outbox.run(still_ours).await {
                    Ok(never) => match never {},
                    Err(error) => error.into(),
                }
            })
        }))
    }

    /// Why it ended; waits for ever where there is none.
    pub(super) async fn failed(&mut self) -> Error {
        match &mut self.0 {
            Some(task) => task.await.unwrap_or_else(|error| journal::Error::Unreachable(error.to_string()).into()),
            None => std::future::pending().await,
        }
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        if let Some(task) = &self.0 {
            task.abort();
        }
    }
}
