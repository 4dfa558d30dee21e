//! Creates a restaurant order across four services. Shows what began the saga as a step of its own: `done("order")` makes the
//! rejection of the order the last thing that compensation does. A step that only looks has nothing to take back.
//!
//! Reads `restaurant-orders.>`, the replies of the services among it, which are all named `Success` or `Failure`; sends to
//! `consumerService.*`, `kitchenService.*`, `accountingService.*` and `orderService.*`.

use millstream_sdk::prelude::*;

/// One instance per order.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CreateOrder {
    /// Whose reply comes next.
    pub waits_for: Option<Stage>,
}

/// The services in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// May this consumer order?
    Validate,
    /// The kitchen makes room.
    Ticket,
    /// The card is good for it.
    Authorize,
    /// The kitchen begins.
    Confirm,
}

/// What happens to an order.
#[derive(Debug, Event)]
pub enum Restaurant {
    /// It was written down, and waits for approval.
    OrderCreated(Order),
    /// A service did as it was told.
    Success(Order),
    /// A service did not.
    Failure(Order),
}

/// All that an order is here.
#[derive(Debug, Serialize, Deserialize)]
pub struct Order {
    /// Its number.
    pub order: String,
}

impl Saga for CreateOrder {
    const NAME: &'static str = "create-order";
    const SUBJECTS: &'static [&'static str] = &["restaurant-orders.>"];
    const SENDS: &'static [&'static str] =
        &["consumerService.*", "kitchenService.*", "accountingService.*", "orderService.*"];
    const LATE: Late = Late::Ignore;
    type Event = Restaurant;

    fn correlate(event: &Recorded<Restaurant>) -> Keys<'_> {
        let (Restaurant::OrderCreated(order) | Restaurant::Success(order) | Restaurant::Failure(order)) =
            &event.payload;
        Keys::one(&order.order)
    }

    fn starts(event: &Recorded<Restaurant>) -> bool {
        matches!(event.payload, Restaurant::OrderCreated(_))
    }

    fn react(&mut self, event: &Recorded<Restaurant>, effects: &mut Effects) -> Result<(), Refusal> {
        match &event.payload {
            Restaurant::OrderCreated(order) => {
                effects.done("order").undo("orderService.RejectOrderCommand", order);
                effects.send("consumerService.ValidateOrderByConsumer", order).step("validate").irreversible();
                self.waits_for = Some(Stage::Validate);
            }
            Restaurant::Success(order) => self.go_on(order, effects),
            Restaurant::Failure(_) => {
                let Some(stage) = self.waits_for else {
                    return refuse("a failure, though no service was asked");
                };
                effects.reject(stage.step(), "the service said no");
                effects.compensate(format_args!("{} failed", stage.step()));
            }
        }
        Ok(())
    }
}

impl CreateOrder {
    fn go_on(&mut self, order: &Order, effects: &mut Effects) {
        self.waits_for = match self.waits_for {
            Some(Stage::Validate) => {
                let ticket = effects.send("kitchenService.CreateTicket", order).step("ticket");
                ticket.undo("kitchenService.CancelCreateTicket", order);
                Some(Stage::Ticket)
            }
            Some(Stage::Ticket) => {
                effects.send("accountingService.AuthorizeCommand", order).step("authorize").irreversible();
                Some(Stage::Authorize)
            }
            Some(Stage::Authorize) => {
                effects.send("kitchenService.ConfirmCreateTicket", order).step("confirm").irreversible();
                Some(Stage::Confirm)
            }
            Some(Stage::Confirm) | None => {
                effects.send("orderService.ApproveOrderCommand", order);
                effects.complete();
                None
            }
        };
    }
}

impl Stage {
    const fn step(self) -> &'static str {
        match self {
            Self::Validate => "validate",
            Self::Ticket => "ticket",
            Self::Authorize => "authorize",
            Self::Confirm => "confirm",
        }
    }
}

export!(saga CreateOrder);

#[cfg(test)]
mod tests {
    use super::*;
    use millstream_sdk::testing::{Sent, TestEvent, event, json, saga};

    fn order(event_type: &str) -> TestEvent {
        event(event_type, json!({ "order": "o-1" }))
    }

    fn reply(command: &Sent, failing: &str) -> Option<TestEvent> {
        Some(order(if command.name == failing { "Failure" } else { "Success" }))
    }

    /// The cases of `CreateOrderSagaTest.java` in microservices-patterns/ftgo-application, restated.
    #[test]
    fn commands_and_compensations_come_in_the_order_of_the_original() {
        let created = || saga::<CreateOrder>().when(order("OrderCreated")).then_commands(["ValidateOrderByConsumer"]);

        created()
            .answer(|command| reply(command, "none"))
            .then_commands(["CreateTicket", "AuthorizeCommand", "ConfirmCreateTicket", "ApproveOrderCommand"])
            .then_status("o-1", "completed");

        created()
            .reply("validate", order("Failure"))
            .then_commands(["RejectOrderCommand"])
            .reply("order", order("Success"))
            .then_commands([])
            .then_status("o-1", "compensated");

        created()
            .reply("validate", order("Success"))
            .then_commands(["CreateTicket"])
            .reply("ticket", order("Success"))
            .then_commands(["AuthorizeCommand"])
            .reply("authorize", order("Failure"))
            .then_commands(["CancelCreateTicket"])
            .reply("ticket", order("Success"))
            .then_commands(["RejectOrderCommand"])
            .then_status("o-1", "compensating")
            .reply("order", order("Success"))
            .then_status("o-1", "compensated")
            .then_steps(
                "o-1",
                [("order", "undone"), ("validate", "kept"), ("ticket", "undone"), ("authorize", "rejected")],
            );
    }

    #[test]
    fn commands_go_to_the_service_that_does_them() {
        let scenario = saga::<CreateOrder>().when(order("OrderCreated")).answer(|command| reply(command, "none"));
        let subjects: Vec<&str> = scenario.last_sent().iter().map(|sent| sent.subject.as_str()).collect();
        assert_eq!(
            subjects,
            [
                "kitchenService.CreateTicket",
                "accountingService.AuthorizeCommand",
                "kitchenService.ConfirmCreateTicket",
                "orderService.ApproveOrderCommand"
            ]
        );
    }

    #[test]
    fn whichever_service_says_no_the_order_is_rejected_last() {
        saga::<CreateOrder>().for_each_failing_step(
            order("OrderCreated"),
            |_| order("Success"),
            |_| order("Failure"),
            |_, story| {
                let last = story.last_sent().last().map(|sent| sent.name.clone());
                assert_eq!(last.as_deref(), Some("RejectOrderCommand"));
            },
        );
    }
}
