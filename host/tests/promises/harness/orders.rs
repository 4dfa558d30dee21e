//! Events of a shop, and what handlers must make of them, folded here in other ways than theirs.

use std::collections::BTreeMap;

use serde_json::json;
use sha2::{Digest as _, Sha256};

/// Documents by key, as the handler wrote the key.
pub type Documents = BTreeMap<String, String>;

/// An event of the test shop.
#[derive(Clone, Debug)]
pub struct Event {
    pub id: String,
    pub subject: String,
    pub aggregate: String,
    pub customer: String,
    pub cents: u64,
}

impl Event {
    pub fn body(&self) -> String {
        let payload = json!({ "customer": self.customer, "cents": self.cents });
        json!({ "eventId": self.id, "eventType": "OrderPlaced", "aggregateId": self.aggregate, "payload": payload })
            .to_string()
    }
}

/// `count` orders from number `from` on, spread over aggregates and customers by a fixed rule, on `orders.placed`.
pub fn orders(from: u64, count: u64) -> Vec<Event> {
    let event = |number: u64| {
        let dice = number.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23);
        Event {
            id: format!("e{number}"),
            subject: "orders.placed".to_owned(),
            aggregate: format!("order-{}", dice % 1000),
            customer: format!("C{}", (dice >> 32) % 300),
            cents: dice % 10_000,
        }
    };
    (from..from + count).map(event).collect()
}

/// What customer-spend must hold after these events.
pub fn spend(events: &[Event]) -> Documents {
    let mut totals: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    for event in events {
        let total = totals.entry(&event.customer).or_default();
        total.0 += 1;
        total.1 += event.cents;
    }
    let document = |(orders, cents): (u64, u64)| format!(r#"{{"orders":{orders},"cents":{cents}}}"#);
    totals.into_iter().map(|(customer, total)| (customer.to_owned(), document(total))).collect()
}

/// What customer-spend-v2 must hold after these events.
pub fn spend_v2(events: &[Event]) -> Documents {
    let mut documents = spend(events);
    let mut large: BTreeMap<&str, u64> = BTreeMap::new();
    for event in events.iter().filter(|event| event.cents >= 9_900) {
        *large.entry(&event.customer).or_default() += 1;
    }
    for (customer, count) in large {
        let document = documents.get_mut(customer).expect("a customer");
        *document = format!(r#"{},"large":{count}}}"#, document.trim_end_matches('}'));
    }
    documents
}

/// What order-chain must hold after these events: it sees every lost, doubled or swapped one.
pub fn chains(events: &[Event]) -> Documents {
    let mut chains: BTreeMap<&str, (String, u64)> = BTreeMap::new();
    for event in events {
        let (hash, count) = chains.entry(&event.aggregate).or_default();
        *hash = hex::encode(Sha256::digest(format!("{hash}{}", event.id)));
        *count += 1;
    }
    let document = |(hash, events): (String, u64)| format!(r#"{{"hash":"{hash}","events":{events}}}"#);
    chains.into_iter().map(|(aggregate, chain)| (aggregate.to_owned(), document(chain))).collect()
}

/// A generator of test choices with a printed seed: the same seed makes the same run.
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        eprintln!("seed {seed}");
        Self(seed)
    }

    /// A number below `limit`.
    pub fn roll(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

/// What became of the events of a handler, added up: as many as were delivered, whatever died.
pub const fn outcomes(counts: &millstream::journal::Counts) -> u64 {
    counts.applied + counts.irrelevant + counts.ignored + counts.parked + counts.expired
}
