//! The handlers that this host looks after, as its keepers and its placement share it. In: what placement wants, what keepers did. Out:
//! the same, with a word to whoever waits for a change. Never: decides.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio::time::Instant;

/// What this host does about its handlers.
#[derive(Default)]
pub(crate) struct Holdings {
    inner: Mutex<Inner>,
    changed: Notify,
}

#[derive(Default)]
struct Inner {
    held: BTreeSet<String>,
    declined: BTreeSet<String>,
    /// Taken by another host at that time.
    lost: BTreeMap<String, Instant>,
}

impl Holdings {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// This host looks after the handler from here on.
    pub(crate) fn take(&self, handler: &str) {
        let mut inner = self.lock();
        inner.lost.remove(handler);
        if inner.held.insert(handler.to_owned()) {
            drop(inner);
            self.changed.notify_one();
        }
    }

    /// It has ended it: another may begin.
    pub(crate) fn let_go(&self, handler: &str) {
        if self.lock().held.remove(handler) {
            self.changed.notify_one();
        }
    }

    /// Another host took it.
    pub(crate) fn lose(&self, handler: &str) {
        self.lock().lost.insert(handler.to_owned(), Instant::now());
        self.let_go(handler);
    }

    /// The handler was removed.
    pub(crate) fn forget(&self, handler: &str) {
        let mut inner = self.lock();
        inner.lost.remove(handler);
        inner.declined.remove(handler);
        drop(inner);
        self.let_go(handler);
    }

    /// Whether this host can run what is wanted of the handler.
    pub(crate) fn declines(&self, handler: &str, declines: bool) {
        let mut inner = self.lock();
        let is_new = match declines {
            true => inner.declined.insert(handler.to_owned()),
            false => inner.declined.remove(handler),
        };
        drop(inner);
        if is_new {
            self.changed.notify_one();
        }
    }

    /// Whether this host looks after the handler.
    pub(crate) fn has(&self, handler: &str) -> bool {
        self.lock().held.contains(handler)
    }

    /// Whether this host cannot run what is wanted of the handler.
    pub(crate) fn is_declined(&self, handler: &str) -> bool {
        self.lock().declined.contains(handler)
    }

    /// When another host took it.
    pub(crate) fn lost_at(&self, handler: &str) -> Option<Instant> {
        self.lock().lost.get(handler).copied()
    }

    /// The handlers that this host looks after, and those that it cannot run.
    pub(crate) fn all(&self) -> (Vec<String>, Vec<String>) {
        let inner = self.lock();
        (inner.held.iter().cloned().collect(), inner.declined.iter().cloned().collect())
    }

    /// Resolves after a change; one waits at a time.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }
}
