//! `millstream run`: a host. In: the deployments. Out: their handlers, run here until somebody says stop. Never:
//! changes a deployment.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use async_nats::{Client, jetstream};
use clap::Args;
use tokio::task::JoinSet;

use super::otlp::Otlp;
use super::{Fault, connect, secret};
use crate::http::{self, Asked, Door};
use crate::micro;
use crate::policy::Policy;
use crate::reader::Reader;
use crate::sandbox::Cache;
use crate::supervisor::{self, Outcome, Supervisor};
use crate::watchman::Watchman;
use crate::webhook::{Posting, Secret, Webhooks};

/// Run the deployed handlers on this host.
#[derive(Debug, Args)]
pub(super) struct Run {
    /// Only this handler; may be given several times.
    #[arg(long = "handler", value_name = "NAME", env = "MILLSTREAM_HANDLER", value_delimiter = ',', value_parser = super::handler_name)]
    handlers: Vec<String>,
    /// This host's name in the journal and in listings.
    #[arg(long, value_name = "NAME", env = "MILLSTREAM_HOST", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    host: Option<String>,
    /// Run only modules that this nkey signed (its public part); may be given several times.
    #[arg(long, value_name = "PUBLIC-KEY", env = "MILLSTREAM_REQUIRE_SIGNED", value_delimiter = ',')]
    require_signed: Vec<String>,
    /// The most that a deployment may set, such as limits.memory_bytes=67108864; may be given several times.
    #[arg(long = "ceiling", value_name = "NAME=VALUE", env = "MILLSTREAM_CEILING", value_delimiter = ',')]
    ceilings: Vec<String>,
    /// How many handlers this host hands over in a minute, at most, when a better host for them comes.
    #[arg(long, value_name = "NUMBER", env = "MILLSTREAM_MOVES_PER_MINUTE", default_value_t = supervisor::MOVES_PER_MINUTE)]
    moves_per_minute: usize,
    /// Bytes of memory that all modules together may hold; three quarters of the machine's by default.
    #[arg(long, value_name = "BYTES", env = "MILLSTREAM_GUEST_MEMORY")]
    guest_memory: Option<usize>,
    #[command(flatten)]
    otlp: Otlp,
    #[command(flatten)]
    web: Web,
    #[command(flatten)]
    alerting: Alerting,
}

/// What the host shows over HTTP.
#[derive(Debug, Args)]
#[command(next_help_heading = "HTTP")]
struct Web {
    /// Serve metrics, health and a page for people at this address; without a value at 127.0.0.1:7070. Port 0 takes any.
    #[arg(long, value_name = "ADDRESS", env = "MILLSTREAM_HTTP", num_args = 0..=1, default_missing_value = http::DEFAULT_ADDRESS)]
    http: Option<String>,
    /// Who shows this may pause, resume and roll back over HTTP; without it, HTTP only reads.
    #[arg(long, value_name = "TOKEN", env = "MILLSTREAM_HTTP_TOKEN", hide_env_values = true)]
    http_token: Option<String>,
    /// Read that from this file, which no list of processes shows.
    #[arg(long, value_name = "FILE", env = "MILLSTREAM_HTTP_TOKEN_FILE", conflicts_with = "http_token")]
    http_token_file: Option<PathBuf>,
    /// A name, beside its addresses, under which this host acts for who shows the token; may be given several times.
    #[arg(long = "http-name", value_name = "NAME", env = "MILLSTREAM_HTTP_NAME", value_delimiter = ',')]
    http_names: Vec<String>,
}

impl Web {
    /// Listens, if that is wanted. Before anything else: an address that cannot be had stops the start.
    async fn door(&self) -> Result<Option<(Door, Option<String>)>, Fault> {
        let Some(text) = self.http.as_deref().filter(|text| !text.is_empty()) else {
            return self.stays_off().map(|()| None);
        };
        if self.has_empty_token() {
            let error = anyhow::anyhow!("the token for HTTP is empty");
            return Err(Fault::usage(error).hint("make one with `openssl rand -hex 32`, or leave out --http-token"));
        }
        let token = secret::of(self.http_token.as_deref(), self.http_token_file.as_deref(), "the token for HTTP")?;
        let address = address(text).ok_or_else(|| {
            Fault::usage(anyhow::anyhow!("{text:?} is no address to listen at"))
                .hint("give --http 127.0.0.1:7070, or --http 0.0.0.0:7070 to let other machines read")
        })?;
        if token.as_ref().is_some_and(|token| token.len() < http::TOKEN_LETTERS) {
            let error = anyhow::anyhow!("the token for HTTP is shorter than {} letters", http::TOKEN_LETTERS);
            return Err(Fault::usage(error).hint("make one with `openssl rand -hex 32`"));
        }
        let door = Door::open(address).await.map_err(|error| {
            let fault = anyhow::Error::from(error).context(format!("cannot listen at {address}"));
            Fault::failed(fault).hint("give another address with --http; port 0 takes any that is free")
        })?;
        Ok(Some((door, token)))
    }

    /// Without HTTP nobody shows a token. Who gives one wants HTTP, unless it is turned off in words, with an empty address.
    fn stays_off(&self) -> Result<(), Fault> {
        let has_file = self.http_token_file.as_ref().is_some_and(|file| !file.as_os_str().is_empty());
        let has_token = self.http_token.as_ref().is_some_and(|token| !token.is_empty());
        if self.http.is_some() || !(has_file || has_token || self.has_empty_token()) {
            return Ok(());
        }
        let error = anyhow::anyhow!("there is a token for HTTP, but no HTTP to show it to");
        Err(Fault::usage(error)
            .hint("add --http, or leave out --http-token, --http-token-file and what sets them in the environment"))
    }

    /// A token that is empty on the command line is a mistake; in the environment it is how people say that there is none.
    fn has_empty_token(&self) -> bool {
        let is_of_environment = std::env::var_os("MILLSTREAM_HTTP_TOKEN").is_some_and(|token| token.is_empty());
        self.http_token.as_deref() == Some("") && !is_of_environment
    }

    /// The names under which it acts: what it is told, and what the machine calls itself.
    fn known_as(self) -> Vec<String> {
        self.http_names.into_iter().chain([machine()]).filter(|name| !name.is_empty()).collect()
    }
}

/// `127.0.0.1:7070`, `localhost:7070`, or a port of this machine's alone.
fn address(text: &str) -> Option<SocketAddr> {
    let local = |port: &str| port.parse().ok().map(|port: u16| SocketAddr::from(([127, 0, 0, 1], port)));
    text.parse().ok().or_else(|| local(text.strip_prefix("localhost:").or(text.strip_prefix(':')).unwrap_or(text)))
}

/// Whom this host tells of alerts.
#[derive(Debug, Args)]
#[command(next_help_heading = "Alerts")]
struct Alerting {
    /// Post alerts to this address as JSON; may be given several times.
    #[arg(long = "webhook", value_name = "URL", env = "MILLSTREAM_WEBHOOK", hide_env_values = true)]
    webhooks: Vec<String>,
    /// Sign what is posted with HMAC-SHA256 under this secret.
    #[arg(
        long,
        value_name = "SECRET",
        env = "MILLSTREAM_WEBHOOK_SECRET",
        hide_env_values = true,
        requires = "webhooks"
    )]
    webhook_secret: Option<String>,
    /// Read that from this file, which no list of processes shows.
    #[arg(
        long,
        value_name = "FILE",
        env = "MILLSTREAM_WEBHOOK_SECRET_FILE",
        requires = "webhooks",
        conflicts_with = "webhook_secret"
    )]
    webhook_secret_file: Option<PathBuf>,
}

impl Alerting {
    fn webhooks(&self) -> Result<(Webhooks, Posting), Fault> {
        let (plain, file) = (self.webhook_secret.as_deref(), self.webhook_secret_file.as_deref());
        let addresses: Vec<String> = self.webhooks.iter().filter(|address| !address.is_empty()).cloned().collect();
        // In the environment, too: without a token nobody may act, but without a secret anybody's posts are believed.
        if plain == Some("") && !addresses.is_empty() {
            let error = anyhow::anyhow!("the secret for webhooks is empty");
            let hint =
                "make one with `openssl rand -hex 32`, or leave out --webhook-secret and MILLSTREAM_WEBHOOK_SECRET";
            return Err(Fault::usage(error).hint(hint));
        }
        let secret = secret::of(plain, file, "the secret for webhooks")?.map(Secret::new);
        Webhooks::new(&addresses, secret.as_ref()).map_err(|error| {
            Fault::usage(error).hint("give --webhook https://host/path; a secret goes into --webhook-secret")
        })
    }
}

impl Run {
    pub(super) async fn run(self, connection: &connect::Connection) -> Result<(), Fault> {
        let policy = Policy::new(self.require_signed, &self.ceilings).map_err(|error| {
            let hint = "a ceiling is such as limits.fuel_per_call=1000000000, of a setting of `millstream deploy --set`; \
                        a public nkey begins with U or A";
            Fault::usage(error).hint(hint)
        })?;
        let door = self.web.door().await?;
        let (webhooks, posting) = self.alerting.webhooks()?;
        let host = self.host.unwrap_or_else(host_name);
        let exporting = self.otlp.start(&host)?;
        let client = super::open(connection).await?;
        let server = address_of(&client).await;
        tracing::info!(host, server, "running the deployed handlers; end with Ctrl-C");
        let jetstream = jetstream::new(client);
        let only = self.handlers.clone();
        let supervisor = Supervisor::new(jetstream.clone(), host.clone(), Cache::for_user(), policy, self.handlers)
            .await?
            .moving_at_most(self.moves_per_minute);
        let supervisor = match self.guest_memory {
            Some(bytes) => supervisor.holding_at_most(bytes),
            None => supervisor,
        };
        let mut beside = JoinSet::new();
        let reader = Arc::new(Reader::new(jetstream.clone()));
        beside.spawn(Arc::clone(&reader).run());
        if let Some((door, token)) = door {
            let (name, vitals, known_as) = (host.clone(), supervisor.vitals(), self.web.known_as());
            let (jetstream, reader) = (jetstream.clone(), Arc::clone(&reader));
            beside.spawn(serve(door, Asked { jetstream, name, vitals, only, reader, token, known_as }));
        }
        beside.spawn(Watchman::new(jetstream.clone(), host.clone(), webhooks).run());
        beside.spawn(async move {
            if let Err(error) = micro::serve(jetstream, reader).await {
                tracing::warn!("{error:#}");
            }
        });
        let outcome = supervisor.run(told_to_stop()).await;
        beside.shutdown().await;
        posting.end().await;
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
            Outcome::Replaced => {
                Err(Fault::failed(anyhow::anyhow!("another host that is called {host} began after this one"))
                    .hint("give each host a name of its own with --host"))
            }
        }
    }
}

/// Shows the host until it ends. Handlers do not depend on it.
async fn serve(door: Door, asked: Asked) {
    let address = door.address();
    let reads = if asked.token.is_some() { "actions need the token" } else { "it only reads" };
    tracing::info!("metrics, health and a page for people at http://{address}/; {reads}");
    if let Err(error) = door.serve(asked).await {
        tracing::error!(%address, "nothing is served over HTTP any more: {error:#}");
    }
}

/// Where this client is connected: what the server says of itself is where it listens, which may be 0.0.0.0.
pub(super) async fn address_of(client: &Client) -> String {
    let pool = client.server_pool().await.unwrap_or_default();
    let (host, port) = match pool.iter().find(|server| server.did_connect) {
        Some(server) => (server.addr.host().to_owned(), server.addr.port()),
        None => (client.server_info().host, client.server_info().port),
    };
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// Machine and process: two hosts on one machine are told apart.
pub(super) fn host_name() -> String {
    let machine = machine();
    format!("{}-{}", if machine.is_empty() { "host" } else { &machine }, std::process::id())
}

/// What the machine calls itself, or nothing.
fn machine() -> String {
    std::fs::read_to_string("/etc/hostname").unwrap_or_default().trim().to_owned()
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::Server;

    #[tokio::test]
    async fn the_address_is_the_one_that_was_connected_to() {
        let server = Server::builder().start().await.unwrap();
        let port = server.port();
        for (given, shown) in [
            (format!("nats://127.0.0.1:{port}"), format!("127.0.0.1:{port}")),
            // The server says of itself that it is 127.0.0.1.
            (format!("nats://127.0.0.1:1,nats://ann:pw@localhost:{port}"), format!("localhost:{port}")),
        ] {
            let client = connect::Connection::to(&given).connect().await.unwrap();
            assert_eq!(address_of(&client).await, shown);
        }
    }
}
