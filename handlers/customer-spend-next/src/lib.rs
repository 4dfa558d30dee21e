//! The next version of `customer-spend`, for tests of shadow runs. It counts large orders without their price, refuses one that
//! nobody can pay, drops the customer C7, and counts those of C9 once more under `vip`.

use millstream_sdk::prelude::*;

/// Orders from this price on are large.
pub const LARGE: u64 = 9_900;

/// Orders from this price on are refused.
pub const TOO_LARGE: u64 = 1_000_000;

/// One document per customer.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CustomerSpend {
    /// Orders placed.
    pub orders: u64,
    /// The sum of those that are not large.
    pub cents: u64,
}

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

impl Projection for CustomerSpend {
    const NAME: &'static str = "customer-spend";
    const SUBJECTS: &'static [&'static str] = &["orders.>"];
    type Event = Shop;

    fn key(event: &Recorded<Shop>) -> Keys<'_> {
        let Shop::OrderPlaced { customer, .. } = &event.payload;
        match customer.as_str() {
            "C7" => Keys::none(),
            "C9" => Keys::many(["C9", "vip"]),
            customer => Keys::one(customer),
        }
    }

    fn apply(&mut self, event: &Recorded<Shop>) -> Verdict {
        let Shop::OrderPlaced { cents, .. } = &event.payload;
        if *cents >= TOO_LARGE {
            return refuse("nobody can pay that");
        }
        self.orders += 1;
        if *cents < LARGE {
            self.cents += cents;
        }
        keep()
    }
}

export!(CustomerSpend);

#[cfg(test)]
mod tests {
    use super::*;
    use millstream_sdk::testing::{TestEvent, event, given, json};

    fn placed(customer: &str, cents: u64) -> TestEvent {
        event("OrderPlaced", json!({ "customer": customer, "cents": cents }))
    }

    #[test]
    fn it_does_some_things_otherwise() {
        given::<CustomerSpend>([placed("C1", 5)])
            .when(placed("C1", LARGE))
            .then_document("C1", &CustomerSpend { orders: 2, cents: 5 });
        given::<CustomerSpend>([]).when(placed("C9", 5)).then_document("vip", &CustomerSpend { orders: 1, cents: 5 });
        given::<CustomerSpend>([]).when(placed("C1", TOO_LARGE)).then_refused("nobody can pay that");
    }
}
