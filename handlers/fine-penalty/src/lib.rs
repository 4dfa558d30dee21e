//! Raises a fine 60 days after it was notified. Shows the smallest saga with time in it: an event sets a timer, the timer
//! sends a command and ends the saga. There is no clock: days count from the event, and the command says when it was due.
//!
//! Reads `fines.>`; sends to `fine-commands.AddPenalty`.

use millstream_sdk::prelude::*;

/// One instance per fine, under its aggregate id. The timer carries all that has to be remembered.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FinePenalty {}

/// What happens to a fine, as far as it matters here.
#[derive(Debug, Event)]
pub enum Fine {
    /// The offender has received it: the days begin to count.
    InsertFineNotification,
}

/// The command.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AddPenalty<'a> {
    /// The fine.
    pub aggregate_id: &'a str,
    /// The event that the days counted from.
    pub event_id: String,
    /// When the days were over.
    pub at: String,
}

impl Saga for FinePenalty {
    const NAME: &'static str = "fine-penalty";
    const SUBJECTS: &'static [&'static str] = &["fines.>"];
    const SENDS: &'static [&'static str] = &["fine-commands.AddPenalty"];
    const LATE: Late = Late::Ignore;
    type Event = Fine;

    fn correlate(event: &Recorded<Fine>) -> Keys<'_> {
        Keys::one(event.aggregate_id())
    }

    fn starts(_event: &Recorded<Fine>) -> bool {
        true
    }

    fn react(&mut self, event: &Recorded<Fine>, effects: &mut Effects) -> Result<(), Refusal> {
        effects.after(days(60), "unpaid").payload(event.id());
        Ok(())
    }

    fn wake(&mut self, timer: &Timer, effects: &mut Effects) -> Result<(), Refusal> {
        let command = AddPenalty { aggregate_id: timer.key(), event_id: timer.payload()?, at: timer.due_rfc3339() };
        effects.send("fine-commands.AddPenalty", &command);
        effects.complete();
        Ok(())
    }
}

export!(saga FinePenalty);

#[cfg(test)]
mod tests {
    use super::*;
    use millstream_sdk::testing::{TestEvent, event, json, saga};

    fn notified() -> TestEvent {
        event("InsertFineNotification", json!({})).aggregate("S1").id("tf-1").at("2006-01-10T00:00:00Z")
    }

    #[test]
    fn the_penalty_comes_when_the_days_are_over_and_says_when_that_was() {
        saga::<FinePenalty>()
            .when(notified())
            .then_timers("S1", ["unpaid"])
            .advance(days(59))
            .then_commands([])
            .advance(days(5))
            .then_commands(["AddPenalty"])
            .then_sent(
                "AddPenalty",
                &json!({ "aggregateId": "S1", "eventId": "tf-1", "at": "2006-03-11T00:00:00.000Z" }),
            )
            .then_status("S1", "completed");
    }

    #[test]
    fn a_fine_is_raised_once() {
        saga::<FinePenalty>()
            .given([notified()])
            .advance(days(60))
            .then_commands(["AddPenalty"])
            .when(notified().id("tf-2").at("2006-05-01T00:00:00Z"))
            .then_ignored()
            .advance(days(60))
            .then_commands([]);
    }

    #[test]
    fn nothing_cancels_it_and_other_events_are_not_looked_at() {
        saga::<FinePenalty>()
            .given([notified(), event("Payment", json!({})).aggregate("S1")])
            .advance(days(60))
            .then_commands(["AddPenalty"]);
    }
}
