//! Where each traffic fine stands and what was paid. Shows event types that only move a status, and a payload of which one
//! optional field matters.

use millstream_sdk::prelude::*;

/// One document per fine, under its aggregate id.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FineStatus {
    /// The last step that changes the status, if there was one.
    pub status: Option<Status>,
    /// What was paid in all, in cents.
    pub paid: u64,
    /// Events so far, of any type.
    pub events: u64,
}

/// The steps of a fine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Written.
    Created,
    /// Posted to the offender.
    Sent,
    /// Received by the offender.
    Notified,
    /// Raised, for it was not paid in time.
    Penalised,
    /// Handed over to be collected.
    Collection,
    /// Contested before the prefecture or a judge.
    Appealed,
}

/// The part of every payload that counts.
#[derive(Debug, Deserialize)]
pub struct Account {
    /// The running total of payments, with this event's in it.
    #[serde(rename = "totalPaymentCents")]
    total: Option<u64>,
}

/// What happens to a fine.
#[derive(Debug, Event)]
#[allow(missing_docs, reason = "the names are those of the police force's log")]
pub enum Fine {
    CreateFine(Account),
    SendFine(Account),
    InsertFineNotification(Account),
    AddPenalty(Account),
    SendForCreditCollection(Account),
    #[event(name = "AppealToJudge", alias = "InsertDateAppealToPrefecture")]
    Appeal(Account),
    /// Leaves the status as it is.
    #[event(name = "Payment", alias = "SendAppealToPrefecture")]
    #[event(alias = "ReceiveResultAppealFromPrefecture", alias = "NotifyResultAppealToOffender")]
    Entry(Account),
}

impl Fine {
    /// The status it leads to, if it changes it, and the account.
    const fn step(&self) -> (Option<Status>, &Account) {
        match self {
            Self::CreateFine(account) => (Some(Status::Created), account),
            Self::SendFine(account) => (Some(Status::Sent), account),
            Self::InsertFineNotification(account) => (Some(Status::Notified), account),
            Self::AddPenalty(account) => (Some(Status::Penalised), account),
            Self::SendForCreditCollection(account) => (Some(Status::Collection), account),
            Self::Appeal(account) => (Some(Status::Appealed), account),
            Self::Entry(account) => (None, account),
        }
    }
}

impl Projection for FineStatus {
    const NAME: &'static str = "fine-status";
    const SUBJECTS: &'static [&'static str] = &["fines.>"];
    type Event = Fine;

    fn key(event: &Recorded<Fine>) -> Keys<'_> {
        Keys::one(event.aggregate_id())
    }

    fn apply(&mut self, event: &Recorded<Fine>) -> Verdict {
        let (status, account) = event.payload.step();
        self.status = status.or(self.status);
        self.paid = account.total.unwrap_or(self.paid);
        self.events += 1;
        keep()
    }
}

export!(FineStatus);

#[cfg(test)]
mod tests {
    use super::*;
    use millstream_sdk::testing::{TestEvent, event, given, json};

    fn step(event_type: &str) -> TestEvent {
        event(event_type, json!({ "article": 158 })).aggregate("S1")
    }

    fn paid(event_type: &str, cents: u64) -> TestEvent {
        event(event_type, json!({ "totalPaymentCents": cents })).aggregate("S1")
    }

    #[test]
    fn each_step_moves_the_status() {
        for (event_type, status) in [
            ("CreateFine", "created"),
            ("SendFine", "sent"),
            ("InsertFineNotification", "notified"),
            ("AddPenalty", "penalised"),
            ("SendForCreditCollection", "collection"),
            ("InsertDateAppealToPrefecture", "appealed"),
            ("AppealToJudge", "appealed"),
        ] {
            given::<FineStatus>([step("Payment")])
                .when(step(event_type))
                .then_document("S1", &json!({ "status": status, "paid": 0, "events": 2 }));
        }
    }

    #[test]
    fn the_other_types_leave_the_status() {
        for event_type in
            ["Payment", "SendAppealToPrefecture", "ReceiveResultAppealFromPrefecture", "NotifyResultAppealToOffender"]
        {
            given::<FineStatus>([])
                .when(step(event_type))
                .then_document("S1", &json!({ "status": null, "paid": 0, "events": 1 }));
            given::<FineStatus>([step("SendFine")])
                .when(step(event_type))
                .then_document("S1", &json!({ "status": "sent", "paid": 0, "events": 2 }));
        }
    }

    #[test]
    fn paid_is_the_latest_total_of_any_type() {
        given::<FineStatus>([paid("CreateFine", 0), paid("Payment", 700), step("SendFine")])
            .when(paid("AddPenalty", 650))
            .then_document("S1", &FineStatus { status: Some(Status::Penalised), paid: 650, events: 4 });
    }

    #[test]
    fn an_event_without_a_fine_is_rejected() {
        given::<FineStatus>([]).when(event("SendFine", json!({}))).then_rejected("empty key");
    }
}
