//! The connection of every command. In: flags, environment, contexts of the nats command line. Out: a connected client,
//! or what was wrong and where it came from. Never: shows a password.
//!
//! The rules are those of the nats command line: flags go before everything; then a context named by `--context`; then
//! NATS_URL, NATS_USER and so on; then the context named by NATS_CONTEXT or selected with `nats context select`.
//! Nothing at all means the server on this machine. The address and the way to prove who we are may come from different
//! places.

mod context;
mod refusals;

use std::error::Error as _;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_nats::jetstream;
use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::context::AccountErrorKind;
use async_nats::{Client, ConnectError, ConnectErrorKind, ConnectOptions, ServerAddr};

use context::{Auth, Settings};

pub use refusals::Refusals;

/// Atomic batches, which the journal may use, and schedules exist from here on.
const OLDEST_SERVER: (u32, u32) = (2, 12);
const DEFAULT_URL: &str = "nats://127.0.0.1:4222";
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// A host must be back within its lease of two seconds after a server's restart, so it never waits long between attempts.
const LONGEST_RECONNECT_DELAY: Duration = Duration::from_millis(250);
/// Longer than any command runs: what a lost connection still held back is never sent.
const NEVER: Duration = Duration::from_secs(365 * 24 * 3600);

/// Where the NATS server is and who we are there.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Connection")]
pub struct Connection {
    /// Server address, or several with commas between them [env: NATS_URL] [default: nats://127.0.0.1:4222]
    #[arg(long, short = 's', global = true, value_name = "URL")]
    pub server: Option<String>,
    /// A context of the nats command line [env: NATS_CONTEXT] [default: the selected one]
    #[arg(long, global = true, value_name = "NAME")]
    pub context: Option<String>,
    /// Credentials file with a user's JWT and seed [env: NATS_CREDS]
    #[arg(long, global = true, value_name = "FILE")]
    pub creds: Option<PathBuf>,
    /// User name, or a token if there is no password [env: NATS_USER]
    #[arg(long, global = true, value_name = "NAME")]
    pub user: Option<String>,
    /// Password [env: NATS_PASSWORD]
    #[arg(long, global = true, value_name = "PASSWORD")]
    pub password: Option<String>,
    /// Token [env: NATS_TOKEN]
    #[arg(long, global = true, value_name = "TOKEN")]
    pub token: Option<String>,
    /// File with the seed of an NKEY user [env: NATS_NKEY]
    #[arg(long, global = true, value_name = "FILE")]
    pub nkey: Option<PathBuf>,
    /// Certificate authorities to trust [env: NATS_CA]
    #[arg(long, global = true, value_name = "FILE")]
    pub tlsca: Option<PathBuf>,
    /// Our own certificate [env: NATS_CERT]
    #[arg(long, global = true, value_name = "FILE", requires = "tlskey")]
    pub tlscert: Option<PathBuf>,
    /// The key of our own certificate [env: NATS_KEY]
    #[arg(long, global = true, value_name = "FILE", requires = "tlscert")]
    pub tlskey: Option<PathBuf>,
    /// What this user was not let do so far.
    #[arg(skip)]
    pub refusals: Refusals,
}

/// Why there is no connection, or not one that we can use.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The context is not there, cannot be read, or asks for what we cannot do.
    #[error("context {name:?} {problem}")]
    Context {
        /// Its name.
        name: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A file with keys or certificates cannot be used.
    #[error("cannot use {what} file {path:?}")]
    File {
        /// What kind of file.
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The address is none.
    #[error("{url:?} is not the address of a NATS server")]
    Address {
        /// The address as it was given, without its password.
        url: String,
    },
    /// Nothing listens there.
    #[error("no NATS server answers at {url}")]
    Refused {
        /// The address.
        url: String,
        /// What the system said.
        source: ConnectError,
    },
    /// Nobody knows that host.
    #[error("the host of {url} has no address")]
    Dns {
        /// The address.
        url: String,
        /// What the system said.
        source: ConnectError,
    },
    /// The server does not let us in.
    #[error("the NATS server at {url} refused these credentials")]
    Denied {
        /// The address.
        url: String,
        /// What the server said.
        source: ConnectError,
    },
    /// The encrypted connection did not come about.
    #[error("no TLS connection with {url}")]
    Tls {
        /// The address.
        url: String,
        /// What went wrong.
        source: ConnectError,
    },
    /// Any other failure.
    #[error("cannot connect to {url}")]
    Other {
        /// The address.
        url: String,
        /// What went wrong.
        source: ConnectError,
    },
    /// The server lacks features that we rely on.
    #[error("the NATS server is {version}, and 2.12 is the oldest that will do")]
    TooOld {
        /// Its version.
        version: String,
    },
    /// The server or the account has no JetStream.
    #[error("JetStream is not enabled {place}")]
    NoJetStream {
        /// On the server or for the account.
        place: &'static str,
    },
    /// JetStream is there but does not answer us.
    #[error("JetStream does not answer")]
    Silent {
        /// What the client said.
        source: jetstream::context::AccountError,
    },
}

impl Error {
    /// Whether what the user gave is wrong, rather than the world.
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::Context { .. } | Self::File { .. } | Self::Address { .. })
    }

    /// The next thing to do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Context { .. } => Some("list them with: nats context ls"),
            Self::Refused { .. } => Some("start one with: nats-server -js, or try: millstream demo"),
            Self::Address { .. } | Self::Dns { .. } => {
                Some("name the server with --server nats://HOST:4222, NATS_URL or --context")
            }
            Self::Denied { .. } => Some("check --creds, --user and --password, or --context"),
            Self::Tls { .. } => Some(
                "name the certificate authority with --tlsca and, if the server asks for it, our own certificate with --tlscert and --tlskey",
            ),
            Self::TooOld { .. } => Some("update nats-server, or try: millstream demo, which brings its own"),
            Self::NoJetStream { .. } => {
                Some("start the server with: nats-server -js, or enable JetStream for this account")
            }
            Self::Silent { .. } => Some("check that this user may use $JS.API.>, and that the cluster has a leader"),
            Self::File { .. } | Self::Other { .. } => None,
        }
    }
}

impl Connection {
    /// A connection to this address and nothing else, for a server of our own.
    pub fn to(url: impl Into<String>) -> Self {
        Self { server: Some(url.into()), ..Self::default() }
    }

    /// Whether somebody said which server, here or in the environment. A context that is merely selected does not count.
    #[must_use]
    pub fn is_named(&self) -> bool {
        let in_environment = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        self.server.is_some() || self.context.is_some() || in_environment("NATS_URL") || in_environment("NATS_CONTEXT")
    }

    /// Connects once; after that the client reconnects for ever.
    pub async fn connect(&self) -> Result<Client, Error> {
        let delay = |attempt: usize| match attempt {
            0 | 1 => Duration::ZERO,
            _ => Duration::from_millis(1 << attempt.min(10)).min(LONGEST_RECONNECT_DELAY),
        };
        self.connect_with(|options| options.max_reconnects(None).reconnect_delay_callback(delay)).await
    }

    /// Connects for work whose order counts. A client that reconnects sends what it had queued, after losing what was on the way:
    /// this one never reconnects. When it is lost, make a new one.
    pub async fn connect_once(&self) -> Result<Client, Error> {
        let was_connected = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&was_connected);
        let delay = move |_| if flag.load(Ordering::SeqCst) { NEVER } else { Duration::ZERO };
        let client = self.connect_with(|options| options.max_reconnects(None).reconnect_delay_callback(delay)).await?;
        was_connected.store(true, Ordering::SeqCst);
        Ok(client)
    }

    async fn connect_with(&self, adapt: impl FnOnce(ConnectOptions) -> ConnectOptions) -> Result<Client, Error> {
        let settings = Settings::resolve(self, &|name| std::env::var(name).ok().filter(|value| !value.is_empty()))?;
        let url = settings.url.clone().unwrap_or_else(|| DEFAULT_URL.to_owned());
        let addresses: Vec<&str> = url.split(',').map(str::trim).filter(|address| !address.is_empty()).collect();
        if addresses.is_empty() {
            return Err(Error::Address { url });
        }
        let mut settings = settings;
        // An address says for itself who comes to it; the client does not look there.
        settings.auth = addresses.iter().find_map(|address| auth_in(address)).or(settings.auth);
        let refusals = self.refusals.clone();
        let options = adapt(options(&settings).await?).event_callback(move |event| {
            refusals.note(&event);
            std::future::ready(())
        });
        options.connect(addresses).await.map_err(|error| classify(without_password(&url), error))
    }
}

/// `user:password@` or `token@` in an address.
fn auth_in(address: &str) -> Option<Auth> {
    let address: ServerAddr = address.parse().ok()?;
    let user = percent_decoded(address.username()?);
    Some(match address.password() {
        Some(password) => Auth::Password(user, percent_decoded(password)),
        None => Auth::Token(user),
    })
}

/// What is no escape stays as it is: a password may well hold a percent sign.
fn percent_decoded(text: &str) -> String {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((byte, after)) = rest.split_first() {
        let digits = after.split_at_checked(2).filter(|_| *byte == b'%');
        let escape = digits.and_then(|(digits, after)| Some((*hex::decode(digits).ok()?.first()?, after)));
        let (byte, after) = escape.unwrap_or((*byte, after));
        decoded.push(byte);
        rest = after;
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

/// What a server says when JetStream is off, for all or for this account. Other refusals (no leader) may pass.
const NOT_ENABLED: [ErrorCode; 2] = [ErrorCode::JETSTREAM_NOT_ENABLED, ErrorCode::JETSTREAM_NOT_ENABLED_FOR_ACCOUNT];

/// Checks that the server can do what we rely on.
pub async fn check_server(client: &Client) -> Result<(), Error> {
    let version = client.server_info().version;
    if parse_version(&version).is_some_and(|version| version < OLDEST_SERVER) {
        return Err(Error::TooOld { version });
    }
    match jetstream::new(client.clone()).query_account().await {
        Ok(_) => Ok(()),
        Err(error) => match error.kind() {
            AccountErrorKind::JetStreamUnavailable => Err(Error::NoJetStream { place: "on the server" }),
            AccountErrorKind::JetStream(refusal) if NOT_ENABLED.contains(&refusal.error_code()) => {
                Err(Error::NoJetStream { place: "for this account" })
            }
            AccountErrorKind::JetStream(_) | AccountErrorKind::TimedOut | AccountErrorKind::Other => {
                Err(Error::Silent { source: error })
            }
        },
    }
}

fn parse_version(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.trim_start_matches('v').split('.');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

async fn options(settings: &Settings) -> Result<ConnectOptions, Error> {
    let mut options = ConnectOptions::new().name("millstream").request_timeout(Some(REQUEST_TIMEOUT));
    options = match &settings.auth {
        None => options,
        Some(Auth::Password(user, password)) => options.user_and_password(user.clone(), password.clone()),
        Some(Auth::Token(token)) => options.token(token.clone()),
        Some(Auth::Creds(path)) => {
            options.credentials(&read("credentials", path).await?).map_err(unusable("credentials", path))?
        }
        Some(Auth::Nkey(path)) => options.nkey(seed_in(&read("NKEY seed", path).await?, path)?),
        Some(Auth::Jwt(jwt)) => options.jwt(jwt.clone(), |_| async { Ok(Vec::new()) }),
        Some(Auth::JwtAndSeed(jwt, seed)) => {
            options.credentials(&credentials(jwt, seed)).map_err(|error| Error::Context {
                name: settings.context.clone().unwrap_or_default(),
                problem: format!("has a user JWT or seed that cannot be used: {error}"),
            })?
        }
    };
    if let Some(path) = &settings.authorities {
        read("certificate authority", path).await?;
        options = options.add_root_certificates(path.clone());
    }
    if let Some((certificate, key)) = &settings.certificate {
        read("certificate", certificate).await?;
        read("certificate key", key).await?;
        options = options.add_client_certificate(certificate.clone(), key.clone());
    }
    if settings.tls_first {
        options = options.tls_first();
    }
    if let Some(prefix) = &settings.inbox_prefix {
        options = options.custom_inbox_prefix(prefix);
    }
    Ok(options)
}

fn unusable(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::File { what, path, source }
}

async fn read(what: &'static str, path: &Path) -> Result<String, Error> {
    tokio::fs::read_to_string(path).await.map_err(unusable(what, path))
}

fn seed_in(text: &str, path: &Path) -> Result<String, Error> {
    let seed = text.lines().map(str::trim).find(|line| line.starts_with('S'));
    let none = || io::Error::new(io::ErrorKind::InvalidData, "it holds no line that begins with S, as a seed does");
    seed.map(str::to_owned).ok_or_else(none).map_err(unusable("NKEY seed", path))
}

/// The two in the form of a credentials file, which is what the client takes.
fn credentials(jwt: &str, seed: &str) -> String {
    let block = |name: &str, text: &str| format!("-----BEGIN {name}-----\n{text}\n------END {name}------\n");
    format!("{}\n{}", block("NATS USER JWT", jwt), block("USER NKEY SEED", seed))
}

fn classify(url: String, source: ConnectError) -> Error {
    match source.kind() {
        ConnectErrorKind::ServerParse => Error::Address { url },
        ConnectErrorKind::Dns => Error::Dns { url, source },
        ConnectErrorKind::Authentication | ConnectErrorKind::AuthorizationViolation => Error::Denied { url, source },
        ConnectErrorKind::Tls => Error::Tls { url, source },
        ConnectErrorKind::TimedOut => Error::Refused { url, source },
        ConnectErrorKind::Io | ConnectErrorKind::MaxReconnects => classify_io(url, source),
    }
}

fn classify_io(url: String, source: ConnectError) -> Error {
    let cause = source.source().and_then(|cause| cause.downcast_ref::<io::Error>());
    let Some(cause) = cause else { return Error::Other { url, source } };
    if cause.get_ref().is_some_and(|inner| inner.is::<async_nats::rustls::Error>()) {
        return Error::Tls { url, source };
    }
    match cause.kind() {
        io::ErrorKind::InvalidInput => Error::Address { url },
        io::ErrorKind::ConnectionRefused | io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => {
            Error::Refused { url, source }
        }
        _ => Error::Other { url, source },
    }
}

/// The address as it may be shown.
fn without_password(url: &str) -> String {
    let clean = |address: &str| {
        let (scheme, rest) = address.split_once("://").map_or(("", address), |(scheme, rest)| (scheme, rest));
        let host = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
        if scheme.is_empty() { host.to_owned() } else { format!("{scheme}://{host}") }
    };
    let addresses: Vec<String> = url.split(',').map(str::trim).map(clean).collect();
    addresses.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::{Server, fetch_version};

    #[test]
    fn a_password_is_never_shown() {
        let table = [
            ("nats://u:p@h:4222", "nats://h:4222"),
            ("u:p@h", "h"),
            ("nats://a, tls://t@b", "nats://a,tls://b"),
            ("nats://u:p@ss@h", "nats://h"),
        ];
        for (url, shown) in table {
            assert_eq!(without_password(url), shown);
        }
    }

    #[test]
    fn an_address_may_say_who_comes() {
        assert_eq!(auth_in("nats://u:p%40%3a%zz@h:4222"), Some(Auth::Password("u".into(), "p@:%zz".into())));
        assert_eq!(auth_in("t@h"), Some(Auth::Token("t".into())));
        assert_eq!(auth_in("nats://h"), None);
    }

    #[test]
    fn versions_are_compared_as_numbers() {
        for (version, good) in
            [("2.12.0", true), ("2.9.10", false), ("v2.15.1", true), ("3.0.0-RC.1", true), ("2.11.9", false)]
        {
            assert_eq!(parse_version(version).unwrap() >= OLDEST_SERVER, good, "{version}");
        }
    }

    #[tokio::test]
    async fn failures_are_told_apart() {
        let password = r#"authorization { user: "ann", password: "pw" }"#;
        let mut server = Server::builder().extra(password).start().await.unwrap();
        let url = server.url();
        let failure = |connection: Connection| async move { connection.connect().await.unwrap_err() };

        let denied = failure(Connection::to(&url)).await;
        assert!(matches!(&denied, Error::Denied { .. }), "{denied:?}");
        let with_password =
            Connection { user: Some("ann".into()), password: Some("pw".into()), ..Connection::to(&url) };
        check_server(&with_password.connect().await.unwrap()).await.unwrap();
        let in_url = url.replace("//", "//ann:pw@");
        check_server(&Connection::to(&in_url).connect_once().await.unwrap()).await.unwrap();
        let tls = failure(Connection::to(url.replace("nats:", "tls:"))).await;
        assert!(matches!(&tls, Error::Tls { .. }), "{tls:?}");

        server.kill();
        let refused = failure(Connection::to(&in_url)).await;
        assert_eq!(refused.to_string(), format!("no NATS server answers at {url}"));
        assert!(refused.hint().unwrap().contains("nats-server -js") && !refused.is_usage());
        let dns = failure(Connection::to("nats://no-such-host.invalid:4222")).await;
        assert!(matches!(&dns, Error::Dns { .. }), "{dns:?}");
        for address in ["http://x", "nats://x:port", ","] {
            let error = failure(Connection::to(address)).await;
            assert!(matches!(&error, Error::Address { .. }) && error.is_usage(), "{address}: {error:?}");
        }
        let no_file = failure(Connection { creds: Some("/no/such".into()), ..Connection::to(&url) }).await;
        assert_eq!(no_file.to_string(), r#"cannot use credentials file "/no/such""#);
    }

    #[tokio::test]
    async fn a_server_before_2_12_is_refused() {
        if (std::env::consts::OS, std::env::consts::ARCH) != ("linux", "x86_64") {
            return crate::data::skip("the digests of this test are those of linux on x86_64");
        }
        let old = [
            ("2.10.26", "28cd73aa546d35affd27ac5e57949727352f9a9ecc03c5061dda803176a23670"),
            ("2.11.11", "73a165d3033d3c95bd871cd40d939836edfdd43a5f140e0048a56aa91c530b4d"),
        ];
        for (version, sha256) in old {
            let binary = tokio::task::spawn_blocking(|| fetch_version(version, sha256)).await.unwrap().unwrap();
            let server = Server::builder().binary(binary).start().await.unwrap();
            let client = Connection::to(server.url()).connect().await.unwrap();
            let error = check_server(&client).await.unwrap_err();
            assert!(matches!(&error, Error::TooOld { version: found } if found == version), "{error:?}");
        }
    }

    #[tokio::test]
    async fn a_server_without_jetstream_is_refused() {
        let server = Server::builder().jetstream(false).start().await.unwrap();
        let client = Connection::to(server.url()).connect().await.unwrap();
        let error = check_server(&client).await.unwrap_err();
        assert!(matches!(error, Error::NoJetStream { place: "on the server" }), "{error:?}");
        let accounts = "accounts { A: { users: [{ user: a, password: a }] } }\nno_auth_user: a";
        let server = Server::builder().extra(accounts).start().await.unwrap();
        let client = Connection::to(server.url()).connect().await.unwrap();
        let error = check_server(&client).await.unwrap_err();
        assert!(matches!(error, Error::NoJetStream { .. }), "{error:?}");
    }

    #[tokio::test]
    async fn a_long_running_client_comes_back_and_a_single_one_does_not() {
        let mut server = Server::builder().start().await.unwrap();
        let lasting = Connection::to(server.url()).connect().await.unwrap();
        let single = Connection::to(server.url()).connect_once().await.unwrap();
        server.kill();
        server.restart().await.unwrap();
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        while lasting.connection_state() != async_nats::connection::State::Connected || lasting.flush().await.is_err() {
            assert!(std::time::Instant::now() < deadline, "it did not come back");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_ne!(single.connection_state(), async_nats::connection::State::Connected);
    }
}
