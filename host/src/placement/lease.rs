//! This host among the others. In: what it looks after. Out: a word that it lives, several times a second, and a view of all hosts as
//! they say it of themselves. Never: decides what is done about it.
//!
//! A host is gone when it is silent for the length of a lease, when it says so, or when it is silent for a while and nobody listens at its
//! own subject any more: the server knows at once that a process has ended. An answer there is a word like any other. Ages are measured by this host's clock from the
//! moment a word arrives; only what was said before it began to listen is dated by the server's.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_nats::Client;
use async_nats::client::RequestErrorKind;
use async_nats::jetstream::Context;
use async_nats::jetstream::kv::{Entry, Operation};
use futures::StreamExt as _;
use time::OffsetDateTime;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::holdings::Holdings;
use super::{ANNOUNCE_EVERY, LEASE, Seen, View};
use crate::keys;
use crate::names;
use crate::registry::{Host, Registry};
use crate::vitals::{Loop, Vitals};

/// A word that is not acknowledged within this is given up for the next one.
const ANNOUNCED_WITHIN: Duration = Duration::from_secs(1);

/// A host that is silent for so long is asked whether it is there.
const ASKED_AFTER: Duration = Duration::from_millis(600);
const ANSWERED_WITHIN: Duration = Duration::from_millis(500);

/// After an outage hosts come back one by one: for so long none of them is asked, nor taken for gone.
const GRACE: Duration = Duration::from_secs(3);

/// A watch that does not bring our own word back for so long is begun again.
const WATCH_AGAIN_AFTER: Duration = Duration::from_secs(3);

/// Hosts that are gone for so long are forgotten.
const FORGET_AFTER: Duration = Duration::from_secs(60);

/// This host's place among the others.
pub(crate) struct Lease {
    shared: Arc<Shared>,
    leaving: watch::Sender<bool>,
    tasks: JoinSet<()>,
    registry: Registry,
    name: String,
}

#[derive(Default)]
struct Shared {
    view: Mutex<View>,
    changed: Notify,
    /// Others are watched: our own word will come after theirs.
    watching: Notify,
    replaced: Mutex<bool>,
}

impl Shared {
    fn view(&self) -> MutexGuard<'_, View> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lease {
    /// Begins to announce this host, and to look out for others.
    pub(crate) async fn start(
        jetstream: &Context,
        registry: &Registry,
        me: Host,
        holdings: &Arc<Holdings>,
        vitals: &Arc<Vitals>,
    ) -> Self {
        let shared = Arc::new(Shared::default());
        let (leaving, leaves) = watch::channel(false);
        let mut tasks = JoinSet::new();
        let answers = answer(&jetstream.client(), &me.name, &mut tasks).await;
        let me = Host { answers, ..me };
        let name = me.name.clone();
        let reader = Reader {
            registry: registry.clone(),
            client: jetstream.client(),
            me: me.clone(),
            shared: Arc::clone(&shared),
            early: Vec::new(),
            asking: JoinSet::new(),
            connects: connects(&jetstream.client()),
        };
        tasks.spawn(reader.run());
        let announcer = Announcer {
            jetstream: jetstream.clone(),
            registry: registry.clone(),
            me,
            holdings: Arc::clone(holdings),
            vitals: Arc::clone(vitals),
            leaves,
            shared: Arc::clone(&shared),
        };
        tasks.spawn(announcer.run());
        Self { shared, leaving, tasks, registry: registry.clone(), name }
    }

    /// All hosts as this one sees them now.
    pub(crate) fn view(&self) -> View {
        self.shared.view().clone()
    }

    /// Resolves when hosts came, went, or let go of something; one waits at a time.
    pub(crate) async fn changed(&self) {
        self.shared.changed.notified().await;
    }

    /// Whether a host of the same name began after this one.
    pub(crate) fn is_replaced(&self) -> bool {
        *self.shared.replaced.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nothing shall be handed to this host any more.
    pub(crate) fn leave(&self) {
        self.leaving.send_replace(true);
    }

    /// Takes this host's name from the list.
    pub(crate) async fn end(mut self) {
        self.tasks.shutdown().await;
        if !self.is_replaced() {
            let gone = tokio::time::timeout(ANNOUNCED_WITHIN, self.registry.retire(&self.name)).await;
            if !matches!(gone, Ok(Ok(()))) {
                tracing::debug!(host = self.name, "its name stays in the list of hosts for some seconds");
            }
        }
    }
}

/// Answers whoever asks whether this host is there; false where this user may not do that.
async fn answer(client: &Client, name: &str, tasks: &mut JoinSet<()>) -> bool {
    let subject = names::host_subject(name);
    let Ok(mut questions) = client.subscribe(subject.clone()).await else { return false };
    let answering = client.clone();
    tasks.spawn(async move {
        while let Some(question) = questions.next().await {
            if let Some(reply) = question.reply {
                let _ = answering.publish(reply, bytes::Bytes::new()).await;
            }
        }
    });
    let asked = tokio::time::timeout(ANSWERED_WITHIN, client.request(subject, bytes::Bytes::new())).await;
    matches!(asked, Ok(Ok(_)))
}

/// Says that this host lives.
struct Announcer {
    jetstream: Context,
    registry: Registry,
    me: Host,
    holdings: Arc<Holdings>,
    vitals: Arc<Vitals>,
    leaves: watch::Receiver<bool>,
    shared: Arc<Shared>,
}

impl Announcer {
    async fn run(mut self) {
        let mut is_heard = true;
        let _ = tokio::time::timeout(ANNOUNCE_EVERY, self.shared.watching.notified()).await;
        let mut ticks = tokio::time::interval(ANNOUNCE_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = self.holdings.changed() => {}
                Ok(()) = self.leaves.changed() => {}
            }
            self.vitals.beat(Loop::Announcing);
            self.me.leaving = *self.leaves.borrow_and_update();
            (self.me.holds, self.me.declines) = self.holdings.all();
            let said = tokio::time::timeout(ANNOUNCED_WITHIN, self.registry.announce(&self.me)).await;
            let Err(reason) = said
                .map_err(|_| "the server does not answer".to_owned())
                .and_then(|said| said.map_err(|error| error.to_string()))
            else {
                is_heard = true;
                continue;
            };
            if std::mem::replace(&mut is_heard, false) {
                tracing::warn!(
                    host = self.me.name,
                    reason,
                    "this host cannot announce itself; until it can it goes on with what it runs, and takes no more"
                );
            }
            if let Err(error) = self.registry.mend_hosts(&self.jetstream).await {
                tracing::debug!(%error, "the list of hosts cannot be made anew");
            }
        }
    }
}

/// Follows what hosts say of themselves.
struct Reader {
    registry: Registry,
    client: Client,
    me: Host,
    shared: Arc<Shared>,
    /// What was said before this watch began, with the server's time, until our own word dates it.
    early: Vec<(String, OffsetDateTime)>,
    asking: JoinSet<Asked>,
    /// How often we have been connected: a server that restarts lost the others too.
    connects: u64,
}

impl Reader {
    async fn run(mut self) {
        loop {
            match self.registry.watch_hosts().await {
                Ok(mut entries) => {
                    let began = Instant::now();
                    self.early.clear();
                    self.shared.watching.notify_one();
                    self.watch(&mut entries, began).await;
                }
                Err(error) => tracing::debug!(%error, "hosts cannot be watched; trying again"),
            }
            tokio::time::sleep(ANNOUNCE_EVERY).await;
        }
    }

    /// Until the watch ends or falls silent.
    async fn watch(&mut self, entries: &mut async_nats::jetstream::kv::Watch, began: Instant) {
        let mut ticks = tokio::time::interval(ANNOUNCE_EVERY / 2);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                entry = entries.next() => match entry {
                    Some(Ok(entry)) => self.see(&entry),
                    Some(Err(error)) => tracing::debug!(%error, "hosts: the watch stumbled"),
                    None => return,
                },
                Some(Ok(asked)) = self.asking.join_next() => self.answered(&asked),
                _ = ticks.tick() => {
                    let echoed = self.shared.view().echoed.map_or(began, |echoed| echoed.max(began));
                    if echoed.elapsed() > WATCH_AGAIN_AFTER {
                        return;
                    }
                    self.ask_the_silent();
                }
            }
        }
    }

    fn see(&mut self, entry: &Entry) {
        let now = Instant::now();
        let is_ours = entry.key == keys::escape_token(&self.me.name);
        if entry.operation != Operation::Put {
            let mut view = self.shared.view();
            view.others.retain(|name, _| keys::escape_token(name) != entry.key);
            drop(view);
            return self.shared.changed.notify_one();
        }
        let Ok(host) = serde_json::from_slice::<Host>(&entry.value) else { return };
        if is_ours {
            return self.see_ourselves(&host, entry, now);
        }
        if self.dates_early() {
            self.early.push((host.name.clone(), entry.created));
        }
        let mut view = self.shared.view();
        let before = view.others.get(&host.name);
        // One that was gone and is back is a new one: nothing is handed to it at once.
        let is_known = before.is_some_and(|before| before.lives(now) && before.host.life == host.life);
        let is_new = before.is_none_or(|before| !is_known || before.host != host);
        let known = before.filter(|_| is_known).map_or(now, |before| before.known);
        view.others.insert(host.name.clone(), Seen { host, heard: now, known, hung_up: false });
        drop(view);
        if is_new {
            self.shared.changed.notify_one();
        }
    }

    /// Whether our own word has not come back since this watch began.
    fn dates_early(&self) -> bool {
        self.shared.view().echoed.is_none()
    }

    fn see_ourselves(&mut self, host: &Host, entry: &Entry, now: Instant) {
        if host.life != self.me.life {
            let is_newer = (host.since, host.life) > (self.me.since, self.me.life);
            let mut replaced = self.shared.replaced.lock().unwrap_or_else(PoisonError::into_inner);
            *replaced |= is_newer;
            drop(replaced);
            return self.shared.changed.notify_one();
        }
        let mut view = self.shared.view();
        if view.echoed.is_none() && entry.delta > 0 {
            // From before the watch began: what others said comes after it.
            return;
        }
        let was_fresh = view.is_fresh(now);
        let is_first = view.echoed.replace(now).is_none();
        if is_first {
            // Those from before our time may have ended with the host whose place we take: asked at once, whoever lives answers.
            for (name, created) in self.early.drain(..) {
                let age = Duration::try_from(entry.created - created).unwrap_or_default();
                let Some(seen) = view.others.get_mut(&name) else { continue };
                seen.heard = seen.heard.checked_sub(age).unwrap_or(seen.heard);
                if seen.host.answers {
                    self.asking.spawn(ask(self.client.clone(), name, seen.heard));
                }
            }
        }
        drop(view);
        if !was_fresh && !is_first {
            self.wait_for_the_others(now);
        }
        if !was_fresh {
            self.shared.changed.notify_one();
        }
    }

    /// After an outage: nobody is taken for gone for a while.
    fn wait_for_the_others(&self, now: Instant) {
        let mut view = self.shared.view();
        for seen in view.others.values_mut().filter(|seen| now.saturating_duration_since(seen.heard) < FORGET_AFTER) {
            seen.heard = now + GRACE - ASKED_AFTER;
        }
    }

    /// Asks the hosts that have been silent for a while, and forgets those that are gone for long.
    fn ask_the_silent(&mut self) {
        let now = Instant::now();
        let connects = connects(&self.client);
        if std::mem::replace(&mut self.connects, connects) != connects {
            self.wait_for_the_others(now);
        }
        let mut view = self.shared.view();
        view.others.retain(|_, seen| now.saturating_duration_since(seen.heard) < FORGET_AFTER);
        if !view.is_fresh(now) || !self.asking.is_empty() {
            return;
        }
        for (name, seen) in &view.others {
            let silent = now.saturating_duration_since(seen.heard);
            if seen.host.answers && !seen.hung_up && silent >= ASKED_AFTER && silent < LEASE {
                self.asking.spawn(ask(self.client.clone(), name.clone(), seen.heard));
            }
        }
    }

    fn answered(&self, asked: &Asked) {
        let mut view = self.shared.view();
        let Some(seen) = view.others.get_mut(&asked.name).filter(|seen| seen.heard == asked.heard) else { return };
        match asked.answer {
            Answer::Here => seen.heard = Instant::now(),
            Answer::Nobody if asked.connects == connects(&self.client) => {
                seen.hung_up = true;
                drop(view);
                tracing::info!(host = asked.name, "gone: nobody listens there any more");
                self.shared.changed.notify_one();
            }
            Answer::Nobody | Answer::Silence => {}
        }
    }
}

/// How often this client has been connected to a server.
fn connects(client: &Client) -> u64 {
    client.statistics().connects.load(Ordering::Relaxed)
}

/// A host that was asked whether it is there.
struct Asked {
    name: String,
    /// When it had been heard of last.
    heard: Instant,
    /// How often we had been connected when it was asked.
    connects: u64,
    answer: Answer,
}

enum Answer {
    Here,
    /// Nobody listens at its subject.
    Nobody,
    Silence,
}

async fn ask(client: Client, name: String, heard: Instant) -> Asked {
    let connects = connects(&client);
    let asked = client.request(names::host_subject(&name), bytes::Bytes::new());
    let answer = match tokio::time::timeout(ANSWERED_WITHIN, asked).await {
        Ok(Ok(_)) => Answer::Here,
        Ok(Err(error)) if error.kind() == RequestErrorKind::NoResponders => Answer::Nobody,
        Ok(Err(_)) | Err(_) => Answer::Silence,
    };
    Asked { name, heard, connects, answer }
}
