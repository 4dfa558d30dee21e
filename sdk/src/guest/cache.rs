//! Documents between batches: typed, with the bytes that the host has of them. In: documents as they are folded. Out:
//! the same, if they are still here. Bounded by weight; what was used least recently goes first, in an order that
//! depends on the batches alone. Never: changes what a batch results in.

use std::sync::Arc;

use rustc_hash::FxHashMap;

/// About what a slot costs besides its text: its place in the map and two heads of the allocator.
const OVERHEAD_BYTES: usize = 64;
/// No slot: the end of the list of use.
const NONE: u32 = u32::MAX;

/// What is known of a document.
pub(super) enum Document<P> {
    /// The host has not said yet.
    Unknown,
    /// The bytes are here, nobody needed the value so far.
    Unread,
    /// There is none.
    Absent,
    /// The value; after the batch it is what the bytes say.
    Present(P),
}

/// One key.
pub(super) struct Slot<P> {
    pub(super) key: Arc<str>,
    pub(super) document: Document<P>,
    /// The document as the host has it, before the batch; empty if there is none. A refusal goes back to it.
    pub(super) bytes: Vec<u8>,
    batch: u64,
    mark: Mark,
    weight: usize,
    newer: u32,
    older: u32,
}

/// Where a key is in the current batch.
#[derive(Clone, Copy, Default)]
pub(super) struct Mark {
    /// Its number among the keys, if it is in the batch already.
    pub(super) key: Option<u32>,
    /// The last event that was routed to it.
    pub(super) event: u32,
}

impl<P> Slot<P> {
    /// Whether the host need not send the document.
    pub(super) const fn is_known(&self) -> bool {
        !matches!(self.document, Document::Unknown)
    }
}

/// All keys at hand.
pub(super) struct Cache<P> {
    slots: Vec<Slot<P>>,
    free: Vec<u32>,
    numbers: FxHashMap<Arc<str>, u32>,
    newest: u32,
    oldest: u32,
    weight: usize,
    limit: usize,
    batch: u64,
}

#[allow(clippy::indexing_slicing, reason = "slot numbers come from this slab, which never shrinks")]
impl<P> Cache<P> {
    /// A cache for about so many bytes.
    pub(super) fn new(limit: usize) -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            numbers: FxHashMap::default(),
            newest: NONE,
            oldest: NONE,
            weight: 0,
            limit,
            batch: 0,
        }
    }

    /// Forgets which keys are in a batch.
    pub(super) const fn begin_batch(&mut self) {
        self.batch += 1;
    }

    pub(super) fn slot(&self, number: u32) -> &Slot<P> {
        &self.slots[number as usize]
    }

    pub(super) fn slot_mut(&mut self, number: u32) -> &mut Slot<P> {
        &mut self.slots[number as usize]
    }

    /// Where the key is in this batch.
    pub(super) fn mark(&self, number: u32) -> Mark {
        let slot = self.slot(number);
        if slot.batch == self.batch { slot.mark } else { Mark::default() }
    }

    /// Notes the key's number and last event in this batch, and that it was used.
    pub(super) fn set_mark(&mut self, number: u32, key: u32, event: u32) {
        let batch = self.batch;
        let slot = self.slot_mut(number);
        slot.mark = Mark { key: Some(key), event };
        if slot.batch != batch {
            slot.batch = batch;
            self.unlink(number);
            self.link_newest(number);
        }
    }

    /// The slot of a key; a new one knows nothing.
    pub(super) fn find_or_insert(&mut self, key: &str) -> u32 {
        if let Some(&number) = self.numbers.get(key) {
            return number;
        }
        let key: Arc<str> = Arc::from(key);
        let slot = Slot {
            key: Arc::clone(&key),
            document: Document::Unknown,
            bytes: Vec::new(),
            batch: 0,
            mark: Mark::default(),
            weight: 0,
            newer: NONE,
            older: NONE,
        };
        let number = match self.free.pop() {
            Some(number) => {
                self.slots[number as usize] = slot;
                number
            }
            None => {
                self.slots.push(slot);
                crate::contract::number(self.slots.len() - 1)
            }
        };
        self.numbers.insert(key, number);
        self.link_newest(number);
        number
    }

    /// Weighs a slot after its batch; one that knows nothing goes.
    pub(super) fn settle(&mut self, number: u32) {
        let slot = self.slot_mut(number);
        if !slot.is_known() {
            self.remove(number);
            return;
        }
        // A value in memory takes about as much again as its text.
        let weight = size_of::<Slot<P>>() + OVERHEAD_BYTES + slot.key.len() + 2 * slot.bytes.len();
        let before = std::mem::replace(&mut slot.weight, weight);
        self.weight = self.weight - before + weight;
    }

    /// Drops what was used least recently until the rest fits.
    pub(super) fn evict(&mut self) {
        while self.weight > self.limit && self.oldest != NONE {
            self.remove(self.oldest);
        }
    }

    /// How many keys are at hand.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.numbers.len()
    }

    fn remove(&mut self, number: u32) {
        self.unlink(number);
        let slot = self.slot_mut(number);
        let weight = std::mem::take(&mut slot.weight);
        let key = std::mem::replace(&mut slot.key, Arc::from(""));
        slot.document = Document::Unknown;
        slot.bytes = Vec::new();
        self.weight -= weight;
        self.numbers.remove(&key);
        self.free.push(number);
    }

    fn link_newest(&mut self, number: u32) {
        let before = std::mem::replace(&mut self.newest, number);
        let slot = self.slot_mut(number);
        slot.newer = NONE;
        slot.older = before;
        if before == NONE {
            self.oldest = number;
        } else {
            self.slot_mut(before).newer = number;
        }
    }

    fn unlink(&mut self, number: u32) {
        let (newer, older) = (self.slot(number).newer, self.slot(number).older);
        if newer == NONE {
            self.newest = older;
        } else {
            self.slot_mut(newer).older = older;
        }
        if older == NONE {
            self.oldest = newer;
        } else {
            self.slot_mut(older).newer = newer;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Uses keys in one batch, each with a document of 100 bytes.
    fn use_keys(cache: &mut Cache<()>, keys: &[&str]) {
        cache.begin_batch();
        for (number, key) in (0..).zip(keys) {
            let slot = cache.find_or_insert(key);
            cache.set_mark(slot, number, number);
            cache.slot_mut(slot).document = Document::Present(());
            cache.slot_mut(slot).bytes = vec![0; 100];
            cache.settle(slot);
        }
        cache.evict();
    }

    fn held(cache: &Cache<()>) -> Vec<&str> {
        let mut keys: Vec<&str> = cache.numbers.keys().map(AsRef::as_ref).collect();
        keys.sort_unstable();
        keys
    }

    fn room_for(slots: usize) -> Cache<()> {
        Cache::new(slots * (size_of::<Slot<()>>() + OVERHEAD_BYTES + 1 + 200))
    }

    #[test]
    fn the_least_recently_used_goes_first() {
        let mut cache = room_for(3);
        use_keys(&mut cache, &["a", "b", "c"]);
        use_keys(&mut cache, &["a"]);
        use_keys(&mut cache, &["d"]);
        assert_eq!(held(&cache), ["a", "c", "d"]);
        use_keys(&mut cache, &["c", "e"]);
        assert_eq!(held(&cache), ["c", "d", "e"]);
    }

    #[test]
    fn a_batch_larger_than_the_limit_keeps_its_last_keys() {
        let mut cache = room_for(2);
        use_keys(&mut cache, &["a", "b", "c", "d"]);
        assert_eq!(held(&cache), ["c", "d"]);
    }

    #[test]
    fn a_limit_of_nothing_keeps_nothing_and_slots_are_used_again() {
        let mut cache = Cache::new(0);
        for _ in 0..3 {
            use_keys(&mut cache, &["a", "b"]);
        }
        assert!(held(&cache).is_empty());
        assert_eq!((cache.slots.len(), cache.weight), (2, 0));
        assert_eq!((cache.newest, cache.oldest), (NONE, NONE));
    }

    #[test]
    fn weight_follows_documents_that_grow_and_shrink() {
        let mut cache = room_for(3);
        use_keys(&mut cache, &["a", "b"]);
        let before = cache.weight;
        let slot = cache.find_or_insert("a");
        cache.slot_mut(slot).bytes = vec![0; 150];
        cache.settle(slot);
        assert_eq!(cache.weight, before + 100);
        cache.slot_mut(slot).document = Document::Unknown;
        cache.settle(slot);
        assert_eq!(cache.weight, before / 2);
        assert_eq!(held(&cache), ["b"]);
    }
}
