//! The users of `deploy/nats-server.conf`: with its own each can do its whole work, also after a crash, and none another's.

use std::path::Path;
use std::time::Duration;

use async_nats::ConnectOptions;
use async_nats::jetstream::{self, Context, stream};
use millstream::server::Server;
use serde_json::{Value, json};

use crate::harness::web::{address_in, get};
use crate::harness::{Host, World, cli, module, until};
use crate::services::stored;

const USERS: [&str; 6] = ["host", "deployer", "reader", "publisher", "services", "admin"];

/// A server with the users that we ship, seen by its admin, who has made the streams. A user's password is its name.
async fn guarded() -> World {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/nats-server.conf");
    let text = std::fs::read_to_string(file).expect("the configuration");
    // All before is where it listens and stores.
    let mut users = text.split_once("accounts {").map(|(_, users)| format!("accounts {{{users}")).expect("accounts");
    for user in USERS {
        let variable = format!("$MILLSTREAM_{}_PASSWORD", user.to_uppercase());
        assert!(users.contains(&variable), "{user}");
        users = users.replace(&variable, user);
    }
    let server = Server::builder().extra(users).start().await.expect("nats-server takes it");
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
        ("host", "$KV.MILLSTREAM_HANDLERS.order-fulfilment"),
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
