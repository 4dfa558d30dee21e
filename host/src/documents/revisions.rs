//! The bucket's revisions as far as they are remembered. In: revisions as puts and reads tell them. Out: what a put may expect, and
//! which keys were surely never written. Bounded; never wrong, only forgetful.

use std::collections::HashMap;

/// Bucket revisions by key, in two halves so that the older half can be forgotten at once.
#[derive(Default)]
pub(super) struct Revisions {
    young: HashMap<String, u64>,
    old: HashMap<String, u64>,
    limit: usize,
    /// Every revision of the bucket is here: it was empty when the claim began, and none was forgotten.
    complete: bool,
}

impl Revisions {
    /// Remembers about so many; `complete` where the bucket is empty, so that nothing is left to learn.
    pub(super) fn new(limit: usize, complete: bool) -> Self {
        Self { limit, complete, ..Self::default() }
    }

    pub(super) fn get(&self, key: &str) -> Option<u64> {
        self.young.get(key).or_else(|| self.old.get(key)).copied()
    }

    /// The key was never written, for all that is known of a bucket that was empty once. A rebuild then reads nothing.
    pub(super) fn is_absent(&self, key: &str) -> bool {
        self.complete && self.get(key).unwrap_or_default() == 0
    }

    pub(super) fn set(&mut self, key: &str, revision: u64) {
        if let Some(known) = self.young.get_mut(key) {
            *known = revision;
            return;
        }
        if self.young.len() >= (self.limit / 2).max(1) {
            self.complete &= self.old.is_empty();
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key.to_owned(), revision);
    }
}
