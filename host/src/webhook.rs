//! News by HTTP: a POST of JSON to each address, signed. In: news, from whoever has some. Out: requests, each tried until it is taken or
//! given up. Never: keeps anybody waiting, more news than a queue holds, or the secret in a log.
//!
//! The signature is `Millstream-Signature: t=<seconds since 1970>,v1=<hex>`, where hex is the HMAC-SHA256 of `<t>.<body>` under the secret.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use hmac::{Hmac, KeyInit as _, Mac as _};
use http_body_util::Full;
use hyper::{Request, StatusCode, Uri};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{Connect, HttpConnector};
use hyper_util::rt::TokioExecutor;
use sha2::Sha256;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::clock;

/// News that wait for one address, at most.
const QUEUE: usize = 256;

/// What one try may take.
const WITHIN: Duration = Duration::from_secs(5);

/// Tries, and the wait after the first; it doubles each time, so all of them take about a minute.
const TRIES: u32 = 8;
const WAIT: Duration = Duration::from_millis(500);

/// How long a host that stops goes on posting what waits.
const END_WITHIN: Duration = Duration::from_secs(5);

/// What signs.
#[derive(Clone)]
pub struct Secret(String);

impl Secret {
    /// This secret.
    #[must_use]
    pub fn new(secret: String) -> Self {
        Self(secret)
    }

    /// The signature of a body at this time, seconds since 1970.
    #[must_use]
    pub fn sign(&self, seconds: i64, body: &str) -> String {
        // A key of any length will do.
        let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(self.0.as_bytes()) else { return String::new() };
        mac.update(format!("{seconds}.{body}").as_bytes());
        format!("t={seconds},v1={}", hex::encode(mac.finalize().into_bytes()))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(a secret)")
    }
}

/// An address that cannot be posted to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No such address.
    #[error("webhook address is not of the form http://host/path or https://host/path")]
    NotHttp,
    /// HTTPS without anybody to trust.
    #[error("this machine has no certificate authorities to trust for HTTPS: {0}")]
    NoRoots(String),
}

/// Where news go.
#[derive(Clone, Debug, Default)]
pub struct Webhooks {
    /// Each with the place that it leads to, for the log.
    queues: Vec<(String, mpsc::Sender<News>)>,
    waiting: Arc<AtomicUsize>,
}

/// The posting itself, until its end.
#[derive(Debug, Default)]
pub struct Posting {
    tasks: JoinSet<()>,
    waiting: Arc<AtomicUsize>,
}

#[derive(Clone, Debug)]
struct News {
    id: String,
    body: String,
}

impl Webhooks {
    /// Begins to serve these addresses; must be called within a runtime.
    ///
    /// # Errors
    /// When an address cannot be posted to.
    pub fn new(addresses: &[String], secret: Option<&Secret>) -> Result<(Self, Posting), Error> {
        let addresses = addresses.iter().map(|address| parse(address)).collect::<Result<Vec<Uri>, Error>>()?;
        let mut queues = Vec::with_capacity(addresses.len());
        let mut posting = Posting::default();
        for address in addresses {
            let (queue, news) = mpsc::channel(QUEUE);
            let (host, waiting) = (place(&address), Arc::clone(&posting.waiting));
            let target = Target { address, host: host.clone(), secret: secret.cloned(), waiting };
            let builder = Client::builder(TokioExecutor::new());
            if target.address.scheme_str() == Some("https") {
                let roots = hyper_rustls::HttpsConnectorBuilder::new().with_native_roots();
                let roots = roots.map_err(|error| Error::NoRoots(error.to_string()))?;
                let client = builder.build(roots.https_only().enable_http1().build());
                posting.tasks.spawn(serve(client, target, news));
            } else {
                posting.tasks.spawn(serve(builder.build(HttpConnector::new()), target, news));
            }
            queues.push((host, queue));
        }
        Ok((Self { queues, waiting: Arc::clone(&posting.waiting) }, posting))
    }

    /// Posts news to all addresses, some time.
    pub fn post(&self, id: &str, body: &str) {
        for (host, queue) in &self.queues {
            self.waiting.fetch_add(1, Ordering::Relaxed);
            if queue.try_send(News { id: id.to_owned(), body: body.to_owned() }).is_err() {
                self.waiting.fetch_sub(1, Ordering::Relaxed);
                tracing::warn!(host, id, "webhook: too many news wait; this one is not posted");
            }
        }
    }
}

impl Posting {
    /// Posts what waits, and ends; nobody may have more to say. What no address takes by then is counted and lost.
    pub async fn end(mut self) {
        let all = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(END_WITHIN, all).await.is_err() {
            let count = self.waiting.load(Ordering::Relaxed);
            tracing::warn!(count, "webhook: the host ends; these news are not posted");
        }
    }
}

fn parse(address: &str) -> Result<Uri, Error> {
    let uri: Uri = address.parse().map_err(|_| Error::NotHttp)?;
    let is_http = matches!(uri.scheme_str(), Some("http" | "https"));
    // What stands before an @ would be lost, and people would think that it is sent.
    let is_plain = uri.authority().is_some_and(|authority| !authority.as_str().contains('@'));
    if is_http && is_plain { Ok(uri) } else { Err(Error::NotHttp) }
}

/// Host and port, which tell webhooks of one machine apart. Path and query may hold a token.
fn place(address: &Uri) -> String {
    let usual = if address.scheme_str() == Some("https") { 443 } else { 80 };
    format!("{}:{}", address.host().unwrap_or_default(), address.port_u16().unwrap_or(usual))
}

/// An address, and what signs what goes there.
struct Target {
    address: Uri,
    /// What of it may be logged.
    host: String,
    secret: Option<Secret>,
    /// News that nobody has taken or given up.
    waiting: Arc<AtomicUsize>,
}

async fn serve<C>(client: Client<C, Full<Bytes>>, target: Target, mut queue: mpsc::Receiver<News>)
where
    C: Connect + Clone + Send + Sync + 'static,
{
    let host = target.host.as_str();
    while let Some(news) = queue.recv().await {
        let mut wait = WAIT;
        for attempt in 1..=TRIES {
            let reason = match once(&client, &target, &news).await {
                Ok(()) => break,
                Err(reason) => reason,
            };
            if attempt == TRIES {
                tracing::error!(host, id = news.id, reason, "webhook: given up");
                break;
            }
            tracing::warn!(host, id = news.id, attempt, reason, "webhook: trying again");
            tokio::time::sleep(wait).await;
            wait *= 2;
        }
        target.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn once<C>(client: &Client<C, Full<Bytes>>, target: &Target, news: &News) -> Result<(), String>
where
    C: Connect + Clone + Send + Sync + 'static,
{
    let mut request = Request::post(target.address.clone())
        .header("content-type", "application/json")
        .header("user-agent", concat!("millstream/", env!("CARGO_PKG_VERSION")))
        .header("millstream-id", &news.id);
    if let Some(secret) = &target.secret {
        request = request.header("millstream-signature", secret.sign(clock::now() / 1_000_000_000, &news.body));
    }
    let request = request.body(Full::from(news.body.clone())).map_err(|error| error.to_string())?;
    match tokio::time::timeout(WITHIN, client.request(request)).await {
        Err(_) => Err(format!("no answer within {WITHIN:?}")),
        Ok(Err(error)) => Err(causes(&error)),
        Ok(Ok(answer)) if answer.status().is_success() => Ok(()),
        Ok(Ok(answer)) => Err(told(answer.status())),
    }
}

fn told(status: StatusCode) -> String {
    format!("it answered {status}")
}

/// An error with its causes, which the client keeps apart.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(one) = cause {
        text = format!("{text}: {one}");
        cause = one.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_what_others_compute() {
        // printf '1700000000.{"a":1}' | openssl dgst -sha256 -hmac s3cret
        let expected = "t=1700000000,v1=1698a50bc74d1ff1db85c4e0a5297c2ad9fdba245d5737cdb789e4cc6e098940";
        assert_eq!(Secret::new("s3cret".to_owned()).sign(1_700_000_000, r#"{"a":1}"#), expected);
        assert_eq!(format!("{:?}", Secret::new("s3cret".to_owned())), "(a secret)");
    }

    #[test]
    fn a_log_tells_host_and_port_and_nothing_else() {
        for (address, told) in [
            ("http://127.0.0.1:9/x?token=1", "127.0.0.1:9"),
            ("http://[::1]/x", "[::1]:80"),
            ("https://example.org/secret", "example.org:443"),
        ] {
            assert_eq!(place(&parse(address).unwrap()), told);
        }
    }

    #[test]
    fn addresses_are_http_or_refused_without_being_shown() {
        for good in ["http://127.0.0.1:9/x?token=1", "https://example.org/"] {
            assert!(parse(good).is_ok(), "{good}");
        }
        for bad in ["", "example.org", "ftp://example.org", "http://user:word@example.org/", "/path", "http://"] {
            let error = parse(bad).expect_err(bad).to_string();
            assert!(!error.contains("word"), "{error}");
        }
    }
}
