//! `millstream diff`: how the documents of a rebuilt generation differ from the live ones.

use clap::Args;

use super::generations::{Generations, refused};
use super::{Fault, connect, output, reasons};
use crate::comparison::{Comparison, Kind, Pair, Sample};
use crate::sandbox::wire;

/// Characters of a document that people see.
const WIDTH: usize = 160;

/// Compare a rebuilt generation with the live one.
#[derive(Debug, Args)]
pub(super) struct Diff {
    /// The handler.
    #[arg(value_parser = super::handler_name)]
    handler: String,
    /// Which generation, where there are several.
    #[arg(long, value_name = "N")]
    generation: Option<u32>,
    /// So many differences in full.
    #[arg(long, value_name = "N", default_value_t = 10)]
    samples: usize,
}

impl Diff {
    pub(super) async fn run(self, connection: &connect::Connection, json: bool) -> Result<(), Fault> {
        let generations = Generations::open(connection, &self.handler).await?;
        let other = generations.ledger.meant(&self.handler, self.generation).map_err(refused)?.number;
        warn(&generations, other).await?;
        let comparison = compare(&generations, other, self.samples).await?;
        if json {
            return Ok(output::json(&comparison)?);
        }
        tell(&comparison)
    }
}

/// Says where the generation is not yet, or never will be, what it could be.
async fn warn(generations: &Generations, other: u32) -> Result<(), Fault> {
    let row = generations.row(other).await?;
    if row.state == "failing" {
        let hint = reasons::hint_for_generation(&row.handler, other, &row.reason);
        let reason = output::legible(&row.reason);
        eprintln!("warning: generation {other} is failing, and stands where it stopped: {reason}\nhint: {hint}");
    } else if row.waiting > generations.deployment.settings.near() {
        let waiting = output::thousands(row.waiting);
        eprintln!(
            "warning: generation {other} is behind: {waiting} events wait for it\nhint: see how it gets on with `millstream rebuild {} \
             --list`, and compare again",
            row.handler
        );
    }
    Ok(())
}

/// Compares a generation with the live one.
pub(super) async fn compare(generations: &Generations, other: u32, samples: usize) -> Result<Comparison, Fault> {
    let Generations { jetstream, handler, ledger, .. } = generations;
    let instances = generations.kind().await? == wire::Kind::Saga;
    Ok(Pair::new(jetstream, handler, ledger.live, other, instances).compare(samples).await?)
}

fn tell(comparison: &Comparison) -> Result<(), Fault> {
    let Comparison { live, other, equal, changed, added, removed, moving, samples } = comparison;
    let counts = [("equal", equal), ("changed", changed), ("added", added), ("removed", removed), ("moving", moving)];
    let rows = counts.iter().map(|(what, count)| vec![(*what).to_owned(), output::thousands(**count)]).collect();
    eprintln!("generation {other} compared with generation {live}, which is live");
    output::line(&output::table(&["DOCUMENTS", ""], &[1], rows))?;
    for sample in samples {
        output::line(&shown(sample))?;
    }
    if *moving > 0 {
        eprintln!("moving: one generation has not decided yet what the other has; compare again when it has caught up");
    }
    Ok(())
}

fn shown(sample: &Sample) -> String {
    let Sample { key, kind, live, other, live_event, other_event } = sample;
    let kind = match kind {
        Kind::Changed => "changed",
        Kind::Added => "added",
        Kind::Removed => "removed",
    };
    let mut lines = format!("\n{kind} {key}");
    for (sign, document, event) in [('-', live, live_event), ('+', other, other_event)] {
        if let Some(document) = document {
            let event = event.as_deref().map(|event| format!("  after {event}")).unwrap_or_default();
            lines.push_str(&format!("\n  {sign} {}{event}", output::cut(&document.to_string(), WIDTH)));
        }
    }
    lines
}
