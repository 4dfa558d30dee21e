//! What each customer has spent. Shows the smallest whole handler: two event types, one key, a refusal.
//!
//! `nats pub orders.placed '{"customer":"C42","cents":1200}'` works too: without an envelope the event type is the last token
//! of the subject, hence the aliases.

use millstream_sdk::prelude::*;

/// One document per customer.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CustomerSpend {
    /// Orders placed and not cancelled.
    pub orders: u64,
    /// Their sum.
    pub cents: u64,
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
    /// An order was taken back.
    #[event(alias = "cancelled")]
    OrderCancelled {
        /// The customer's number.
        customer: String,
        /// The price, as it was when ordered.
        cents: u64,
    },
}

impl Projection for CustomerSpend {
    const NAME: &'static str = "customer-spend";
    const SUBJECTS: &'static [&'static str] = &["orders.>"];
    type Event = Shop;

    fn key(event: &Recorded<Shop>) -> Keys<'_> {
        match &event.payload {
            Shop::OrderPlaced { customer, .. } | Shop::OrderCancelled { customer, .. } => Keys::one(customer),
        }
    }

    fn apply(&mut self, event: &Recorded<Shop>) -> Verdict {
        match &event.payload {
            Shop::OrderPlaced { cents, .. } => {
                let Some(sum) = self.cents.checked_add(*cents) else {
                    return refuse("the sum does not fit into 64 bits");
                };
                self.orders += 1;
                self.cents = sum;
            }
            Shop::OrderCancelled { cents, .. } => {
                let (Some(orders), Some(sum)) = (self.orders.checked_sub(1), self.cents.checked_sub(*cents)) else {
                    return refuse(format_args!("cancels {cents} cents of {} in {} orders", self.cents, self.orders));
                };
                self.orders = orders;
                self.cents = sum;
            }
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

    fn cancelled(customer: &str, cents: u64) -> TestEvent {
        event("OrderCancelled", json!({ "customer": customer, "cents": cents }))
    }

    #[test]
    fn orders_add_up_per_customer() {
        given::<CustomerSpend>([placed("C42", 1200), placed("C7", 100)])
            .when(placed("C42", 300))
            .then_document("C42", &CustomerSpend { orders: 2, cents: 1500 })
            .then_document("C7", &CustomerSpend { orders: 1, cents: 100 });
    }

    #[test]
    fn a_cancelled_order_no_longer_counts() {
        given::<CustomerSpend>([placed("C42", 1200), placed("C42", 300)])
            .when(cancelled("C42", 1200))
            .then_document("C42", &CustomerSpend { orders: 1, cents: 300 });
    }

    #[test]
    fn messages_without_an_envelope_are_named_by_their_subject() {
        given::<CustomerSpend>([event("placed", json!({ "customer": "C42", "cents": 1200 }))])
            .when(event("cancelled", json!({ "customer": "C42", "cents": 1200 })))
            .then_document("C42", &CustomerSpend::default());
    }

    #[test]
    fn cancelling_more_than_was_ordered_is_refused() {
        given::<CustomerSpend>([placed("C42", 100)])
            .when(cancelled("C42", 101))
            .then_refused("cancels 101 cents of 100 in 1 orders")
            .then_untouched();
        given::<CustomerSpend>([]).when(cancelled("C42", 0)).then_refused("in 0 orders").then_no_document("C42");
        given::<CustomerSpend>([placed("C42", u64::MAX)])
            .when(placed("C42", 1))
            .then_refused("64 bits")
            .then_untouched();
    }

    #[test]
    fn other_events_of_the_shop_are_irrelevant_and_broken_ones_rejected() {
        given::<CustomerSpend>([]).when(event("OrderShipped", json!({}))).then_irrelevant();
        given::<CustomerSpend>([])
            .when(event("placed", json!({ "customer": "C42" })))
            .then_rejected("payload of event type `placed` does not fit: missing field `cents`");
    }
}
