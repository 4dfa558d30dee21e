//! `millstream deploy`: everything is checked before anything is written: the module here, its inputs and its bucket on the
//! server. Then the module goes to the object store and the deployment to its bucket; hosts follow by themselves.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use async_nats::jetstream;
use clap::Args;
use serde::Serialize;

use super::generations::{Generations, refused};
use super::promote::Promote;
use super::rebuild::Rebuild;
use super::rehearse::{self, Rehearse};
use super::{Fault, connect, output, running, verdicts, versions};
use crate::generation::Generation;
use crate::generation::ledger::Wanted;
use crate::hint;
use crate::inputs::{self, Input};
use crate::intake;
use crate::journal::Makes;
use crate::names;
use crate::policy::{self, Signature};
use crate::registry::{Deployment, Desired, Registry};
use crate::rehearsal::Verdict;
use crate::saga::Facts;
use crate::sandbox::{self, Cache, Class, Digest, Sandbox};
use crate::settings::Settings;
use crate::survey;
use crate::version::{self, Defect, Succession, Version};

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
    /// Sign with the seed of an nkey in this file, for hosts that ask for it.
    #[arg(long, value_name = "SEED-FILE")]
    sign_with: Option<PathBuf>,
    #[command(flatten)]
    rehearse: Rehearse,
    /// When documents of a new state version, built beside the old ones, take their place.
    #[arg(long, value_enum, default_value_t = When::Manual)]
    promote: When,
    /// Check everything, write nothing.
    #[arg(long)]
    dry_run: bool,
    /// Do not wait for a host.
    #[arg(long)]
    no_wait: bool,
}

/// When a new generation takes the place of the live one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum When {
    /// As soon as it has caught up.
    Auto,
    /// When somebody says `millstream promote`.
    Manual,
}

/// What came of it.
pub(super) enum Done {
    /// It was deployed, or checked.
    Deployed(Box<Deployed>),
    /// It makes documents of another state version: they need a generation of their own.
    OtherState {
        /// Its name.
        handler: String,
        /// State version of the module.
        new: u32,
        /// State version of the documents that are there.
        old: u32,
    },
}

/// What was deployed, for programs.
#[derive(Serialize)]
pub(super) struct Deployed {
    pub(super) handler: String,
    kind: &'static str,
    pub(super) digest: String,
    module_bytes: usize,
    subjects: Vec<String>,
    streams: Vec<String>,
    state_version: u32,
    /// What is other than in the version that was deployed before.
    changes: Vec<String>,
    /// What the new version makes of live instances, where it is a saga's.
    #[serde(skip_serializing_if = "Option::is_none")]
    live_instances: Option<Verdict>,
    state: String,
    /// How long events were kept waiting by the change of module, where it was one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) pause_milliseconds: Option<f64>,
}

/// What the new version would follow, as far as it can be had.
struct Before {
    /// Of what is deployed.
    revision: u64,
    /// What is deployed, refused or not.
    wanted: Deployment,
    /// The same, unless it was refused: then what runs.
    deployment: Deployment,
    /// The module that runs.
    digest: Digest,
    module_bytes: usize,
    version: Option<Version>,
    /// A host refuses what is deployed.
    is_refused: bool,
}

impl Deploy {
    pub(super) async fn run(self, connection: &connect::Connection, json: bool) -> Result<(), Fault> {
        match self.perform(connection, json).await? {
            Done::Deployed(deployed) if json => Ok(output::json(&deployed)?),
            Done::Deployed(deployed) => {
                deployed.print();
                Ok(())
            }
            Done::OtherState { handler, new, old } => self.new_generation(&handler, new, old, connection, json).await,
        }
    }

    /// Documents of another state version are built beside the ones that are there.
    pub(super) async fn new_generation(
        &self,
        handler: &str,
        new: u32,
        old: u32,
        connection: &connect::Connection,
        json: bool,
    ) -> Result<(), Fault> {
        if !self.set.is_empty() {
            return Err(Fault::usage(anyhow::anyhow!("a new generation runs with the settings of its handler"))
                .hint("set them first, with the module that is deployed; then deploy this one without --set"));
        }
        let mut generations = Generations::open(connection, handler).await?;
        let digest = Digest::of(&std::fs::read(&self.module)?);
        let there = generations.ledger.with_module(digest).map(|shadow| (shadow.number, shadow.wanted));
        if there.is_none() || generations.ledger.promotion.is_some() {
            generations.ledger.may_begin(handler).map_err(refused)?;
        }
        if let Some((number, Wanted::Building)) = there {
            let row = generations.row(number).await?;
            if row.state == "failing" {
                return Err(Fault::usage(anyhow::anyhow!(
                    "generation {number} has this module, and is failing: {}",
                    row.reason
                ))
                .hint(format!("`millstream abandon {handler} --generation {number}`, then deploy it again")));
            }
        }
        let begun = match there {
            None => "its documents are built anew beside the ones that are there".to_owned(),
            Some((number, Wanted::Kept)) => format!("generation {number}, which was live with this module, is kept"),
            Some((number, _)) => format!("generation {number} is being built with this module already, and goes on"),
        };
        eprintln!("{handler}: state version {old} -> {new}; {begun}");
        if self.dry_run {
            eprintln!("checked, not begun");
            return Ok(());
        }
        let (module, label, sign_with) = (self.module.clone(), self.label.clone(), self.sign_with.clone());
        let promotes = self.promote == When::Auto && !self.no_wait;
        let mut rebuild = Rebuild::of(handler, module, label, sign_with, self.no_wait);
        rebuild.promotes = promotes;
        match there {
            None => rebuild.run(connection, json).await?,
            Some((number, _)) => rebuild.follow(&mut generations, number, json).await?,
        }
        if promotes {
            Promote::of(handler, there.map(|(number, _)| number)).run(connection, json).await?;
        }
        Ok(())
    }

    /// A deployment of this file that nobody gave arguments for.
    pub(super) fn of(module: PathBuf, label: &str) -> Self {
        Self {
            module,
            name: None,
            label: label.to_owned(),
            streams: Vec::new(),
            set: Vec::new(),
            sign_with: None,
            rehearse: Rehearse::default(),
            promote: When::Auto,
            dry_run: false,
            no_wait: false,
        }
    }

    /// Checks and deploys.
    pub(super) async fn perform(&self, connection: &connect::Connection, json: bool) -> Result<Done, Fault> {
        let bytes = std::fs::read(&self.module)
            .with_context(|| format!("{} cannot be read", self.module.display()))
            .map_err(|error| {
                Fault::usage(error)
                    .hint("build one with `cargo build --profile module --target wasm32-unknown-unknown`")
            })?;
        let settings = Settings::default().with(&self.set).map_err(bad_setting)?;
        let version = examined(bytes.clone(), settings).await.map_err(|error| no_handler(&self.module, error))?;
        let name = self.name.clone().unwrap_or_else(|| version.description.name.clone());
        if let Some(defect) = names::handler_name_defect(&name) {
            return Err(Fault::usage(anyhow::anyhow!(defect)).hint("give another with --name"));
        }
        let client = super::open(connection).await?;
        let jetstream = jetstream::new(client);
        let revision = match Registry::peek(&jetstream).await? {
            Some(registry) => registry.revision(&name).await?,
            None => 0,
        };
        let before = before(&jetstream, &name).await?;
        let mut deployment = self.deployment(&jetstream, &name, &version, before.as_ref())?;
        let version = Version { settings: deployment.settings.clone(), ..version };
        let documents = survey::documents(&jetstream, &name).await.map_err(Fault::failed)?;
        // What is deployed may have been refused for the live documents, and this be what they need.
        if documents.first() != Some(&version.makes())
            && let Some(old) = before.as_ref().and_then(|before| before.version.as_ref())
            && let Succession::Never(reason) = version.after(old)
        {
            let (new, old_state) = (version.description.state_version, old.description.state_version);
            if version.kind() == old.kind() && new != old_state {
                return Ok(Done::OtherState { handler: name, new, old: old_state });
            }
            let (reason, hint) = hint::split(&reason);
            return Err(Fault::usage(anyhow::anyhow!("{name} cannot be replaced by this module: {reason}"))
                .hint(hint.unwrap_or("give another name with --name")));
        }
        if before.as_ref().is_none_or(|before| before.version.is_none()) {
            check_documents(&name, &documents, &version)?;
        }
        let inputs = check(&jetstream, &name, &version).await?;
        let live_instances = match before.as_ref().and_then(|before| before.version.as_ref()) {
            Some(old) => self.rehearse.run(&jetstream, &name, &inputs, (old, &version)).await?,
            None => None,
        };
        if let Some(verdict) = &live_instances {
            deployment.note = self.rehearse.note(&name, verdict, json)?;
        } else if let Some(before) = &before {
            rehearse::keep_note(&before.wanted, &mut deployment);
        }
        let (state, pause_milliseconds) =
            self.put(&jetstream, (&name, revision), &bytes, &deployment, before.as_ref()).await?;
        Ok(Done::Deployed(Box::new(Deployed {
            kind: version.kind(),
            digest: deployment.digest.to_string(),
            module_bytes: bytes.len(),
            subjects: version.filters().to_vec(),
            streams: inputs.into_iter().map(|input| input.stream).collect(),
            state_version: version.description.state_version,
            changes: before.map(|before| changes(&before, &deployment, &version, bytes.len())).unwrap_or_default(),
            live_instances,
            state,
            pause_milliseconds,
            handler: name,
        })))
    }

    /// Writes what was checked, and waits for what the hosts make of it.
    async fn put(
        &self,
        jetstream: &jetstream::Context,
        (name, revision): (&str, u64),
        bytes: &[u8],
        deployment: &Deployment,
        before: Option<&Before>,
    ) -> Result<(String, Option<f64>), Fault> {
        if self.dry_run {
            return Ok(("checked, not deployed".to_owned(), None));
        }
        let registry = Registry::open(jetstream).await?;
        registry.put_module(bytes).await?;
        let revision = match before {
            // Said again it is no other version: hosts are only asked what they make of it.
            Some(before)
                if before.wanted == *deployment && !before.is_refused && !registry.is_failing(name).await? =>
            {
                before.revision
            }
            // What was checked is to follow what was looked at, and nothing that somebody else deployed meanwhile.
            Some(_) | None => {
                let put = registry.replace(name, revision, deployment).await?;
                put.ok_or_else(|| versions::overtaken(name))?
            }
        };
        if self.no_wait {
            return Ok(("deployed".to_owned(), None));
        }
        let verdicts = verdicts::wait(&registry, name, revision).await?;
        Ok((verdicts.line("deployed"), verdicts.pause_milliseconds()))
    }

    /// The new deployment: what was set before stays unless it is set anew.
    fn deployment(
        &self,
        jetstream: &jetstream::Context,
        name: &str,
        version: &Version,
        before: Option<&Before>,
    ) -> Result<Deployment, Fault> {
        let before = before.map(|before| &before.deployment);
        let mut settings = before.map_or_else(Settings::default, |deployment| deployment.settings.clone());
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
            digest: version.digest,
            label: self.label.clone(),
            subjects: version.description.subjects.clone(),
            settings,
            desired: Desired::Running,
            note: String::new(),
            signature: signature(self.sign_with.as_deref(), name, version.digest)?,
        };
        // Also where the module before is gone, and nothing else can be compared.
        match before.and_then(|before| version::widened(before.filters(), deployment.filters())) {
            Some(reason) => {
                let (reason, hint) = hint::split(&reason);
                Err(Fault::usage(anyhow::anyhow!("{name}: {reason}")).hint(hint.unwrap_or_default()))
            }
            None => Ok(deployment),
        }
    }
}

/// Signs a module under a handler's name with the seed in this file, if there is one.
pub(super) fn signature(seed: Option<&Path>, name: &str, digest: Digest) -> Result<Option<Signature>, Fault> {
    let Some(path) = seed else { return Ok(None) };
    let hint = "make one with `nats auth nkey gen user`";
    let seed = std::fs::read_to_string(path)
        .with_context(|| format!("{} cannot be read", path.display()))
        .map_err(|error| Fault::usage(error).hint(hint))?;
    policy::sign(&seed, name, digest).map(Some).map_err(|error| Fault::usage(error).hint(hint))
}

/// Prepares a module as a host would.
pub(super) fn examine(bytes: &[u8], settings: Settings) -> anyhow::Result<Version> {
    Ok(Version::prepare(&Sandbox::new()?, &Cache::for_user(), "deploy", settings, bytes)?)
}

/// The same, off the threads that others wait on.
pub(super) async fn examined(bytes: Vec<u8>, settings: Settings) -> anyhow::Result<Version> {
    tokio::task::spawn_blocking(move || examine(&bytes, settings)).await?
}

/// Why a file is not deployed. A module that its limits are too narrow for may be a good one.
pub(super) fn no_handler(module: &Path, error: anyhow::Error) -> Fault {
    let limit = match error.downcast_ref() {
        Some(Defect::Module(sandbox::Error::TooLarge { .. })) => Some("limits.module_bytes"),
        Some(Defect::Call { failure, .. }) => match failure.class {
            Class::Fuel => Some("limits.fuel_per_call"),
            Class::Memory => Some("limits.memory_bytes"),
            Class::Output => Some("limits.output_bytes"),
            Class::Trap | Class::Answer | Class::Host => None,
        },
        Some(Defect::Module(_) | Defect::Facts(_)) | None => None,
    };
    let path = module.display();
    match limit {
        Some(name) => Fault::usage(error.context(format!("{path} cannot run within `{name}`")))
            .hint(format!("allow more with --set {name}=..., or mend the module if it should need no more")),
        None => Fault::usage(error.context(format!("{path} is not a handler")))
            .hint("`millstream new NAME` makes a handler that is one; compare with it"),
    }
}

/// Names all settings, for it is mostly a name that is wrong.
fn bad_setting(error: crate::settings::Error) -> Fault {
    let all = serde_json::to_value(Settings::default()).unwrap_or_default();
    let names = |value: &serde_json::Value| -> Vec<String> {
        value.as_object().map_or_else(Vec::new, |map| map.keys().cloned().collect())
    };
    let inner = all.get("limits").map_or_else(Vec::new, names).into_iter().map(|name| format!("limits.{name}"));
    let known: Vec<String> = names(&all).into_iter().filter(|name| name != "limits").chain(inner).collect();
    if let crate::settings::Error::Invalid { name, .. } = &error
        && let Some(default) = all.pointer(&format!("/{}", name.replace('.', "/")))
    {
        let hint = format!("give a value such as --set {name}={default}, which is the default");
        return Fault::usage(error).hint(hint);
    }
    Fault::usage(error).hint(format!("the settings are {}", known.join(", ")))
}

/// A saga whose commands nobody stores would hang at its first step.
async fn check_targets(jetstream: &jetstream::Context, facts: &Facts) -> Result<(), Fault> {
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

/// A handler that was removed left its documents, which not every module can go on with.
fn check_documents(name: &str, found: &[Makes], version: &Version) -> Result<(), Fault> {
    let Some(other) = found.first().filter(|_| !found.contains(&version.makes())) else { return Ok(()) };
    let reason = version::others_documents(*other, version.makes());
    let (reason, _) = hint::split(&reason);
    Err(Fault::usage(anyhow::anyhow!("{name} was removed, and its documents are still there: {reason}")).hint(format!(
        "`millstream remove {name} --with-documents` removes those too; or deploy the module that made them, and then this one"
    )))
}

/// All that must hold on the server before anything is written.
async fn check(jetstream: &jetstream::Context, name: &str, version: &Version) -> Result<Vec<Input>, Fault> {
    let inputs = inputs::resolve(jetstream, version.filters(), &version.settings.streams).await.map_err(|error| {
        let hint = error.hint();
        Fault::usage(error).hint(hint)
    })?;
    if let Some(facts) = &version.saga {
        check_targets(jetstream, facts).await?;
    }
    check_names(jetstream, &Generation::first(name), &inputs).await?;
    Ok(inputs)
}

/// What is deployed under this name now, and what runs. One that cannot be read is replaced.
async fn before(jetstream: &jetstream::Context, name: &str) -> Result<Option<Before>, Fault> {
    let Some(registry) = Registry::peek(jetstream).await? else { return Ok(None) };
    let Ok(Some((revision, wanted))) = registry.current(name).await else { return Ok(None) };
    let runs = running::of(&registry, name, revision, &wanted).await?;
    let digest = runs.deployment.digest;
    let is_refused = runs.wanted.is_some_and(|wanted| wanted.is_refused());
    let deployment = if is_refused { runs.deployment } else { wanted.clone() };
    let bytes = registry.module(digest).await.unwrap_or_default();
    let module_bytes = bytes.len();
    let settings = deployment.settings.clone();
    let version = examined(bytes, settings).await.ok();
    Ok(Some(Before { revision, wanted, deployment, digest, module_bytes, version, is_refused }))
}

/// What people want to know of a new version, in words.
fn changes(before: &Before, deployment: &Deployment, version: &Version, module_bytes: usize) -> Vec<String> {
    let mut changes = Vec::new();
    if before.digest == deployment.digest {
        changes.push("the module is the same".to_owned());
    } else {
        let (old, new) = (before.module_bytes as u64, module_bytes as u64);
        let (old, new) = (output::thousands(old), output::thousands(new));
        changes.push(format!("module {} -> {}, {old} -> {new} bytes", before.digest.short(), version.digest.short()));
    }
    let (old, new) = (before.deployment.filters().join(", "), deployment.filters().join(", "));
    if old != new {
        changes.push(format!("subjects {old} -> {new}"));
    }
    changes.extend(changed_settings(&before.deployment.settings, &deployment.settings));
    changes
}

/// The settings that are others, but for subjects: those are told whoever set them.
pub(super) fn changed_settings(old: &Settings, new: &Settings) -> Vec<String> {
    let by_name = |settings: &Settings| flat("", &serde_json::to_value(settings).unwrap_or_default());
    let old = by_name(old);
    let changed = by_name(new).into_iter().filter(|(name, value)| name != "subjects" && old.get(name) != Some(value));
    changed.filter_map(|(name, value)| Some(format!("{name} {} -> {value}", old.get(&name)?))).collect()
}

/// Settings by name, those within others as `limits.memory_bytes`.
fn flat(prefix: &str, value: &serde_json::Value) -> BTreeMap<String, serde_json::Value> {
    let Some(map) = value.as_object() else { return BTreeMap::from([(prefix.to_owned(), value.clone())]) };
    let name = |name: &str| if prefix.is_empty() { name.to_owned() } else { format!("{prefix}.{name}") };
    map.iter().flat_map(|(inner, value)| flat(&name(inner), value)).collect()
}

impl Deployed {
    fn print(&self) {
        eprintln!("handler   {} ({}, state version {})", self.handler, self.kind, self.state_version);
        eprintln!("module    {:.12} ({} bytes)", self.digest, output::thousands(self.module_bytes as u64));
        eprintln!("reads     {} from {}", self.subjects.join(", "), self.streams.join(", "));
        eprintln!("documents nats kv get {} KEY", self.handler);
        for change in &self.changes {
            eprintln!("change    {change}");
        }
        if let Some(verdict) = &self.live_instances {
            eprintln!("live      {}", verdict.sentence());
        }
        eprintln!("state     {}", self.state);
        if let Some(pause) = self.pause_milliseconds {
            eprintln!("pause     {pause:.2} ms");
        }
    }
}
