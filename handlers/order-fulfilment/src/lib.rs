//! Takes an order through stock, payment, shipping and confirmation. Shows steps that are answered, retried and taken back,
//! one that cannot be, refusals of services, a timer for the whole, and deadlines that an event decides: an express order is
//! worth nothing late.
//!
//! Reads `orders.>`, the answers of the services among it: an answer carries the command's id as its causation id, which
//! confirms the step. Sends commands to `order-commands.*`, and `orders.OrderFulfilled` at the end.

use std::time::Duration;

use millstream_sdk::prelude::*;

/// One instance per order.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct OrderFulfilment {
    /// Who ordered.
    pub customer: String,
    /// The price.
    pub cents: u64,
    /// Every service has a second, and one more try.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub express: bool,
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
        /// It must be quick.
        #[serde(default)]
        express: bool,
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
        if let Shop::OrderPlaced { customer, cents, express, .. } = &event.payload {
            *self = Self { customer: customer.clone(), cents: *cents, express: *express };
        }
        let command = Command { order: event.payload.order(), customer: &self.customer, cents: self.cents };
        match &event.payload {
            Shop::OrderPlaced { .. } => {
                effects.after(hours(24), "abandoned");
                effects
                    .send("order-commands.ReserveInventory", &command)
                    .step("reserve")
                    .within(self.patience(seconds(30)))
                    .retry(self.retries(3), self.pause(seconds(2)))
                    .undo("order-commands.ReleaseInventory", &command);
            }
            Shop::InventoryReserved(_) => {
                effects
                    .send("order-commands.ChargePayment", &command)
                    .step("charge")
                    .within(self.patience(minutes(5)))
                    .retry(self.retries(2), self.pause(seconds(10)))
                    .undo("order-commands.RefundPayment", &command)
                    .retry(10, seconds(10));
            }
            Shop::PaymentCharged(_) => {
                effects
                    .send("order-commands.BookShipping", &command)
                    .step("ship")
                    .within(self.patience(hours(1)))
                    .retry(self.retries(0), self.pause(minutes(1)))
                    .undo("order-commands.CancelShipping", &command)
                    .retry(self.retries(3), self.pause(seconds(1)));
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

impl OrderFulfilment {
    fn patience(&self, usual: Duration) -> Duration {
        if self.express { seconds(1) } else { usual }
    }

    fn retries(&self, usual: u32) -> u32 {
        if self.express { 1 } else { usual }
    }

    fn pause(&self, usual: Duration) -> Duration {
        if self.express { Duration::from_millis(200) } else { usual }
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

#[cfg(test)]
mod tests {
    use super::*;
    use millstream_sdk::testing::{Sent, TestEvent, event, json, saga};

    fn placed() -> TestEvent {
        event("OrderPlaced", json!({ "order": "o-1", "customer": "C42", "cents": 1200 }))
    }

    fn done(event_type: &str) -> TestEvent {
        event(event_type, json!({ "order": "o-1" }))
    }

    fn refused(event_type: &str) -> TestEvent {
        event(event_type, json!({ "order": "o-1", "reason": "no" }))
    }

    fn succeed(command: &Sent) -> TestEvent {
        done(match command.name.as_str() {
            "ReserveInventory" => "InventoryReserved",
            "ChargePayment" => "PaymentCharged",
            "BookShipping" => "ShippingBooked",
            "SendConfirmation" => "ConfirmationSent",
            "ReleaseInventory" => "InventoryReleased",
            "RefundPayment" => "PaymentRefunded",
            _ => "ShippingCancelled",
        })
    }

    /// The confirmation is mail: nobody refuses it.
    fn refuse(command: &Sent) -> TestEvent {
        match command.name.as_str() {
            "ReserveInventory" => refused("InventoryRejected"),
            "ChargePayment" => refused("PaymentDeclined"),
            "BookShipping" => refused("ShippingRejected"),
            _ => succeed(command),
        }
    }

    #[test]
    fn an_order_goes_through_four_steps() {
        let command = json!({ "order": "o-1", "customer": "C42", "cents": 1200 });
        saga::<OrderFulfilment>()
            .when(placed())
            .then_commands(["ReserveInventory"])
            .then_sent("ReserveInventory", &command)
            .then_state("o-1", &OrderFulfilment { customer: "C42".into(), cents: 1200, express: false })
            .then_timers("o-1", ["abandoned"])
            .reply("reserve", done("InventoryReserved"))
            .then_commands(["ChargePayment"])
            .reply("charge", done("PaymentCharged"))
            .then_commands(["BookShipping"])
            .reply("ship", done("ShippingBooked"))
            .then_commands(["SendConfirmation"])
            .reply("confirm", done("ConfirmationSent"))
            .then_commands([])
            .then_published(["OrderFulfilled"])
            .then_sent("OrderFulfilled", &command)
            .then_status("o-1", "completed")
            .advance(days(2))
            .then_commands([])
            .then_status("o-1", "completed");
    }

    #[test]
    fn whatever_a_service_refuses_all_before_it_is_taken_back_last_first() {
        saga::<OrderFulfilment>().for_each_failing_step(placed(), succeed, refuse, |failing, story| {
            let sent: Vec<&str> = story.last_sent().iter().map(|sent| sent.name.as_str()).collect();
            let expected: &[&str] = match failing {
                "reserve" => &["ReserveInventory"],
                "charge" => &["ReserveInventory", "ChargePayment", "ReleaseInventory"],
                "ship" => &["ReserveInventory", "ChargePayment", "BookShipping", "RefundPayment", "ReleaseInventory"],
                _ => return,
            };
            assert_eq!(sent, expected, "{failing}");
            story.then_status("o-1", "compensated");
        });
    }

    #[test]
    fn an_order_that_waits_for_a_day_is_taken_back_and_the_confirmation_is_not() {
        saga::<OrderFulfilment>()
            .when(placed())
            .answer(|command| (command.name != "SendConfirmation").then(|| succeed(command)))
            .then_commands(["ChargePayment", "BookShipping", "SendConfirmation"])
            .advance(hours(23))
            .then_commands([])
            .then_status("o-1", "running")
            .advance(hours(1))
            .then_commands(["CancelShipping"])
            .answer(|command| Some(succeed(command)))
            .then_commands(["RefundPayment", "ReleaseInventory"])
            .then_status("o-1", "compensated")
            .then_steps("o-1", [("reserve", "undone"), ("charge", "undone"), ("ship", "undone"), ("confirm", "kept")]);
    }

    #[test]
    fn a_service_that_does_not_answer_is_asked_again_and_then_undone() {
        saga::<OrderFulfilment>()
            .when(placed())
            .advance(seconds(29))
            .then_commands([])
            .advance(seconds(5))
            .then_commands(["ReserveInventory"])
            .advance(seconds(110))
            .then_commands(["ReserveInventory", "ReserveInventory", "ReleaseInventory"])
            .reply("reserve", done("InventoryReleased"))
            .then_status("o-1", "compensated");
    }

    #[test]
    fn an_express_order_is_taken_back_within_seconds() {
        let payload = json!({ "order": "o-1", "customer": "C42", "cents": 1200, "express": true });
        saga::<OrderFulfilment>()
            .when(event("OrderPlaced", payload))
            .answer(|command| (command.name != "BookShipping").then(|| succeed(command)))
            .advance(seconds(3))
            .answer(|command| (command.name != "BookShipping").then(|| succeed(command)))
            .then_steps("o-1", [("reserve", "undone"), ("charge", "undone"), ("ship", "undone")])
            .then_status("o-1", "compensated");
    }

    #[test]
    fn an_answer_to_an_earlier_attempt_counts() {
        let scenario = saga::<OrderFulfilment>().when(placed());
        let first = scenario.last_sent()[0].id.clone();
        scenario
            .advance(seconds(40))
            .then_commands(["ReserveInventory"])
            .when(done("InventoryReserved").causation(first))
            .then_commands(["ChargePayment"])
            .then_steps("o-1", [("reserve", "confirmed"), ("charge", "sent")]);
    }

    #[test]
    fn a_service_that_answers_both_attempts_charges_once() {
        let scenario = saga::<OrderFulfilment>().when(placed());
        let first = scenario.last_sent()[0].id.clone();
        let scenario = scenario.advance(seconds(40));
        let second = scenario.last_sent()[0].id.clone();
        scenario
            .when(done("InventoryReserved").causation(first))
            .then_commands(["ChargePayment"])
            .when(done("InventoryReserved").causation(second))
            .then_commands([])
            .reply("charge", done("PaymentCharged"))
            .then_commands(["BookShipping"]);
    }

    #[test]
    fn answers_to_no_order_and_to_an_order_that_is_over_are_ignored() {
        saga::<OrderFulfilment>().when(done("PaymentCharged")).then_ignored().then_no_instance("o-1");
        saga::<OrderFulfilment>()
            .given([placed()])
            .reply("reserve", refused("InventoryRejected"))
            .then_status("o-1", "compensated")
            .when(done("InventoryReserved"))
            .then_ignored()
            .then_commands([]);
    }

    #[test]
    fn an_event_that_does_not_fit_is_rejected() {
        saga::<OrderFulfilment>()
            .when(event("OrderPlaced", json!({ "order": "o-1" })))
            .then_rejected("missing field `customer`");
    }
}
