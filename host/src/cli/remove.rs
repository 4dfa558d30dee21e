//! `millstream remove`: takes a handler off its hosts. What it decided stays unless that is asked for by name, because it cannot
//! be had again for nothing. In: the handler. Out: nothing left of it on hosts and input streams. Never: touches a user's stream.

use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use async_nats::jetstream::{self, Context};
use clap::Args;
use serde::Serialize;
use tokio::time::Instant;

use super::{Fault, connect, generations, output, versions};
use crate::board;
use crate::generation::Generation;
use crate::generation::ledger::{self, Ledgers, Refusal};
use crate::inputs;
use crate::intake;
use crate::names;
use crate::parking::dead::DeadLetters;
use crate::parking::wishes::Wishes;
use crate::rebuild::{self, Traces};
use crate::registry::{Deployment, Registry};
use crate::survey;

/// How long hosts have to end it.
const WAIT: Duration = Duration::from_secs(15);
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// What whoever waits for a promotion hears when its handler is removed.
const REMOVED: &str = "the handler was removed";

/// Take a handler off its hosts.
#[derive(Debug, Args)]
pub(super) struct Remove {
    /// The handler.
    #[arg(value_parser = super::handler_name)]
    handler: String,
    /// Its documents and its journal, too: they are gone for good.
    #[arg(long)]
    with_documents: bool,
    /// Do not ask.
    #[arg(long)]
    yes: bool,
}

#[derive(Serialize)]
struct Removed {
    handler: String,
    consumers: Vec<String>,
    streams: Vec<String>,
    /// What goes of the generations beside the live one.
    generations: Vec<Traces>,
    timers: u64,
}

impl Remove {
    pub(super) async fn run(self, connection: &connect::Connection, json: bool) -> Result<(), Fault> {
        let name = &self.handler;
        let jetstream = jetstream::new(super::open(connection).await?);
        let registry = Registry::peek(&jetstream).await?.ok_or_else(|| versions::not_deployed(name))?;
        // One that cannot be read must go as well.
        let deployed = registry.deployments().await?.into_iter().find(|(deployed, _)| deployed == name);
        let deployment = match deployed {
            Some((_, deployment)) => deployment.ok(),
            None => {
                self.check_left(&jetstream).await?;
                None
            }
        };
        let inputs = self.inputs(&jetstream, deployment.as_ref()).await;
        let consumers = self.consumers(&jetstream, &inputs).await;
        let streams = if self.with_documents { self.streams(&jetstream).await? } else { Vec::new() };
        let generations = self.generations(&jetstream, &inputs).await?;
        self.confirm(&consumers, &streams, &generations)?;

        registry.remove(name).await?;
        self.wait_for_hosts(&registry).await?;
        self.take_promotion_back(&jetstream).await?;
        for stream in &consumers {
            delete_consumer(&jetstream, stream, name).await?;
        }
        rebuild::take_off(&jetstream, &registry, name, &inputs, self.with_documents).await?;
        if self.with_documents {
            let live = ledger::live(&jetstream, name).await.map_err(Fault::failed)?;
            forget_parked(&jetstream, &Generation::live(name, live)).await?;
        }
        registry.forget_all(name).await?;
        let timers = if self.with_documents { purge_timers(&jetstream, name).await? } else { 0 };
        for stream in &streams {
            jetstream.delete_stream(stream).await.map_err(Fault::failed)?;
        }
        // Hosts do the same; there may be none.
        if let Err(error) = board::clear_all(&jetstream, name).await {
            eprintln!("warning: its alerts are left to a host to clear: {error}");
        }
        let removed = Removed { handler: name.clone(), consumers, streams, generations, timers };
        if json {
            return Ok(output::json(&removed)?);
        }
        eprintln!("removed {name}");
        if !self.with_documents {
            eprintln!(
                "its documents stay in bucket {name}; deployed again under this name it goes on where it stopped"
            );
        }
        Ok(())
    }

    /// A handler that was removed may have left its documents.
    async fn check_left(&self, jetstream: &Context) -> Result<(), Fault> {
        if self.streams(jetstream).await?.is_empty() {
            return Err(versions::not_deployed(&self.handler));
        }
        if self.with_documents {
            return Ok(());
        }
        Err(Fault::usage(anyhow::anyhow!("handler {} was removed already, and its documents were kept", self.handler))
            .hint("add --with-documents to remove those too"))
    }

    /// Streams that it reads as it is deployed, or has read as far as its journal tells: what is deployed may never have run.
    async fn inputs(&self, jetstream: &Context, deployment: Option<&Deployment>) -> Vec<String> {
        let mut streams = vec![names::TIMERS.to_owned()];
        if let Some(deployment) = deployment {
            let inputs = inputs::resolve(jetstream, deployment.filters(), &deployment.settings.streams).await;
            streams.extend(inputs.into_iter().flatten().map(|input| input.stream));
        }
        let read = survey::decided(jetstream, &self.handler).await.unwrap_or_default().0;
        streams.extend(read.into_iter().map(|position| position.stream));
        streams.sort();
        streams.dedup();
        streams
    }

    /// Those on which the live generation has a consumer.
    async fn consumers(&self, jetstream: &Context, inputs: &[String]) -> Vec<String> {
        let mut ours = Vec::new();
        for stream in inputs {
            if let Ok(true) = intake::check_consumer(jetstream, &Generation::first(&self.handler), stream).await {
                ours.push(stream.clone());
            }
        }
        ours
    }

    /// What goes of the generations beside the live one.
    async fn generations(&self, jetstream: &Context, inputs: &[String]) -> Result<Vec<Traces>, Fault> {
        let mut all = rebuild::traces(jetstream, &self.handler, inputs).await?;
        if !self.with_documents {
            all.iter_mut().for_each(|traces| traces.bucket = None);
            all.retain(|traces| !traces.consumers.is_empty());
        }
        Ok(all)
    }

    /// Its bucket and its journal, where they are its own.
    async fn streams(&self, jetstream: &Context) -> Result<Vec<String>, Fault> {
        let mut ours = Vec::new();
        for name in [names::bucket_stream(&self.handler), names::journal_stream(&self.handler)] {
            match jetstream.get_stream(&name).await {
                Ok(stream) if names::is_ours(&stream.cached_info().config.metadata, &self.handler) => ours.push(name),
                Ok(_) => {
                    return Err(Fault::usage(anyhow::anyhow!("stream {name} was not made for this handler"))
                        .hint("leave out --with-documents, or move the stream away with the nats CLI"));
                }
                Err(_) => {}
            }
        }
        Ok(ours)
    }

    /// Names what goes, and has a person say yes.
    fn confirm(&self, consumers: &[String], streams: &[String], generations: &[Traces]) -> Result<(), Fault> {
        eprintln!("this ends handler {} on every host", self.handler);
        for stream in consumers {
            eprintln!("  and removes its consumer on stream {stream}");
        }
        for stream in streams {
            eprintln!("  and removes stream {stream} with all that is in it");
        }
        for Traces { generation, name, consumers, bucket } in generations {
            for stream in consumers {
                eprintln!("  and removes consumer {name} of generation {generation} on stream {stream}");
            }
            if let Some(bucket) = bucket {
                eprintln!("  and removes stream {bucket} of generation {generation} with all that is in it");
            }
        }
        if self.yes {
            return Ok(());
        }
        if !std::io::stdin().is_terminal() {
            return Err(Fault::usage(anyhow::anyhow!("nobody is there to be asked; nothing was removed"))
                .hint("say yes beforehand with --yes"));
        }
        eprint!("type the handler's name to go on: ");
        let _ = std::io::stderr().flush();
        let mut answer = String::new();
        std::io::stdin().read_line(&mut answer).map_err(Fault::failed)?;
        if answer.trim() == self.handler {
            return Ok(());
        }
        Err(Fault::usage(anyhow::anyhow!("`{}` is not its name; nothing was removed", answer.trim()))
            .hint("try again, or use --yes"))
    }

    /// Takes back a promotion that is asked for: whatever is deployed under this name next, nobody wants it of that. One whose cut is
    /// decided goes through at the next start.
    async fn take_promotion_back(&self, jetstream: &Context) -> Result<(), Fault> {
        let name = &self.handler;
        if ledger::look(jetstream, name).await?.promotion.is_none() {
            return Ok(());
        }
        let ledgers = Ledgers::open(jetstream).await?;
        match ledgers.change(name, |ledger| ledger.take_back(name, None, REMOVED)).await {
            Ok(_) | Err(ledger::Error::Refused(Refusal::NothingUnderWay(_) | Refusal::IsCut { .. })) => Ok(()),
            Err(error) => Err(generations::told(error)),
        }
    }

    /// Every live host forgets what it said of the handler when it has ended it.
    async fn wait_for_hosts(&self, registry: &Registry) -> Result<(), Fault> {
        let deadline = Instant::now() + WAIT;
        let hosts = registry.live_hosts().await?;
        for host in hosts.iter().filter(|host| host.looks_after(&self.handler)) {
            while registry.verdict(&self.handler, &host.name).await?.is_some() {
                // It ended a moment ago, and the handler with it.
                if registry.announced(&host.name).await?.is_none() {
                    break;
                }
                if Instant::now() > deadline {
                    return Err(Fault::failed(anyhow::anyhow!(
                        "the deployment is gone, but host {} has not ended the handler within {WAIT:?}; \
                         nothing else was removed",
                        host.name
                    ))
                    .hint("look at that host's log; then deploy and remove again"));
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
        }
        Ok(())
    }
}

async fn delete_consumer(jetstream: &Context, stream: &str, name: &str) -> Result<(), Fault> {
    jetstream.delete_consumer_from_stream(name, stream).await.map(drop).map_err(Fault::failed)
}

/// Removes the dead letters of a handler whose other generations are gone.
async fn forget_parked(jetstream: &Context, live: &Generation) -> Result<(), Fault> {
    DeadLetters::of(jetstream, live, 1).clear().await.map_err(Fault::failed)?;
    Wishes::of(jetstream, live).forget().await.map_err(Fault::failed)
}

/// Removes timers that nobody will hear.
async fn purge_timers(jetstream: &Context, name: &str) -> Result<u64, Fault> {
    let Ok(stream) = jetstream.get_stream(names::TIMERS).await else { return Ok(0) };
    let purged = stream.purge().filter(names::timer_handler_subjects(name)).await;
    Ok(purged.map_err(Fault::failed)?.purged)
}
