//! `millstream demo`: the main job on an embedded server, from nothing to documents, in a minute. In: a clone of this
//! repository. Out: events of a shop, two projections deployed and run, the lag falling while one watches, and every
//! document compared with a recomputation that shares no code with the handlers. Then a saga takes three orders through
//! services: one goes well, one is declined, one is never answered. Never: exit code 0 unless all documents are equal
//! and all three end as they must.

mod modules;
mod shop;
mod stories;

use std::path::PathBuf;
use std::time::Duration;

use async_nats::jetstream;
use clap::Args;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::connect::Connection;
use super::{Fault, lag, output};
use crate::lag::Lag;
use crate::overview;
use crate::policy::Policy;
use crate::registry::{Deployment, Desired, Registry};
use crate::sandbox::{Cache, Digest};
use crate::server::{self, Server};
use crate::settings::Settings;
use crate::supervisor::Supervisor;

/// The two projections shown.
const HANDLERS: [&str; 2] = ["customer-spend", "order-chain"];

/// How long the handlers may take to catch up before the demo gives up.
const PATIENCE: Duration = Duration::from_secs(120);

/// Show the whole thing on an embedded server: events in, documents out, lag falling, three orders through a saga.
#[derive(Debug, Args)]
pub(super) struct Demo {
    /// How many events to publish.
    #[arg(long, default_value_t = 100_000)]
    events: u64,
    /// Keep server and handlers running afterwards, to play with.
    #[arg(long)]
    keep: bool,
    /// Folder for the server's data; a new one under the system's temporary folder by default.
    #[arg(long, value_name = "FOLDER")]
    data: Option<PathBuf>,
}

impl Demo {
    pub(super) async fn run(self) -> Result<(), Fault> {
        say("server", "looking for nats-server 2.12 or later");
        let binary = tokio::task::spawn_blocking(|| server::find_or_fetch(|text| say("server", text)))
            .await?
            .map_err(server_fault)?;
        let all = [HANDLERS[0], HANDLERS[1], stories::HANDLER];
        let modules::Built { modules, services } = tokio::task::spawn_blocking(move || modules::build(&all)).await??;
        let mut builder = Server::builder().binary(binary);
        if let Some(folder) = &self.data {
            builder = builder.folder(folder);
        }
        let server = builder.start().await.map_err(server_fault)?;
        say("server", &format!("{} with its data in {}", server.url(), server.folder().display()));
        let client = Connection::to(server.url()).connect().await?;
        let jetstream = jetstream::new(client);
        let orders = shop::orders(self.events);
        shop::publish(&jetstream, &orders).await?;
        say("events", &format!("{} in stream ORDERS", output::thousands(self.events)));
        stories::streams(&jetstream).await?;
        deploy(&jetstream, &modules).await?;

        let (stop, stopped) = oneshot::channel::<()>();
        let host =
            Supervisor::new(jetstream.clone(), "demo".to_owned(), Cache::for_user(), Policy::default(), Vec::new())
                .await?;
        let begun = Instant::now();
        let host = tokio::spawn(host.run(async move { drop(stopped.await) }));
        watch_lag(&jetstream).await?;
        let seconds = begun.elapsed().as_secs_f64();
        say("done", &format!("all handlers caught up in {seconds:.1} s"));

        let equal = self.compare(&jetstream, &orders).await?;
        self.show(&jetstream).await?;
        let mut services = stories::services(&services, &server.url())?;
        let right = stories::tell(&jetstream).await?;
        self.invite(&server.url());
        if self.keep && equal && right {
            say("kept", "server, handlers and services are running; end with Ctrl-C");
            tokio::signal::ctrl_c().await?;
        }
        services.kill().await?;
        drop(stop);
        host.await??;
        server.stop().await;
        match (equal, right) {
            (true, true) => Ok(()),
            (false, _) => Err(Fault::failed(anyhow::anyhow!("documents differ from the recomputation"))),
            (true, false) => Err(Fault::failed(anyhow::anyhow!("not every order ended as it must"))),
        }
    }

    /// Waits until all documents are shown and compares them, bytes and number, with the recomputation.
    async fn compare(&self, jetstream: &jetstream::Context, orders: &[shop::Order]) -> Result<bool, Fault> {
        let mut equal = true;
        for (handler, expected) in [(HANDLERS[0], shop::spend(orders)), (HANDLERS[1], shop::chains(orders))] {
            let deadline = Instant::now() + PATIENCE;
            let found = loop {
                let found = shop::documents(jetstream, handler).await?;
                if found == expected || Instant::now() > deadline {
                    break found;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            };
            let (same, all) =
                (found.iter().filter(|(key, value)| expected.get(*key) == Some(value)).count(), expected.len());
            say("check", &format!("{handler}: {same} of {all} documents equal an independent recomputation"));
            equal &= found == expected;
        }
        Ok(equal)
    }

    /// Some documents.
    async fn show(&self, jetstream: &jetstream::Context) -> Result<(), Fault> {
        let mut rows = Vec::new();
        for handler in HANDLERS {
            for (key, value) in shop::documents(jetstream, handler).await?.into_iter().take(3) {
                rows.push(vec![handler.to_owned(), key, String::from_utf8_lossy(&value).into_owned()]);
            }
        }
        Ok(output::line(&output::table(&["HANDLER", "KEY", "DOCUMENT"], &[], rows))?)
    }

    /// What to try next.
    fn invite(&self, url: &str) {
        if self.keep {
            eprintln!("\ntry it, in another terminal:");
            eprintln!("  export NATS_URL={url}");
            eprintln!("  nats kv get customer-spend C1 --raw");
            eprintln!("  nats pub orders.placed '{{\"customer\":\"C1\",\"cents\":1200}}'");
            eprintln!("  nats kv get customer-spend C1 --raw");
            eprintln!("  nats consumer report ORDERS");
            eprintln!("  cargo run -q -p millstream -- lag");
            eprintln!("  nats pub fulfilment.OrderPlaced '{{\"order\":\"O4\",\"customer\":\"C4\",\"cents\":900}}'");
            eprintln!("  cargo run -q -p millstream -- sagas order-fulfilment");
            eprintln!("  cargo run -q -p millstream -- explain order-fulfilment O4");
        } else {
            eprintln!("\nto play with it: cargo demo --keep");
        }
    }
}

async fn deploy(jetstream: &jetstream::Context, modules: &[(String, Vec<u8>)]) -> Result<(), Fault> {
    let registry = Registry::open(jetstream).await?;
    for (name, bytes) in modules {
        let version = super::deploy::examine(bytes, Settings::default())?;
        let mut settings = Settings::default();
        if name == stories::HANDLER {
            settings.subjects = vec![stories::SUBJECTS.to_owned()];
        }
        let deployment = Deployment {
            digest: Digest::of(bytes),
            label: "demo".to_owned(),
            subjects: version.description.subjects,
            settings,
            desired: Desired::Running,
            note: String::new(),
            signature: None,
        };
        registry.put_module(bytes).await?;
        registry.deploy(name, &deployment).await?;
        say(
            "deployed",
            &format!("{name} {} ({} bytes)", deployment.digest.short(), output::thousands(bytes.len() as u64)),
        );
    }
    Ok(())
}

/// Prints the lag until it is zero everywhere.
async fn watch_lag(jetstream: &jetstream::Context) -> Result<(), Fault> {
    let deadline = Instant::now() + PATIENCE;
    let mut before = String::new();
    loop {
        let overview = overview::read(jetstream).await?;
        if let Some(handler) = overview.handlers.iter().find(|handler| !handler.lag_fault.is_empty()) {
            return Err(Fault::failed(anyhow::anyhow!("{}: {}", handler.handler, handler.lag_fault)));
        }
        let rows: Vec<&Lag> = overview.handlers.iter().flat_map(|handler| &handler.lag).collect();
        let now: Vec<String> =
            rows.iter().map(|row| format!("{} {}", row.handler, output::thousands(row.events))).collect();
        let now = now.join("   ");
        if now != before {
            say("lag", &now);
        }
        before = now;
        if rows.iter().all(|row| row.events == 0) {
            eprintln!("{}", lag::table(&rows));
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(Fault::failed(anyhow::anyhow!(
                "the handlers did not catch up within {} s",
                PATIENCE.as_secs()
            )));
        }
        tokio::time::sleep(Duration::from_millis(150)).await;
    }
}

pub(super) fn server_fault(error: server::Error) -> Fault {
    let hint = error.hint().unwrap_or("put nats-server 2.12 or later on PATH");
    Fault::failed(error).hint(hint)
}

/// One step, on stderr.
pub(super) fn say(step: &str, text: &str) {
    eprintln!("{step:>9}  {text}");
}
