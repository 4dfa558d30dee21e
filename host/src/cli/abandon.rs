//! `millstream abandon`: removes a generation that is not live: its bucket, its consumers, its records.

use std::time::Duration;

use clap::Args;

use super::generations::{Generations, refused, told};
use super::{Fault, connect, underway};
use crate::generation::Generation;
use crate::generation::ledger::Ledgers;
use crate::rebuild;

/// How often the ledger is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Remove a generation that is not live.
#[derive(Debug, Args)]
pub(super) struct Abandon {
    /// The handler.
    #[arg(value_parser = super::handler_name)]
    handler: String,
    /// Which generation; what is removed must be named.
    #[arg(long, value_name = "N")]
    generation: Option<u32>,
    /// As for other commands that remove something; nothing is asked here.
    #[arg(long, hide = true)]
    yes: bool,
    /// How long to wait for a host to do it.
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    timeout: u64,
}

impl Abandon {
    pub(super) async fn run(self, connection: &connect::Connection) -> Result<(), Fault> {
        let handler = &self.handler;
        let mut generations = Generations::open(connection, handler).await?;
        let number = &self.generation.ok_or_else(|| which(&generations))?;
        let mut asked = generations.ledger.clone();
        asked.abandon(handler, *number).map_err(refused)?;
        let ledgers = Ledgers::open(&generations.jetstream).await?;
        ledgers.change(handler, |ledger| ledger.abandon(handler, *number)).await.map_err(told)?;
        // Where no host looks after it, nobody holds it.
        if underway::nobody(&generations.registry, handler).await?.is_some() {
            rebuild::clear_away(&generations.jetstream, &generations.registry, &Generation::shadow(handler, *number))
                .await?;
            let forget = ledgers.change(handler, |ledger| {
                ledger.forget(*number);
                Ok(())
            });
            forget.await.map_err(told)?;
        }
        let deadline = tokio::time::Instant::now() + Duration::from_secs(self.timeout);
        loop {
            generations.refresh().await?;
            if generations.ledger.shadow(*number).is_none() {
                eprintln!("generation {number} of {handler} is removed");
                return Ok(());
            }
            if tokio::time::Instant::now() >= deadline {
                return Err(Fault::failed(anyhow::anyhow!(
                    "no host has removed it within {} s; it stays asked for",
                    self.timeout
                ))
                .hint(format!("see who runs it with `millstream list`, and `millstream rebuild {handler} --list`")));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

/// Nobody said which.
fn which(generations: &Generations) -> Fault {
    let Generations { handler, ledger, .. } = generations;
    match ledger.shadows.as_slice() {
        [] => Fault::usage(anyhow::anyhow!(
            "handler {handler} has one generation, {}, and it is live: there is nothing to remove",
            ledger.live
        ))
        .hint(format!("see its generations with `millstream rebuild {handler} --list`")),
        [one, ..] => {
            let numbers: Vec<String> = ledger.shadows.iter().map(|shadow| shadow.number.to_string()).collect();
            Fault::usage(anyhow::anyhow!(
                "which generation of handler {handler} shall be removed is not said; beside the live one there are {}",
                numbers.join(", ")
            ))
            .hint(format!(
                "see them with `millstream rebuild {handler} --list`, then `millstream abandon {handler} --generation {}`",
                one.number
            ))
        }
    }
}
