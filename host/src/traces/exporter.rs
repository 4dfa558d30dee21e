//! Spans go to the collector. In: spans, as they end. Out: OTLP over HTTP, some at a time. The queue is bounded: what does not fit
//! and what the collector does not take is dropped, counted, and told once a minute. Never: blocks whoever offers a span; keeps a
//! host that shall stop for longer than `END_WITHIN`.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use opentelemetry_http::hyper::HyperClient;
use opentelemetry_otlp::{SpanExporter as Otlp, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SpanData, SpanExporter as _};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// Spans that wait. One takes about a kilobyte.
const QUEUE: usize = 8192;

/// Spans in one request, and how long the first of them waits for company.
const REQUEST_SPANS: usize = 512;
const GATHER: Duration = Duration::from_millis(500);

/// A collector that has not answered by then does not.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// How often it is told that spans are dropped.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// How long a host that stops waits for its last spans.
const END_WITHIN: Duration = Duration::from_secs(3);

/// What a host exports, and where to.
#[derive(Clone, Debug)]
pub struct Options {
    /// The address that takes traces.
    pub endpoint: String,
    /// Which part of the traces that nobody has decided about, from 0 to 1.
    pub ratio: f64,
    /// The host's name.
    pub host: String,
}

/// Why nothing can be exported. The user's to mend.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No address.
    #[error("{0:?} is no address of a collector: it must begin with http:// or https://")]
    Address(String),
    /// The exporter cannot be made.
    #[error("no traces can be sent to {0}: {1}")]
    Unusable(String, String),
    /// It was begun before.
    #[error("this process sends traces already")]
    Twice,
}

/// Where spans are offered.
#[derive(Debug)]
pub(super) struct Exporter {
    spans: mpsc::Sender<SpanData>,
    dropped: Arc<AtomicU64>,
    ratio: f64,
}

/// The exporting itself, until its end.
#[derive(Debug)]
pub struct Exporting {
    ending: Arc<Notify>,
    task: JoinHandle<()>,
}

static EXPORTER: OnceLock<Exporter> = OnceLock::new();

/// This process's exporter, if it has one.
pub(super) fn exporter() -> Option<&'static Exporter> {
    EXPORTER.get()
}

impl Exporter {
    /// Takes a span, or counts it as dropped.
    pub(super) fn offer(&self, span: SpanData) {
        if self.spans.try_send(span).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Whether a trace that nobody has decided about is sampled; by its id, so that all hosts say the same.
    pub(super) fn samples(&self, trace: [u8; 16]) -> bool {
        let [_, _, _, _, _, _, _, _, low @ ..] = trace;
        let place = (u64::from_be_bytes(low) >> 1) as f64;
        place < self.ratio * (1_u64 << 63) as f64
    }
}

impl Exporting {
    /// Begins to export what this process does from now on.
    ///
    /// # Errors
    /// When the collector's address is none.
    pub fn start(options: &Options) -> Result<Self, Error> {
        let Options { endpoint, ratio, host } = options;
        if !["http://", "https://"].iter().any(|scheme| endpoint.starts_with(scheme)) {
            return Err(Error::Address(endpoint.clone()));
        }
        let unusable = |reason: String| Error::Unusable(endpoint.clone(), reason);
        let builder = Otlp::builder().with_http();
        // A machine without certificates can still talk to a collector beside it.
        let builder = if endpoint.starts_with("https://") {
            let connector = hyper_rustls::HttpsConnectorBuilder::new()
                .with_provider_and_native_roots(rustls::crypto::ring::default_provider())
                .map_err(|error| unusable(error.to_string()))?
                .https_only()
                .enable_http1()
                .build();
            builder.with_http_client(HyperClient::new(connector, ANSWER_WITHIN, None))
        } else {
            builder.with_http_client(HyperClient::with_default_connector(ANSWER_WITHIN, None))
        };
        let otlp = builder
            .with_endpoint(endpoint)
            .with_timeout(ANSWER_WITHIN)
            .build()
            .map_err(|error| unusable(error.to_string()))?;
        let (sender, spans) = mpsc::channel(QUEUE);
        let dropped = Arc::<AtomicU64>::default();
        let exporter = Exporter { spans: sender, dropped: Arc::clone(&dropped), ratio: *ratio };
        EXPORTER.set(exporter).map_err(|_| Error::Twice)?;
        let ending = Arc::<Notify>::default();
        let sending =
            Sending { otlp: with_resource(otlp, host), spans, dropped, told: None, endpoint: endpoint.clone() };
        let task = tokio::spawn(sending.run(Arc::clone(&ending)));
        Ok(Self { ending, task })
    }

    /// Sends what is left.
    pub async fn end(self) {
        self.ending.notify_one();
        let _ = tokio::time::timeout(END_WITHIN, self.task).await;
    }
}

/// OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES count, as everywhere.
fn with_resource(mut otlp: Otlp, host: &str) -> Otlp {
    use opentelemetry::KeyValue;
    let mut resource = Resource::builder();
    if std::env::var_os("OTEL_SERVICE_NAME").is_none_or(|name| name.is_empty()) {
        resource = resource.with_service_name("millstream");
    }
    let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
    let resource = resource.with_attributes([version, KeyValue::new("service.instance.id", host.to_owned())]);
    otlp.set_resource(&resource.build());
    otlp
}

/// What the task works with.
struct Sending {
    otlp: Otlp,
    spans: mpsc::Receiver<SpanData>,
    dropped: Arc<AtomicU64>,
    told: Option<Instant>,
    endpoint: String,
}

impl Sending {
    async fn run(mut self, ending: Arc<Notify>) {
        let mut batch = Vec::with_capacity(REQUEST_SPANS);
        loop {
            let ends = tokio::select! {
                biased;
                () = ending.notified() => true,
                () = gather(&mut self.spans, &mut batch) => false,
            };
            if ends {
                self.send_rest(batch).await;
                return;
            }
            self.send(std::mem::take(&mut batch)).await;
        }
    }

    async fn send_rest(&mut self, mut batch: Vec<SpanData>) {
        loop {
            while batch.len() < REQUEST_SPANS
                && let Ok(span) = self.spans.try_recv()
            {
                batch.push(span);
            }
            if batch.is_empty() {
                return;
            }
            self.send(std::mem::take(&mut batch)).await;
        }
    }

    async fn send(&mut self, batch: Vec<SpanData>) {
        let count = batch.len() as u64;
        let reason = match tokio::time::timeout(ANSWER_WITHIN, self.otlp.export(batch)).await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some(format!("no answer within {ANSWER_WITHIN:?}")),
        };
        if reason.is_some() {
            self.dropped.fetch_add(count, Ordering::Relaxed);
        }
        if self.told.is_some_and(|told| told.elapsed() < TELL_EVERY) {
            return;
        }
        let dropped = self.dropped.swap(0, Ordering::Relaxed);
        if dropped > 0 {
            self.told = Some(Instant::now());
            let reason = reason.unwrap_or_else(|| "more came than it took".to_owned());
            let endpoint = self.endpoint.as_str();
            tracing::warn!(endpoint, dropped, reason, "spans were dropped; the handlers run on");
        }
    }
}

/// Waits for a span, and a while for more.
async fn gather(spans: &mut mpsc::Receiver<SpanData>, batch: &mut Vec<SpanData>) {
    if batch.is_empty() {
        match spans.recv().await {
            Some(span) => batch.push(span),
            None => std::future::pending().await,
        }
    }
    let more = async {
        while batch.len() < REQUEST_SPANS
            && let Some(span) = spans.recv().await
        {
            batch.push(span);
        }
    };
    let _ = tokio::time::timeout(GATHER, more).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_is_kept_and_each_host_says_the_same_of_a_trace() {
        let exporter = |ratio| {
            let (spans, _) = mpsc::channel(1);
            Exporter { spans, dropped: Arc::default(), ratio }
        };
        let traces: Vec<[u8; 16]> =
            (0..10_000_u32).map(|number| super::super::Context::begin(&number.to_string(), |_| true).trace).collect();
        let sampled = |ratio| traces.iter().filter(|trace| exporter(ratio).samples(**trace)).count();
        assert_eq!((sampled(0.0), sampled(1.0)), (0, traces.len()));
        assert!((900..1100).contains(&sampled(0.1)), "{}", sampled(0.1));
        let low = exporter(0.1);
        let high = exporter(0.2);
        assert!(traces.iter().all(|trace| !low.samples(*trace) || high.samples(*trace)), "a part of the part");
    }
}
