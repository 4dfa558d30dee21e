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
