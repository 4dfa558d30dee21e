//! A handler that has to stop at exact positions. In: the bound, and the events that are decided. Out: the word to stop, as soon
//! as no event up to the bound is left. Never: lets the pipeline pass the bound; that itself leaves out what lies behind it.

use std::time::Duration;

use async_nats::jetstream::Context;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::Handler;
use crate::generation::Bound;
use crate::inputs::Input;
use crate::intake::next_after;
use crate::pipeline;

/// How often the positions are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// The word to stop, from whoever says it first: the bound, or whoever may stop the handler anyway.
pub(super) struct Bounded {
    pub(super) stop: watch::Receiver<bool>,
    task: JoinHandle<()>,
}

impl Drop for Bounded {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Handler {
    /// Nothing where no bound is set.
    pub(super) async fn bounded(
        &self,
        jetstream: &Context,
        at: &[(Input, u64)],
        stop: &watch::Receiver<bool>,
    ) -> Option<Bounded> {
        let bound = self.bound.clone()?;
        let inputs: Vec<Input> = at.iter().map(|(input, _)| input.clone()).collect();
        let here = at.iter().all(|(input, position)| *position >= bound.of(&input.stream));
        let (sender, receiver) = watch::channel(here);
        let (jetstream, progress, mut stop) = (jetstream.clone(), self.progress.clone(), stop.clone());
        let task = tokio::spawn(async move {
            let reached = async {
                while !is_reached(&jetstream, &inputs, &bound, &progress.positions()).await {
                    tokio::time::sleep(LOOK_EVERY).await;
                }
            };
            tokio::select! {
                () = reached => {}
                () = pipeline::told_to_stop(&mut stop) => {}
            }
            let _ = sender.send(true);
            // The word stays said for as long as somebody may listen.
            std::future::pending::<()>().await;
        });
        Some(Bounded { stop: receiver, task })
    }
}

/// Whether no input has an event after its position and up to the bound. A server that does not answer is asked again.
async fn is_reached(
    jetstream: &Context,
    inputs: &[Input],
    bound: &Bound,
    positions: &[crate::journal::Position],
) -> bool {
    for input in inputs {
        let last = bound.of(&input.stream);
        let position = positions.iter().find(|position| position.stream == input.stream);
        let position = position.map_or(0, |position| position.sequence);
        if position >= last {
            continue;
        }
        match next_after(jetstream, input, position).await {
            Ok(next) if next.is_none_or(|next| next > last) => {}
            Ok(_) => return false,
            Err(reason) => {
                tracing::debug!(stream = input.stream, reason, "the bound waits for the server");
                return false;
            }
        }
    }
    true
}
