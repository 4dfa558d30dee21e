//! The server, its stream of orders, and what a run costs: time, CPU and memory of both processes.

use std::time::Instant;

use async_nats::jetstream::{self, Context, stream};
use bytes::Bytes;
use millstream::server::Server;
use serde::Serialize;

use crate::shop::{BODY_BYTES, Shop};
use crate::usage::{cpu_seconds, resident_bytes};

/// The stream.
pub(crate) const STREAM: &str = "ORDERS";
/// The subject of every order.
pub(crate) const SUBJECT: &str = "orders.placed";

/// Publishes in flight before their acknowledgements are awaited.
const IN_FLIGHT: u64 = 1000;

/// What one run cost.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Run {
    pub(crate) events: u64,
    pub(crate) seconds: f64,
    /// CPU seconds of this process: client, pipeline, sandbox.
    pub(crate) host_cpu_seconds: f64,
    /// CPU seconds of nats-server.
    pub(crate) server_cpu_seconds: f64,
    /// Resident bytes of this process at the end.
    pub(crate) host_rss_bytes: u64,
    /// Resident bytes of nats-server at the end.
    pub(crate) server_rss_bytes: u64,
    /// Linear memory of the guest at the end; 0 without one.
    pub(crate) guest_bytes: u64,
    /// Seconds inside the guest's two calls, copies in and out included; 0 without one.
    pub(crate) guest_seconds: f64,
}

impl Run {
    pub(crate) fn rate(&self) -> f64 {
        self.events as f64 / self.seconds
    }
}

/// A server with a stream.
pub(crate) struct World {
    pub(crate) server: Server,
    pub(crate) jetstream: Context,
}

impl World {
    pub(crate) async fn new() -> anyhow::Result<Self> {
        let server = Server::builder().start().await?;
        let jetstream = connect(&server).await?;
        Ok(Self { server, jetstream })
    }

    /// A connection of its own, so that no run inherits another one's buffers.
    pub(crate) async fn connect(&self) -> anyhow::Result<Context> {
        connect(&self.server).await
    }

    /// Makes the stream anew and fills it with the first orders of a shop.
    pub(crate) async fn fill(&self, shop: &Shop, events: u64) -> anyhow::Result<()> {
        self.empty().await?;
        self.append(events, |index| (SUBJECT.to_owned(), shop.order(index).body(BODY_BYTES))).await
    }

    /// Makes the stream anew.
    pub(crate) async fn empty(&self) -> anyhow::Result<()> {
        let _ = self.jetstream.delete_stream(STREAM).await;
        let config = stream::Config {
            name: STREAM.to_owned(),
            subjects: vec!["orders.>".to_owned()],
            allow_direct: true,
            ..Default::default()
        };
        self.jetstream.create_stream(config).await?;
        Ok(())
    }

    /// Publishes so many messages, subject and body by their number.
    pub(crate) async fn append(&self, count: u64, message: impl Fn(u64) -> (String, Bytes)) -> anyhow::Result<()> {
        let mut next = 0;
        while next < count {
            let until = count.min(next + IN_FLIGHT);
            let mut acks = Vec::new();
            for (subject, body) in (next..until).map(&message) {
                acks.push(self.jetstream.publish(subject, body).await?);
            }
            for ack in acks {
                ack.await?;
            }
            next = until;
        }
        Ok(())
    }

    /// CPU seconds so far, of this process and of the server.
    pub(crate) fn cpu(&self) -> anyhow::Result<(f64, f64)> {
        Ok((cpu_seconds(std::process::id())?, cpu_seconds(self.server.pid())?))
    }

    /// The cost of what began at `begun` with the CPU clocks at `before`.
    pub(crate) fn cost(&self, events: u64, begun: Instant, before: (f64, f64)) -> anyhow::Result<Run> {
        let seconds = begun.elapsed().as_secs_f64();
        let now = self.cpu()?;
        Ok(Run {
            events,
            seconds,
            host_cpu_seconds: now.0 - before.0,
            server_cpu_seconds: now.1 - before.1,
            host_rss_bytes: resident_bytes(std::process::id())?,
            server_rss_bytes: resident_bytes(self.server.pid())?,
            guest_bytes: 0,
            guest_seconds: 0.0,
        })
    }
}

async fn connect(server: &Server) -> anyhow::Result<Context> {
    Ok(jetstream::new(async_nats::connect(server.url()).await?))
}
