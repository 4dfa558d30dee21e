//! Metrics: what a host tells Prometheus is taken by Prometheus' own parser, is what `millstream lag` says, is told once for each
//! handler, and answers each panel and rule that we ship.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::harness::web::{get, request, web_host};
use crate::harness::{World, orders, prometheus, until};

/// The value of a sample whose labels hold these.
fn value(page: &Value, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
    let fits = |sample: &&Value| sample[0] == name && labels.iter().all(|(label, value)| sample[1][label] == *value);
    let samples: Vec<&Value> = page["samples"].as_array().expect("samples").iter().filter(fits).collect();
    assert!(samples.len() < 2, "{name} {labels:?} is told {} times: {samples:?}", samples.len());
    samples.first().map(|sample| sample[2].as_f64().expect("a number"))
}

fn file(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(name).to_str().expect("a path").to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn prometheus_takes_the_metrics_and_they_are_what_lag_says() {
    let world = World::new().await;
    world.stream("ORDERS", &["orders.>"]).await;
    world.deploy("order-chain", "chain", &["--label", "a \"label\" \\ of\nlines"]);
    world.deploy("customer-spend", "late", &[]);
    world.ok(&["pause", "late", "--no-wait"]);
    world.publish(&orders(0, 500)).await;
    let (_host, address) = web_host(&world, &[("MILLSTREAM_HOST", "here")]).await;
    world.in_state("late", "paused").await;
    world.caught_up("chain").await;

    let text = get(address, "/metrics");
    assert_eq!((text.status, text.header("content-type")), (200, "text/plain; version=0.0.4; charset=utf-8"));
    let open =
        request(address, "GET", "/metrics", "Accept: application/openmetrics-text;version=1.0.0,text/plain;q=0.5\r\n");
    assert_eq!(open.header("content-type"), "application/openmetrics-text; version=1.0.0; charset=utf-8");
    let Some(text) = prometheus(&["metrics", "text"], &text.body) else { return };
    let Some(open) = prometheus(&["metrics", "openmetrics"], &open.body) else { return };
    for page in [&text, &open] {
        for handler in ["chain", "late"] {
            let [row] = world.lag(handler).try_into().expect("one stream");
            let labels = [("handler", handler), ("host", "here"), ("stream", "ORDERS")];
            for (name, field) in [("lag_events", "events"), ("position", "position"), ("head", "head")] {
                assert_eq!(value(page, &format!("millstream_handler_{name}"), &labels), row[field].as_f64(), "{row}");
            }
            let state = row["state"].as_str().expect("a state");
            assert_eq!(value(page, "millstream_handler_state", &[("handler", handler), ("state", state)]), Some(1.0));
        }
        let mine = |name: &str| value(page, name, &[("handler", "chain")]);
        let outcome = |outcome| {
            value(page, "millstream_handler_events_total", &[("handler", "chain"), ("outcome", outcome)]).expect("told")
        };
        let outcomes = ["applied", "irrelevant", "ignored", "parked", "expired"].map(outcome);
        assert_eq!(mine("millstream_handler_delivered_events_total"), Some(500.0));
        assert_eq!(outcomes.iter().sum::<f64>(), 500.0, "each delivered event has one outcome");
        let label = [("handler", "chain"), ("label", "a \"label\" \\ of\nlines")];
        assert_eq!(value(page, "millstream_handler_info", &label), Some(1.0), "whatever a label holds");
        assert_eq!(value(page, "millstream_host_connected", &[]), Some(1.0));
    }
    let families = text["families"].as_array().expect("families");
    assert!(families.iter().all(|family| family[1] != "unknown" && family[2] == true), "{families:?}");
    // `all`, and by `promtool` where it is installed.
    promtool(&["check", "metrics"], &get(address, "/metrics").body);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_is_told_by_the_host_that_runs_it_and_by_all_once_nobody_does() {
    let world = World::new().await;
    world.stream("ORDERS", &["orders.>"]).await;
    world.deploy("order-chain", "one", &[]);
    world.deploy("order-chain", "two", &[]);
    world.publish(&orders(0, 100)).await;
    let environment = |name| [("MILLSTREAM_HOST", name), ("MILLSTREAM_HANDLER", name)];
    let (_first, first) = web_host(&world, &environment("one")).await;
    let (mut second, address) = web_host(&world, &environment("two")).await;
    for handler in ["one", "two"] {
        world.in_state(handler, "running").await;
        world.caught_up(handler).await;
    }
    let told = |address| {
        let lag = |line: &&str| line.starts_with("millstream_handler_lag_events{");
        get(address, "/metrics").body.lines().filter(lag).map(str::to_owned).collect::<Vec<_>>()
    };
    let line = |handler: &str, host: &str, lag: u64| {
        format!("millstream_handler_lag_events{{handler=\"{handler}\",host=\"{host}\",stream=\"ORDERS\"}} {lag}")
    };
    assert_eq!((told(first), told(address)), (vec![line("one", "one", 0)], vec![line("two", "two", 0)]));
    second.kill();
    world.publish(&orders(100, 50)).await;
    let both = async || (told(first) == [line("one", "one", 0), line("two", "", 50)]).then_some(());
    until("the first host tells of what nobody reports", both).await;
    let silent = "millstream_handler_state{handler=\"two\",host=\"\",state=\"not-reporting\"} 1";
    assert!(get(first, "/metrics").body.lines().any(|found| found == silent));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_server_leaves_no_number_that_could_be_of_yesterday() {
    let mut world = World::new().await;
    world.stream("ORDERS", &["orders.>"]).await;
    world.deploy("order-chain", "chain", &[]);
    let (_host, address) = web_host(&world, &[]).await;
    world.in_state("chain", "running").await;
    let ready = async |status: u16| (get(address, "/readyz").status == status).then_some(());
    until("it is ready", async || ready(200).await).await;
    assert!(get(address, "/metrics").body.contains("\nmillstream_handler_lag_events{"));
    world.server.kill();
    until("it is not ready", async || ready(503).await).await;
    assert!(get(address, "/readyz").body.contains("not connected with NATS"));
    assert_eq!((get(address, "/healthz").status, get(address, "/healthz").body.as_str()), (200, "alive\n"));
    let gone = async || {
        let page = get(address, "/metrics").body;
        (page.contains("\nmillstream_overview_success 0\n") && !page.contains("handler=\"chain\"")).then_some(page)
    };
    let page = until("the numbers are gone", gone).await;
    assert!(page.contains("\nmillstream_host_connected 0\n"), "{page}");
    world.server.restart().await.expect("the server is back");
    until("it is ready again", async || ready(200).await).await;
    until("the numbers are back", async || get(address, "/metrics").body.contains("{handler=\"chain\"").then_some(()))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_panel_and_rule_asks_for_what_a_host_tells() {
    let world = World::new().await;
    world.stream("ORDERS", &["orders.>"]).await;
    world.deploy("order-chain", "chain", &[]);
    let (_host, address) = web_host(&world, &[]).await;
    let page = get(address, "/metrics").body;
    let mut told: BTreeSet<String> = BTreeSet::from(["up".to_owned()]);
    for (name, kind) in page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' ')) {
        match kind {
            "histogram" => told.extend(["_bucket", "_sum", "_count"].map(|end| format!("{name}{end}"))),
            _ => drop(told.insert(name.to_owned())),
        }
    }
    let (board, rules) = (file("grafana-board.json"), file("prometheus-rules.yml"));
    promtool(&["check", "rules", &rules], "");
    let Some(queries) = prometheus(&["queries", &board, &rules], "") else { return };
    let queries = queries.as_array().expect("queries");
    assert!(queries.len() > 40, "{}", queries.len());
    for query in queries {
        let names = query[2].as_array().expect("names");
        assert!(!names.is_empty(), "{query}");
        for name in names {
            assert!(told.contains(name.as_str().expect("a name")), "{query}: nothing tells {name}");
        }
    }
}

/// The checks of Prometheus' own tool, where it is installed.
fn promtool(arguments: &[&str], stdin: &str) {
    use std::io::Write as _;
    use std::process::Stdio;
    let mut command = Command::new("promtool");
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let Ok(mut child) = command.spawn() else { return };
    child.stdin.take().expect("stdin").write_all(stdin.as_bytes()).expect("it reads");
    let output = child.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "promtool {arguments:?}: {said}{}", String::from_utf8_lossy(&output.stdout));
}
