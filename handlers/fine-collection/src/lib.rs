//! Keeps credit collection and appeal of a fine apart: what is contested is not collected, what is paid is withdrawn. Shows a
//! saga that is all state and no time: two flags say which command an event means, and it never ends.
//!
//! Reads `fines.>`; sends to `fine-commands.*`.

use millstream_sdk::prelude::*;

/// One instance per fine, under its aggregate id.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FineCollection {
    /// An appeal is open.
    pub suspended: bool,
    /// A collector has it.
    pub in_collection: bool,
}

/// What happens to a fine, as far as it matters here.
#[derive(Debug, Event)]
pub enum Fine {
    /// The offender contests it.
    #[event(name = "AppealToJudge", alias = "InsertDateAppealToPrefecture")]
    Appeal,
    /// The appeal was decided.
    #[event(name = "NotifyResultAppealToOffender", alias = "ReceiveResultAppealFromPrefecture")]
    Result,
    /// It is to be collected.
    SendForCreditCollection,
    /// Money came in.
    Payment,
}

/// Each of the commands.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Command<'a> {
    /// The fine.
    pub aggregate_id: &'a str,
    /// The event that asks for it.
    pub event_id: &'a str,
    /// When that happened.
    pub at: String,
}

impl Saga for FineCollection {
    const NAME: &'static str = "fine-collection";
    const SUBJECTS: &'static [&'static str] = &["fines.>"];
    const SENDS: &'static [&'static str] = &["fine-commands.*"];
    // Without an appeal or a collection there is nothing to resume or to withdraw.
    const LATE: Late = Late::Ignore;
    type Event = Fine;

    fn correlate(event: &Recorded<Fine>) -> Keys<'_> {
        Keys::one(event.aggregate_id())
    }

    fn starts(event: &Recorded<Fine>) -> bool {
        matches!(event.payload, Fine::Appeal | Fine::SendForCreditCollection)
    }

    fn react(&mut self, event: &Recorded<Fine>, effects: &mut Effects) -> Result<(), Refusal> {
        if let Some(subject) = self.decide(&event.payload) {
            let at = event.time_rfc3339();
            effects.send(subject, &Command { aggregate_id: event.aggregate_id(), event_id: event.id(), at });
        }
        Ok(())
    }
}

impl FineCollection {
    /// Moves the flags, and says which command that means.
    const fn decide(&mut self, event: &Fine) -> Option<&'static str> {
        let Self { suspended, in_collection } = *self;
        match event {
            Fine::Appeal => {
                *self = Self { suspended: true, in_collection: false };
                match (in_collection, suspended) {
                    (true, _) => Some("fine-commands.RecallFromCollection"),
                    (false, false) => Some("fine-commands.SuspendCollection"),
                    (false, true) => None,
                }
            }
            Fine::Result => {
                self.suspended = false;
                if suspended { Some("fine-commands.ResumeCollection") } else { None }
            }
            Fine::SendForCreditCollection if suspended => Some("fine-commands.RecallFromCollection"),
            Fine::SendForCreditCollection => {
                self.in_collection = true;
                None
            }
            Fine::Payment => {
                self.in_collection = false;
                if in_collection { Some("fine-commands.WithdrawCollection") } else { None }
            }
        }
    }
}

export!(saga FineCollection);

#[cfg(test)]
mod tests {
    use super::*;
    use millstream_sdk::testing::{TestEvent, event, json, saga};

    fn of(event_type: &str) -> TestEvent {
        event(event_type, json!({})).aggregate("S1").at("2006-01-10T00:00:00Z")
    }

    #[test]
    fn each_event_means_its_command() {
        const APPEAL: &str = "AppealToJudge";
        const PREFECTURE: &str = "InsertDateAppealToPrefecture";
        const RESULT: &str = "NotifyResultAppealToOffender";
        const RECEIVED: &str = "ReceiveResultAppealFromPrefecture";
        const SEND: &str = "SendForCreditCollection";
        type Case = (&'static [&'static str], &'static str, Option<&'static str>, (bool, bool));
        let cases: [Case; 11] = [
            (&[], APPEAL, Some("SuspendCollection"), (true, false)),
            (&[], PREFECTURE, Some("SuspendCollection"), (true, false)),
            (&[APPEAL], PREFECTURE, None, (true, false)),
            (&[SEND], APPEAL, Some("RecallFromCollection"), (true, false)),
            (&[APPEAL], RESULT, Some("ResumeCollection"), (false, false)),
            (&[APPEAL], RECEIVED, Some("ResumeCollection"), (false, false)),
            (&[SEND], RESULT, None, (false, true)),
            (&[], SEND, None, (false, true)),
            (&[APPEAL], SEND, Some("RecallFromCollection"), (true, false)),
            (&[SEND], "Payment", Some("WithdrawCollection"), (false, false)),
            (&[APPEAL], "Payment", None, (true, false)),
        ];
        for (past, event_type, command, (suspended, in_collection)) in cases {
            let scenario = saga::<FineCollection>().given(past.iter().map(|event_type| of(event_type)));
            let scenario = scenario.when(of(event_type).id("tf-9"));
            let sent: Vec<&str> = scenario.last_sent().iter().map(|sent| sent.name.as_str()).collect();
            assert_eq!(sent, Vec::from_iter(command), "{past:?} {event_type}");
            let scenario = scenario.then_state("S1", &FineCollection { suspended, in_collection });
            if let Some(command) = command {
                let payload = json!({ "aggregateId": "S1", "eventId": "tf-9", "at": "2006-01-10T00:00:00.000Z" });
                scenario.then_sent(command, &payload);
            }
        }
    }

    #[test]
    fn a_fine_that_is_neither_contested_nor_collected_has_no_instance() {
        saga::<FineCollection>().when(of("Payment")).then_ignored().then_no_instance("S1");
        saga::<FineCollection>().when(of("NotifyResultAppealToOffender")).then_ignored().then_no_instance("S1");
        saga::<FineCollection>().when(of("CreateFine")).then_ignored();
    }
}
