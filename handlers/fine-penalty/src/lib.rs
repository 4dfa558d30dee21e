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
