//! Effects of both modules, matched by id. In: effects as each module asks for them. Out: how many are the same, other, missing,
//! more, and the first of those that are not the same. Bounded by what is not matched. Pure.

use std::collections::BTreeMap;

use millstream_saga::Outgoing;
use sha2::{Digest as _, Sha256};

use super::report::{self, OtherEffect, What};
use super::{At, FAILURES};
use crate::rehearsal::mark;

/// All effects so far.
#[derive(Default)]
pub(super) struct Effects {
    same: u64,
    other: Vec<OtherEffect>,
    others: u64,
    /// Those that only one module asked for so far, by id.
    waiting: BTreeMap<String, Waiting>,
}

struct Waiting {
    is_old: bool,
    hash: [u8; 32],
    what: String,
    at: At,
}

impl Effects {
    /// Effects of one unit of one module.
    pub(super) fn see(&mut self, is_old: bool, effects: &[Outgoing], at: &At) {
        for effect in effects {
            let id = match effect {
                Outgoing::Message(message) => &message.id,
                Outgoing::Timer { id, .. } | Outgoing::Wait { id, .. } => id,
                // What it takes back was counted when it was set.
                Outgoing::Cancel { .. } => continue,
            };
            let hash = Sha256::digest(format!("{effect:?}")).into();
            match self.waiting.remove(id) {
                Some(waiting) if waiting.is_old == is_old || waiting.hash == hash => self.same += 1,
                Some(waiting) => {
                    self.others += 1;
                    if self.other.len() < FAILURES {
                        let (old, new) = (waiting.what, mark::words(effect));
                        let what = if is_old { old } else { new };
                        self.other.push(OtherEffect { difference: What::Other, what, id: id.clone(), at: at.clone() });
                    }
                }
                None => {
                    let waiting = Waiting { is_old, hash, what: mark::words(effect), at: at.clone() };
                    self.waiting.insert(id.clone(), waiting);
                }
            }
        }
    }

    pub(super) fn report(self) -> report::Effects {
        let missing = self.waiting.values().filter(|waiting| waiting.is_old).count() as u64;
        let more = self.waiting.len() as u64 - missing;
        let mut lonely: Vec<OtherEffect> = self
            .waiting
            .into_iter()
            .map(|(id, Waiting { is_old, what, at, .. })| {
                let difference = if is_old { What::Missing } else { What::More };
                OtherEffect { difference, what, id, at }
            })
            .collect();
        lonely.sort_by_key(|effect| effect.at.sequence);
        let mut differing = self.other;
        differing.extend(lonely.into_iter().take(FAILURES));
        report::Effects { same: self.same, other: self.others, missing, more, differing }
    }
}
