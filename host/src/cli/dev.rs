//! `millstream dev`: edit, save, see. In: folders of handler crates. Out: after each save the crate's native tests, its module, a
//! deployment that takes over between two batches, and each document that changes, as it does; on a server of its own unless one is
//! named. Never: touches a server that somebody named but by deploying; deploys what does not build or pass its tests.

mod crates;
mod saves;

use std::path::PathBuf;

use async_nats::jetstream::{self, Context, stream};
use clap::Args;
use futures::StreamExt as _;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::connect::Connection;
use super::demo::{say, server_fault};
use super::deploy::{self, Deploy, Done};
use super::{Fault, output};
use crate::direct_get;
use crate::inputs;
use crate::keys;
use crate::names;
use crate::policy::Policy;
use crate::sandbox::Cache;
use crate::server::{self, Server};
use crate::settings::Settings;
use crate::supervisor::Supervisor;
use crate::version::Version;
use crates::Crate;
use saves::Saves;

/// Build, test, deploy and run handler crates while they are edited.
#[derive(Debug, Args)]
pub(super) struct Dev {
    /// Folders of handler crates.
    #[arg(default_value = ".")]
    crates: Vec<PathBuf>,
    /// Do not run the crates' tests.
    #[arg(long)]
    no_tests: bool,
    /// Folder for the data of the server that it brings; a new one under the system's temporary folder by default.
    #[arg(long, value_name = "FOLDER")]
    data: Option<PathBuf>,
}

/// Where handlers are deployed.
struct Place {
    connection: Connection,
    jetstream: Context,
    /// Ours to make streams on.
    server: Option<Server>,
}

impl Dev {
    pub(super) async fn run(self, connection: Connection) -> Result<(), Fault> {
        let folders = self.crates.clone();
        let crates = tokio::task::spawn_blocking(move || crates::find(&folders)).await??;
        let place = self.place(connection).await?;
        // On somebody else's server only our own: all others are their hosts' to run.
        let only = if place.server.is_some() { Vec::new() } else { handlers(&crates).await? };
        let (stop, stopped) = oneshot::channel::<()>();
        let (jetstream, policy) = (place.jetstream.clone(), Policy::default());
        let host = Supervisor::new(jetstream, "dev".to_owned(), Cache::for_user(), policy, only).await?;
        let host = tokio::spawn(host.run(async move { drop(stopped.await) }));
        let mut saves = Saves::watch(&crates)?;
        let mut tails = tokio::task::JoinSet::new();
        let mut tailed = Vec::new();
        for one in &crates {
            self.round(&place, one, Instant::now(), &mut tailed, &mut tails).await;
        }
        loop {
            say("watching", "save a file to see it run; end with Ctrl-C");
            let (number, saved) = tokio::select! {
                save = saves.next() => save,
                interrupted = tokio::signal::ctrl_c() => { interrupted?; break }
            };
            if let Some(one) = crates.get(number) {
                self.round(&place, one, saved, &mut tailed, &mut tails).await;
            }
        }
        drop(stop);
        host.await??;
        if let Some(server) = place.server {
            server.stop().await;
        }
        Ok(())
    }

    /// The server that was named, or one of our own.
    async fn place(&self, connection: Connection) -> Result<Place, Fault> {
        if connection.is_named() {
            let jetstream = jetstream::new(super::open(&connection).await?);
            return Ok(Place { connection, jetstream, server: None });
        }
        let binary = tokio::task::spawn_blocking(|| server::find_or_fetch(|text| say("server", text)))
            .await?
            .map_err(server_fault)?;
        let mut builder = Server::builder().binary(binary);
        if let Some(folder) = &self.data {
            builder = builder.folder(folder);
        }
        let server = builder.start().await.map_err(server_fault)?;
        say("server", &format!("{} with its data in {}", server.url(), server.folder().display()));
        let connection = Connection::to(server.url());
        let jetstream = jetstream::new(super::open(&connection).await?);
        Ok(Place { connection, jetstream, server: Some(server) })
    }

    /// From a save to a handler that decides. What goes wrong is told, and the one that runs goes on.
    async fn round(
        &self,
        place: &Place,
        one: &Crate,
        saved: Instant,
        tailed: &mut Vec<String>,
        tails: &mut tokio::task::JoinSet<()>,
    ) {
        match self.make(place, one, saved).await {
            Ok(handler) if !tailed.contains(&handler) => {
                tails.spawn(tail(place.jetstream.client(), handler.clone()));
                tailed.push(handler);
            }
            Ok(_) => {}
            Err(fault) => eprintln!("{fault}"),
        }
    }

    async fn make(&self, place: &Place, one: &Crate, saved: Instant) -> Result<String, Fault> {
        let begun = Instant::now();
        if !self.no_tests {
            let copy = one.clone();
            tokio::task::spawn_blocking(move || copy.test()).await??;
        }
        let tested = begun.elapsed();
        let copy = one.clone();
        tokio::task::spawn_blocking(move || copy.build()).await??;
        let built = begun.elapsed() - tested;
        if place.server.is_some() {
            make_streams(&place.jetstream, one).await?;
        }
        let deploy = Deploy::of(one.module(), "dev");
        let deployed = match deploy.perform(&place.connection, false).await? {
            Done::Deployed(deployed) => deployed,
            Done::OtherState { handler, new, old } => {
                deploy.new_generation(&handler, new, old, &place.connection, false).await?;
                let seconds = saved.elapsed().as_secs_f64();
                say("live", &format!("{handler}, its documents built anew, {seconds:.2} s after the save"));
                return Ok(handler);
            }
        };
        let pause = deployed.pause_milliseconds.map(|pause| format!(", pause {pause:.2} ms")).unwrap_or_default();
        say(
            "live",
            &format!(
                "{} {:.12} {:.2} s after the save (tests {:.2} s, build {:.2} s{pause})",
                deployed.handler,
                deployed.digest,
                saved.elapsed().as_secs_f64(),
                tested.as_secs_f64(),
                built.as_secs_f64(),
            ),
        );
        Ok(deployed.handler)
    }
}

/// Names of the handlers in these crates, which must build for that.
async fn handlers(crates: &[Crate]) -> Result<Vec<String>, Fault> {
    let mut names = Vec::with_capacity(crates.len());
    for one in crates {
        let copy = one.clone();
        tokio::task::spawn_blocking(move || copy.build()).await??;
        names.push(described(one).await?.description.name);
    }
    Ok(names)
}

/// A crate's module, as it describes itself.
async fn described(one: &Crate) -> Result<Version, Fault> {
    let bytes = std::fs::read(one.module())?;
    let version = deploy::examined(bytes, Settings::default()).await;
    version.map_err(|error| deploy::no_handler(&one.module(), error))
}

/// Makes the streams that a handler reads and sends to, on a server that is ours.
async fn make_streams(jetstream: &Context, one: &Crate) -> Result<(), Fault> {
    let version = described(one).await?;
    let upper = version.description.name.to_uppercase();
    let sends = version.saga.as_ref().map(|saga| saga.sends.clone()).unwrap_or_default();
    for (name, subjects) in
        [(format!("DEV_{upper}"), version.description.subjects), (format!("DEV_{upper}_SENDS"), sends)]
    {
        let subjects = inputs::without_holder(jetstream, &subjects).await?;
        if subjects.is_empty() {
            continue;
        }
        say("stream", &format!("{name} for {}", subjects.join(", ")));
        let config = stream::Config { name, subjects, allow_direct: true, ..stream::Config::default() };
        jetstream.create_or_update_stream(config).await?;
    }
    Ok(())
}

/// Prints each document as it changes.
async fn tail(client: async_nats::Client, handler: String) {
    let prefix = names::bucket_subject(&handler, "");
    let Ok(mut puts) = client.subscribe(format!("{prefix}>")).await else { return };
    while let Some(put) = puts.next().await {
        let key = put.subject.strip_prefix(prefix.as_str()).unwrap_or_default();
        let key = keys::unescape(key).unwrap_or_else(|_| key.to_owned());
        let is_gone = put.headers.as_ref().is_some_and(direct_get::is_deletion);
        let value = if is_gone { "deleted".into() } else { String::from_utf8_lossy(&put.payload) };
        if output::line(&format!("{handler} {key:?} {value}")).is_err() {
            return;
        }
    }
}
