//! The users of `deploy/nats-server.conf`: with its own each can do its whole work, also after a crash, and none another's.

use std::path::Path;
use std::time::Duration;

use async_nats::ConnectOptions;
use async_nats::jetstream::{self, Context, stream};
use millstream::server::Server;
use serde_json::{Value, json};

use crate::doctor::{findings_at, reconfigure, told};
use crate::harness::web::{address_in, get};
use crate::harness::{Host, World, cli, module, until};
use crate::services::stored;

const USERS: [&str; 6] = ["host", "deployer", "reader", "publisher", "services", "admin"];

/// A server with the users that we ship, seen by its admin, who has made the streams. A user's password is its name.
async fn guarded() -> World {
    guarded_but(|users| users).await
}

/// The same with users that are a little different.
async fn guarded_but(change: impl FnOnce(String) -> String) -> World {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/nats-server.conf");
    let text = std::fs::read_to_string(file).expect("the configuration");
    // All before is where it listens and stores.
    let mut users = text.split_once("accounts {").map(|(_, users)| format!("accounts {{{users}")).expect("accounts");
    for user in USERS {
        let variable = format!("$MILLSTREAM_{}_PASSWORD", user.to_uppercase());
        assert!(users.contains(&variable), "{user}");
        users = users.replace(&variable, user);
    }
    let server = Server::builder().extra(change(users)).start().await.expect("nats-server takes it");
    let jetstream = client_of(&server, "admin").await;
    let world = World { server, jetstream };
    world.stream("ORDERS", &["orders.>"]).await;
    let config = stream::Config {
        name: "ORDER_COMMANDS".to_owned(),
        subjects: vec!["order-commands.*".to_owned()],
        duplicate_window: Duration::from_millis(200),
        ..Default::default()
    };
    world.jetstream.create_stream(config).await.expect("stream is made");
    world
}

fn url(server: &Server, user: &str) -> String {
    server.url().replace("nats://", &format!("nats://{user}:{user}@"))
}

async fn client_of(server: &Server, user: &str) -> Context {
    let options = ConnectOptions::with_user_and_password(user.to_owned(), user.to_owned());
    jetstream::new(options.connect(server.url()).await.expect("it connects"))
}

/// Runs the program as this user, and answers its stdout.
fn as_user(world: &World, user: &str, arguments: &[&str]) -> String {
    let output = cli(&url(&world.server, user), arguments);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{user}: {arguments:?}: {stderr}\n{}", violations(world).join("\n"));
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// What the server has refused so far.
fn violations(world: &World) -> Vec<String> {
    let log = std::fs::read_to_string(world.server.log()).expect("the server's log");
    log.lines().filter(|line| line.contains("Violation")).map(str::to_owned).collect()
}

async fn place(publisher: &Context, order: &str, customer: &str, cents: u64) {
    let body = json!({ "order": order, "customer": customer, "cents": cents, "express": true });
    let publish = publisher.publish("orders.OrderPlaced", body.to_string().into()).await.expect("sent");
    publish.await.expect("stored");
}

/// What a reader sees of an instance that stands so.
async fn standing(world: &World, key: &str, status: &str) -> Value {
    until(&format!("{key} is {status}"), async || {
        let rows = as_user(world, "reader", &["sagas", "order-fulfilment", "--json"]);
        let rows = rows.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
        rows.into_iter().find(|row| row["key"] == key && row["status"] == status)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_saga_does_its_whole_work_with_the_users_that_we_ship() {
    let world = guarded().await;
    let module = module("order-fulfilment");
    as_user(&world, "deployer", &["deploy", module.to_str().expect("path"), "--no-wait"]);
    let publisher = client_of(&world.server, "publisher").await;
    place(&publisher, "early", "C1", 900).await;
    // A timer and a command, in either order.
    let mut host = Host::start(&url(&world.server, "host"), &[("MILLSTREAM_CRASH_AT", "published:2")]);
    assert!(!host.end().await.success(), "its log:\n{}", host.log());
    assert_eq!(stored(&world.jetstream, "ORDER_COMMANDS").await.len(), 1);
    // Beyond the duplicate window: what was sent must be looked for.
    let stored_at = tokio::time::Instant::now();
    let window = Duration::from_secs(1);
    until("the window passes", async || (stored_at.elapsed() > window).then_some(())).await;

    let host = Host::start(&url(&world.server, "host"), &[("MILLSTREAM_HTTP", "127.0.0.1:0")]);
    let address = until("it tells where it shows itself", async || address_in(&host.log())).await;
    let services = order_services::Services {
        limit_cents: 1000,
        lost_customer: "C9".to_owned(),
        ..order_services::Services::default()
    };
    let client = client_of(&world.server, "services").await.client();
    let services = tokio::spawn(services.run(client));
    standing(&world, "early", "completed").await;
    place(&publisher, "dear", "C1", 1200).await;
    place(&publisher, "lost", "C9", 900).await;
    let dear = standing(&world, "dear", "compensated").await;
    assert_eq!(dear["reason"], "1200 cents are over the limit of 1000");
    let lost = standing(&world, "lost", "compensated").await;
    assert_eq!(lost["reason"], "step ship: no answer within 1 s, 2 times", "a deadline and a retry");
    // Nobody answers at all, nor when it is undone.
    services.abort();
    place(&publisher, "alone", "C1", 900).await;
    standing(&world, "alone", "compensation-failed").await;
    until("the alert", async || (stored(&world.jetstream, "MILLSTREAM_EVENTS").await.len() == 1).then_some(())).await;
    let client = client_of(&world.server, "services").await.client();
    let services = tokio::spawn(order_services::Services::default().run(client));
    as_user(&world, "deployer", &["resume-compensation", "order-fulfilment", "alone"]);
    standing(&world, "alone", "compensated").await;
    services.abort();

    for key in ["early", "dear", "lost", "alone"] {
        assert!(as_user(&world, "reader", &["explain", "order-fulfilment", key]).contains("ReserveInventory"), "{key}");
    }
    let once = stored(&world.jetstream, "ORDER_COMMANDS").await.iter().filter(|command| command.key == "early").count();
    assert_eq!(once, 4, "each command once");
    until("fired timers are removed", async || {
        let timers = world.jetstream.get_stream("MILLSTREAM_TIMERS").await.expect("timers");
        let mut subjects = timers.info_with_subjects("millstream.timers.*.due").await.expect("an answer");
        futures::StreamExt::next(&mut subjects).await.is_none().then_some(())
    })
    .await;
    let shown = get(address, "/api/handlers/order-fulfilment/sagas?status=compensated").json();
    let keys: Vec<&Value> = shown["instances"].as_array().expect("instances").iter().map(|one| &one["key"]).collect();
    assert_eq!(keys, ["alone", "dear", "lost"]);
    let story = get(address, "/api/handlers/order-fulfilment/sagas/dear").json();
    assert_eq!(story["reason"], "1200 cents are over the limit of 1000");
    assert_eq!(get(address, "/api/handlers/order-fulfilment").json()["deployments"][0]["runs"], true);
    assert!(get(address, "/metrics").body.contains("millstream_handler_lag_known{handler=\"order-fulfilment\""));
    assert_eq!(get(address, "/readyz").body, "ready\n");
    for looks in [vec!["list"], vec!["lag"], vec!["get", "order-fulfilment", "early"]] {
        assert!(as_user(&world, "reader", &looks).contains("order-fulfilment") || looks[0] == "get", "{looks:?}");
    }
    assert_eq!(violations(&world), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn no_user_may_do_what_is_another_s() {
    let world = guarded().await;
    let module = module("order-fulfilment");
    let deploy = ["deploy", module.to_str().expect("path"), "--no-wait"];
    for user in ["reader", "publisher"] {
        assert!(!cli(&url(&world.server, user), &deploy).status.success(), "{user}");
    }
    assert_eq!(world.traces().await, Vec::<String>::new(), "nothing was made");
    as_user(&world, "deployer", &deploy);

    let tries = [
        ("host", "orders.OrderPlaced"),
        ("host", "$KV.MILLSTREAM_HANDLERS.somebody-else"),
        ("host", "$O.MILLSTREAM_MODULES.C.x"),
        ("host", "millstream.dead.somebody-else.1.k"),
        ("host", "$JS.API.STREAM.DELETE.MILLSTREAM_DEAD"),
        ("host", "$JS.API.STREAM.UPDATE.MILLSTREAM_DEAD"),
        ("host", "$JS.API.STREAM.DELETE.KV_customer-spend"),
        ("deployer", "millstream.dead.order-fulfilment.1.k"),
        ("deployer", "$JS.API.STREAM.PURGE.MILLSTREAM_DEAD"),
        ("deployer", "$KV.MILLSTREAM_STATUS.order-fulfilment"),
        ("deployer", "$KV.MILLSTREAM_HOSTS.x"),
        ("reader", "$KV.MILLSTREAM_REDRIVES.order-fulfilment.1"),
        ("reader", "$KV.MILLSTREAM_ALERTS.order-fulfilment.stuck"),
        ("reader", "$KV.MILLSTREAM_GENERATIONS.order-fulfilment"),
        ("reader", "$O.MILLSTREAM_MODULES.C.x"),
        ("reader", "$JS.API.STREAM.MSG.DELETE.MILLSTREAM_DEAD"),
        ("publisher", "millstream.dead.order-fulfilment.1.k"),
        ("publisher", "$JS.API.STREAM.MSG.GET.ORDERS"),
        ("services", "$JS.API.STREAM.MSG.GET.ORDERS"),
        ("host", "$KV.somebody-else.key"),
        ("host", "millstream.journal.somebody-else.1.0"),
        ("host", "$JS.API.STREAM.DELETE.ORDERS"),
        ("host", "$JS.API.STREAM.PURGE.ORDER_COMMANDS"),
        ("host", "$JS.API.STREAM.UPDATE.MILLSTREAM_TIMERS"),
        ("deployer", "millstream.journal.order-fulfilment.1.0"),
        ("deployer", "millstream.timers.order-fulfilment.set.x"),
        ("deployer", "$KV.order-fulfilment.early"),
        ("deployer", "order-commands.ChargePayment"),
        ("deployer", "orders.OrderPlaced"),
        ("reader", "millstream.timers.order-fulfilment.due"),
        ("reader", "$KV.MILLSTREAM_HANDLERS.order-fulfilment"),
        ("reader", "$KV.order-fulfilment.early"),
        ("reader", "orders.OrderPlaced"),
        ("publisher", "order-commands.ChargePayment"),
        ("publisher", "$KV.order-fulfilment.early"),
        ("services", "order-commands.ChargePayment"),
        ("services", "$KV.order-fulfilment.early"),
        ("services", "$JS.API.CONSUMER.DELETE.ORDERS.order-fulfilment"),
    ];
    for (user, subject) in tries {
        let client = client_of(&world.server, user).await.client();
        client.publish(subject, "".into()).await.expect("sent");
        client.flush().await.expect("flushed");
        let told = format!(r#"user:{user}" - Publish Violation - Subject "{subject}""#);
        until(&format!("the server refuses {user} {subject}"), async || {
            violations(&world).iter().any(|line| line.ends_with(&told)).then_some(())
        })
        .await;
    }
    assert_eq!(world.jetstream.get_stream("ORDERS").await.expect("it is there").cached_info().state.messages, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_generation_is_built_promoted_and_taken_back_with_the_users_that_we_ship() {
    let world = guarded().await;
    let module = module("customer-spend");
    as_user(&world, "deployer", &["deploy", module.to_str().expect("path"), "--no-wait"]);
    let publisher = client_of(&world.server, "publisher").await;
    for (order, customer) in [("one", "C1"), ("two", "C2"), ("three", "C1")] {
        place(&publisher, order, customer, 900).await;
    }
    let _host = Host::start(&url(&world.server, "host"), &[]);
    until("a host", async || (!as_user(&world, "reader", &["list", "--json"]).contains(r#""host":"""#)).then_some(()))
        .await;
    as_user(&world, "deployer", &["rebuild", "customer-spend"]);
    for live in [2, 1] {
        as_user(&world, "deployer", &["promote", "customer-spend"]);
        let rows = as_user(&world, "reader", &["rebuild", "customer-spend", "--list", "--json"]);
        let first: Value = serde_json::from_str(rows.lines().next().expect("a row")).expect("JSON");
        assert_eq!((&first["generation"], &first["state"]), (&json!(live), &json!("live")), "{rows}");
    }
    let document: Value =
        serde_json::from_str(&as_user(&world, "reader", &["get", "customer-spend", "C1"])).expect("JSON");
    assert_eq!((&document["orders"], &document["cents"]), (&json!(2), &json!(1800)));
    assert_eq!(violations(&world), Vec::<String>::new());
}

/// Runs the program as this user, and answers whether it did what was asked.
fn may(url: &str, arguments: &[&str]) -> bool {
    cli(url, arguments).status.success()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_user_runs_the_commands_that_are_his_and_no_others() {
    let world = guarded().await;
    let module = module("customer-spend");
    let module = module.to_str().expect("path");
    as_user(&world, "deployer", &["deploy", module, "--no-wait"]);
    let publisher = client_of(&world.server, "publisher").await;
    place(&publisher, "one", "C1", 900).await;
    for customer in ["C1", "C2"] {
        let body = json!({ "customer": customer, "cents": u64::MAX });
        let sent = publisher.publish("orders.OrderCancelled", body.to_string().into()).await.expect("sent");
        sent.await.expect("stored");
    }
    let _host = Host::start(&url(&world.server, "host"), &[]);
    until("both are parked", async || {
        let rows = as_user(&world, "reader", &["dead", "customer-spend", "--json"]);
        (rows.lines().count() == 2).then_some(())
    })
    .await;

    let folder = tempfile::tempdir().expect("a folder");
    let events = folder.path().join("events.ndjson");
    std::fs::write(&events, "{\"customer\":\"C3\",\"cents\":7}\n").expect("written");
    let events = events.to_str().expect("path");
    let publish = ["publish", events, "--subject", "orders.OrderPlaced", "--give-up-seconds", "5"];
    let discard = ["discard", "customer-spend", "--key", "C1", "--reason", "no such order", "--yes"];
    let allowed: [(&str, &[&str]); 14] = [
        ("host", &["doctor"]),
        ("reader", &["list"]),
        ("reader", &["lag", "customer-spend"]),
        ("reader", &["alerts"]),
        ("reader", &["dead", "customer-spend"]),
        ("reader", &["get", "customer-spend", "C1"]),
        ("reader", &["list", "--versions", "customer-spend"]),
        ("reader", &["doctor", "--not-a-host"]),
        ("deployer", &["doctor", "--not-a-host"]),
        ("deployer", &["dead", "customer-spend", "--key", "C1"]),
        ("deployer", &discard),
        ("deployer", &["pause", "customer-spend"]),
        ("deployer", &["resume", "customer-spend"]),
        ("publisher", &publish),
    ];
    for (user, arguments) in allowed {
        as_user(&world, user, arguments);
    }
    // Both are done, and fail again under the same module.
    assert!(!may(&url(&world.server, "deployer"), &["redrive", "customer-spend", "--all", "--dry-run"]));
    assert!(!may(&url(&world.server, "deployer"), &["redrive", "customer-spend", "--all"]));
    assert_eq!(as_user(&world, "reader", &["dead", "customer-spend", "--json"]).lines().count(), 1);
    assert_eq!(violations(&world), Vec::<String>::new(), "nothing that is anybody's work is refused");

    let before = as_user(&world, "reader", &["list", "--versions", "customer-spend", "--json"]);
    let give_up = ["discard", "customer-spend", "--key", "C2", "--reason", "no such order", "--yes"];
    let refused: [(&str, &[&str]); 13] = [
        ("host", &["deploy", module, "--name", "other", "--no-wait"]),
        ("reader", &["deploy", module, "--no-wait", "--label", "mine"]),
        ("reader", &["pause", "customer-spend"]),
        ("reader", &["remove", "customer-spend", "--yes"]),
        ("reader", &["rebuild", "customer-spend"]),
        ("reader", &["redrive", "customer-spend", "--all"]),
        ("reader", &give_up),
        ("reader", &publish),
        ("publisher", &["list"]),
        ("publisher", &["get", "customer-spend", "C1"]),
        ("publisher", &["pause", "customer-spend"]),
        ("services", &["pause", "customer-spend"]),
        ("deployer", &publish),
    ];
    // Most of them wait for an answer that does not come.
    std::thread::scope(|scope| {
        for (user, arguments) in refused {
            let url = url(&world.server, user);
            scope.spawn(move || assert!(!may(&url, arguments), "{user} may {arguments:?}"));
        }
    });
    let told = violations(&world);
    for user in ["host", "reader", "publisher", "services", "deployer"] {
        assert!(told.iter().any(|line| line.contains(&format!("user:{user}\""))), "{user}: {told:?}");
    }
    let after = as_user(&world, "reader", &["list", "--versions", "customer-spend", "--json"]);
    assert_eq!(after, before, "nothing was deployed");
    assert_eq!(as_user(&world, "reader", &["dead", "customer-spend", "--json"]).lines().count(), 1);
    let orders = world.jetstream.get_stream("ORDERS").await.expect("it is there");
    assert_eq!(orders.cached_info().state.messages, 4, "three events and the published one");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_host_may_not_is_told_before_it_stops_it() {
    let lacking = r#""$JS.ACK.*.customer-spend.>""#;
    let world = guarded_but(|users| users.replace(lacking, "")).await;
    let module = module("customer-spend");
    as_user(&world, "deployer", &["deploy", module.to_str().expect("path"), "--no-wait"]);
    as_user(&world, "deployer", &["pause", "customer-spend", "--no-wait"]);
    let unseen = ("sync-interval", "note", "server");
    let found = findings_at(&url(&world.server, "host"), &[]);
    assert_eq!(told(&found), [("permission", "error", "user host"), unseen], "{found:#?}");
    let mend = found[0]["mend"].as_str().expect("a command");
    let line = "add \"$JS.ACK.ORDERS.customer-spend.>\" to his publish permissions";
    assert!(mend.starts_with(line) && mend.ends_with("nats-server --signal reload"), "{mend}");
    let given = r#""$JS.ACK.ORDERS.customer-spend.>", "millstream.journal.customer-spend.>""#;
    reconfigure(&world, |text| text.replace(r#""millstream.journal.customer-spend.>""#, given));
    until("he may", async || (findings_at(&url(&world.server, "host"), &[]).len() == 1).then_some(())).await;
    assert_eq!(told(&findings_at(&url(&world.server, "reader"), &["--not-a-host"])), [unseen]);
    assert_eq!(violations(&world), Vec::<String>::new(), "nothing is tried to find it out");
}
