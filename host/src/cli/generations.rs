//! What the commands for generations share: finds the handler and its ledger, tells how its generations are. Never: changes them.

use async_nats::jetstream::{self, Context};
use serde::Serialize;

use super::running::{self, Instead, Running};
use super::{Fault, connect, deploy, output, underway, versions};
use crate::generation::Generation;
use crate::generation::ledger::{self, Ledger, Refusal, Wanted};
use crate::parking::dead::DeadLetters;
use crate::progress::{Report, State};
use crate::rebuild::{self, Reach};
use crate::registry::{Deployment, Registry};
use crate::sandbox::wire::Kind;
use crate::survey;

/// State of the generation that readers see.
const LIVE: &str = "live";

/// State of a generation that shall take over.
const PROMOTING: &str = "promoting";

/// A deployed handler with its generations.
pub(super) struct Generations {
    pub(super) jetstream: Context,
    pub(super) registry: Registry,
    pub(super) handler: String,
    /// Of the module that runs.
    pub(super) deployment: Deployment,
    /// What is deployed, where that is another module.
    wanted: Option<Instead>,
    pub(super) ledger: Ledger,
}

/// One generation, as it is told.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Row {
    pub(super) handler: String,
    pub(super) generation: u32,
    pub(super) state: &'static str,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) reason: String,
    digest: String,
    label: String,
    /// Events that it has decided.
    pub(super) decided: u64,
    /// Events that wait for it.
    pub(super) waiting: u64,
    /// Keys whose events are set aside.
    pub(super) parked_keys: u64,
}

impl Generations {
    pub(super) async fn open(connection: &connect::Connection, handler: &str) -> Result<Self, Fault> {
        Self::of(jetstream::new(super::open(connection).await?), handler).await
    }

    /// The same on a connection that is there.
    pub(super) async fn of(jetstream: Context, handler: &str) -> Result<Self, Fault> {
        let (registry, revision, deployment) = versions::found(&jetstream, handler).await?;
        let ledger = ledger_of(&jetstream, handler).await?;
        let Running { deployment, wanted, .. } = running::of(&registry, handler, revision, &deployment).await?;
        Ok(Self { jetstream, registry, handler: handler.to_owned(), deployment, wanted, ledger })
    }

    /// Whether it is a projection or a saga; what it says of itself is asked of its module.
    pub(super) async fn kind(&self) -> Result<Kind, Fault> {
        let bytes = self.registry.module(self.deployment.digest).await?;
        let settings = self.deployment.settings.clone();
        Ok(deploy::examined(bytes, settings).await?.description.kind)
    }

    /// Reads the ledger again.
    pub(super) async fn refresh(&mut self) -> Result<(), Fault> {
        self.ledger = ledger::look(&self.jetstream, &self.handler).await?;
        Ok(())
    }

    /// The live generation, then the others.
    pub(super) async fn rows(&self) -> Result<Vec<Row>, Fault> {
        let mut rows = vec![self.row(self.ledger.live).await?];
        for shadow in &self.ledger.shadows {
            rows.push(self.row(shadow.number).await?);
        }
        Ok(rows)
    }

    /// One generation, shadow or live.
    pub(super) async fn row(&self, number: u32) -> Result<Row, Fault> {
        let shadow = self.ledger.shadow(number);
        let Deployment { digest, label, .. } = &self.deployment;
        let filters = match shadow {
            Some(shadow) if self.deployment.settings.subjects.is_empty() => &shadow.subjects[..],
            _ => self.deployment.filters(),
        };
        let streams = &self.deployment.settings.streams;
        let Reach { decided, waiting } =
            rebuild::reach(&self.jetstream, &self.handler, number, filters, streams).await?;
        let key = match shadow {
            Some(_) => rebuild::status_key(&self.handler, number),
            None => self.handler.clone(),
        };
        let report = self.registry.status(&key).await?.unwrap_or_default();
        let (name, live) = (&self.handler, shadow.is_none());
        let generation = if live { Generation::live(name, number) } else { Generation::shadow(name, number) };
        let (parked, _) = DeadLetters::of(&self.jetstream, &generation, 1).census().await.map_err(Fault::failed)?;
        let (state, mut reason) = self.state(number, &report, waiting);
        if let Some(wanted) = self.wanted.as_ref().filter(|_| state == LIVE) {
            reason = wanted.sentence();
        } else if state == PROMOTING {
            reason = self.what_holds_the_promotion().await?;
        }
        let (digest, label) = shadow.map_or((digest, label), |shadow| (&shadow.digest, &shadow.label));
        Ok(Row {
            handler: self.handler.clone(),
            generation: number,
            state,
            reason,
            digest: digest.to_string(),
            label: label.clone(),
            decided,
            waiting,
            parked_keys: parked.len() as u64,
        })
    }

    /// Why the promotion that is asked for does not get on; empty where it does, or there is none.
    pub(super) async fn what_holds_the_promotion(&self) -> Result<String, Fault> {
        let Some(promotion) = &self.ledger.promotion else { return Ok(String::new()) };
        underway::what_holds(&self.registry, &self.handler, self.deployment.desired, promotion).await
    }

    fn state(&self, number: u32, report: &Report, waiting: u64) -> (&'static str, String) {
        let promoting = self.ledger.promotion.as_ref().is_some_and(|promotion| promotion.to == number);
        let state = match self.ledger.shadow(number).map(|shadow| shadow.wanted) {
            None => LIVE,
            Some(_) if promoting => PROMOTING,
            Some(Wanted::Abandoned) => "abandoned",
            Some(_) if report.state == State::Failing => return ("failing", report.reason.clone()),
            Some(Wanted::Kept) => "kept",
            Some(Wanted::Building) if waiting == 0 && report.state == State::Running => "ready",
            Some(Wanted::Building) => "building",
        };
        (state, String::new())
    }
}

/// The ledger of a handler; refused where it was removed and is not what it would be from the beginning.
pub(super) async fn ledger_of(jetstream: &Context, handler: &str) -> Result<Ledger, Fault> {
    match survey::lost_ledger(jetstream, handler).await.map_err(Fault::failed)? {
        None => Ok(ledger::look(jetstream, handler).await?),
        Some(lost) => Err(Fault::usage(anyhow::anyhow!("handler {handler}: {lost}"))),
    }
}

/// What the user asked for cannot be.
pub(super) fn refused(refusal: Refusal) -> Fault {
    let hint = refusal.hint();
    Fault::usage(refusal).hint(hint)
}

/// A refusal is the user's to mend; all else is not.
pub(super) fn told(error: ledger::Error) -> Fault {
    match error {
        ledger::Error::Refused(refusal) => refused(refusal),
        error @ (ledger::Error::Unreachable { .. } | ledger::Error::Malformed { .. }) => Fault::failed(error),
    }
}

/// The rows as a table.
pub(super) fn table(rows: &[Row]) -> String {
    let cells = rows.iter().map(|row| {
        vec![
            row.generation.to_string(),
            row.state.to_owned(),
            row.digest.chars().take(12).collect(),
            row.label.clone(),
            output::thousands(row.decided),
            output::thousands(row.waiting),
            output::thousands(row.parked_keys),
        ]
    });
    output::table(
        &["GENERATION", "STATE", "MODULE", "LABEL", "DECIDED", "WAITING", "PARKED"],
        &[0, 4, 5, 6],
        cells.collect(),
    )
}
