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
