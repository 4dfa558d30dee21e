//! A rolling hash per aggregate: any lost, doubled or reordered event changes it. Shows a handler that takes every event type
//! without looking at the payload. Deploy it with other subjects to watch another stream.

use millstream_sdk::prelude::*;
use sha2::{Digest, Sha256};

/// One document per aggregate.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct OrderChain {
    /// `h(0) = ""`, `h(n)` = SHA-256 of `h(n-1)` followed by the event id, in lower case hex.
    pub hash: String,
    /// How many events it covers.
    pub events: u64,
}

impl Projection for OrderChain {
    const NAME: &'static str = "order-chain";
    const SUBJECTS: &'static [&'static str] = &["orders.>"];
    type Event = Raw;

    fn key(event: &Recorded<Raw>) -> Keys<'_> {
        // An event of no aggregate belongs to no chain.
        Some(event.aggregate_id()).filter(|id| !id.is_empty()).into()
    }

    fn apply(&mut self, event: &Recorded<Raw>) -> Verdict {
        let digest = Sha256::new().chain_update(&self.hash).chain_update(event.id()).finalize();
        self.hash.clear();
        for byte in digest {
            for nibble in [byte >> 4, byte & 15] {
                self.hash.extend(char::from_digit(u32::from(nibble), 16));
            }
        }
        self.events += 1;
        keep()
    }
}

export!(OrderChain);

#[cfg(test)]
mod tests {
    use super::*;
    use millstream_sdk::testing::{TestEvent, event, given, json};

    fn of(aggregate: &str, id: &str) -> TestEvent {
        event("Anything", json!(null)).aggregate(aggregate).id(id)
    }

    #[test]
    fn the_hash_covers_the_ids_in_order() {
        // printf a-1 | sha256sum; then the same with that hash before a-2.
        given::<OrderChain>([]).when(of("A", "a-1")).then_document("A", &json!({ "hash": FIRST, "events": 1 }));
        given::<OrderChain>([of("A", "a-1"), of("B", "b-1")])
            .when(of("A", "a-2"))
            .then_document("A", &json!({ "hash": SECOND, "events": 2 }));
    }

    #[test]
    fn another_order_is_another_hash() {
        given::<OrderChain>([of("A", "a-2")])
            .when(of("A", "a-1"))
            .then_document("A", &json!({ "hash": SWAPPED, "events": 2 }));
    }

    #[test]
    fn payloads_are_not_looked_at() {
        given::<OrderChain>([])
            .when(of("A", "a-1").payload_bytes([0xff]))
            .then_document("A", &json!({ "hash": FIRST, "events": 1 }));
    }

    const FIRST: &str = "2f8fe63a6224321de5d0a24cf30067d37a358706b1ed38b015282ab68dc69ae9";
    const SECOND: &str = "8ae6d624b5828cce1858240767ee66ef58dccb2480809bb84da4474f1c4b670b";
    const SWAPPED: &str = "388a145967c47b4f85ada05a695764721f92c3756ca48386aa5432b6f6ed0f53";
}
