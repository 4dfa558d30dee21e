//! `millstream explain`: the story of one instance of a saga. In: its document, the journal and the streams. Out: a
//! tree for people, or JSON. Never: writes anything on the server.

use clap::Args;
use millstream_saga::{Instance, Status};

use super::instances::{Saga, no_instance};
use super::{Fault, connect, output};
use crate::generation::ledger;
use crate::names;
use crate::story::scan::{self, Document, Wanted};
use crate::story::{Story, drawing};

/// Tell the story of one instance of a saga.
#[derive(Debug, Args)]
pub(super) struct Explain {
    /// The handler.
    #[arg(value_parser = super::handler_name)]
    handler: String,
    /// The instance's key.
    key: String,
    /// Most messages of the streams to look at.
    #[arg(long, value_name = "MESSAGES", default_value_t = 100_000)]
    scan: usize,
}

impl Explain {
    pub(super) async fn run(self, connection: &connect::Connection, json: bool) -> Result<(), Fault> {
        let saga = Saga::open(connection, &self.handler).await?;
        let story = story(&saga, &self.key, self.scan).await?;
        let Some(story) = story else { return Err(no_instance(&self.handler, &self.key)) };
        if json {
            return Ok(output::json(&story)?);
        }
        Ok(output::line(&drawing::draw(&story, output::paints()))?)
    }
}

/// Whether its compensation failed, now or before somebody resumed it.
fn has_alerted(instance: &Instance) -> bool {
    let failed = Status::CompensationFailed.to_string();
    instance.status == Status::CompensationFailed
        || instance.history.iter().any(|transition| transition.did.ends_with(&failed))
}

/// The story of this instance, if there is anything left of it.
pub(crate) async fn story(saga: &Saga, key: &str, most: usize) -> Result<Option<Story>, Fault> {
    let found = saga.instance(key).await?;
    let document = found.map(|found| Document { instance: found.instance, record: found.record, stored: found.stored });
    let mut subjects: Vec<String> = saga.deployment.filters().iter().chain(&saga.facts.sends).cloned().collect();
    if document.as_ref().is_some_and(|document| has_alerted(&document.instance)) {
        subjects.push(names::event_subject(&saga.name, "compensation-failed"));
    }
    let streams = &saga.deployment.settings.streams;
    let generation = ledger::live(&saga.jetstream, &saga.name).await?;
    let wanted = Wanted { handler: &saga.name, generation, key, subjects: &subjects, streams, most };
    let sources = scan::sources(&saga.jetstream, &wanted, document).await?;
    Ok(sources.map(|sources| sources.tell()))
}
