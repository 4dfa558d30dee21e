//! Takes an order through stock, payment, shipping and confirmation. Shows steps that are answered, retried and taken back,
//! one that cannot be, refusals of services, and a timer for the whole.
//!
//! Reads `orders.>`, the answers of the services among it: an answer carries the command's id as its causation id, which
//! confirms the step. Sends commands to `order-commands.*`, and `orders.OrderFulfilled` at the end.

use millstream_sdk::prelude::*;

/// One instance per order.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct OrderFulfilment {
    /// Who ordered.
    pub customer: String,
    /// The price.
    pub cents: u64,
}

/// What happens to an order.
#[derive(Debug, Event)]
pub enum Shop {
    /// A customer ordered something.
    OrderPlaced {
        /// The order's number, as in all of them.
        order: String,
        /// Who.
        customer: String,
        /// The price.
        cents: u64,
    },
    /// The goods lie ready.
    InventoryReserved(Order),
    /// There are no goods.
    InventoryRejected(Refused),
    /// The money is here.
    PaymentCharged(Order),
    /// The money does not come.
    PaymentDeclined(Refused),
    /// A carrier will come.
    ShippingBooked(Order),
    /// No carrier will come.
    ShippingRejected(Refused),
    /// The customer knows.
    ConfirmationSent(Order),
    /// A step was taken back. The host goes on with the one before; the saga only says whose it is.
    #[event(name = "InventoryReleased", alias = "PaymentRefunded", alias = "ShippingCancelled")]
    Undone(Order),
}

/// The answer of a service that did as it was told.
#[derive(Debug, Deserialize)]
pub struct Order {
    /// The order's number.
    pub order: String,
}

/// The answer of a service that did not.
#[derive(Debug, Deserialize)]
pub struct Refused {
    /// The order's number.
    pub order: String,
    /// Why.
    pub reason: String,
}

/// What a service needs to know.
#[derive(Debug, Serialize)]
pub struct Command<'a> {
    /// The order's number.
    pub order: &'a str,
    /// Who ordered.
    pub customer: &'a str,
    /// The price.
    pub cents: u64,
}

impl Saga for OrderFulfilment {
    const NAME: &'static str = "order-fulfilment";
    const SUBJECTS: &'static [&'static str] = &["orders.>"];
    const SENDS: &'static [&'static str] = &["order-commands.*", "orders.OrderFulfilled"];
    const LATE: Late = Late::Ignore;
    type Event = Shop;

    fn correlate(event: &Recorded<Shop>) -> Keys<'_> {
        Keys::one(event.payload.order())
    }

    fn starts(event: &Recorded<Shop>) -> bool {
        matches!(event.payload, Shop::OrderPlaced { .. })
    }

    fn react(&mut self, event: &Recorded<Shop>, effects: &mut Effects) -> Result<(), Refusal> {
        if let Shop::OrderPlaced { customer, cents, .. } = &event.payload {
            *self = Self { customer: customer.clone(), cents: *cents };
        }
        let command = Command { order: event.payload.order(), customer: &self.customer, cents: self.cents };
        match &event.payload {
            Shop::OrderPlaced { .. } => {
                effects.after(hours(24), "abandoned");
                effects
                    .send("order-commands.ReserveInventory", &command)
                    .step("reserve")
                    .within(seconds(30))
                    .retry(3, seconds(2))
                    .undo("order-commands.ReleaseInventory", &command);
            }
            Shop::InventoryReserved(_) => {
                effects
                    .send("order-commands.ChargePayment", &command)
                    .step("charge")
                    .within(minutes(5))
                    .retry(2, seconds(10))
                    .undo("order-commands.RefundPayment", &command)
                    .retry(10, seconds(10));
            }
            Shop::PaymentCharged(_) => {
                effects
                    .send("order-commands.BookShipping", &command)
                    .step("ship")
                    .within(hours(1))
                    .undo("order-commands.CancelShipping", &command);
            }
            Shop::ShippingBooked(_) => {
                effects.send("order-commands.SendConfirmation", &command).step("confirm").irreversible();
            }
            Shop::ConfirmationSent(_) => {
                effects.publish("orders.OrderFulfilled", &command);
                effects.complete();
            }
            Shop::InventoryRejected(refused) => give_up("reserve", refused, effects),
            Shop::PaymentDeclined(refused) => give_up("charge", refused, effects),
            Shop::ShippingRejected(refused) => give_up("ship", refused, effects),
            Shop::Undone(_) => {}
        }
        Ok(())
    }

    fn wake(&mut self, timer: &Timer, effects: &mut Effects) -> Result<(), Refusal> {
        effects.compensate(format_args!("{}: not fulfilled within a day", timer.name()));
        Ok(())
    }
}

/// The service did nothing, so there is nothing to undo for its step; for the others there is.
fn give_up(step: &str, refused: &Refused, effects: &mut Effects) {
    effects.reject(step, &refused.reason);
    effects.compensate(&refused.reason);
}

impl Shop {
    fn order(&self) -> &str {
        match self {
            Self::OrderPlaced { order, .. } => order,
            Self::InventoryReserved(answer)
            | Self::PaymentCharged(answer)
            | Self::ShippingBooked(answer)
            | Self::ConfirmationSent(answer)
            | Self::Undone(answer) => &answer.order,
            Self::InventoryRejected(refused) | Self::PaymentDeclined(refused) | Self::ShippingRejected(refused) => {
                &refused.order
            }
        }
    }
}

export!(saga OrderFulfilment);
