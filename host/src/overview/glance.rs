//! All handlers at little cost, again and again: what a host measured a moment ago stands for the lag, and JetStream is asked only
//! about handlers whose host is silent, a few at a time. In: the buckets, a request for each. Out: an overview, and what alerts
//! need beside it. Never: takes a host's clock for ours: silence is what is seen from look to look.

use std::collections::{HashMap, HashSet};

use async_nats::jetstream::Context;
use futures::StreamExt as _;

use super::{AT_ONCE, Handler, Overview, Read};
use crate::board::{self, Posted, Unreadable};
use crate::clock;
use crate::generation::ledger::{self, Ledger, Wanted};
use crate::lag::{self, SILENT_AFTER_SECONDS, Said, Sample};
use crate::progress::Report;
use crate::rebuild;
use crate::registry::{Deployed, Registry};
use crate::settings::Settings;
use crate::survey::Ground;

/// A host's figures may be so old when it reports them.
const MEASURED_WITHIN: i64 = 5_000_000_000;

/// A generation that nobody builds is none that is being built, nanoseconds.
const BEGINS_WITHIN: i64 = 60_000_000_000;

/// What is remembered from look to look.
pub struct Glance {
    jetstream: Context,
    registry: Option<Registry>,
    /// Handlers asked about in one look, at most.
    asks: usize,
    heard: HashMap<String, Heard>,
    /// Handlers as JetStream told of them, and when.
    asked: HashMap<String, (i64, Handler)>,
    last: i64,
}

/// A host's last word: its own time, and when we first saw it.
#[derive(Clone, Copy)]
struct Heard {
    said: i64,
    at: i64,
}

/// What was seen.
#[derive(Default)]
pub struct Glimpse {
    /// What people see.
    pub overview: Overview,
    /// All that are deployed, those included that were not looked at yet.
    pub deployed: HashSet<String>,
    /// What is set for each handler that can be read.
    pub settings: HashMap<String, Settings>,
    /// Handlers of which another generation is being built or takes over.
    pub rebuilding: HashSet<String>,
    /// Alerts that are raised, as they lie in their bucket.
    pub posted: Vec<Posted>,
    /// What lies beside them and is none.
    pub unreadable: Vec<Unreadable>,
}

impl Glance {
    /// Nothing seen yet. `asks` bounds what one look costs while hosts are silent.
    #[must_use]
    pub fn new(jetstream: Context, asks: usize) -> Self {
        Self { jetstream, registry: None, asks, heard: HashMap::new(), asked: HashMap::new(), last: 0 }
    }

    /// Looks.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn look(&mut self) -> anyhow::Result<Glimpse> {
        if self.registry.is_none() {
            self.registry = Registry::peek(&self.jetstream).await?;
        }
        let Some(registry) = self.registry.clone() else { return Ok(Glimpse::default()) };
        let (deployed, reports, hosts) = tokio::try_join!(
            registry.deployed(&self.jetstream),
            registry.reports(&self.jetstream),
            registry.host_names(&self.jetstream)
        )?;
        let ledgers = ledger::all(&self.jetstream).await?;
        let (posted, unreadable) = board::read(&self.jetstream).await?;
        let now = clock::now();
        self.listen(now, &reports);
        let rebuilding = self.rebuilding(&registry, &ledgers, &reports, now).await?;
        let settings = deployed.iter().filter_map(|deployed| {
            Some((deployed.handler.clone(), deployed.deployment.as_ref().ok()?.settings.clone()))
        });
        let settings = settings.collect();
        let names = deployed.iter().map(|deployed| deployed.handler.clone()).collect();
        let handlers = self.handlers(deployed, &reports, now).await?;
        let alerts = posted.iter().map(|posted| posted.alert.clone()).collect();
        let overview = Overview::new(now, handlers, hosts, alerts);
        Ok(Glimpse { overview, deployed: names, settings, rebuilding, posted, unreadable })
    }

    /// Takes down which hosts have said something since the last look.
    fn listen(&mut self, now: i64, reports: &HashMap<String, Report>) {
        // Whoever was away himself has heard nobody.
        let was_away = self.last == 0 || now - self.last > MEASURED_WITHIN || now < self.last;
        let first = self.last == 0;
        self.last = now;
        self.heard.retain(|handler, _| reports.contains_key(handler));
        for (handler, report) in reports {
            // What was there before we came is as old as it says, as far as we can know.
            let begun = if first { report.time.min(now) } else { now };
            let heard = self.heard.entry(handler.clone()).or_insert(Heard { said: report.time, at: begun });
            if heard.said != report.time || (was_away && !first) {
                *heard = Heard { said: report.time, at: now };
            }
        }
    }

    async fn handlers(
        &mut self,
        deployed: Vec<Deployed>,
        reports: &HashMap<String, Report>,
        now: i64,
    ) -> anyhow::Result<Vec<Handler>> {
        let (mut handlers, mut to_ask) = (Vec::with_capacity(deployed.len()), Vec::new());
        self.asked.retain(|handler, _| deployed.iter().any(|deployed| deployed.handler == *handler));
        for deployed in deployed {
            let report = reports.get(&deployed.handler);
            let said = self.said(&deployed.handler, report);
            match report.and_then(|report| measured(&deployed, report, &said, now)) {
                Some(handler) => {
                    self.asked.remove(&deployed.handler);
                    handlers.push(handler);
                }
                None => to_ask.push(deployed),
            }
        }
        // Those first that were not asked about for the longest time.
        to_ask.sort_by_key(|deployed| self.asked.get(&deployed.handler).map_or(0, |(asked, _)| *asked));
        let later = to_ask.split_off(to_ask.len().min(self.asks));
        if !to_ask.is_empty() {
            let ground = Ground::read(&self.jetstream).await?;
            let ask = async |deployed: Deployed| {
                let report = reports.get(&deployed.handler);
                super::handler(&self.jetstream, &ground, deployed, report).await
            };
            let asked: Vec<Handler> = futures::stream::iter(to_ask).map(ask).buffered(AT_ONCE).collect().await;
            for handler in asked {
                let said = self.said(&handler.handler, reports.get(&handler.handler));
                let handler = as_heard(handler, &said);
                self.asked.insert(handler.handler.clone(), (now, handler.clone()));
                handlers.push(handler);
            }
        }
        for deployed in later {
            let said = self.said(&deployed.handler, reports.get(&deployed.handler));
            // One that was never asked about waits for its turn.
            handlers.extend(self.asked.get(&deployed.handler).map(|(asked, handler)| {
                let handler = as_heard(handler.clone(), &said);
                older(handler, (now - asked) as f64 / 1e9)
            }));
        }
        handlers.sort_by(|one, other| one.handler.cmp(&other.handler));
        Ok(handlers)
    }

    /// The host's last word, with our time.
    fn said(&self, handler: &str, report: Option<&Report>) -> Said {
        let heard = self.heard.get(handler).map(|heard| heard.at);
        Said { time: heard, ..Said::of(report) }
    }

    /// A generation that has not yet decided what the live one has is being built.
    async fn rebuilding(
        &self,
        registry: &Registry,
        ledgers: &HashMap<String, Ledger>,
        reports: &HashMap<String, Report>,
        now: i64,
    ) -> anyhow::Result<HashSet<String>> {
        let is_building = |ledger: &Ledger| ledger.shadows.iter().any(|shadow| shadow.wanted == Wanted::Building);
        let shadows = match ledgers.values().any(is_building) {
            true => registry.shadow_reports(&self.jetstream).await?,
            false => HashMap::new(),
        };
        let mut rebuilding = HashSet::new();
        for (handler, ledger) in ledgers {
            let live = reports.get(handler).map_or(0, |report| report.counts.delivered);
            let is_behind = ledger.shadows.iter().filter(|shadow| shadow.wanted == Wanted::Building).any(|shadow| {
                match shadows.get(&rebuild::status_key(handler, shadow.number)) {
                    Some(report) => report.counts.delivered.saturating_mul(100) < live.saturating_mul(99),
                    None => now - shadow.since < BEGINS_WITHIN,
                }
            });
            if ledger.promotion.is_some() || is_behind {
                rebuilding.insert(handler.clone());
            }
        }
        Ok(rebuilding)
    }
}

/// The handler as its host measured it, if it did so just now.
fn measured(deployed: &Deployed, report: &Report, said: &Said, now: i64) -> Option<Handler> {
    let deployment = deployed.deployment.as_ref().ok()?;
    let is_new = said.time.is_some_and(|time| (now - time) as f64 / 1e9 <= SILENT_AFTER_SECONDS);
    let streams = &report.numbers.streams;
    // Both times are of the host's clock.
    let fresh = |time: i64| (0..=MEASURED_WITHIN).contains(&(report.time - time));
    if !is_new || streams.is_empty() || !streams.iter().all(|measured| fresh(measured.time)) {
        return None;
    }
    let rows = streams.iter().map(|measured| {
        let sample = Sample {
            events: measured.events,
            oldest: measured.oldest,
            position: measured.position,
            head: measured.head,
            decided: true,
        };
        lag::lag(&deployed.handler, &measured.stream, &sample, said, now).with(measured.rates)
    });
    let decided = report.counts.delivered > 0;
    let read = Read { lag: rows.collect(), lag_fault: String::new(), counts: report.counts, decided };
    Some(super::told(deployed.handler.clone(), deployed.revision, deployment.clone(), Some(report), said, read))
}

/// The handler with the silence that we have seen in the place of what the clocks say.
fn as_heard(mut handler: Handler, said: &Said) -> Handler {
    let sample = Sample { decided: handler.counts.delivered > 0, ..Sample::default() };
    // A deployment that cannot be read says more than its host.
    if handler.lag_fault != handler.reason || handler.reason.is_empty() {
        let word = lag::lag(&handler.handler, "", &sample, said, clock::now());
        handler.state.clone_from(&word.state);
        handler.reported_seconds_ago = word.reported_seconds_ago;
        for row in &mut handler.lag {
            row.state.clone_from(&word.state);
            row.reported_seconds_ago = word.reported_seconds_ago;
        }
    }
    handler
}

/// The handler as it was so long ago.
fn older(mut handler: Handler, seconds: f64) -> Handler {
    for row in handler.lag.iter_mut().filter(|row| row.events > 0) {
        row.seconds += seconds;
    }
    handler
}
