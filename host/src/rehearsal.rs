//! Rehearsals: a new module runs on what is recorded, beside the one that is deployed, before it decides anything. In: two
//! versions, recorded events, instances as they are stored. Out: where the two differ. `side.rs` folds batches with one module
//! (`projection.rs`: those of a projection), `mark.rs` says what of an instance counts, `timers.rs` has the timers of the past fire again, `live.rs` compares
//! the two over the past of live instances, `verdict.rs` says what came of it, `instances.rs` reads those instances; `shadow.rs` compares all that the two do. Effects
//! are muted: they are looked at and dropped. Pure but for reading. Never: writes, publishes, or leaves a consumer behind.

pub mod instances;
mod live;
mod mark;
mod projection;
pub mod shadow;
mod side;
mod timers;
mod verdict;

use async_nats::jetstream::Context;

use crate::direct_get::From;
use crate::inputs::Input;
use crate::recorded::Past;
use crate::survey;
use crate::version::Version;
use instances::Live;
use live::Rehearsal;
pub use verdict::{Divergence, Verdict};

/// Events of one call, and their bytes.
const EVENTS: usize = 1000;
const BYTES: usize = 1 << 20;

/// What a new version of a saga makes of the past of live instances. `tell` hears how many events were read.
///
/// # Errors
/// When the server does not answer.
pub async fn of_instances(
    jetstream: &Context,
    handler: &str,
    inputs: &[Input],
    versions: (&Version, &Version),
    live: Live,
    mut tell: impl FnMut(u64),
) -> anyhow::Result<Verdict> {
    let (positions, _) = survey::decided(jetstream, handler).await?;
    let positions = positions.into_iter().map(|position| (position.stream, position.sequence)).collect();
    let mut rehearsal = Rehearsal::new(handler, versions, live, positions);
    let mut past = Past::open(jetstream, inputs, From::Sequence(1)).await?;
    while !rehearsal.has_seen_enough()
        && let Some((stream, arrivals)) = past.next(EVENTS, BYTES).await?
    {
        tokio::task::block_in_place(|| rehearsal.take(&stream, &arrivals))?;
        tell(rehearsal.events());
    }
    tokio::task::block_in_place(|| rehearsal.verdict())
}
