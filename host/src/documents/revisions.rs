//! The bucket's revisions as far as they are remembered. In: revisions as puts and reads tell them. Out: what a put may expect, and
//! which keys were surely never written. Bounded; never wrong, only forgetful.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};

/// A key as it is remembered: 128 bits that nobody outside can foresee, so that two keys are taken for one less often than a disk lies. A
/// key itself would take three times the memory.
type Print = (u64, u64);

/// Bucket revisions by key, in two halves so that the older half can be forgotten at once.
#[derive(Default)]
pub(super) struct Revisions {
    young: HashMap<Print, u64>,
    old: HashMap<Print, u64>,
    hashers: (RandomState, RandomState),
    limit: usize,
    /// Every revision of the bucket is here: it was empty when the claim began, and none was forgotten.
    complete: bool,
}

impl Revisions {
    /// Remembers about so many; `complete` where the bucket is empty, so that nothing is left to learn.
    pub(super) fn new(limit: usize, complete: bool) -> Self {
        Self { limit, complete, ..Self::default() }
    }

    /// The revision last seen of a key; 0 when it was absent; none when unknown.
    pub(super) fn get(&self, key: &str) -> Option<u64> {
        self.known(&self.print(key))
    }

    /// The key was never written, for all that is known of a bucket that was empty once. A rebuild then reads nothing.
    pub(super) fn is_absent(&self, key: &str) -> bool {
        self.complete && self.get(key) == Some(0)
    }

    /// Answers whether the key was absent until now.
    pub(super) fn set(&mut self, key: &str, revision: u64) -> bool {
        let print = self.print(key);
        let was_absent = self.known(&print) == Some(0);
        if let Some(known) = self.young.get_mut(&print) {
            *known = revision;
            return was_absent;
        }
        if self.young.len() >= (self.limit / 2).max(1) {
            self.complete &= self.old.is_empty();
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(print, revision);
        was_absent
    }

    fn known(&self, print: &Print) -> Option<u64> {
        let seen = self.young.get(print).or_else(|| self.old.get(print)).copied();
        seen.or_else(|| self.complete.then_some(0))
    }

    fn print(&self, key: &str) -> Print {
        (self.hashers.0.hash_one(key), self.hashers.1.hash_one(key))
    }
}
