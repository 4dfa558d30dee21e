//! Mistakes: each has its exit code, names the thing, says what to do next, and leaves nothing behind that is half made.
//! 2 is the user's to mend and found before anything is touched; 1 is the world's.

use async_nats::jetstream::{kv, stream};
use millstream::registry::{Deployment, Desired, Registry};
use millstream::sandbox::Digest;
use millstream::server::{Server, fetch_version};
use millstream::settings::Settings;

use crate::harness::{World, data, module, orders, refused, spend, until};

fn chain() -> String {
    module("order-chain").to_str().expect("path").to_owned()
}

/// Every command that talks to a server.
fn commands() -> Vec<Vec<String>> {
    let command = |arguments: &[&str]| arguments.iter().map(ToString::to_string).collect::<Vec<_>>();
    vec![
        command(&["deploy", &chain()]),
        command(&["run"]),
        command(&["list"]),
        command(&["lag"]),
        command(&["get", "order-chain"]),
        command(&["sagas", "order-fulfilment"]),
        command(&["explain", "order-fulfilment", "o-1"]),
        command(&["resume-compensation", "order-fulfilment", "o-1"]),
        command(&["send", "order-commands.ReserveInventory", "{}"]),
        command(&["publish", "--subject", "orders.placed"]),
    ]
}

#[track_caller]
fn each_command_says(url: &str, code: i32, expected: &str) {
    for command in commands() {
        let arguments: Vec<&str> = command.iter().map(String::as_str).collect();
        let said = refused(url, code, &arguments);
        assert!(said.contains(expected), "{}: {said}", arguments[0]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_server_every_command_says_where_none_answers() {
    // A port that was free a moment ago.
    let port =
        std::net::TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a port").port();
    each_command_says(
        &format!("nats://127.0.0.1:{port}"),
        1,
        &format!("no NATS server answers at nats://127.0.0.1:{port}"),
    );
}

async fn old_server(version: &str, sha256: &str) {
    if (std::env::consts::OS, std::env::consts::ARCH) != ("linux", "x86_64") {
        return data::skip(format_args!("the digest of nats-server {version} is known for linux on x86_64 only"));
    }
    let (wanted, digest) = (version.to_owned(), sha256.to_owned());
    let fetched = tokio::task::spawn_blocking(move || fetch_version(&wanted, &digest)).await.expect("no panic");
    let binary = match fetched {
        Ok(binary) => binary,
        Err(error) if data::is_ci() => panic!("{error}"),
        Err(error) => return data::skip(error),
    };
    let world = World::with(Server::builder().binary(binary)).await;
    world.stream("ORDERS", &["orders.>"]).await;
    each_command_says(
        &world.server.url(),
        2,
        &format!("the NATS server is {version}, and 2.12 is the oldest that will do"),
    );
    assert_eq!(world.traces().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_of_version_2_10_is_refused() {
    old_server("2.10.26", "28cd73aa546d35affd27ac5e57949727352f9a9ecc03c5061dda803176a23670").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_of_version_2_11_is_refused() {
    old_server("2.11.11", "73a165d3033d3c95bd871cd40d939836edfdd43a5f140e0048a56aa91c530b4d").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_jetstream_is_refused() {
    let server = Server::builder().jetstream(false).start().await.expect("nats-server starts");
    each_command_says(&server.url(), 2, "JetStream is not enabled on the server");
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_credentials_are_refused_without_showing_the_password() {
    let users = "authorization { users: [ { user: ada, password: lovelace } ] }";
    let server = Server::builder().extra(users).start().await.expect("nats-server starts");
    let wrong = server.url().replace("nats://", "nats://ada:sesame@");
    for url in [server.url(), wrong] {
        each_command_says(&url, 2, "refused these credentials");
        assert!(!refused(&url, 2, &["list"]).contains("sesame"), "the password is not told");
    }
    let right = server.url().replace("nats://", "nats://ada:lovelace@");
    let output = crate::harness::cli(&right, &["list"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deployment_without_a_sound_input_is_refused_and_nothing_is_made() {
    let world = World::new().await;
    world.stream("ORDERS", &["orders.>"]).await;
    world.stream("STOCK_A", &["stock.a.>"]).await;
    world.stream("STOCK_B", &["stock.b.>"]).await;
    for (name, retention) in [("JOBS", stream::RetentionPolicy::WorkQueue), ("NEWS", stream::RetentionPolicy::Interest)]
    {
        let subjects = vec![format!("{}.>", name.to_lowercase())];
        let config = stream::Config { name: name.to_owned(), subjects, retention, ..Default::default() };
        world.jetstream.create_stream(config).await.expect("stream is made");
    }
    let chain = chain();
    let cases: &[(&[&str], &str)] = &[
        (&["--stream", "ODERS"], "there is no stream ODERS"),
        (&["--set", "streams=ODERS"], "there is no stream ODERS"),
        (&["--stream", "STOCK_A"], "stream STOCK_A holds none of the handler's subjects (orders.>)"),
        (&["--set", "subjects=invoices.>"], "no stream holds subject `invoices.>`"),
        (&["--set", "subjects=stock.>"], "subject `stock.>` is held by several streams: STOCK_A, STOCK_B"),
        (&["--set", "subjects=orders.a,orders.*"], "filters `orders.a` and `orders.*` overlap"),
        (&["--set", "subjects=orders..a"], "`orders..a` is not a valid subject filter"),
        (
            &["--set", "subjects=jobs.>"],
            "stream JOBS deletes messages when they are acknowledged (work-queue retention)",
        ),
        (&["--set", "subjects=news.>"], "stream NEWS deletes messages when they are acknowledged (interest retention)"),
        (&["--set", "batch_event=7"], "setting `batch_event`: there is no such setting"),
        (&["--set", "batch_events"], "`batch_events` is not of the form name=value"),
        (&["--set", "batch_events=0"], "setting `batch_events` must be at least 1"),
        (&["--set", "batch_events=many"], "setting `batch_events`: invalid type"),
        (&["--set", "limits.module_bytes=1"], "setting `limits.module_bytes` must be at least 1024"),
        (&["--set", "limits.module_bytes=2000"], "cannot run within `limits.module_bytes`"),
        (&["--set", "limits.memory_bytes=65536"], "cannot run within `limits.memory_bytes`"),
        (&["--set", "subjects=orders.a,"], "setting `subjects` has an empty name"),
        (&["--set", "limits.fuel=1"], "setting `limits.fuel`: there is no such setting"),
        (&["--name", "no.dots"], "`no.dots` is not"),
        (&["--name", "MILLSTREAM_X"], "names beginning with MILLSTREAM_ are reserved"),
        (&["--name", ""], "a handler's name is 1 to 64 letters"),
    ];
    for (more, expected) in cases {
        let said = world.refused(2, &[&["deploy", &chain, "--no-wait"][..], more].concat());
        assert!(said.contains(expected), "{more:?}: {said}");
    }
    let said = world.refused(2, &["deploy", "no/such/file.wasm"]);
    assert!(said.contains("no/such/file.wasm cannot be read"), "{said}");
    for command in ["get", "lag"] {
        let said = world.refused(2, &[command, "order-chian"]);
        assert!(said.contains("order-chian") && said.contains("millstream list"), "{said}");
    }
    assert_eq!(world.traces().await, Vec::<String>::new(), "nothing was made");

    // The hints lead somewhere: naming the streams settles which are meant.
    world.ok(&[
        "deploy",
        &chain,
        "--no-wait",
        "--set",
        "subjects=stock.>",
        "--stream",
        "STOCK_A",
        "--stream",
        "STOCK_B",
    ]);
    let said = world.refused(2, &["lag", "order-chian"]);
    assert!(said.contains("handler order-chian is not deployed"), "{said}");
}

/// Messages and revisions in a bucket, to see whether anybody touched it.
async fn state(world: &World, bucket: &str) -> (u64, u64) {
    let stream = world.jetstream.get_stream(format!("KV_{bucket}")).await.expect("the bucket's stream");
    (stream.cached_info().state.messages, stream.cached_info().state.last_sequence)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_of_somebody_else_is_never_touched() {
    let world = World::new().await;
    world.stream("ORDERS", &["orders.>"]).await;
    let config = kv::Config { bucket: "spend".to_owned(), ..kv::Config::default() };
    let bucket = world.jetstream.create_key_value(config).await.expect("a bucket");
    bucket.put("C1", "theirs".into()).await.expect("a document of theirs");
    let path = module("customer-spend");
    let path = path.to_str().expect("path");
    let said = world.refused(2, &["deploy", path, "--name", "spend"]);
    assert!(said.contains("bucket spend is already there"), "{said}");
    assert_eq!(world.traces().await, ["KV_spend"], "nothing else was made");

    // Somebody deploys past the check, with stock tools.
    let registry = Registry::open(&world.jetstream).await.expect("the registry");
    let bytes = std::fs::read(path).expect("a module");
    let deployment = Deployment {
        digest: Digest::of(&bytes),
        label: String::new(),
        subjects: vec!["orders.>".to_owned()],
        settings: Settings::default(),
        desired: Desired::Running,
        note: String::new(),
        signature: None,
    };
    registry.put_module(&bytes).await.expect("stored");
    registry.deploy("spend", &deployment).await.expect("deployed");
    world.deploy("order-chain", "neighbour", &[]);
    let events = orders(0, 300);
    world.publish(&events).await;
    let _host = world.host(&[]);
    let row = world.in_state("spend", "failing").await;
    assert!(row["reason"].as_str().expect("a reason").contains("bucket spend is already there"), "{row}");
    world.settled("neighbour", &crate::harness::chains(&events)).await;
    assert_eq!(state(&world, "spend").await, (1, 1), "the bucket is as it was");
    assert!(world.last_record("spend").await.is_none(), "nothing was claimed");

    // Once it is moved away, the same deployment again is enough.
    world.jetstream.delete_key_value("spend").await.expect("moved away");
    registry.deploy("spend", &deployment).await.expect("deployed");
    world.settled("spend", &spend(&events)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deployment_that_cannot_be_read_is_told_and_hurts_nobody() {
    let world = World::new().await;
    world.stream("ORDERS", &["orders.>"]).await;
    world.deploy("order-chain", "chain", &[]);
    let handlers = world.jetstream.get_key_value("MILLSTREAM_HANDLERS").await.expect("the deployments");
    handlers.put("torn", "{".into()).await.expect("put");
    let unknown = format!(r#"{{"digest":"{}","settings":{{}}}}"#, "0".repeat(64));
    handlers.put("absent", unknown.into()).await.expect("put");
    let host = world.host(&[]);
    let events = orders(0, 300);
    world.publish(&events).await;
    world.settled("chain", &crate::harness::chains(&events)).await;
    let row = world.in_state("absent", "failing").await;
    assert!(
        row["reason"].as_str().expect("a reason").contains("is not in the object store MILLSTREAM_MODULES"),
        "{row}"
    );
    until("the torn one is told", async || host.log().contains("deployment of torn cannot be read").then_some(()))
        .await;
    let output = world.cli(&["list"]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("deployment of torn cannot be read"));
    assert!(output.status.success() && String::from_utf8_lossy(&output.stdout).contains("chain"));
    let output = world.cli(&["lag", "chain"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_handler_crate_is_never_written_over() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().to_str().expect("path");
    let arguments = ["new", "my-handler", "--path", path];
    assert!(crate::harness::cli("nats://127.0.0.1:1", &arguments).status.success());
    let source = folder.path().join("my-handler/src/lib.rs");
    std::fs::write(&source, "mine").expect("written");
    let said = refused("nats://127.0.0.1:1", 2, &arguments);
    assert!(said.contains("my-handler is already there"), "{said}");
    assert_eq!(std::fs::read_to_string(source).expect("read"), "mine");
    for name in ["My-Handler", "1st", "a.b", "", "-a"] {
        let said = refused("nats://127.0.0.1:1", 2, &["new", "--path", path, "--", name]);
        assert!(said.contains("cannot name a crate and a bucket"), "{name}: {said}");
    }
    assert_eq!(std::fs::read_dir(folder.path()).expect("listed").count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_argument_that_cannot_be_is_named_with_what_it_should_be() {
    let world = World::new().await;
    world.stream("ORDERS", &["orders.>"]).await;
    world.publish(&orders(0, 30)).await;
    world.deploy("customer-spend", "spend", &[]);
    let spend = module("customer-spend").to_str().expect("path").to_owned();
    for (arguments, said, hint) in [
        (&["shadow", &spend, "--last", "10x"][..], "'10x'", "such as 30s, 5m, 1h 30m or 2d"),
        (&["shadow", &spend, "--last", "10x"], "--last", "`millstream shadow --help`"),
        (
            &["shadow", &spend, "--name", "spend", "--from", "31"],
            "stream ORDERS ends at 30: there is nothing from 31 on",
            "a sequence up to 30",
        ),
        (
            &["deploy", &spend, "--set", "batch_events=abc"],
            "setting `batch_events`: invalid type: string \"abc\", expected a whole number",
            "--set batch_events=4000",
        ),
        (
            &["deploy", &spend, "--set", "batch_event=1"],
            "there is no such setting",
            "the settings are alert_lag_events, ",
        ),
        (&["abandon", "spend"], "one generation, 1, and it is live", "`millstream rebuild spend --list`"),
        (&["abandon"], "<HANDLER>", "`millstream abandon --help`"),
        (&["abandn"], "abandn", "`millstream --help`"),
    ] {
        let told = world.refused(2, arguments);
        assert!(told.contains(said) && told.contains(hint), "{arguments:?}: {told}");
    }
    world.ok(&["rebuild", "spend"]);
    let told = world.refused(2, &["abandon", "spend"]);
    assert!(told.contains("`millstream abandon spend --generation 2`"), "{told}");
}
