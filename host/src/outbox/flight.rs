//! Effects on their way: what the queue says comes next is begun, many at once, and what became of it is told to the queue. In: the
//! queue, and whether the handler is still ours. Out: messages in their streams. Never: sends anything while ownership is not
//! proved.

use std::collections::HashSet;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use async_nats::Client;
use async_nats::connection::State;
use futures::stream::FuturesUnordered;
use futures::{FutureExt as _, StreamExt as _};
use tokio::time::Instant;

use super::effect::Effect;
use super::lane::Step;
use super::stamp::Stamp;
use super::targets::Target;
use super::{Error, Outbox, lock, refused, rendering};
use crate::acks::{self, Ack, Acks, Answer};
use crate::clock;
use crate::crash;
use crate::publication::Publication;
use crate::traces::{self, Stored};

/// Ownership is proved again after this at the latest.
const PATIENCE: Duration = Duration::from_secs(1);

/// Looking for ids takes no longer.
const LOOK_WITHIN: Duration = Duration::from_secs(30);

/// While the connection is down, or the journal does not answer.
const WAIT: Duration = Duration::from_millis(50);

/// Something on the way.
enum Begun {
    Find(Arc<str>),
    Look(Arc<str>, Arc<Target>, HashSet<String>, i64),
    Send(Arc<str>, Arc<Target>, Box<Effect>, Result<Answer, acks::Error>),
}

/// What became of it.
enum Done {
    Found(Arc<str>, Result<Option<Arc<Target>>, String>),
    Looked {
        lane: Arc<str>,
        target: Arc<Target>,
        ids: HashSet<String>,
        at: Stamp,
        present: Result<HashSet<String>, String>,
    },
    Sent {
        lane: Arc<str>,
        target: Arc<Target>,
        effect: Box<Effect>,
        answer: Result<Ack, acks::Error>,
    },
}

impl Outbox {
    /// Publishes until the claim ends. `still_ours` reads the last record of the journal from its leader and says whether it is
    /// this claim's.
    ///
    /// # Errors
    /// When the handler is not ours any more, or the connection is closed.
    pub async fn run<F, O>(&self, still_ours: F) -> Result<Infallible, Error>
    where
        F: Fn() -> O,
        O: Future<Output = Result<bool, String>>,
    {
        let client = self.jetstream.client();
        let acks = Acks::open(&client).await.map_err(|error| Error::Unreachable(error.to_string()))?;
        let mut under_way = FuturesUnordered::new();
        loop {
            while under_way.len() < self.limits.in_flight {
                let now = Stamp::now();
                let step = lock(&self.queue).next(now, Instant::now());
                let begun = match step {
                    None => break,
                    Some(Step::Find(lane)) => Begun::Find(lane),
                    Some(Step::Look(lane, target, ids, since)) => Begun::Look(lane, target, ids, since),
                    Some(Step::Send(lane, target, effect)) => {
                        if client.connection_state() != State::Connected || !self.is_owned(&target, now) {
                            // Whether it is in its stream is judged again, for this can take long.
                            lock(&self.queue).unsent(&lane, effect);
                            self.wait_to_be_owner(&client, &still_ours).await?;
                            continue;
                        }
                        crash::point("publishing");
                        let answer = acks.publish(self.rendered(&target, &effect, now)).await;
                        Begun::Send(lane, target, effect, answer)
                    }
                };
                under_way.push(self.end(begun));
            }
            let pause = lock(&self.queue).next_pause();
            tokio::select! {
                Some(done) = under_way.next(), if !under_way.is_empty() => {
                    self.settle(done);
                    while let Some(Some(done)) = under_way.next().now_or_never() {
                        self.settle(done);
                    }
                    self.tell();
                }
                () = self.arrived.notified() => {}
                () = tokio::time::sleep_until(pause.unwrap_or_else(Instant::now)), if pause.is_some() => {}
            }
        }
    }

    /// Whether the handler was ours a moment ago.
    fn is_owned(&self, target: &Target, now: Stamp) -> bool {
        let owned = *lock(&self.owned);
        owned.is_some_and(|owned| owned.age(now) <= PATIENCE.min(target.window / 4))
    }

    async fn wait_to_be_owner<F, O>(&self, client: &Client, still_ours: &F) -> Result<(), Error>
    where
        F: Fn() -> O,
        O: Future<Output = Result<bool, String>>,
    {
        loop {
            let asked = Stamp::now();
            let answer = match client.connection_state() {
                State::Connected => still_ours().await,
                _ => Err("the connection is down".to_owned()),
            };
            match answer {
                Ok(true) => {
                    *lock(&self.owned) = Some(asked);
                    return Ok(());
                }
                Ok(false) => return Err(Error::Fenced),
                Err(reason) => {
                    tracing::debug!(handler = self.handler, reason, "effects wait for the journal's word");
                    tokio::time::sleep(WAIT).await;
                }
            }
        }
    }

    fn rendered(&self, target: &Target, effect: &Effect, now: Stamp) -> Publication {
        let Effect { outgoing, body, decided, .. } = effect;
        let mut publication =
            rendering::publication(outgoing, body, &self.handler, *decided, now.wall, target.allows_ttl);
        // A cancellation belongs to no trace.
        if let Some(context) = effect.context.as_ref().filter(|_| effect.is_unique()) {
            context.write(&mut publication.headers, effect.id());
        }
        publication
    }

    async fn end(&self, begun: Begun) -> Done {
        match begun {
            Begun::Find(lane) => {
                let target = Box::pin(self.targets.find(&lane)).await;
                Done::Found(lane, target)
            }
            Begun::Look(lane, target, ids, since) => {
                let at = Stamp::now();
                // It may have been stored so long before the record, by the server's clock or ours.
                let since = since.saturating_sub(clock::SKEW);
                let look = Box::pin(self.targets.present(&target, &lane, ids.clone(), since));
                let present = tokio::time::timeout(LOOK_WITHIN, look).await;
                let present = present.unwrap_or_else(|_| Err(format!("no answer within {LOOK_WITHIN:?}")));
                Done::Looked { lane, target, ids, at, present }
            }
            Begun::Send(lane, target, effect, answer) => {
                let answer = match answer {
                    Ok(answer) => answer.await,
                    Err(error) => Err(error),
                };
                Done::Sent { lane, target, effect, answer }
            }
        }
    }

    /// Tells who follows traces.
    fn note(&self, effect: &Effect, ack: &Ack) {
        let Effect { outgoing, record, decided, context, .. } = effect;
        let (handler, stream) = (&self.handler, &ack.stream);
        let stored = Stored { handler, outgoing, record: *record, decided: *decided, stream, duplicate: ack.duplicate };
        traces::effect_is_stored(context.as_deref(), &stored);
    }

    fn settle(&self, done: Done) {
        let now = Instant::now();
        let (mut queue, mut counts) = (lock(&self.queue), lock(&self.counts));
        match done {
            Done::Found(lane, target) => queue.found(&lane, target, now),
            Done::Looked { lane, target, ids, at, present } => {
                if present.is_err() {
                    self.targets.forget(&target);
                }
                counts.known += queue.looked(&lane, &ids, at, present, now);
            }
            Done::Sent { lane, target, effect, answer: Ok(ack) } => {
                if *ack.stream != *target.stream {
                    self.targets.forget(&target);
                    queue.forget_target(&lane);
                }
                if ack.duplicate {
                    counts.known += 1;
                } else {
                    counts.published += 1;
                }
                self.note(&effect, &ack);
                crash::point("published");
                queue.sent(&lane, effect, now);
            }
            Done::Sent { lane, target, effect, answer: Err(error) } => {
                counts.failed += 1;
                if let Some(reason) = refused::reason(&error, &target.stream) {
                    queue.refused(&lane, effect, reason, now);
                    return;
                }
                self.targets.forget(&target);
                queue.failed(&lane, effect, error.to_string(), now);
            }
        }
    }
}
