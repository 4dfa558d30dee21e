//! Reminds a customer of an invoice that is not paid in time. Shows a timer that is taken back when it has lost its point, and
//! an answer that must come in time: a mail room that is silent leaves the matter to a person.
//!
//! Reads `invoices.>`, the mail room's answers among it; sends to `invoice-commands.Remind`.

use core::time::Duration;

use millstream_sdk::prelude::*;

/// One instance per invoice.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Reminder {
    /// How long the mail room may take, milliseconds.
    pub answer_within: u64,
}

/// What happens to an invoice.
#[derive(Debug, Event)]
pub enum Invoice {
    /// The customer has it.
    InvoiceSent {
        /// Its number, as in all of them.
        invoice: String,
        /// How long the customer may take, milliseconds.
        pay_within: u64,
        /// How long the mail room may take, milliseconds.
        answer_within: u64,
    },
    /// The money is here.
    InvoicePaid {
        /// The invoice's number.
        invoice: String,
    },
    /// The customer does not agree. What is contested is not reminded of.
    InvoiceDisputed {
        /// The invoice's number.
        invoice: String,
    },
    /// The mail room has sent the reminder.
    Reminded {
        /// The invoice's number.
        invoice: String,
    },
}

/// The command.
#[derive(Debug, Serialize)]
pub struct Remind<'a> {
    /// The invoice's number.
    pub invoice: &'a str,
    /// Until when it should have been paid.
    pub due: String,
}

impl Saga for Reminder {
    const NAME: &'static str = "reminder";
    const SUBJECTS: &'static [&'static str] = &["invoices.>"];
    const SENDS: &'static [&'static str] = &["invoice-commands.Remind"];
    // An invoice that is sent again after it was paid is a new matter.
    const LATE: Late = Late::Start;
    type Event = Invoice;

    fn correlate(event: &Recorded<Invoice>) -> Keys<'_> {
        match &event.payload {
            Invoice::InvoiceSent { invoice, .. }
            | Invoice::InvoicePaid { invoice }
            | Invoice::InvoiceDisputed { invoice }
            | Invoice::Reminded { invoice } => Keys::one(invoice),
        }
    }

    fn starts(event: &Recorded<Invoice>) -> bool {
        matches!(event.payload, Invoice::InvoiceSent { .. })
    }

    fn react(&mut self, event: &Recorded<Invoice>, effects: &mut Effects) -> Result<(), Refusal> {
        match event.payload {
            Invoice::InvoiceSent { pay_within, answer_within, .. } => {
                self.answer_within = answer_within;
                effects.after(Duration::from_millis(pay_within), "unpaid");
            }
            Invoice::InvoiceDisputed { .. } => effects.cancel("unpaid"),
            // The end takes back all timers.
            Invoice::InvoicePaid { .. } | Invoice::Reminded { .. } => effects.complete(),
        }
        Ok(())
    }

    fn wake(&mut self, timer: &Timer, effects: &mut Effects) -> Result<(), Refusal> {
        let command = Remind { invoice: timer.key(), due: timer.due_rfc3339() };
        let within = Duration::from_millis(self.answer_within);
        effects.send("invoice-commands.Remind", &command).step("remind").within(within).irreversible();
        Ok(())
    }
}

export!(saga Reminder);

#[cfg(test)]
mod tests {
    use super::*;
    use millstream_sdk::testing::{TestEvent, event, json, saga};

    fn sent() -> TestEvent {
        event("InvoiceSent", json!({ "invoice": "I1", "pay_within": 60_000, "answer_within": 5000 }))
            .at("2006-01-10T00:00:00Z")
    }

    fn of(event_type: &str) -> TestEvent {
        event(event_type, json!({ "invoice": "I1" }))
    }

    #[test]
    fn who_does_not_pay_is_reminded_once() {
        saga::<Reminder>()
            .given([sent()])
            .advance(seconds(59))
            .then_commands([])
            .advance(seconds(1))
            .then_sent("Remind", &json!({ "invoice": "I1", "due": "2006-01-10T00:01:00.000Z" }))
            .reply("remind", of("Reminded"))
            .then_status("I1", "completed")
            .advance(days(1))
            .then_commands([]);
    }

    #[test]
    fn what_is_paid_or_contested_is_not_reminded_of() {
        saga::<Reminder>().given([sent(), of("InvoicePaid")]).then_status("I1", "completed").then_timers("I1", []);
        saga::<Reminder>()
            .given([sent(), of("InvoiceDisputed")])
            .then_status("I1", "running")
            .then_timers("I1", [])
            .advance(days(1))
            .then_commands([]);
    }

    #[test]
    fn a_silent_mail_room_leaves_it_to_a_person() {
        saga::<Reminder>()
            .given([sent()])
            .advance(seconds(60))
            .then_commands(["Remind"])
            .advance(seconds(5))
            .then_status("I1", "compensated")
            .then_steps("I1", [("remind", "kept")]);
    }

    #[test]
    fn an_invoice_sent_again_counts_anew() {
        saga::<Reminder>()
            .given([sent(), of("InvoicePaid"), sent().id("again").at("2006-02-01T00:00:00Z")])
            .then_timers("I1", ["unpaid"])
            .advance(seconds(60))
            .then_sent("Remind", &json!({ "invoice": "I1", "due": "2006-02-01T00:01:00.000Z" }));
    }
}
