//! A collector of traces as a host meets it: an HTTP server on a port of its own that reads OTLP. It keeps every span.

use std::sync::{Arc, Mutex};

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::until;

/// A collector that runs until it is dropped.
pub struct Collector {
    pub url: String,
    spans: Arc<Mutex<Vec<Span>>>,
    requests: Arc<Mutex<u64>>,
    task: JoinHandle<()>,
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Collector {
    pub async fn start() -> Self {
        Self::with(true).await
    }

    /// One that takes requests and never answers.
    pub async fn deaf() -> Self {
        Self::with(false).await
    }

    async fn with(answers: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("its address"));
        let (spans, requests) = (Arc::<Mutex<Vec<Span>>>::default(), Arc::<Mutex<u64>>::default());
        let (kept, counted) = (Arc::clone(&spans), Arc::clone(&requests));
        let task = tokio::spawn(async move {
            loop {
                let (socket, _) = listener.accept().await.expect("a connection");
                tokio::spawn(serve(socket, Arc::clone(&kept), Arc::clone(&counted), answers));
            }
        });
        Self { url, spans, requests, task }
    }

    /// All spans so far.
    pub fn spans(&self) -> Vec<Span> {
        self.spans.lock().unwrap().clone()
    }

    /// Requests so far, answered or not.
    pub fn requests(&self) -> u64 {
        *self.requests.lock().unwrap()
    }

    /// The spans of this name, once there are so many.
    pub async fn named(&self, name: &str, count: usize) -> Vec<Span> {
        until(&format!("{count} spans {name:?}"), async || {
            let spans: Vec<Span> = self.spans().into_iter().filter(|span| span.name == name).collect();
            (spans.len() >= count).then_some(spans)
        })
        .await
    }
}

/// What a span says under this name, as text.
pub fn attribute(span: &Span, name: &str) -> String {
    let found = span.attributes.iter().find(|attribute| attribute.key == name);
    match found.and_then(|attribute| attribute.value.as_ref()).and_then(|value| value.value.as_ref()) {
        Some(Value::StringValue(text)) => text.clone(),
        Some(Value::IntValue(number)) => number.to_string(),
        Some(Value::BoolValue(is)) => is.to_string(),
        other => panic!("{name} is {other:?} in {span:?}"),
    }
}

async fn serve(mut socket: TcpStream, spans: Arc<Mutex<Vec<Span>>>, requests: Arc<Mutex<u64>>, answers: bool) {
    let mut buffer = Vec::new();
    loop {
        let Some(end) = buffer.windows(4).position(|window| window == b"\r\n\r\n") else {
            if socket.read_buf(&mut buffer).await.unwrap_or_default() == 0 {
                return;
            }
            continue;
        };
        let head = String::from_utf8(buffer[..end].to_vec()).expect("a head");
        assert!(head.starts_with("POST /v1/traces HTTP/1.1\r\n"), "{head}");
        let length = head.lines().find_map(|line| {
            let (name, value) = line.split_once(": ")?;
            name.eq_ignore_ascii_case("content-length").then(|| value.parse::<usize>().expect("a length"))
        });
        let whole = end + 4 + length.expect("a length");
        while buffer.len() < whole {
            if socket.read_buf(&mut buffer).await.unwrap_or_default() == 0 {
                return;
            }
        }
        *requests.lock().unwrap() += 1;
        if !answers {
            // Nothing more comes on this connection until the client gives up.
            let _ = socket.read_buf(&mut buffer).await;
            return;
        }
        let request = ExportTraceServiceRequest::decode(&buffer[end + 4..whole]).expect("OTLP");
        for resource in request.resource_spans {
            let attributes = &resource.resource.as_ref().expect("a resource").attributes;
            assert!(attributes.iter().any(|attribute| attribute.key == "service.name"), "{attributes:?}");
            spans.lock().unwrap().extend(resource.scope_spans.into_iter().flat_map(|scope| scope.spans));
        }
        buffer.drain(..whole);
        let answer = b"HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: 0\r\n\r\n";
        socket.write_all(answer).await.expect("answered");
    }
}
