//! `millstream run`: a host. In: the deployments. Out: their handlers, run here until somebody says stop. Never:
//! changes a deployment.

use async_nats::jetstream;
use clap::Args;

use super::otlp::Otlp;
use super::{Fault, connect};
use crate::policy::Policy;
use crate::sandbox::Cache;
use crate::supervisor::{Outcome, Supervisor};

/// Run the deployed handlers on this host.
#[derive(Debug, Args)]
pub(super) struct Run {
    /// Only this handler; may be given several times.
    #[arg(long = "handler", value_name = "NAME", env = "MILLSTREAM_HANDLER", value_delimiter = ',')]
    handlers: Vec<String>,
    /// This host's name in the journal and in listings.
    #[arg(long, value_name = "NAME", env = "MILLSTREAM_HOST")]
    host: Option<String>,
    /// Run only modules that this nkey signed (its public part); may be given several times.
    #[arg(long, value_name = "PUBLIC-KEY", env = "MILLSTREAM_REQUIRE_SIGNED", value_delimiter = ',')]
    require_signed: Vec<String>,
    /// The most that a deployment may set, such as limits.memory_bytes=67108864; may be given several times.
    #[arg(long = "ceiling", value_name = "NAME=VALUE", env = "MILLSTREAM_CEILING", value_delimiter = ',')]
    ceilings: Vec<String>,
    #[command(flatten)]
    otlp: Otlp,
}

impl Run {
    pub(super) async fn run(self, connection: &connect::Connection) -> Result<(), Fault> {
        let policy = Policy::new(self.require_signed, &self.ceilings).map_err(|error| {
            Fault::usage(error)
                .hint("a public nkey begins with U or A; the settings are those of `millstream deploy --set`")
        })?;
        let host = self.host.unwrap_or_else(host_name);
        let exporting = self.otlp.start(&host)?;
        let client = super::open(connection).await?;
        let info = client.server_info();
        let address = format!("{}:{}", info.host, info.port);
        tracing::info!(host, server = %address, "running the deployed handlers; end with Ctrl-C");
        let supervisor =
            Supervisor::new(jetstream::new(client), host.clone(), Cache::for_user(), policy, self.handlers).await?;
        let outcome = supervisor.run(told_to_stop()).await;
        if let Some(exporting) = exporting {
            exporting.end().await;
        }
        match outcome? {
            Outcome::Stopped(unfinished) if unfinished.is_empty() => {
                tracing::info!(host, "stopped; everything decided is in the buckets");
                Ok(())
            }
            Outcome::Stopped(unfinished) => {
                let names = unfinished.join(", ");
                tracing::warn!(
                    host,
                    "stopped; what {names} decided last is in the journal, and in the bucket after the next start"
                );
                Ok(())
            }
            Outcome::Fenced(handlers) => {
                let names = handlers.join(", ");
                Err(Fault::failed(anyhow::anyhow!(
                    "fenced: another host has claimed {names}; nothing is left to run here"
                ))
                .hint("see who runs it with `millstream list`; start this host again to take it back"))
            }
        }
    }
}

/// Machine and process: two hosts on one machine are told apart.
pub(super) fn host_name() -> String {
    let machine = std::fs::read_to_string("/etc/hostname").unwrap_or_default();
    let machine = machine.trim();
    format!("{}-{}", if machine.is_empty() { "host" } else { machine }, std::process::id())
}

/// Resolves on SIGINT or SIGTERM.
async fn told_to_stop() {
    use tokio::signal::unix::{SignalKind, signal};
    match (signal(SignalKind::interrupt()), signal(SignalKind::terminate())) {
        (Ok(mut interrupt), Ok(mut terminate)) => {
            tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
        }
        _ => std::future::pending().await,
    }
}
