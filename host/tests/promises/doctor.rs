//! `millstream doctor`: of a sound set-up it says nothing; each trouble that is made on a real server is the one thing that it says, and
//! is gone once the command that it names was run, word for word. In: a server with a projection, a saga and a host. Never: a finding
//! that is only looked for; what else is said would be a false alarm.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, pull};
use async_nats::jetstream::stream::{Config, RetentionPolicy};
use millstream::names;
use millstream::server::{Builder, Server};
use serde_json::Value;

use crate::harness::{Host, MILLSTREAM, World, cli, data, module, orders, until};

/// Check, severity, thing.
pub type Told<'a> = (&'a str, &'a str, &'a str);

/// A server whose monitoring can be asked, that flushes each write.
fn sound() -> Builder {
    Server::builder().sync_always(true).extra("http: \"127.0.0.1:-1\"")
}

/// Where a server's monitoring answers, as it says itself.
fn monitoring(server: &Server) -> String {
    let files = std::fs::read_dir(server.folder()).expect("its folder").flatten().map(|file| file.path());
    let end = format!("_{}.ports", server.pid());
    let file = files.into_iter().find(|path| path.to_string_lossy().ends_with(&end)).expect("its ports");
    let ports: Value = serde_json::from_slice(&std::fs::read(file).expect("its ports")).expect("JSON");
    ports["monitoring"][0].as_str().expect("an address").replace("0.0.0.0", "127.0.0.1")
}

/// A projection and a saga with their streams, deployed.
async fn deployed() -> World {
    let world = World::with(sound()).await;
    world.stream("ORDERS", &["orders.>"]).await;
    world.stream("SHOP", &["shop.>"]).await;
    world.stream("ORDER_COMMANDS", &["order-commands.*"]).await;
    world.deploy("customer-spend", "spend", &[]);
    world.deploy("order-fulfilment", "fulfilment", &["--set", "subjects=shop.>"]);
    world
}

/// The same with a host that has decided a few events.
async fn settled() -> (World, Host) {
    let world = deployed().await;
    let host = world.host(&[]);
    world.publish(&orders(0, 20)).await;
    for handler in ["spend", "fulfilment"] {
        world.in_state(handler, "running").await;
        world.caught_up(handler).await;
    }
    (world, host)
}

/// What it says of a server.
#[track_caller]
pub fn findings_at(url: &str, more: &[&str]) -> Vec<Value> {
    let output = cli(url, &[&["doctor", "--json"], more].concat());
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let findings: Vec<Value> = stdout.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let is_bad = findings.iter().any(|finding| finding["severity"] != "note");
    assert_eq!(output.status.code(), Some(i32::from(is_bad)), "{stdout}{stderr}");
    findings
}

#[track_caller]
fn findings(world: &World) -> Vec<Value> {
    findings_at(&world.server.url(), &["--monitor", &monitoring(&world.server)])
}

pub fn told(findings: &[Value]) -> Vec<Told<'_>> {
    let field = |field: &str| findings.iter().map(|finding| finding[field].as_str().expect("text")).collect::<Vec<_>>();
    let (checks, severities, things) = (field("check"), field("severity"), field("thing"));
    checks.into_iter().zip(severities).zip(things).map(|((check, severity), thing)| (check, severity, thing)).collect()
}

/// It says exactly this; answers the findings.
#[track_caller]
fn says(world: &World, expected: &[Told<'_>]) -> Vec<Value> {
    let found = findings(world);
    assert_eq!(told(&found), expected, "{found:#?}");
    found
}

/// Whether the commands that findings name can be run here.
fn has_nats() -> bool {
    let has = Command::new("nats").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok();
    if !has {
        data::skip("the nats command line is not installed");
    }
    has
}

/// Runs what a finding says, as it stands there.
#[track_caller]
fn mend(url: &str, finding: &Value) {
    let line = finding["mend"].as_str().expect("a command");
    // Of the stream under a bucket, the nats command line asks a person whether that is meant.
    if let Some(edit) =
        line.strip_prefix("nats stream edit ").filter(|edit| edit.starts_with("KV_") || edit.starts_with("OBJ_"))
    {
        let edited = edit_as_said(url.to_owned(), edit.to_owned());
        return tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(edited));
    }
    let folder = tempfile::tempdir().expect("a folder");
    let ours = Path::new(MILLSTREAM).parent().expect("its folder").display().to_string();
    let mut command = Command::new("sh");
    command.args(["-c", line]).current_dir(folder.path()).stdin(Stdio::null());
    command.env("PATH", format!("{ours}:{}", std::env::var("PATH").unwrap_or_default()));
    command.env("NATS_URL", url).env("XDG_CONFIG_HOME", folder.path()).env_remove("NATS_CONTEXT");
    let output = command.output().expect("a shell");
    let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{line}: {said}");
}

/// What `nats stream edit` does with these flags, without its question.
async fn edit_as_said(url: String, edit: String) {
    let jetstream = async_nats::jetstream::new(async_nats::connect(url).await.expect("client connects"));
    let mut words = edit.split(' ');
    let mut stream = jetstream.get_stream(words.next().expect("a stream")).await.expect("the stream");
    let mut config = stream.info().await.expect("its state").config.clone();
    for word in words {
        let (flag, value) = word.split_once('=').unwrap_or((word, ""));
        let number = || value.trim_end_matches('s').parse::<i64>().expect("a number");
        match flag {
            "--max-age" => config.max_age = Duration::from_secs(number().unsigned_abs()),
            "--max-msgs-per-subject" => config.max_messages_per_subject = number(),
            "--max-bytes" => config.max_bytes = number(),
            "--replicas" => config.num_replicas = usize::try_from(number()).expect("a few"),
            "--allow-direct" => config.allow_direct = true,
            "-f" => {}
            other => panic!("{other} is no flag that doctor says: {edit}"),
        }
    }
    jetstream.update_stream(&config).await.expect("it is changed");
}

/// It says exactly this, and nothing once the first finding's command was run.
#[track_caller]
fn says_until_mended(world: &World, expected: &[Told<'_>]) {
    let found = says(world, expected);
    mend(&world.server.url(), &found[0]);
    says(world, &[]);
}

async fn edit(world: &World, stream: &str, change: impl FnOnce(&mut Config)) {
    let mut config = world.jetstream.get_stream(stream).await.expect("the stream").cached_info().config.clone();
    change(&mut config);
    world.jetstream.update_stream(&config).await.expect("it is changed");
}

async fn make(world: &World, name: &str, subjects: &[&str], change: impl FnOnce(&mut Config)) {
    let subjects = subjects.iter().map(ToString::to_string).collect();
    let mut config = Config { name: name.to_owned(), subjects, allow_direct: true, ..Config::default() };
    change(&mut config);
    world.jetstream.create_stream(config).await.expect("it is made");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_sound_set_up_nothing_is_said_and_nothing_is_changed() {
    let (world, _host) = settled().await;
    let before = world.traces().await;
    says(&world, &[]);
    let output = world.cli(&["doctor", "--monitor", &monitoring(&world.server)]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.stdout.is_empty() && said.starts_with("nothing found: "), "{said}");
    assert_eq!(world.traces().await, before);
    assert_eq!(findings_at(&world.server.url(), &[]).len(), 1, "flushing is not seen, and said so");
    // Where nothing is there yet, there is nothing to blame.
    let empty = World::with(sound()).await;
    says(&empty, &[]);
    assert_eq!(empty.traces().await, Vec::<String>::new());
    world.refused(2, &["doctor", "--monitor", "http://127.0.0.1:1"]);
    world.refused(2, &["doctor", "--monitor", "not an address"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_old_has_no_jetstream_or_flushes_late_is_told() {
    let old = "73a165d3033d3c95bd871cd40d939836edfdd43a5f140e0048a56aa91c530b4d";
    if (std::env::consts::OS, std::env::consts::ARCH) == ("linux", "x86_64") {
        let binary = tokio::task::spawn_blocking(|| millstream::server::fetch_version("2.11.11", old)).await;
        let folder = tempfile::tempdir().expect("a folder");
        let at = || sound().folder(folder.path());
        let world = World::with(at().binary(binary.expect("a thread").expect("nats-server 2.11"))).await;
        says(&world, &[("server-version", "error", "server")]);
        let World { server, .. } = world;
        server.stop().await;
        // What it names: a newer one with the same folder.
        says(&World::with(at()).await, &[]);
    }

    let without = Server::builder().jetstream(false).start().await.expect("it starts");
    assert_eq!(told(&findings_at(&without.url(), &[])), [("jetstream", "error", "server")]);

    let folder = tempfile::tempdir().expect("a folder");
    let world = World::with(sound().sync_always(false).folder(folder.path())).await;
    world.stream("ORDERS", &["orders.>"]).await;
    let thing = format!("server {}", monitoring(&world.server));
    says(&world, &[("sync-interval", "warning", &thing)]);
    let World { server, .. } = world;
    server.stop().await;
    says(&World::with(sound().folder(folder.path())).await, &[]);
}

/// A way to the server on which its years are others: what a client sees of a server with a wrong clock.
async fn with_a_wrong_clock(server: &Server) -> String {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("nats://{}", listener.local_addr().expect("its address"));
    let to = format!("127.0.0.1:{}", server.port());
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let server = tokio::net::TcpStream::connect(&to).await.expect("the server");
            let ((mut from_client, mut to_client), (mut from_server, mut to_server)) =
                (client.into_split(), server.into_split());
            tokio::spawn(async move { tokio::io::copy(&mut from_client, &mut to_server).await });
            tokio::spawn(async move {
                let mut buffer = vec![0; 1 << 16];
                while let Ok(length @ 1..) = from_server.read(&mut buffer).await {
                    let mark = br#""time":"2"#;
                    let places: Vec<usize> = buffer[..length]
                        .windows(mark.len())
                        .enumerate()
                        .filter(|(_, w)| w == mark)
                        .map(|(at, _)| at)
                        .collect();
                    for at in places {
                        // 2026 becomes 2126.
                        buffer[at + mark.len()] = b'1';
                    }
                    to_client.write_all(&buffer[..length]).await.expect("the client");
                }
            });
        }
    });
    url
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_wrong_is_told() {
    let (world, _host) = settled().await;
    let monitor = monitoring(&world.server);
    let wrong = with_a_wrong_clock(&world.server).await;
    let found = tokio::task::spawn_blocking(move || findings_at(&wrong, &["--monitor", &monitor])).await.expect("said");
    assert_eq!(told(&found), [("clock-skew", "error", "server")]);
    assert!(found[0]["problem"].as_str().is_some_and(|problem| problem.contains(" ahead of ")), "{found:?}");
    says(&world, &[]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_host_runs_or_could_run_is_told() {
    let world = deployed().await;
    let idle = [("not-running", "error", "handler fulfilment"), ("not-running", "error", "handler spend")];
    says(&world, &idle);
    world.ok(&["pause", "fulfilment", "--no-wait"]);
    says(&world, &idle[1..]);
    world.ok(&["resume", "fulfilment", "--no-wait"]);
    let one = world.host(&[("MILLSTREAM_HANDLER", "spend")]);
    until("a host is there", async || (findings(&world).len() == 1).then_some(())).await;
    says(&world, &idle[..1]);
    drop(one);
    // Word for word, but that it goes on.
    let found = until("it is gone", async || Some(findings(&world)).filter(|found| found.len() == 2)).await;
    assert_eq!(found[0]["mend"], "millstream run");
    let host = world.host(&[]);
    world.in_state("fulfilment", "running").await;
    world.in_state("spend", "running").await;
    says(&world, &[]);

    let digest = world.listed("spend")["digest"].as_str().expect("a digest").to_owned();
    if !has_nats() {
        return;
    }
    let store = world.jetstream.get_object_store(names::MODULES).await.expect("the modules");
    store.delete(&digest).await.expect("deleted");
    let found = says(&world, &[("module", "error", "handler spend")]);
    let path = module("customer-spend");
    let command = found[0]["mend"].as_str().expect("a command");
    let command =
        command.split(", or: ").next().expect("the first").replace("MODULE.wasm", path.to_str().expect("path"));
    mend(&world.server.url(), &serde_json::json!({ "mend": command }));
    says(&world, &[]);
    for handler in ["spend", "fulfilment"] {
        world.ok(&["pause", handler]);
        world.in_state(handler, "paused").await;
    }
    drop(host);
    {
        world.jetstream.delete_stream("ORDERS").await.expect("deleted");
        let found = says(&world, &[("inputs", "error", "handler spend")]);
        assert!(found[0]["mend"].as_str().is_some_and(|mend| mend.contains("nats stream add")), "{found:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_input_stream_that_may_drop_what_is_not_decided_is_told() {
    if !has_nats() {
        return;
    }
    let (world, _host) = settled().await;
    edit(&world, "ORDERS", |config| config.max_age = Duration::from_secs(365 * 24 * 3600)).await;
    says_until_mended(&world, &[("bounded-input", "note", "stream ORDERS")]);
    edit(&world, "ORDERS", |config| config.max_bytes = 100 << 20).await;
    says_until_mended(&world, &[("bounded-input", "note", "stream ORDERS")]);

    world.ok(&["pause", "spend"]);
    until("it stands still", async || (world.listed("spend")["state"] == "paused").then_some(())).await;
    world.publish(&orders(20, 10)).await;
    edit(&world, "ORDERS", |config| config.max_messages_per_subject = 1000).await;
    let risk = [("events-at-risk", "warning", "stream ORDERS"), ("bounded-input", "note", "stream ORDERS")];
    says_until_mended(&world, &risk);

    let stream = world.jetstream.get_stream("ORDERS").await.expect("the stream");
    stream.purge().sequence(26).await.expect("the first 25 are gone");
    let found = says(&world, &[("events-lost", "error", "handler spend")]);
    assert!(found[0]["problem"].as_str().is_some_and(|problem| problem.contains("dropped 5 messages")), "{found:?}");
    mend(&world.server.url(), &found[0]);
    says(&world, &[]);
    world.ok(&["resume", "spend"]);
    world.caught_up("spend").await;
    let (_, counts, _) = world.last_record("spend").await.expect("a record");
    assert_eq!((counts.delivered, counts.lost), (25, 5));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_of_ours_that_forgets_or_fills_is_told() {
    if !has_nats() {
        return;
    }
    let (world, _host) = settled().await;
    for stream in ["MILLSTREAM_JOURNAL_spend", "MILLSTREAM_TIMERS", "KV_spend"] {
        let thing = format!("stream {stream}");
        edit(&world, stream, |config| config.max_age = Duration::from_secs(3600)).await;
        says_until_mended(&world, &[("forgets", "error", &thing)]);
        world.jetstream.get_stream(stream).await.expect("it is there");
    }
    edit(&world, "MILLSTREAM_JOURNAL_spend", |config| config.max_bytes = 100 << 20).await;
    says_until_mended(&world, &[("forgets", "error", "stream MILLSTREAM_JOURNAL_spend")]);
    let mut spend = world.jetstream.get_stream("KV_spend").await.expect("the bucket");
    let bytes = spend.info().await.expect("its size").state.bytes;
    for (parts, severity) in [(90, "warning"), (99, "error")] {
        edit(&world, "KV_spend", |config| config.max_bytes = (bytes * 100 / parts) as i64).await;
        says_until_mended(&world, &[("full", severity, "stream KV_spend")]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_that_is_nearly_full_is_told() {
    let accounts = |most: u64| {
        format!(
            "http: \"127.0.0.1:-1\"\naccounts {{ A: {{ jetstream: {{ max_file: {most} }}, users: [{{ user: a, password: a }}] }} }}\nno_auth_user: a"
        )
    };
    let world = World::with(Server::builder().sync_always(true).extra(accounts(100_000))).await;
    world.stream("ORDERS", &["orders.>"]).await;
    world.jetstream.publish("orders.x", vec![7; 85_000].into()).await.expect("sent").await.expect("stored");
    says(&world, &[("account-full", "warning", "account")]);
    reconfigure(&world, |text| text.replace("max_file: 100000", "max_file: 1000000"));
    until("it is raised", async || findings(&world).is_empty().then_some(())).await;
}

/// Changes a server's configuration, and has it read that, as `nats-server --signal reload` does.
pub fn reconfigure(world: &World, change: impl FnOnce(&str) -> String) {
    let file = world.server.folder().join("nats-server.conf");
    let before = std::fs::read_to_string(&file).expect("the configuration");
    let after = change(&before);
    assert_ne!(before, after, "something is changed");
    std::fs::write(&file, after).expect("written");
    let status = Command::new("kill").args(["-HUP", &world.server.pid().to_string()]).status();
    assert!(status.expect("kill runs").success());
}

#[tokio::test(flavor = "multi_thread")]
async fn targets_and_timers_that_a_saga_cannot_rely_on_are_told() {
    if !has_nats() {
        return;
    }
    let (world, host) = settled().await;
    edit(&world, "ORDER_COMMANDS", |config| config.duplicate_window = Duration::from_secs(1)).await;
    says_until_mended(&world, &[("duplicate-window", "warning", "stream ORDER_COMMANDS")]);
    world.jetstream.delete_stream("ORDER_COMMANDS").await.expect("deleted");
    let short = |config: &mut Config| {
        (config.retention, config.duplicate_window) = (RetentionPolicy::WorkQueue, Duration::from_secs(60));
    };
    make(&world, "ORDER_COMMANDS", &["order-commands.*"], short).await;
    says_until_mended(&world, &[("duplicate-window", "warning", "stream ORDER_COMMANDS")]);

    for handler in ["spend", "fulfilment"] {
        world.ok(&["pause", handler]);
        world.in_state(handler, "paused").await;
    }
    drop(host);
    world.jetstream.delete_stream(names::TIMERS).await.expect("deleted");
    let ours = |config: &mut Config| config.metadata = names::ours(names::TIMERS);
    make(&world, names::TIMERS, &["elsewhere.>"], ours).await;
    says_until_mended(&world, &[("schedules", "error", "stream MILLSTREAM_TIMERS")]);
    let stream = world.jetstream.get_stream(names::TIMERS).await.expect("it is there");
    let config = &stream.cached_info().config;
    assert!(config.allow_message_schedules && config.allow_rollup && config.subjects == [names::timer_subjects()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn buckets_that_are_not_ours_or_not_as_we_made_them_are_told() {
    if !has_nats() {
        return;
    }
    let (world, host) = settled().await;
    for (bucket, change) in [("MILLSTREAM_HANDLERS", 7), ("MILLSTREAM_STATUS", 3600), ("MILLSTREAM_HOSTS", 7200)] {
        let name = format!("KV_{bucket}");
        edit(&world, &name, |config| config.max_age = Duration::from_secs(change * 3600)).await;
        says_until_mended(&world, &[("bucket-settings", "error", &format!("bucket {bucket}"))]);
    }
    edit(&world, "KV_MILLSTREAM_HANDLERS", |config| config.max_messages_per_subject = 1).await;
    says_until_mended(&world, &[("bucket-settings", "error", "bucket MILLSTREAM_HANDLERS")]);
    edit(&world, "KV_spend", |config| config.allow_direct = false).await;
    says_until_mended(&world, &[("no-direct-gets", "error", "stream KV_spend")]);
    make(&world, names::DEAD, &["millstream.dead.>"], |_| ()).await;
    says_until_mended(&world, &[("not-ours", "error", "stream MILLSTREAM_DEAD")]);

    drop(host);
    for handler in ["spend", "fulfilment"] {
        world.ok(&["pause", handler, "--no-wait"]);
    }
    world.deploy("customer-spend", "other", &[]);
    world.ok(&["pause", "other", "--no-wait"]);
    make(&world, "KV_other", &["theirs.>"], |_| ()).await;
    says_until_mended(&world, &[("not-ours", "error", "stream KV_other")]);
    world.jetstream.get_stream("KV_other").await.expect("what is theirs is left alone");
    world.jetstream.delete_stream("KV_MILLSTREAM_STATUS").await.expect("deleted");
    let found = findings(&world);
    let missing = ("bucket-missing", "error", "stream KV_MILLSTREAM_STATUS");
    assert_eq!(told(&found)[0], missing, "{found:?}");
    mend(&world.server.url(), &found[0]);
    says(&world, &[]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_needs_any_more_is_told() {
    if !has_nats() {
        return;
    }
    let (world, host) = settled().await;
    let orders = world.jetstream.get_stream("ORDERS").await.expect("the stream");
    let consumer = |owner: &str, name: &str| pull::Config {
        durable_name: Some(name.to_owned()),
        ack_policy: AckPolicy::All,
        metadata: names::ours(owner),
        ..pull::Config::default()
    };
    for (owner, name) in [("gone", "gone"), ("spend", "spend_g9")] {
        orders.create_consumer(consumer(owner, name)).await.expect("it is made");
        let thing = format!("consumer {name} on stream ORDERS");
        says_until_mended(&world, &[("orphaned-consumer", "warning", &thing)]);
    }
    // A user's own is nobody's business.
    orders
        .create_consumer(pull::Config { metadata: Default::default(), ..consumer("x", "theirs") })
        .await
        .expect("made");
    says(&world, &[]);
    let mut altered = orders.consumer_info("spend").await.expect("its consumer").config;
    altered.max_deliver = 5;
    orders.update_consumer(altered).await.expect("altered");
    says_until_mended(&world, &[("altered-consumer", "warning", "consumer spend on stream ORDERS")]);

    make(&world, "KV_spend_g9", &["$KV.spend_g9.>"], |config| config.metadata = names::ours("spend")).await;
    says_until_mended(&world, &[("orphaned-generation", "warning", "stream KV_spend_g9")]);
    let sent = world.jetstream.publish("millstream.journal.spend.9.0", "x".into()).await.expect("sent");
    sent.await.expect("stored");
    says_until_mended(&world, &[("orphaned-generation", "warning", "stream MILLSTREAM_JOURNAL_spend")]);

    let store = world.jetstream.get_object_store(names::MODULES).await.expect("the modules");
    store.put("f00d", &mut &b"x"[..]).await.expect("stored");
    says_until_mended(&world, &[("unused-module", "note", "module f00d")]);

    world.ok(&["remove", "spend", "--yes"]);
    let digest = millstream::sandbox::Digest::of(&std::fs::read(module("customer-spend")).expect("the module"));
    let unused = format!("module {:.12}", digest.to_string());
    let left = [
        ("left-behind", "note", "stream KV_spend"),
        ("left-behind", "note", "stream MILLSTREAM_JOURNAL_spend"),
        ("unused-module", "note", unused.as_str()),
    ];
    for finding in says(&world, &left) {
        mend(&world.server.url(), &finding);
    }
    says(&world, &[]);
    drop(host);
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_cluster_streams_with_one_replica_are_told() {
    if !has_nats() {
        return;
    }
    let ports: Vec<u16> = (0..3)
        .map(|_| std::net::TcpListener::bind("127.0.0.1:0").and_then(|it| it.local_addr()).expect("a port").port())
        .collect();
    let routes: Vec<String> = ports.iter().map(|port| format!("\"nats://127.0.0.1:{port}\"")).collect();
    let mut servers = Vec::new();
    for (number, port) in ports.iter().enumerate() {
        let extra = format!(
            "http: \"127.0.0.1:-1\"\nserver_name: n{number}\ncluster {{ name: three, listen: \"127.0.0.1:{port}\", routes: [{}] }}",
            routes.join(", ")
        );
        servers.push(Server::builder().extra(extra).start().await.expect("it starts"));
    }
    let (url, monitor) = (servers[0].url(), monitoring(&servers[0]));
    let client = async_nats::connect(&url).await.expect("a client");
    let jetstream = async_nats::jetstream::new(client);
    until("the cluster has a leader", async || jetstream.query_account().await.ok()).await;
    for (name, replicas) in [("ORDERS", 3), ("THEIRS", 1)] {
        let subjects = vec![format!("{}.>", name.to_lowercase())];
        let config =
            Config { name: name.to_owned(), subjects, num_replicas: replicas, allow_direct: true, ..Config::default() };
        until("a stream", async || jetstream.create_stream(config.clone()).await.ok()).await;
    }
    let module = module("customer-spend");
    let deploy = ["deploy", module.to_str().expect("path"), "--name", "spend", "--set", "replicas=3", "--no-wait"];
    let output = cli(&url, &deploy);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(cli(&url, &["pause", "spend", "--no-wait"]).status.success());
    let more = ["--monitor", monitor.as_str()];
    let found: Vec<Value> = findings_at(&url, &more);
    let alone = ["KV_MILLSTREAM_HANDLERS", "KV_MILLSTREAM_HOSTS", "KV_MILLSTREAM_STATUS", "OBJ_MILLSTREAM_MODULES"];
    assert_eq!(
        told(&found),
        [("sync-interval", "warning", format!("server {monitor}").as_str())],
        "three copies of all"
    );
    for name in alone {
        let mut config = jetstream.get_stream(name).await.expect("the stream").cached_info().config.clone();
        config.num_replicas = 1;
        jetstream.update_stream(&config).await.expect("one copy is left");
    }
    let found: Vec<Value> = findings_at(&url, &more);
    let alone = alone.map(|name| format!("stream {name}"));
    let mut expected: Vec<Told<'_>> = vec![("sync-interval", "warning", "")];
    expected.extend(alone.iter().map(|thing| ("replicas", "warning", thing.as_str())));
    let thing = format!("server {monitor}");
    expected[0].2 = &thing;
    assert_eq!(told(&found), expected, "{found:#?}");
    for finding in found.iter().filter(|finding| finding["check"] == "replicas") {
        mend(&url, finding);
    }
    // A stream that is nobody's business here is still alone, so flushing still matters.
    assert_eq!(told(&findings_at(&url, &more)), [("sync-interval", "warning", thing.as_str())]);
    jetstream.delete_stream("THEIRS").await.expect("deleted");
    assert_eq!(told(&findings_at(&url, &more)), []);
}
