//! Brings a generation to a stand and keeps it there. In: a handler, and the bound where it has to stop. Out: its last record, with
//! everything up to it shown and published, to which nothing but a `Close` may be added. Never: closes it; `promotion.rs` does,
//! once all is well.

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::Context;
use tokio::sync::watch;

use super::{Class, Error, FIRST_WAIT, Handler, LAST_WAIT};
use crate::clock;
use crate::generation::Bound;
use crate::journal::{self, Counts, Journal, Kind, Makes, Parking, Position, Record, Standing};
use crate::pipeline::{Parts, Pipeline, told_to_stop};
use crate::progress::State;
use crate::sandbox::Digest;

/// A generation that stands still, under a claim of ours.
pub(crate) struct Held {
    journal: Journal,
    /// Journal sequence of its last record.
    last: u64,
    claim: u64,
    makes: Option<Makes>,
    host: String,
    digest: Digest,
    bucket: i64,
    pub(crate) positions: Vec<Position>,
    counts: Counts,
    /// Units that it has set aside.
    in_line: u64,
    /// Everything up to the last record is published.
    acted: bool,
}

/// Why a generation cannot be brought to a stand.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unsettled {
    /// This host shall stop.
    #[error("the host was told to stop")]
    Stopped,
    /// Another host has it, or it is something else by now.
    #[error("{0}")]
    Fenced(String),
    /// A person must do something.
    #[error("{0}")]
    Failing(String),
    /// It took too long.
    #[error("it did not come to a stand within {0:?}: {1}")]
    Late(Duration, String),
}

impl Held {
    pub(super) fn of(handler: &Handler, pipeline: &Pipeline) -> Self {
        let Parts { documents, journal, outbox, .. } = pipeline.parts();
        let (positions, counts) = pipeline.stand();
        let digest = handler.version().digest;
        let last = pipeline.last();
        Self {
            journal,
            last,
            claim: pipeline.claim(),
            makes: pipeline.makes(),
            host: handler.host.clone(),
            digest,
            bucket: documents.created(),
            positions,
            counts,
            in_line: pipeline.in_line(),
            acted: outbox.is_none_or(|outbox| outbox.acted_through() >= last),
        }
    }

    /// Closes the generation at the bound, unless somebody has written to its journal since.
    ///
    /// # Errors
    /// `Fenced`, or `Unreachable` when the outcome is unknown.
    pub(crate) async fn close(&self, bound: &Bound) -> Result<u64, journal::Error> {
        let mut positions = self.positions.clone();
        for position in &mut positions {
            // Nothing of the handler's lies between.
            position.sequence = position.sequence.max(bound.of(&position.stream));
        }
        let record = Record {
            standing: Standing::Closed,
            previous: self.last,
            time: clock::now(),
            positions,
            counts: self.counts,
            shown_through: self.last,
            acted_through: self.last,
            bucket: self.bucket,
            parking: Parking { through: self.last, ..Parking::default() },
            makes: self.makes,
            in_line: self.in_line,
            ..Record::new(Kind::Close, self.claim, &self.host, self.digest)
        };
        self.journal.append(self.last, record.encode()?).await
    }
}

impl Handler {
    /// Claims the generation, decides up to the bound and no further, shows and publishes all of it.
    pub(crate) async fn settle(
        mut self,
        jetstream: &Context,
        bound: Bound,
        within: Duration,
        mut stop: watch::Receiver<bool>,
    ) -> Result<Held, Unsettled> {
        self.bound = Some(Arc::new(bound));
        let mut claimant = self.claimant();
        let deadline = tokio::time::Instant::now() + within;
        let mut wait = FIRST_WAIT;
        loop {
            let reason = match tokio::time::timeout_at(deadline, self.live(jetstream, &mut claimant, &mut stop)).await {
                _ if *stop.borrow() => return Err(Unsettled::Stopped),
                Ok(Ok(Some(held))) if held.acted => return Ok(held),
                Ok(Ok(_)) => "not all is published".to_owned(),
                Ok(Err(error)) => self.classed(&error)?,
                Err(_) => return Err(Unsettled::Late(within, self.what_holds())),
            };
            if tokio::time::Instant::now() >= deadline {
                return Err(Unsettled::Late(within, reason));
            }
            let _ = tokio::time::timeout(wait, told_to_stop(&mut stop)).await;
            wait = (wait * 2).min(LAST_WAIT);
        }
    }

    /// The reason to try again, or why that is of no use.
    fn classed(&self, error: &Error) -> Result<String, Unsettled> {
        let reason = error.explain(self.versions.borrow().saga.is_some(), &self.generation);
        match error.class() {
            Class::Fence => Err(Unsettled::Fenced(reason)),
            Class::Stop => {
                self.progress.set(State::Failing, &reason);
                Err(Unsettled::Failing(reason))
            }
            Class::Retry => Ok(reason),
        }
    }

    fn what_holds(&self) -> String {
        match self.progress.report(clock::now()).undelivered.first() {
            Some(effect) => format!("an effect for {} is not taken: {}", effect.subject, effect.reason),
            None => "too much is left to do".to_owned(),
        }
    }
}
