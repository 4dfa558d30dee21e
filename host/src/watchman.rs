//! Watches all deployed handlers, on every host. In: how they look, every two seconds; the alerts that are raised. Out: alerts raised
//! and cleared in their bucket, and told: in the stream of events, the log, and by webhook. Hosts need not agree on who does it: an
//! alert is raised and cleared by compare-and-set, and its news have one id, whoever sends them. Never: stops a handler.

mod limits;

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use async_nats::jetstream::Context;

use crate::alarm::{Alarm, Change, NEARLY, NOT_ANY_MORE, Near, Sight, Watch};
use crate::alerts;
use crate::board::{self, Posted, Unreadable};
use crate::clock;
use crate::names;
use crate::overview::{Alert, Glance, Glimpse, Handler};
use crate::settings::Settings;
use crate::webhook::Webhooks;
use limits::Limits;

/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// What could not be told waits for so long.
const TELL_AGAIN: Duration = Duration::from_secs(30);

/// News that cannot be told in one look, before the others wait for the next.
const FAULTS: usize = 3;

/// Handlers without a host that are asked about in one look.
const ASKS: usize = 50;

/// The account's storage, which is nobody's own.
const STORAGE: &str = "storage-near-limit";

/// One host's watchman.
pub struct Watchman {
    jetstream: Context,
    host: String,
    webhooks: Webhooks,
    glance: Glance,
    limits: Limits,
    watches: HashMap<String, Watch>,
    has_looked: bool,
    /// Alerts of which we know that they were told, by key.
    told: HashMap<String, Alert>,
    /// What could not be told, by key, and since when that waits.
    untold: HashMap<String, Instant>,
}

/// What there is to say of an alert.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Raised,
    Cleared,
}

impl State {
    fn in_words(self) -> &'static str {
        match self {
            Self::Raised => "raised",
            Self::Cleared => "cleared",
        }
    }
}

impl Watchman {
    /// A watchman that has seen nothing yet.
    #[must_use]
    pub fn new(jetstream: Context, host: String, webhooks: Webhooks) -> Self {
        Self {
            glance: Glance::new(jetstream.clone(), ASKS),
            limits: Limits::new(jetstream.clone()),
            jetstream,
            host,
            webhooks,
            watches: HashMap::new(),
            has_looked: false,
            told: HashMap::new(),
            untold: HashMap::new(),
        }
    }

    /// Watches until it is dropped.
    pub async fn run(mut self) {
        let mut looks = tokio::time::interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut failed = false;
        loop {
            looks.tick().await;
            match self.look().await {
                Ok(()) => failed = false,
                Err(error) if failed => tracing::debug!(error = format!("{error:#}"), "alerts: trying again"),
                Err(error) => {
                    tracing::warn!(error = format!("{error:#}"), "alerts cannot be watched; trying again");
                    failed = true;
                }
            }
        }
    }

    /// What cannot be done about one alert stops none of the others; the first fault is answered.
    async fn look(&mut self) -> anyhow::Result<()> {
        let Glimpse { overview, deployed, settings, rebuilding, posted, unreadable } = self.glance.look().await?;
        self.limits.look(&overview.handlers, overview.time).await;
        let mut done = self.catch_up(&posted, &settings).await;
        let usual = Settings::default();
        for handler in &overview.handlers {
            let fullness = self.limits.fullness(handler);
            let sight = Sight {
                handler,
                settings: settings.get(&handler.handler).unwrap_or(&usual),
                rebuilding: rebuilding.contains(&handler.handler),
                fullness: fullness.as_ref(),
            };
            let raised = |alarm: Alarm| find(&posted, &handler.handler, alarm.name()).map(Posted::raised);
            let begin = if self.has_looked { Watch::of_new } else { Watch::default };
            let watch = self.watches.entry(handler.handler.clone()).or_insert_with(begin);
            let changes = watch.look(overview.time, &sight, raised);
            for change in changes {
                done = done.and(self.change(handler, change, &posted, sight.settings.replicas).await);
            }
        }
        self.has_looked = true;
        done = done.and(self.sweep(&unreadable).await);
        done = done.and(self.storage(&posted, overview.time).await);
        done.and(self.forget(&deployed, &posted).await)
    }

    async fn change(
        &mut self,
        handler: &Handler,
        change: Change,
        posted: &[Posted],
        replicas: usize,
    ) -> anyhow::Result<()> {
        match change {
            Change::Raise { alarm, since, text } => {
                let (events, alert) = (handler.events(), alarm.name().to_owned());
                let handler = handler.handler.clone();
                self.raise(Alert { handler, alert, since, text, events }, replicas).await
            }
            Change::Clear { alarm } => match find(posted, &handler.handler, alarm.name()) {
                Some(posted) => self.clear(posted, replicas).await,
                None => Ok(()),
            },
        }
    }

    async fn raise(&mut self, alert: Alert, replicas: usize) -> anyhow::Result<()> {
        if board::raise(&self.jetstream, &alert).await? {
            self.tell(&alert, State::Raised, replicas).await?;
            self.told.insert(names::alert_key(&alert.handler, &alert.alert), alert);
        }
        Ok(())
    }

    async fn clear(&mut self, posted: &Posted, replicas: usize) -> anyhow::Result<()> {
        if board::clear(&self.jetstream, &posted.key, posted.revision).await? {
            self.tell(&posted.alert, State::Cleared, replicas).await?;
            self.told.remove(&posted.key);
        }
        Ok(())
    }

    /// Tells what another host may have been about to tell when it died: of alerts that are new to us, and of those that are gone.
    /// What cannot be told waits for a while, and what comes after it does not.
    async fn catch_up(&mut self, posted: &[Posted], settings: &HashMap<String, Settings>) -> anyhow::Result<()> {
        self.untold.retain(|_, since| since.elapsed() < TELL_AGAIN);
        let news = posted.iter().filter(|new| self.told.get(&new.key) != Some(&new.alert));
        let raised = news.map(|new| (new.key.clone(), new.alert.clone(), State::Raised));
        let is_posted = |key: &String| posted.iter().any(|posted| posted.key == *key);
        let gone = self.told.iter().filter(|(key, _)| !is_posted(key));
        let cleared = gone.map(|(key, alert)| (key.clone(), alert.clone(), State::Cleared));
        let untold: Vec<_> = raised.chain(cleared).filter(|(key, ..)| !self.untold.contains_key(key)).collect();
        let (mut done, mut faults) = (Ok(()), 0);
        for (key, alert, state) in untold {
            let replicas = settings.get(&alert.handler).map_or(1, |settings| settings.replicas);
            match self.make_up_for(&alert, state, replicas).await {
                Ok(()) if state == State::Raised => drop(self.told.insert(key, alert)),
                Ok(()) => drop(self.told.remove(&key)),
                Err(error) => {
                    self.untold.insert(key, Instant::now());
                    done = done.and(Err(error));
                    faults += 1;
                }
            }
            // A server that lets us tell nothing lets us wait each time.
            if faults >= FAULTS {
                break;
            }
        }
        done
    }

    async fn make_up_for(&self, alert: &Alert, state: State, replicas: usize) -> anyhow::Result<()> {
        if self.was_told(alert, state).await? { Ok(()) } else { self.tell(alert, state, replicas).await }
    }

    /// Whether the last news of this alert are these, or that it is over.
    async fn was_told(&self, alert: &Alert, state: State) -> anyhow::Result<bool> {
        let last = alerts::last_told(&self.jetstream, names::alert_owner(&alert.handler), &alert.alert).await?;
        Ok(last.is_some_and(|last| last == id(alert, state) || last == id(alert, State::Cleared)))
    }

    async fn tell(&self, alert: &Alert, state: State, replicas: usize) -> anyhow::Result<()> {
        let Alert { handler, alert: name, since, text, .. } = alert;
        let (id, time) = (id(alert, state), clock::now());
        let body = serde_json::json!({
            "id": id,
            "handler": handler,
            "alert": name,
            "state": state.in_words(),
            "since": clock::text(*since),
            "at": clock::text(time),
            "text": text,
            "host": self.host,
        });
        let news = alerts::News { id: &id, time, body: &body };
        let owner = names::alert_owner(handler);
        // Whoever comes second has nothing to add.
        if alerts::tell_once(&self.jetstream, owner, name, replicas, &news).await? {
            match state {
                State::Raised => tracing::warn!(handler, alert = name, text, "alert"),
                State::Cleared => tracing::info!(handler, alert = name, "alert is over"),
            }
            self.webhooks.post(&id, &body.to_string());
        }
        Ok(())
    }

    async fn storage(&mut self, posted: &[Posted], now: i64) -> anyhow::Result<()> {
        let Some(Near { share, text }) = self.limits.account(now).await else { return Ok(()) };
        match find(posted, "", STORAGE) {
            None if share >= NEARLY => {
                let alert = Alert { alert: STORAGE.to_owned(), since: now, text, ..Alert::default() };
                self.raise(alert, 1).await
            }
            Some(posted) if share < NOT_ANY_MORE => self.clear(posted, 1).await,
            _ => Ok(()),
        }
    }

    /// Nothing is the matter with a handler that is not there.
    async fn forget(&mut self, deployed: &HashSet<String>, posted: &[Posted]) -> anyhow::Result<()> {
        let is_there = |name: &str| name.is_empty() || deployed.contains(name);
        self.watches.retain(|name, _| is_there(name));
        let mut done = Ok(());
        for posted in posted.iter().filter(|posted| !is_there(&posted.alert.handler)) {
            done = done.and(self.clear(posted, 1).await);
        }
        done
    }

    /// What is no alert, somebody wrote by hand, and nobody would ever clear it.
    async fn sweep(&self, unreadable: &[Unreadable]) -> anyhow::Result<()> {
        let mut done = Ok(());
        for Unreadable { key, revision, reason } in unreadable {
            match board::clear(&self.jetstream, key, *revision).await {
                Ok(true) => {
                    let bucket = names::ALERTS;
                    tracing::warn!(bucket, key, reason, "this is no alert that can be read; it is removed");
                }
                Ok(false) => {}
                Err(error) => done = done.and(Err(error.into())),
            }
        }
        done
    }
}

fn find<'a>(posted: &'a [Posted], handler: &str, alert: &str) -> Option<&'a Posted> {
    posted.iter().find(|posted| posted.alert.handler == handler && posted.alert.alert == alert)
}

fn id(alert: &Alert, state: State) -> String {
    format!("{}.{}.{}", names::alert_key(&alert.handler, &alert.alert), alert.since, state.in_words())
}
