//! Traces, read by a collector that decodes what comes: a trace goes through sagas and their services, whoever dies; a collector
//! that is away, or answers nothing, costs spans and nothing else.

use std::time::Duration;

use async_nats::HeaderMap;
use opentelemetry_proto::tonic::trace::v1::Span;
use serde_json::json;

use crate::harness::{Collector, World, attribute, chains, orders, until};
use crate::services::{Command, Services, stored};
use crate::shop::{HANDLER, done, instance, shop};

const WINDOW: Duration = Duration::from_secs(120);
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

/// An order of a publisher who said this.
async fn place(world: &World, order: &str, headers: &[(&str, &str)]) {
    let payload = json!({ "order": order, "customer": "C42", "cents": 1200 });
    let body = json!({ "eventId": format!("placed-{order}"), "eventType": "OrderPlaced", "aggregateId": order,
        "timestamp": "2100-01-01T00:00:00Z", "payload": payload });
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        map.insert(*name, *value);
    }
    let ack = world.jetstream.publish_with_headers("orders.OrderPlaced", map, body.to_string().into()).await;
    ack.expect("sent").await.expect("stored");
}

/// Trace, span and flags of a command.
fn context(command: &Command) -> (String, String, String) {
    let parts: Vec<&str> = command.traceparent.split('-').collect();
    assert_eq!((parts.len(), parts[0]), (4, "00"), "{command:?}");
    (parts[1].to_owned(), parts[2].to_owned(), parts[3].to_owned())
}

fn ids(span: &Span) -> (String, String, String) {
    (hex::encode(&span.trace_id), hex::encode(&span.span_id), hex::encode(&span.parent_span_id))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trace_goes_through_a_saga_its_services_and_the_next_handler() {
    let world = shop(WINDOW, &[]).await;
    world.deploy("order-chain", "chain", &["--set", "subjects=order-commands.*"]);
    let collector = Collector::start().await;
    let mut host = world.host(&[("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.url)]);
    let _services = Services::start(&world.jetstream, "COMMANDS", "orders", done).await;
    let parent = format!("00-{TRACE}-{PARENT}-01");
    place(&world, "O1", &[("traceparent", &parent), ("tracestate", "shop=1")]).await;
    instance(&world, HANDLER, "O1", "completed").await;
    world.caught_up("chain").await;
    host.signal("TERM");
    assert!(host.end().await.success(), "{}", host.log());

    let commands = stored(&world.jetstream, "COMMANDS").await;
    assert_eq!(commands.len(), 4);
    let mut cause = PARENT.to_owned();
    for command in &commands {
        let (trace, span, flags) = context(command);
        assert_eq!((&*trace, &*flags), (TRACE, "01"), "{command:?}");
        let sends = collector.named(&format!("send {}", command.kind), 1).await;
        assert_eq!(sends.len(), 1, "{}: one span", command.kind);
        assert_eq!(ids(&sends[0]), (TRACE.to_owned(), span.clone(), cause), "{}", command.kind);
        assert_eq!(attribute(&sends[0], "messaging.message.id"), command.id);
        assert_eq!(attribute(&sends[0], "millstream.handler"), HANDLER);
        // The services of this test make no spans: they pass on what came.
        cause = span;
    }
    let of_saga = collector.named(&format!("batch {HANDLER}"), 1).await;
    let first =
        of_saga.iter().find(|span| attribute(span, "millstream.first_sequence") == "1").expect("the order's batch");
    let linked = |span: &Span| -> Vec<(String, String)> {
        span.links.iter().map(|link| (hex::encode(&link.trace_id), hex::encode(&link.span_id))).collect()
    };
    assert_eq!(linked(first), [(TRACE.to_owned(), PARENT.to_owned())]);
    let (trace, _, parent) = ids(first);
    assert_eq!((&*trace, &*parent), (TRACE, PARENT), "one event alone stands in its own trace");
    for (name, value) in [
        ("messaging.destination.name", "ORDERS"),
        ("messaging.batch.message_count", "1"),
        ("millstream.last_sequence", "1"),
        ("millstream.applied", "1"),
        ("millstream.changes", "1"),
    ] {
        assert_eq!(attribute(first, name), value, "{name}");
    }
    assert_eq!(attribute(first, "millstream.digest").len(), 12);
    let mut links: Vec<(String, String)> = collector.named("batch chain", 1).await.iter().flat_map(linked).collect();
    let mut sent: Vec<(String, String)> = commands.iter().map(context).map(|(trace, span, _)| (trace, span)).collect();
    links.sort();
    sent.sort();
    assert_eq!(links, sent, "the next handler's batches link to what the saga sent");
    assert_eq!(state_of_first(&world).await, "shop=1");
}

/// `tracestate` of the first command.
async fn state_of_first(world: &World) -> String {
    let stream = world.jetstream.get_stream("COMMANDS").await.expect("the stream");
    let message = stream.direct_get(1).await.expect("a message");
    message.headers.get("tracestate").map(|value| value.as_str().to_owned()).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_links_to_so_many_publishers_and_says_how_many_more_there_were() {
    let world = World::new().await;
    world.stream("ORDERS", &["orders.>"]).await;
    world.deploy("order-chain", "chain", &[]);
    for number in 1..=40 {
        place(&world, "O1", &[("Traceparent", &format!("00-{TRACE}-{number:016x}-01"))]).await;
    }
    let collector = Collector::start().await;
    let exactly = format!("{}/v1/traces", collector.url);
    let general = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9");
    let _host = world.host(&[("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", &*exactly), general]);
    let spans = until("all are told", async || {
        let spans = collector.spans();
        let events = |span: &Span| attribute(span, "messaging.batch.message_count").parse::<u64>().expect("a number");
        (spans.iter().map(events).sum::<u64>() == 40).then_some(spans)
    })
    .await;
    for span in &spans {
        let (links, dropped) = (span.links.len() as u32, span.dropped_links_count);
        assert_eq!((links + dropped).to_string(), attribute(span, "messaging.batch.message_count"));
        assert!(links <= 32 && (dropped == 0 || links == 32), "{links} links, {dropped} dropped");
    }
    assert!(spans.iter().any(|span| span.links.len() > 1), "some came together");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publisher_decides_whether_its_trace_is_kept_and_the_host_about_the_others() {
    let world = World::new().await;
    world.stream("ORDERS", &["orders.>"]).await;
    world.stream("RECEIPTS", &["receipts.>"]).await;
    world.deploy("order-receipt", "receipt", &["--set", "batch_events=1"]);
    let collector = Collector::start().await;
    let environment = [("OTEL_EXPORTER_OTLP_ENDPOINT", &*collector.url), ("MILLSTREAM_OTLP_SAMPLE", "0")];
    let mut host = world.host(&environment);
    let unsampled = format!("00-{TRACE}-{PARENT}-00");
    let sampled = format!("00-{TRACE}-{PARENT}-01");
    place(&world, "O1", &[("traceparent", &unsampled)]).await;
    place(&world, "O2", &[]).await;
    place(&world, "O3", &[("traceparent", &sampled)]).await;
    place(&world, "O4", &[("traceparent", "no such thing")]).await;
    let receipts = until("all receipts", async || {
        Some(stored(&world.jetstream, "RECEIPTS").await).filter(|receipts| receipts.len() == 4)
    })
    .await;
    host.signal("TERM");
    assert!(host.end().await.success(), "{}", host.log());
    assert_eq!(receipts[0].traceparent, unsampled, "passed on as it came");
    for own in [&receipts[1], &receipts[3]] {
        let (trace, _, flags) = context(own);
        assert!(trace != TRACE && flags == "00", "{own:?}");
    }
    let (trace, span, flags) = context(&receipts[2]);
    assert_eq!((&*trace, &*flags), (TRACE, "01"));
    let mut names: Vec<(String, String)> =
        collector.spans().iter().map(|span| (span.name.clone(), hex::encode(&span.trace_id))).collect();
    names.sort();
    let kept = |name: &str| (name.to_owned(), TRACE.to_owned());
    assert_eq!(names, [kept("batch receipt"), kept("send send")]);
    assert!(collector.spans().iter().any(|sent| hex::encode(&sent.span_id) == span));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trace_that_was_decided_is_sent_after_the_host_died_whoever_sends_it() {
    let world = World::new().await;
    world.stream("ORDERS", &["orders.>"]).await;
    world.stream("RECEIPTS", &["receipts.>"]).await;
    world.deploy("order-receipt", "receipt", &[]);
    let collector = Collector::start().await;
    let parent = format!("00-{TRACE}-{PARENT}-01");
    place(&world, "O1", &[("traceparent", &parent), ("tracestate", "shop=1")]).await;
    // The record is in the journal, and nothing else.
    let environment = [("OTEL_EXPORTER_OTLP_ENDPOINT", &*collector.url), ("MILLSTREAM_CRASH_AT", "committed:1")];
    let mut host = world.host(&environment);
    assert!(!host.end().await.success(), "it ends by the abort; its log:\n{}", host.log());
    assert_eq!(stored(&world.jetstream, "RECEIPTS").await.len(), 0);
    // This one knows of no collector.
    let _heir = world.host(&[]);
    let receipt = until("the receipt", async || stored(&world.jetstream, "RECEIPTS").await.pop()).await;
    let span = hex::encode(millstream::traces::Context::span_of(&receipt.id));
    assert_eq!(receipt.traceparent, format!("00-{TRACE}-{span}-01"));
    // What it decides itself, it passes on as it came; and where nothing came, nothing is said.
    place(&world, "O2", &[("traceparent", &parent)]).await;
    place(&world, "O3", &[]).await;
    let receipts = until("the receipts", async || {
        Some(stored(&world.jetstream, "RECEIPTS").await).filter(|receipts| receipts.len() == 3)
    })
    .await;
    assert_eq!((&*receipts[1].traceparent, &*receipts[2].traceparent), (&*parent, ""));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_away_or_answers_nothing_holds_up_nothing() {
    let deaf = Collector::deaf().await;
    for (url, what) in [("http://127.0.0.1:9", "away"), (&*deaf.url, "deaf")] {
        let world = World::new().await;
        world.stream("ORDERS", &["orders.>"]).await;
        world.deploy("order-chain", "chain", &["--set", "batch_events=1"]);
        // More than the exporter's queue holds.
        let events = orders(0, 10_000);
        world.publish(&events).await;
        let mut host = world.host(&[("OTEL_EXPORTER_OTLP_ENDPOINT", url)]);
        world.settled("chain", &chains(&events)).await;
        until(&format!("{what}: it is told"), async || host.log().contains("spans were dropped").then_some(())).await;
        host.signal("TERM");
        assert!(host.end().await.success(), "{what}: {}", host.log());
        assert_eq!(host.log().matches("spans were dropped").count(), 1, "{what}: once a minute: {}", host.log());
    }
    assert!(deaf.requests() > 0);
}

#[test]
fn what_is_no_collector_is_refused_before_anything_is_touched() {
    for arguments in [["run", "--otlp", "localhost:4318"], ["run", "--otlp", "ftp://localhost"]] {
        let stderr = crate::harness::refused("nats://127.0.0.1:1", 2, &arguments);
        assert!(stderr.contains("no address of a collector"), "{stderr}");
    }
    let output = crate::harness::cli("nats://127.0.0.1:1", &["run", "--otlp-sample", "1.5"]);
    assert_eq!(output.status.code(), Some(2));
}
