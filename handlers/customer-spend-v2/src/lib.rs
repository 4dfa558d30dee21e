//! What each customer has spent, and how many large orders there were among it. Shows a second version of `customer-spend` whose
//! documents have changed, so that its state version has: it is built beside the live one, compared with it, and promoted.

use millstream_sdk::prelude::*;

/// From so many cents on, an order is large.
const LARGE: u64 = 9_900;

/// One document per customer; that of one without large orders is what the first version made.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CustomerSpend {
    /// Orders placed.
    pub orders: u64,
    /// Their sum.
    pub cents: u64,
    /// Large ones among them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub large: Option<u64>,
}

/// What happens in the shop.
#[derive(Debug, Event)]
pub enum Shop {
    /// A customer ordered something.
    #[event(alias = "placed")]
    OrderPlaced {
        /// The customer's number.
        customer: String,
        /// The price.
        cents: u64,
    },
}

impl Projection for CustomerSpend {
    const NAME: &'static str = "customer-spend";
    const SUBJECTS: &'static [&'static str] = &["orders.>"];
    const STATE_VERSION: u32 = 2;
    type Event = Shop;

    fn key(event: &Recorded<Shop>) -> Keys<'_> {
        let Shop::OrderPlaced { customer, .. } = &event.payload;
        Keys::one(customer)
    }

    fn apply(&mut self, event: &Recorded<Shop>) -> Verdict {
        let Shop::OrderPlaced { cents, .. } = &event.payload;
        let Some(sum) = self.cents.checked_add(*cents) else {
            return refuse("the sum does not fit into 64 bits");
        };
        self.orders += 1;
        self.cents = sum;
        if *cents >= LARGE {
            self.large = Some(self.large.unwrap_or_default() + 1);
        }
        keep()
    }
}

export!(CustomerSpend);

#[cfg(test)]
mod tests {
    use super::*;
    use millstream_sdk::testing::{TestEvent, event, given, json};

    fn placed(cents: u64) -> TestEvent {
        event("OrderPlaced", json!({ "customer": "C42", "cents": cents }))
    }

    #[test]
    fn large_orders_are_counted_and_nothing_else_is_new() {
        let small = json!({ "orders": 1, "cents": 9_899 });
        given::<CustomerSpend>([]).when(placed(9_899)).then_document("C42", &small);
        let large = json!({ "orders": 2, "cents": 19_799, "large": 1 });
        given::<CustomerSpend>([placed(9_899)]).when(placed(9_900)).then_document("C42", &large);
    }
}
