//! Instances between batches, so that an event of a running saga reads nothing. In: instances as they were decided.
//! Out: the same, if they are still here. Bounded by the bytes of their documents, in two halves: the older one is
//! forgotten at once. Never: decides anything; what it lacks is read again.

use std::collections::HashMap;

use millstream_saga::Instance;

/// Instances at hand.
pub(super) struct Held {
    young: HashMap<String, (Instance, usize)>,
    old: HashMap<String, (Instance, usize)>,
    young_bytes: usize,
    limit: usize,
}

impl Held {
    /// Holds about so many bytes of documents.
    pub(super) fn new(limit: usize) -> Self {
        Self { young: HashMap::new(), old: HashMap::new(), young_bytes: 0, limit }
    }

    /// Forgets all.
    pub(super) fn clear(&mut self) {
        *self = Self::new(self.limit);
    }

    /// Takes an instance out; whoever decides puts it back.
    pub(super) fn take(&mut self, key: &str) -> Option<Instance> {
        if let Some((instance, bytes)) = self.young.remove(key) {
            self.young_bytes -= bytes;
            return Some(instance);
        }
        self.old.remove(key).map(|(instance, _)| instance)
    }

    /// Keeps an instance whose document has so many bytes.
    pub(super) fn put(&mut self, key: String, instance: Instance, bytes: usize) {
        let bytes = bytes + key.len();
        self.take(&key);
        if self.young_bytes + bytes > self.limit / 2 {
            self.old = std::mem::take(&mut self.young);
            self.young_bytes = 0;
        }
        self.young_bytes += bytes;
        self.young.insert(key, (instance, bytes));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instance() -> Instance {
        Instance::read(br#"{"status":"running","state":null,"correlation":"c","life":"e"}"#).unwrap()
    }

    #[test]
    fn the_older_half_is_forgotten_and_the_weight_stays_right() {
        let mut held = Held::new(2 * 303);
        for key in ["a", "b", "c", "a"] {
            held.put(key.to_owned(), instance(), 100);
        }
        assert_eq!(held.young_bytes, 303);
        held.put("d".to_owned(), instance(), 100);
        assert_eq!((held.young_bytes, held.old.len()), (101, 3));
        assert!(held.take("a").is_some() && held.take("a").is_none());
        assert!(held.take("d").is_some());
        assert_eq!(held.young_bytes, 0);
        for key in ["e", "f", "g", "h"] {
            held.put(key.to_owned(), instance(), 100);
        }
        assert!(held.take("b").is_none() && held.take("e").is_some());
    }
}
