//! Whose turn it is among the effects of one instance, whatever their subjects. In: hashes of keys, and places in the
//! order decided. Out: who goes next. Pure. Never: forgets one that stands in line.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// All turns, by the hash of a key. Two keys with one hash only wait for each other.
#[derive(Default)]
pub(super) struct Turns(HashMap<u64, Turn>);

struct Turn {
    /// The order of the one that may go.
    of: u64,
    /// The order of those that may not yet, and their lanes.
    then: BTreeMap<u64, Arc<str>>,
}

impl Turns {
    /// Whether one of this key has its turn.
    pub(super) fn is_taken(&self, key: u64) -> bool {
        self.0.contains_key(&key)
    }

    /// Gives the turn to this one if nobody has it; otherwise it stands in line.
    pub(super) fn take(&mut self, key: u64, order: u64, lane: &Arc<str>) {
        self.0
            .entry(key)
            .and_modify(|turn| drop(turn.then.insert(order, Arc::clone(lane))))
            .or_insert_with(|| Turn { of: order, then: BTreeMap::new() });
    }

    /// Takes this one out. If it had the turn, the first in line gets it, and is the answer.
    pub(super) fn pass_on(&mut self, key: u64, order: u64) -> Option<(u64, Arc<str>)> {
        let turn = self.0.get_mut(&key)?;
        if turn.of != order {
            turn.then.remove(&order);
            return None;
        }
        let next = turn.then.pop_first();
        match &next {
            Some((order, _)) => turn.of = *order,
            None => drop(self.0.remove(&key)),
        }
        next
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
