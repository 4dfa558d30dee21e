//! What is deployed, where each handler stands, what its module says of itself, and which hosts are there. In: JetStream. Out: facts.
//! Never: runs a module on anything but nothing; makes a bucket that is missing.

use std::collections::HashMap;
use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::stream::Info;

use crate::buckets;
use crate::doctor::facts::{Facts, Handler, Input, Module};
use crate::generation::Generation;
use crate::generation::ledger::{self, Ledger};
use crate::inputs;
use crate::journal::Position;
use crate::latest;
use crate::names;
use crate::parking::dead::DeadLetters;
use crate::progress::State;
use crate::registry::{self, Deployment, Desired, Host, Registry};
use crate::sandbox::{Cache, Sandbox};
use crate::settings::OnLostEvents;
use crate::survey;
use crate::version::Version;

/// So long after a record its dead letters may be on their way.
const STORED_WITHIN: Duration = Duration::from_secs(1);

/// Why a handler's places cannot be told, and what to do about it.
type Fault = (String, String);

/// The buckets of the registry, as streams.
fn registry_streams() -> [String; 4] {
    let bucket = names::bucket_stream;
    [bucket(names::HANDLERS), bucket(names::STATUS), bucket(names::HOSTS), format!("OBJ_{}", names::MODULES)]
}

pub(super) async fn look(jetstream: &Context, known: &[Info], facts: &mut Facts) {
    // Opening the registry makes what is missing of it.
    if registry_streams().iter().any(|stream| facts.stream(stream).is_none()) {
        return;
    }
    let read = async {
        let registry = Registry::open(jetstream).await.map_err(|error| error.to_string())?;
        let deployed = registry.deployed(jetstream).await.map_err(|error| error.to_string())?;
        let hosts = hosts(jetstream).await?;
        let ledgers = ledger::all(jetstream).await.map_err(|error| error.to_string())?;
        Ok::<_, String>((registry, deployed, hosts, ledgers))
    };
    let (registry, deployed, hosts, ledgers) = match read.await {
        Ok(read) => read,
        Err(reason) => return facts.unseen.push(("deployments".to_owned(), reason)),
    };
    (facts.hosts, facts.knows_handlers) = (hosts, true);
    let mut modules = Modules::default();
    for deployed in deployed {
        let ledger = ledgers.get(&deployed.handler).cloned().unwrap_or_default();
        facts.named.extend(ledger.shadows.iter().map(|shadow| shadow.digest.to_string()));
        name_history(&registry, &deployed.handler, facts).await;
        let handler = match &deployed.deployment {
            Ok(deployment) => {
                let module = modules.look(&registry, &deployed.handler, deployment).await;
                let places = places(jetstream, known, &deployed.handler, deployment, &ledger).await;
                let stopped = stopped(&registry, &deployed.handler, deployment, facts).await;
                Handler { stopped, ..handler(&deployed.handler, deployment, &ledger, module, places) }
            }
            Err(error) => unreadable(&deployed.handler, &ledger, error),
        };
        let handler = lost(jetstream, &registry, handler, facts).await;
        facts.handlers.push(handler);
    }
}

/// Live hosts, read without a consumer: the user of a host may make none there.
async fn hosts(jetstream: &Context) -> Result<Vec<Host>, String> {
    let Some(store) = buckets::peek(jetstream, names::HOSTS).await? else { return Ok(Vec::new()) };
    let all = latest::of(jetstream, &store, "*").await?;
    Ok(all.into_iter().filter_map(|latest| serde_json::from_slice(&latest.value).ok()).collect())
}

/// Digests that one can go back to.
async fn name_history(registry: &Registry, handler: &str, facts: &mut Facts) {
    match registry.history(handler).await {
        Ok(past) => {
            let deployments = past.into_iter().filter_map(|past| past.deployment?.ok());
            facts.named.extend(deployments.map(|deployment| deployment.digest.to_string()));
        }
        Err(error) => facts.unseen.push((format!("history of {handler}"), error.to_string())),
    }
}

/// How many dead letters of the live generation somebody removed by hand. A host stores them after the record that counts them, and before
/// it runs those of hosts that died: where none runs it, nobody can tell.
async fn letters_gone(
    jetstream: &Context,
    registry: &Registry,
    handler: &Handler,
    hosts: &[Host],
) -> anyhow::Result<u64> {
    let report = registry.status(&handler.name).await?.filter(|report| report.state == State::Running);
    if !report.is_some_and(|report| hosts.iter().any(|host| host.name == report.host)) {
        return Ok(0);
    }
    let dead = DeadLetters::of(jetstream, &Generation::live(&handler.name, handler.live), 1);
    let deadline = tokio::time::Instant::now() + STORED_WITHIN;
    loop {
        let gone = match survey::in_line(jetstream, &handler.name, handler.live).await? {
            Some(0) => Some(0),
            Some(in_line) => Some(in_line.saturating_sub(dead.census().await?.0.values().sum())),
            None => None,
        };
        if gone == Some(0) || tokio::time::Instant::now() >= deadline {
            return Ok(gone.unwrap_or_default());
        }
        tokio::time::sleep(STORED_WITHIN / 10).await;
    }
}

/// The handler, with all of its generations where nobody can tell which is live.
async fn lost(jetstream: &Context, registry: &Registry, handler: Handler, facts: &mut Facts) -> Handler {
    let looked = async {
        Ok::<_, anyhow::Error>(match survey::lost_ledger(jetstream, &handler.name).await? {
            None => {
                let letters_gone = letters_gone(jetstream, registry, &handler, &facts.hosts).await?;
                Handler { letters_gone, ..handler.clone() }
            }
            lost_ledger => {
                let shadows = survey::generations(jetstream, &handler.name).await?;
                Handler { lost_ledger, shadows, ..handler.clone() }
            }
        })
    };
    match looked.await {
        Ok(handler) => handler,
        Err(error) => {
            facts.unseen.push((format!("generations of {}", handler.name), format!("{error:#}")));
            handler
        }
    }
}

/// Why a handler that should run has stopped, as its host said last.
async fn stopped(registry: &Registry, name: &str, deployment: &Deployment, facts: &mut Facts) -> Option<String> {
    match registry.status(name).await {
        Ok(report) => {
            let report = report.filter(|report| report.state == State::Failing)?;
            (deployment.desired == Desired::Running).then_some(report.reason)
        }
        Err(error) => {
            facts.unseen.push((format!("state of {name}"), error.to_string()));
            None
        }
    }
}

fn handler(
    name: &str,
    deployment: &Deployment,
    ledger: &Ledger,
    module: Module,
    places: Result<Vec<Input>, Fault>,
) -> Handler {
    let fault = places.as_ref().err().cloned();
    Handler {
        name: name.to_owned(),
        desired: deployment.desired,
        digest: deployment.digest.to_string(),
        on_lost: deployment.settings.on_lost_events,
        live: ledger.live,
        shadows: ledger.shadows.iter().map(|shadow| shadow.number).collect(),
        module,
        inputs: places.unwrap_or_default(),
        fault,
        stopped: None,
        lost_ledger: None,
        letters_gone: 0,
    }
}

/// Nobody knows what it reads, so nothing else is said of it.
fn unreadable(name: &str, ledger: &Ledger, error: &registry::Error) -> Handler {
    Handler {
        name: name.to_owned(),
        desired: Desired::Paused,
        digest: String::new(),
        on_lost: OnLostEvents::Continue,
        live: ledger.live,
        shadows: ledger.shadows.iter().map(|shadow| shadow.number).collect(),
        module: Module::Unusable(error.to_string()),
        inputs: Vec::new(),
        fault: None,
        stopped: None,
        lost_ledger: None,
        letters_gone: 0,
    }
}

async fn places(
    jetstream: &Context,
    known: &[Info],
    name: &str,
    deployment: &Deployment,
    ledger: &Ledger,
) -> Result<Vec<Input>, Fault> {
    let silent = |error: anyhow::Error| (format!("{error:#}"), "nats account info".to_owned());
    let mut inputs = inputs::among(known, deployment.filters(), &deployment.settings.streams)
        .map_err(|error| (error.to_string(), error.hint()))?;
    let has_journal = known.iter().any(|info| info.config.name == names::journal_stream(name));
    let positions: Vec<Position> = match has_journal {
        false => Vec::new(),
        true => survey::decided_by(jetstream, name, ledger.live).await.map_err(silent)?.0,
    };
    if positions.iter().any(|position| position.stream == names::TIMERS) {
        inputs.extend(inputs::timers_among(known, name));
    }
    let mut places = Vec::new();
    for input in &inputs {
        let position = positions.iter().find(|position| position.stream == input.stream);
        let position = position.map_or(input.first.saturating_sub(1), |position| position.sequence);
        let sample = survey::sample(jetstream, input, position).await.map_err(silent)?;
        let (stream, undecided, oldest) = (input.stream.clone(), sample.events, sample.oldest);
        places.push(Input { stream, position, undecided, oldest });
    }
    Ok(places)
}

/// What modules say of themselves, each asked once.
#[derive(Default)]
struct Modules {
    sandbox: Option<Sandbox>,
    known: HashMap<String, Module>,
}

impl Modules {
    async fn look(&mut self, registry: &Registry, handler: &str, deployment: &Deployment) -> Module {
        let digest = deployment.digest.to_string();
        if let Some(known) = self.known.get(&digest) {
            return known.clone();
        }
        let module = self.ask(registry, handler, deployment).await;
        self.known.insert(digest, module.clone());
        module
    }

    async fn ask(&mut self, registry: &Registry, handler: &str, deployment: &Deployment) -> Module {
        let bytes = match registry.module(deployment.digest).await {
            Ok(bytes) => bytes,
            Err(registry::Error::Unreachable { .. }) => return Module::Unseen,
            Err(error) => return Module::Unusable(error.to_string()),
        };
        let sandbox = match self.sandbox.clone().map_or_else(Sandbox::new, Ok) {
            Ok(sandbox) => sandbox,
            // This machine cannot run modules; that says nothing of the hosts.
            Err(_) => return Module::Unseen,
        };
        self.sandbox = Some(sandbox.clone());
        let (name, settings) = (handler.to_owned(), deployment.settings.clone());
        let prepare = move || Version::prepare(&sandbox, &Cache::for_user(), &name, settings, &bytes);
        match tokio::task::spawn_blocking(prepare).await {
            Ok(Ok(version)) => Module::Known {
                sends: version.saga.as_ref().map(|saga| saga.sends.clone()).unwrap_or_default(),
                timers: version.has_timers(),
            },
            Ok(Err(defect)) => Module::Unusable(defect.to_string()),
            Err(_) => Module::Unseen,
        }
    }
}
