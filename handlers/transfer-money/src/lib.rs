//! Moves money from one account to another. Shows steps as data: a table says which command follows which answer, so that a
//! step more is a line more. Compensation runs over what was done, last first, without a word about it here.
//!
//! Reads `transfers.>`, the answers of the banks among it; sends to `transfer-commands.*`. A bank answers each command with
//! `Done`, or with `Failed` if it did nothing.

use millstream_sdk::prelude::*;

/// One instance per transfer.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TransferMoney {
    /// What is moved.
    pub transfer: Transfer,
    /// How many steps were begun.
    pub begun: usize,
}

/// What is moved, as every command says it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transfer {
    /// The transfer's number.
    pub transfer: String,
    /// The account that loses it.
    pub from: String,
    /// The account that gains it.
    pub to: String,
    /// How much.
    pub cents: u64,
}

/// What happens to a transfer.
#[derive(Debug, Event)]
pub enum Bank {
    /// Somebody wants it.
    TransferRequested(Transfer),
    /// A command was carried out.
    Done {
        /// The transfer's number.
        transfer: String,
    },
    /// A command was not carried out.
    Failed {
        /// The transfer's number.
        transfer: String,
        /// Why.
        reason: String,
    },
}

/// A command, and the one that takes it back. The third is there to fail.
const STEPS: [(&str, Option<&str>); 3] =
    [("Withdraw", Some("WithdrawCompensation")), ("Deposit", Some("DepositCompensation")), ("StepWithError", None)];

impl Saga for TransferMoney {
    const NAME: &'static str = "transfer-money";
    const SUBJECTS: &'static [&'static str] = &["transfers.>"];
    const SENDS: &'static [&'static str] = &["transfer-commands.*"];
    const LATE: Late = Late::Park;
    type Event = Bank;

    fn correlate(event: &Recorded<Bank>) -> Keys<'_> {
        match &event.payload {
            Bank::TransferRequested(Transfer { transfer, .. })
            | Bank::Done { transfer }
            | Bank::Failed { transfer, .. } => Keys::one(transfer),
        }
    }

    fn starts(event: &Recorded<Bank>) -> bool {
        matches!(event.payload, Bank::TransferRequested(_))
    }

    fn react(&mut self, event: &Recorded<Bank>, effects: &mut Effects) -> Result<(), Refusal> {
        match &event.payload {
            Bank::TransferRequested(transfer) => self.transfer = transfer.clone(),
            Bank::Done { .. } => {}
            Bank::Failed { reason, .. } => {
                if let Some((command, _)) = self.begun.checked_sub(1).and_then(|last| STEPS.get(last)) {
                    effects.reject(*command, reason);
                }
                effects.compensate(reason);
                return Ok(());
            }
        }
        let Some((command, undo)) = STEPS.get(self.begun) else {
            effects.complete();
            return Ok(());
        };
        self.begun += 1;
        let step = effects
            .send(format!("transfer-commands.{command}"), &self.transfer)
            .step(*command)
            .within(minutes(1))
            .retry(2, seconds(1));
        match undo {
            Some(undo) => {
                step.undo(format!("transfer-commands.{undo}"), &self.transfer);
            }
            None => step.irreversible(),
        }
        Ok(())
    }
}

export!(saga TransferMoney);

#[cfg(test)]
mod tests {
    use super::*;
    use millstream_sdk::testing::{TestEvent, event, json, saga};

    fn requested() -> TestEvent {
        event("TransferRequested", json!({ "transfer": "t-1", "from": "A", "to": "B", "cents": 700 }))
    }

    fn done() -> TestEvent {
        event("Done", json!({ "transfer": "t-1" }))
    }

    fn failed() -> TestEvent {
        event("Failed", json!({ "transfer": "t-1", "reason": "the bank says no" }))
    }

    /// The commands in order, and how it ends, if this command fails.
    fn check<const N: usize>(failing: &str, commands: [&str; N], status: &str) {
        let (first, later) = commands.split_first().unwrap();
        let scenario = saga::<TransferMoney>()
            .when(requested())
            .then_commands([*first])
            .answer(|command| Some(if command.name == failing { failed() } else { done() }));
        let sent: Vec<&str> = scenario.last_sent().iter().map(|sent| sent.name.as_str()).collect();
        assert_eq!(sent, later, "{failing} fails");
        scenario.then_status("t-1", status);
    }

    /// The cases of `saga/workflow_test.go` and `workflow.go` in temporalio/samples-go, restated.
    #[test]
    fn commands_and_compensations_come_in_the_order_of_the_original() {
        let all = ["Withdraw", "Deposit", "StepWithError", "DepositCompensation", "WithdrawCompensation"];
        check("StepWithError", all, "compensated");
        check("Deposit", ["Withdraw", "Deposit", "WithdrawCompensation"], "compensated");
        check("Withdraw", ["Withdraw"], "compensated");
        check("none", ["Withdraw", "Deposit", "StepWithError"], "completed");
    }

    #[test]
    fn a_command_is_tried_three_times_and_what_may_have_been_done_is_taken_back() {
        saga::<TransferMoney>()
            .given([requested()])
            .reply("Withdraw", done())
            .then_commands(["Deposit"])
            .advance(seconds(200))
            .then_commands(["Deposit", "Deposit", "DepositCompensation"])
            .then_status("t-1", "compensating")
            .reply("Deposit", done())
            .then_commands(["WithdrawCompensation"])
            .reply("Withdraw", done())
            .then_commands([])
            .then_status("t-1", "compensated");
    }

    #[test]
    fn every_command_says_what_is_moved() {
        let transfer = json!({ "transfer": "t-1", "from": "A", "to": "B", "cents": 700 });
        saga::<TransferMoney>()
            .when(requested())
            .then_sent("Withdraw", &transfer)
            .reply("Withdraw", done())
            .then_sent("Deposit", &transfer)
            .reply("Deposit", failed())
            .then_sent("WithdrawCompensation", &transfer)
            .then_steps("t-1", [("Withdraw", "undoing"), ("Deposit", "rejected")]);
    }

    #[test]
    fn each_step_can_fail() {
        saga::<TransferMoney>().for_each_failing_step(
            requested(),
            |_| done(),
            |_| failed(),
            |_, story| {
                story.then_status("t-1", "compensated");
            },
        );
    }

    #[test]
    fn an_answer_to_no_transfer_is_set_aside() {
        saga::<TransferMoney>().when(done()).then_refused("no instance").then_no_instance("t-1");
    }
}
