//! Sends a receipt for every order. Shows a reaction: an event in, a message out, nothing remembered.
//!
//! Reads `orders.>`; sends to `receipts.send`.

use millstream_sdk::prelude::*;

/// The handler; it has no state.
pub struct OrderReceipt;

/// What happens in the shop.
#[derive(Debug, Event)]
pub enum Shop {
    /// A customer ordered something.
    OrderPlaced {
        /// The customer's number.
        customer: String,
        /// The price.
        cents: u64,
    },
}

/// The command.
#[derive(Debug, Serialize)]
pub struct Receipt<'a> {
    /// The event that it is for.
    pub order: &'a str,
    /// Who gets it.
    pub customer: &'a str,
    /// What was paid.
    pub cents: u64,
}

impl Reaction for OrderReceipt {
    const NAME: &'static str = "order-receipt";
    const SUBJECTS: &'static [&'static str] = &["orders.>"];
    const SENDS: &'static [&'static str] = &["receipts.send"];
    type Event = Shop;

    fn react(event: &Recorded<Shop>, effects: &mut Effects) -> Result<(), Refusal> {
        let Shop::OrderPlaced { customer, cents } = &event.payload;
        effects.send("receipts.send", &Receipt { order: event.id(), customer, cents: *cents });
        Ok(())
    }
}

export!(reaction OrderReceipt);

#[cfg(test)]
mod tests {
    use super::*;
    use millstream_sdk::testing::{event, json, reaction};

    #[test]
    fn every_order_gets_a_receipt() {
        let order = event("OrderPlaced", json!({ "customer": "C42", "cents": 1_200 })).id("e7");
        let receipt = json!({ "order": "e7", "customer": "C42", "cents": 1_200 });
        reaction::<OrderReceipt>().when(order).then_sent("send", &receipt);
    }
}
