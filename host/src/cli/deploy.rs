//! `millstream deploy`: everything is checked before anything is written: the module here, its inputs and its bucket on the
//! server. Then the module goes to the object store and the deployment to its bucket; hosts follow by themselves.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use async_nats::jetstream;
use clap::Args;
use serde::Serialize;

use super::{Fault, connect, output};
use crate::claim;
use crate::generation::Generation;
use crate::inputs::{self, Input};
use crate::intake;
use crate::names;
use crate::progress::{Report, State};
use crate::registry::{Deployment, Desired, Registry};
use crate::saga::Facts;
use crate::sandbox::wire::{Batch, Description, Documents, Kind, Span};
use crate::sandbox::{Cache, Guest as _, Limits, Module, Sandbox};
use crate::settings::Settings;
use crate::subject;

/// How long to wait for a host's word.
const WAIT: Duration = Duration::from_secs(5);

/// Check a module and deploy it.
#[derive(Debug, Args)]
pub(super) struct Deploy {
    /// The module: a `.wasm` file.
    module: PathBuf,
    /// Name of the handler, and so of its bucket; the module's own by default.
    #[arg(long)]
    name: Option<String>,
    /// A name for this version, for people.
    #[arg(long, default_value = "")]
    label: String,
    /// Read this stream; may be given several times. By default the streams are found by the subjects.
    #[arg(long = "stream", value_name = "NAME")]
    streams: Vec<String>,
    /// A setting, such as batch_events=100; may be given several times. Settings of the last deployment stay.
    #[arg(long = "set", value_name = "NAME=VALUE")]
    set: Vec<String>,
    /// Check everything, write nothing.
    #[arg(long)]
    dry_run: bool,
    /// Do not wait for a host.
    #[arg(long)]
    no_wait: bool,
}

/// What was deployed, for programs.
#[derive(Serialize)]
struct Deployed {
    handler: String,
    digest: String,
    module_bytes: usize,
    subjects: Vec<String>,
    streams: Vec<String>,
    state_version: u32,
    state: String,
}

impl Deploy {
    pub(super) async fn run(self, connection: &connect::Connection, json: bool) -> Result<(), Fault> {
        let bytes = std::fs::read(&self.module)
            .with_context(|| format!("{} cannot be read", self.module.display()))
            .map_err(|error| {
                Fault::usage(error)
                    .hint("build one with `cargo build --profile module --target wasm32-unknown-unknown`")
            })?;
        let limits = Settings::default().with(&self.set).map_err(bad_setting)?.limits;
        let description = examine(&bytes, &limits)
            .map_err(|error| Fault::usage(error.context(format!("{} is not a handler", self.module.display()))))
            .map_err(|fault| fault.hint("`millstream new NAME` makes a handler that is one; compare with it"))?;
        let name = self.name.clone().unwrap_or_else(|| description.name.clone());
        if let Some(defect) = names::handler_name_defect(&name) {
            return Err(Fault::usage(anyhow::anyhow!(defect)).hint("give another with --name"));
        }
        let client = super::open(connection).await?;
        let jetstream = jetstream::new(client);
        let deployment = self.deployment(&jetstream, &name, &bytes, &description).await?;
        let inputs =
            inputs::resolve(&jetstream, deployment.filters(), &deployment.settings.streams).await.map_err(|error| {
                let hint = error.hint();
                Fault::usage(error).hint(hint)
            })?;
        if description.kind == Kind::Saga {
            check_targets(&jetstream, &description).await?;
        }
        check_names(&jetstream, &Generation::first(&name), &inputs).await?;
        let state = if self.dry_run {
            "checked, not deployed".to_owned()
        } else {
            let registry = Registry::open(&jetstream).await?;
            let begun = claim::now();
            registry.put_module(&bytes).await?;
            registry.deploy(&name, &deployment).await?;
            if self.no_wait { "deployed".to_owned() } else { verdict(&registry, &name, &deployment, begun).await? }
        };
        tell(&name, &deployment, &description, &inputs, bytes.len(), state, json)
    }

    /// The new deployment: what was set before stays unless it is set anew.
    async fn deployment(
        &self,
        jetstream: &jetstream::Context,
        name: &str,
        bytes: &[u8],
        description: &Description,
    ) -> Result<Deployment, Fault> {
        let before = match Registry::peek(jetstream).await? {
            Some(registry) => registry.deployment(name).await.ok().flatten(),
            None => None,
        };
        let mut settings = before.as_ref().map_or_else(Settings::default, |deployment| deployment.settings.clone());
        settings = settings.with(&self.set).map_err(bad_setting)?;
        if !self.streams.is_empty() {
            settings.streams.clone_from(&self.streams);
        }
        if settings.replicas > 1 && jetstream.client().server_info().cluster.is_none() {
            return Err(Fault::usage(anyhow::anyhow!(
                "replicas={} needs a cluster, and this is a single server",
                settings.replicas
            ))
            .hint("leave it out, or give --set replicas=1"));
        }
        let deployment = Deployment {
            digest: crate::sandbox::Digest::of(bytes),
            label: self.label.clone(),
            subjects: description.subjects.clone(),
            settings,
            desired: Desired::Running,
        };
        let old: &[String] = before.as_ref().map_or(&[], Deployment::filters);
        let widened = deployment.filters().iter().find(|filter| !old.iter().any(|old| subject::covers(old, filter)));
        match widened.filter(|_| !old.is_empty()) {
            Some(filter) => Err(Fault::usage(anyhow::anyhow!(
                "{name} reads {} now; events of {filter} that it has already passed would never be applied",
                old.join(", ")
            ))
            .hint("deploy it under a new name with --name, to read them all from the first one")),
            None => Ok(deployment),
        }
    }
}

/// Prepares the module as a host would, and has it describe itself and answer an empty batch under limits.
pub(super) fn examine(bytes: &[u8], limits: &Limits) -> anyhow::Result<Description> {
    let module = Module::prepare(&Sandbox::new()?, &Cache::for_user(), limits, bytes)?;
    let mut instance = module.instantiate("deploy")?;
    let description = instance.describe()?;
    if description.kind == Kind::Saga {
        Facts::parse(&description.extra)?;
    }
    let nothing = Span { start: 0, length: 0 };
    instance.stage(&Batch { source: nothing, events: Vec::new(), blob: Vec::new() })?;
    instance.apply(&Documents { documents: Vec::new(), blob: Vec::new() }, &[])?;
    if description.kind == Kind::Saga {
        Facts::parse(&description.extra)?;
    }
    Ok(description)
}

/// Names all settings, for it is mostly a name that is wrong.
fn bad_setting(error: crate::settings::Error) -> Fault {
    let all = serde_json::to_value(Settings::default()).unwrap_or_default();
    let names = |value: &serde_json::Value| -> Vec<String> {
        value.as_object().map_or_else(Vec::new, |map| map.keys().cloned().collect())
    };
    let inner = all.get("limits").map_or_else(Vec::new, names).into_iter().map(|name| format!("limits.{name}"));
    let known: Vec<String> = names(&all).into_iter().filter(|name| name != "limits").chain(inner).collect();
    Fault::usage(error).hint(format!("the settings are {}", known.join(", ")))
}

/// A saga whose commands nobody stores would hang at its first step.
async fn check_targets(jetstream: &jetstream::Context, description: &Description) -> Result<(), Fault> {
    let facts = Facts::parse(&description.extra).map_err(Fault::usage)?;
    match inputs::without_holder(jetstream, &facts.sends).await.map_err(Fault::failed)?.first() {
        None => Ok(()),
        Some(subject) => Err(Fault::usage(anyhow::anyhow!("the saga sends to `{subject}`, which no stream holds"))
            .hint(format!("make one with `nats stream add COMMANDS --subjects '{subject}' --defaults`"))),
    }
}

/// The names of a generation's bucket and consumers are free, or its own.
pub(super) async fn check_names(
    jetstream: &jetstream::Context,
    generation: &Generation,
    inputs: &[Input],
) -> Result<(), Fault> {
    check_bucket(jetstream, generation).await?;
    for input in inputs {
        intake::check_consumer(jetstream, generation, &input.stream).await.map_err(|error| {
            let hint = error.hint();
            Fault::new(error, 2, hint)
        })?;
    }
    Ok(())
}

async fn check_bucket(jetstream: &jetstream::Context, generation: &Generation) -> Result<(), Fault> {
    let name = generation.name();
    match jetstream.get_stream(names::bucket_stream(&name)).await {
        Ok(stream) if !names::is_ours(&stream.cached_info().config.metadata, &generation.handler) => Err(Fault::usage(
            anyhow::anyhow!("bucket {name} is already there and was not made by Millstream for this handler"),
        )
        .hint("deploy under another name with --name, or move the bucket away with the nats CLI")),
        _ => Ok(()),
    }
}

/// Waits for a host to say what it makes of the deployment.
async fn verdict(registry: &Registry, name: &str, deployment: &Deployment, since: i64) -> Result<String, Fault> {
    if registry.live_hosts().await?.is_empty() {
        return Ok("deployed; no host is running (start one with `millstream run`)".to_owned());
    }
    let deadline = tokio::time::Instant::now() + WAIT;
    let fresh = |report: &Report| report.time > since && report.digest == deployment.digest.to_string();
    while tokio::time::Instant::now() < deadline {
        match registry.status(name).await?.filter(fresh) {
            Some(report) if report.state == State::Failing => {
                return Err(Fault::failed(anyhow::anyhow!(
                    "deployed, but host {} cannot run it: {}",
                    report.host,
                    report.reason
                )));
            }
            Some(report) if report.state == State::Running => return Ok(format!("running on {}", report.host)),
            _ => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
    Ok("deployed; no host has taken it yet (see `millstream list`)".to_owned())
}

fn tell(
    name: &str,
    deployment: &Deployment,
    description: &Description,
    inputs: &[Input],
    module_bytes: usize,
    state: String,
    json: bool,
) -> Result<(), Fault> {
    let streams: Vec<String> = inputs.iter().map(|input| input.stream.clone()).collect();
    let deployed = Deployed {
        handler: name.to_owned(),
        digest: deployment.digest.to_string(),
        module_bytes,
        subjects: deployment.filters().to_vec(),
        streams,
        state_version: description.state_version,
        state,
    };
    if json {
        return Ok(output::json(&deployed)?);
    }
    let kind = match description.kind {
        Kind::Projection => "projection",
        Kind::Saga => "saga",
    };
    eprintln!("handler   {} ({kind}, state version {})", deployed.handler, deployed.state_version);
    eprintln!("module    {} ({} bytes)", deployment.digest.short(), output::thousands(module_bytes as u64));
    eprintln!("reads     {} from {}", deployed.subjects.join(", "), deployed.streams.join(", "));
    eprintln!("documents nats kv get {} KEY", deployed.handler);
    eprintln!("state     {}", deployed.state);
    Ok(())
}
