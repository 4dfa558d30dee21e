//! Ids of what a saga sends. In: the event that caused it and its place. Out: an id, the same however often the unit
//! runs, so that JetStream drops what was published before. Never: random.

use sha2::{Digest, Sha256};

/// The id of a unit's effect: the handler's name, a dot, and 32 hex digits.
pub fn id(handler: &str, event: &str, key: &str, ordinal: usize) -> String {
    let mut hash = Sha256::new();
    for part in [handler, event, key] {
        // With its length before it, no part can take over letters of its neighbour.
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part.as_bytes());
    }
    hash.update((ordinal as u64).to_be_bytes());

    let mut id = String::with_capacity(handler.len() + 33);
    id.push_str(handler);
    id.push('.');
    for byte in hash.finalize().iter().take(16) {
        id.extend([byte >> 4, byte & 15].map(|nibble| char::from_digit(u32::from(nibble), 16).unwrap_or('0')));
    }
    id
}

/// A number from 0 to 1023 that scatters what would otherwise come back all at once.
pub(crate) fn scatter(id: &str) -> u64 {
    let hash = id.bytes().fold(0xcbf2_9ce4_8422_2325, fnv);
    // The last letters, where ids of attempts differ, have not reached the high bits yet.
    (hash ^ (hash >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 54
}

const fn fnv(hash: u64, byte: u8) -> u64 {
    (hash ^ byte as u64).wrapping_mul(0x100_0000_01b3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_stays_what_it_is() {
        // A change of these would send again what is journalled but not yet published.
        assert_eq!(id("orders", "EVENTS:1", "C42", 0), "orders.4d4690581042f612f0aa76af71986765");
    }

    #[test]
    fn each_part_counts() {
        let ids = [
            id("ab", "c", "d", 0),
            id("a", "bc", "d", 0),
            id("ab", "cd", "", 0),
            id("ab", "", "cd", 0),
            id("ab", "c", "d", 1),
        ];
        let tails: std::collections::BTreeSet<&str> = ids.iter().filter_map(|id| id.split('.').nth(1)).collect();
        assert_eq!(tails.len(), ids.len());
        assert!(tails.iter().all(|tail| tail.len() == 32));
    }

    #[test]
    fn scatter_spreads() {
        let mut thirds = [0; 3];
        for n in 0..300 {
            let n = scatter(&format!("orders.{n}"));
            assert!(n < 1024);
            thirds[n as usize * 3 / 1024] += 1;
        }
        assert!(thirds.iter().all(|third| *third > 60), "{thirds:?}");
    }
}
