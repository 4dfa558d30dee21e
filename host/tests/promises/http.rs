//! HTTP: what is asked wrongly is refused clearly, who acts shows the token, nobody who is slow or hostile is in the way of others, and
//! the host goes on with its work.

use std::io::Write as _;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

use millstream::settings::Settings;

use crate::harness::web::{News, address_in, get, request, send, web_host};
use crate::harness::{Dice, Host, World, orders, refused, until};

const TOKEN: &str = "a token of some length";

/// No server is there.
const NOWHERE: &str = "nats://127.0.0.1:1";

async fn shop(environment: &[(&str, &str)]) -> (World, Host, SocketAddr) {
    let world = World::new().await;
    world.stream("ORDERS", &["orders.>"]).await;
    world.deploy("order-chain", "chain", &["--label", "first"]);
    let (host, address) = web_host(&world, environment).await;
    world.in_state("chain", "running").await;
    (world, host, address)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_asked_wrongly_is_refused_and_says_what_to_do() {
    let (_world, _host, address) = shop(&[]).await;
    for (method, path, status) in [
        ("GET", "/nothing", 404),
        ("GET", "/api/handlers/nobody", 404),
        ("GET", "/api/handlers/nobody/sagas", 404),
        ("GET", "/api/handlers/nobody/dead", 404),
        ("GET", "/api/handlers/chain/sagas", 404),
        ("GET", "/api/handlers/%2e%2e%2f$JS.API/sagas/x", 404),
        ("GET", "/api/handlers/%FF", 400),
        ("GET", "/api/handlers/chain/sagas?status=bogus", 400),
        ("GET", "/api/handlers/chain/sagas?status=%FF&status=x", 400),
        ("POST", "/metrics", 405),
        ("DELETE", "/api/overview", 405),
        ("PUT", "/", 405),
        ("GET", "/api/handlers/chain/pause", 405),
    ] {
        let answer = request(address, method, path, "");
        assert_eq!(answer.status, status, "{method} {path}: {answer:?}");
        assert_eq!(answer.header("x-content-type-options"), "nosniff");
        let told = answer.json();
        let has = |field: &str| told[field].as_str().is_some_and(|text| !text.is_empty());
        assert!(has("error") && has("hint"), "{method} {path}: {told}");
    }
    let hint = |method: &str, path: &str| request(address, method, path, "").json()["hint"].take();
    assert_eq!(hint("GET", "/api/handlers/chain/pause"), "ask with POST");
    assert_eq!(hint("PUT", "/api/handlers/chain/pause"), "ask with POST");
    assert_eq!(hint("PUT", "/api/handlers/chain"), "ask with GET");
    let known = "ask for one of running, compensating, completed, compensated, compensation-failed, failed";
    assert_eq!(hint("GET", "/api/handlers/chain/sagas?status=bogus"), known);
    let chunked = request(address, "POST", "/api/handlers/chain/pause", "Transfer-Encoding: chunked\r\n");
    assert_eq!((chunked.status, &chunked.json()["error"]), (411, &"a body of unknown length is not taken".into()));
    for (path, status) in [("/healthz", 200), ("/readyz", 200), ("/api/overview", 421)] {
        assert_eq!(send(address, &format!("GET {path} HTTP/1.0\r\n\r\n")).status, status, "{path} without a name");
    }
    let head = request(address, "HEAD", "/metrics", "");
    assert_eq!((head.status, head.body.as_str()), (200, ""));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_is_not_there_is_not_found() {
    let world = World::new().await;
    world.stream("ORDERS", &["orders.>"]).await;
    world.stream("COMMANDS", &["order-commands.*"]).await;
    world.deploy("order-fulfilment", "fulfil", &[]);
    let (_host, address) = web_host(&world, &[]).await;
    world.in_state("fulfil", "running").await;
    let missing = get(address, "/api/handlers/fulfil/sagas/nobody");
    let told = missing.json();
    assert_eq!(
        (missing.status, &told["error"]),
        (404, &"saga fulfil has no instance \"nobody\"".into()),
        "{missing:?}"
    );
    assert_eq!(told["hint"], "list its instances with `millstream sagas fulfil`");
    let none = get(address, "/api/handlers/fulfil/sagas?status=completed");
    assert_eq!((none.status, &none.json()["instances"]), (200, &serde_json::json!([])), "{none:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_others_reads_nothing_and_ours_loads_nothing_from_elsewhere() {
    let (_world, _host, address) = shop(&[]).await;
    let page = get(address, "/");
    let policy = page.header("content-security-policy");
    assert!(page.status == 200 && policy.starts_with("default-src 'none'; script-src 'sha256-"), "{policy}");
    assert!(!policy.contains("unsafe"), "{policy}");
    for word in [
        "src=\"http",
        "href=\"http",
        "@import",
        "url(",
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
    ] {
        assert!(!page.body.contains(word), "the page holds {word}");
    }
    let misled = send(address, "GET /api/overview HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n");
    assert_eq!((misled.status, misled.body.contains("chain")), (421, false));
    let local =
        format!("GET /api/overview HTTP/1.1\r\nHost: localhost:{}\r\nConnection: close\r\n\r\n", address.port());
    assert_eq!(send(address, &local).status, 200);
    assert_eq!(get(address, "/api/overview").header("access-control-allow-origin"), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_who_shows_the_token_acts() {
    let (world, host, address) = shop(&[("MILLSTREAM_HTTP_TOKEN", TOKEN)]).await;
    let path = "/api/handlers/chain/pause";
    let right = format!("Authorization: Bearer {TOKEN}\r\nContent-Length: 0\r\n");
    let elsewhere = format!("{right}Origin: http://evil.example\r\n");
    let wrong = format!("Authorization: Bearer {TOKEN}.\r\nContent-Length: 0\r\n");
    let beginning = format!("Authorization: Bearer {}\r\nContent-Length: 0\r\n", &TOKEN[..10]);
    for (headers, status) in [("", 401), (&wrong, 401), (&beginning, 401), (&elsewhere, 403)] {
        let answer = request(address, "POST", path, headers);
        assert_eq!(answer.status, status, "{answer:?}");
        assert!(!answer.body.contains(TOKEN), "the token is not told");
    }
    let large = format!("{right}Content-Type: text/plain\r\n").replace("Length: 0", "Length: 999999999");
    assert_eq!(request(address, "POST", path, &large).status, 413);
    assert_eq!(world.lag("chain")[0]["state"], "running", "nothing was done so far");

    let paused = request(address, "POST", path, &right);
    assert_eq!(paused.status, 200, "{paused:?}");
    assert!(paused.json()["state"].as_str().expect("words").starts_with("paused on "), "{paused:?}");
    world.in_state("chain", "paused").await;
    assert_eq!(request(address, "POST", "/api/handlers/chain/resume", &right).status, 200);
    world.in_state("chain", "running").await;
    let none = request(address, "POST", "/api/handlers/chain/rollback", &right);
    assert_eq!((none.status, &none.json()["error"]), (409, &"handler chain has no earlier version that ran".into()));
    assert_eq!(request(address, "POST", "/api/handlers/nobody/pause", &right).status, 404);
    assert_eq!(request(address, "POST", "/api/handlers/chain/explode", &right).status, 404);
    assert_eq!(host.log().matches("asked for over HTTP").count(), 3, "what is there: {}", host.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_in_a_file_opens_as_well_and_a_bad_file_stops_the_start() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("token");
    std::fs::write(&file, format!("{TOKEN}\n")).expect("written");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).expect("they are set");
    let path = file.to_str().expect("a path");
    let (_world, host, address) = shop(&[("MILLSTREAM_HTTP_TOKEN_FILE", path)]).await;
    assert_eq!(request(address, "POST", "/api/handlers/chain/pause", "").status, 401);
    let shown = format!("Authorization: Bearer {TOKEN}\r\n");
    assert_eq!(request(address, "POST", "/api/handlers/chain/pause", &shown).status, 200);
    assert!(!host.log().contains(TOKEN), "{}", host.log());
    assert_eq!(host.log().matches("everybody on this machine may read the token for HTTP").count(), 1);
    for (option, needs) in [
        ("--http-token-file", ["--http", "127.0.0.1:0"]),
        ("--webhook-secret-file", ["--webhook", "http://127.0.0.1:9/"]),
    ] {
        let arguments = ["run", needs[0], needs[1], option, "/nowhere/to/be/found"];
        let told = refused(NOWHERE, 2, &arguments);
        assert!(told.contains("cannot be read from /nowhere/to/be/found") && told.contains("hint: "), "{told}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_token_a_host_only_shows() {
    let (world, _host, address) = shop(&[]).await;
    for authorization in ["", "Authorization: Bearer \r\n", "Authorization: Bearer x\r\n"] {
        let answer = request(address, "POST", "/api/handlers/chain/pause", authorization);
        assert_eq!(answer.status, 403, "{answer:?}");
        assert!(answer.json()["hint"].as_str().expect("a hint").contains("MILLSTREAM_HTTP_TOKEN"));
    }
    assert_eq!(get(address, "/api/host").json()["actions"], false);
    assert_eq!(world.lag("chain")[0]["state"], "running");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_slow_or_hostile_is_in_nobody_s_way() {
    let (world, _host, address) = shop(&[]).await;
    let huge = send(address, &format!("GET / HTTP/1.1\r\nHost: {address}\r\nX: {}\r\n\r\n", "x".repeat(200_000)));
    assert_eq!(huge.status, 431, "{}", huge.head);
    // Some begin and never end, some ask and never read.
    let slow: Vec<TcpStream> = (0..100)
        .map(|number| {
            let mut socket = TcpStream::connect(address).expect("it listens");
            let path = ["/", "/events", "/metrics"][number % 3];
            let end = ["", "\r\n\r\n"][number % 2];
            write!(socket, "GET {path} HTTP/1.1\r\nHost: {address}{end}").expect("it is taken");
            socket
        })
        .collect();
    let mut dice = Dice::new(7);
    for _ in 0..300 {
        let mut noise: Vec<u8> = (0..dice.roll(400)).map(|_| u8::try_from(dice.roll(256)).expect("a byte")).collect();
        if dice.roll(2) == 0 {
            noise = [b"GET /api/handlers/".as_slice(), &noise, b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"].concat();
        }
        let mut socket = TcpStream::connect(address).expect("it listens");
        let _ = socket.write_all(&noise);
    }
    for path in ["/healthz", "/metrics", "/", "/api/overview"] {
        assert_eq!(get(address, path).status, 200, "{path}");
    }
    world.publish(&orders(0, 500)).await;
    world.caught_up("chain").await;
    assert_eq!(world.last_record("chain").await.expect("a record").1.delivered, 500);
    assert_eq!(get(address, "/healthz").body, "alive\n");
    drop(slow);
}

#[tokio::test(flavor = "multi_thread")]
async fn health_is_told_where_there_is_no_place_left() {
    let (_world, _host, address) = shop(&[]).await;
    let crowd: Vec<TcpStream> = (0..256)
        .map(|_| {
            let mut socket = TcpStream::connect(address).expect("it listens");
            write!(socket, "GET /events HTTP/1.1\r\nHost: {address}\r\n").expect("it is taken");
            socket
        })
        .collect();
    let page = until("nobody else is let in", async || {
        let page = get(address, "/");
        (page.status == 503).then_some(page)
    })
    .await;
    assert!(page.json()["hint"].as_str().is_some_and(|hint| !hint.is_empty()), "{page:?}");
    for _ in 0..3 {
        assert_eq!((get(address, "/healthz").status, get(address, "/readyz").status), (200, 200));
    }
    drop(crowd);
    until("there is room again", async || (get(address, "/").status == 200).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn health_is_told_though_strangers_hold_every_place() {
    let (_world, _host, address) = shop(&[]).await;
    let begins = |_| {
        let mut socket = TcpStream::connect(address).expect("it listens");
        write!(socket, "GET /api/overview HTTP/1.1\r\nHost: localh").expect("it is taken");
        socket
    };
    // More than there are places of both kinds, and more come all the while.
    let mut crowd: Vec<TcpStream> = (0..300).map(begins).collect();
    assert_eq!(get(address, "/metrics").status, 503, "there is no place for anything else");
    for _ in 0..5 {
        for path in ["/healthz", "/readyz"] {
            let begun = Instant::now();
            assert_eq!(get(address, path).status, 200, "{path}");
            assert!(begun.elapsed() < Duration::from_secs(3), "{path}: {:?}, a probe's patience", begun.elapsed());
        }
        crowd.extend((0..20).map(begins));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_stands_still_is_told_as_such() {
    let (world, _host, address) = shop(&[]).await;
    assert_eq!(get(address, "/api/overview").status, 200);
    let server = Still::stop(world.server.pid());
    let begun = Instant::now();
    // What was read a moment ago is still told for that moment.
    let answer =
        until("it is told", async || Some(get(address, "/api/overview")).filter(|answer| answer.status != 200)).await;
    assert_eq!(answer.status, 502, "{answer:?}");
    let answered = answer.json();
    let error = answered["error"].as_str().expect("a fault");
    assert!(error.contains("has not answered") || error.contains("timed out"), "{answer:?}");
    assert!(begun.elapsed() < Duration::from_secs(14), "{:?}", begun.elapsed());
    assert_eq!(get(address, "/healthz").status, 200);
    drop(server);
    until("it answers again", async || (get(address, "/api/overview").status == 200).then_some(())).await;
}

/// A process that stands still until this is dropped.
struct Still(u32);

impl Still {
    fn stop(id: u32) -> Self {
        signal("STOP", id);
        Self(id)
    }
}

impl Drop for Still {
    fn drop(&mut self) {
        signal("CONT", self.0);
    }
}

fn signal(name: &str, id: u32) {
    let status = std::process::Command::new("kill").args([format!("-{name}"), id.to_string()]).status();
    assert!(status.expect("kill").success());
}

#[tokio::test(flavor = "multi_thread")]
async fn every_open_page_hears_the_news() {
    let (world, mut host, address) = shop(&[]).await;
    let mut pages = [News::open(address), News::open(address)];
    world.publish(&orders(0, 300)).await;
    for page in &mut pages {
        let decided = |news: &serde_json::Value| news["handlers"][0]["counts"]["delivered"] == 300;
        let news = std::iter::repeat_with(|| page.next("overview")).take(60).find(decided).expect("all are decided");
        assert_eq!(
            (&news["handlers"][0]["handler"], &news["handlers"][0]["lag"][0]["events"]),
            (&"chain".into(), &0.into())
        );
        let later = page.next("overview")["time"].as_i64();
        assert!(later > news["time"].as_i64(), "each is newer than the last");
    }
    host.signal("TERM");
    assert!(host.end().await.success(), "open pages do not keep a host from stopping");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_is_ready_when_its_handlers_are_taken_up() {
    let world = World::new().await;
    world.stream("ORDERS", &["orders.>"]).await;
    let (_host, address) = web_host(&world, &[("MILLSTREAM_HANDLER", "chain")]).await;
    until("it is ready", async || (get(address, "/readyz").body == "ready\n").then_some(())).await;
    // What another host looks after is none of its business.
    world.deploy("order-chain", "other", &[]);
    world.deploy("order-chain", "chain", &[]);
    world.in_state("chain", "running").await;
    until("it is ready", async || (get(address, "/readyz").body == "ready\n").then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_was_rolled_back_over_http_runs_what_was_before() {
    let (world, _host, address) = shop(&[("MILLSTREAM_HTTP_TOKEN", TOKEN)]).await;
    world.deploy("order-chain", "chain", &["--label", "second", "--set", "batch_events=7"]);
    let label = || get(address, "/api/handlers/chain").json()["deployments"][0]["label"].clone();
    assert_eq!(label(), "second");
    let right = format!("Authorization: Bearer {TOKEN}\r\n");
    for body in [r#"{"to":1}"#, r#"{"bad"#, " "] {
        let head = format!("Host: {address}\r\nConnection: close\r\n{right}Content-Length: {}", body.len());
        let told = send(address, &format!("POST /api/handlers/chain/rollback HTTP/1.1\r\n{head}\r\n\r\n{body}"));
        let error = "an action takes no body, and nothing was done";
        assert_eq!((told.status, &told.json()["error"]), (400, &error.into()), "{body}: {told:?}");
        assert_eq!(label(), "second", "{body}");
    }
    world.ok(&["pause", "chain"]);
    let done = request(address, "POST", "/api/handlers/chain/rollback", &right);
    assert_eq!((done.status, &done.json()["label"]), (200, &"first".into()), "{done:?}");
    let batch_events = Settings::default().batch_events;
    let changes = [format!("batch_events 7 -> {batch_events}"), "it was paused, and runs again".to_owned()];
    assert_eq!(done.json()["changes"], serde_json::json!(changes));
    assert_eq!(label(), "first");
    assert_eq!(world.listed("chain")["label"], "first");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_cannot_be_had_stops_the_start_before_anything_is_touched() {
    let world = World::new().await;
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address").to_string();
    let said = refused(&world.server.url(), 1, &["run", "--http", &address]);
    assert!(said.contains(&format!("cannot listen at {address}")) && said.contains("in use"), "{said}");
    for wrong in ["here", "127.0.0.1", "256.0.0.1:80", "70000"] {
        let said = refused(&world.server.url(), 2, &["run", "--http", wrong]);
        assert!(said.contains(&format!("{wrong:?} is no address to listen at")), "{said}");
    }
    let said = refused(&world.server.url(), 2, &["run", "--http", "0", "--http-token", "sesame"]);
    assert!(said.contains("shorter than 16 letters") && !said.contains("sesame"), "{said}");
    let said = refused(&world.server.url(), 2, &["run", "--http", "0", "--http-token", ""]);
    assert!(said.contains("the token for HTTP is empty\nhint: "), "{said}");
    assert_eq!(world.traces().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_without_http_stops_the_start() {
    let told = "there is a token for HTTP, but no HTTP to show it to\nhint: add --http, ";
    for (option, value) in [("--http-token", TOKEN), ("--http-token", ""), ("--http-token-file", "/some/file")] {
        let said = refused(NOWHERE, 2, &["run", option, value]);
        assert!(said.contains(told) && !said.contains(TOKEN), "{option}: {said}");
    }
    // In the environment it may be left over, and is turned off there.
    for (environment, code) in [
        (&[("MILLSTREAM_HTTP_TOKEN", TOKEN)][..], 2),
        (&[("MILLSTREAM_HTTP_TOKEN_FILE", "/some/file")], 2),
        (&[("MILLSTREAM_HTTP_TOKEN", TOKEN), ("MILLSTREAM_HTTP", "")], 1),
        (&[("MILLSTREAM_HTTP_TOKEN", "")], 1),
    ] {
        let mut host = Host::start(NOWHERE, environment);
        assert_eq!(host.end().await.code(), Some(code), "{environment:?}: {}", host.log());
        assert_eq!(host.log().contains(told), code == 2, "{environment:?}: {}", host.log());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn http_is_off_unless_it_is_asked_for() {
    let world = World::new().await;
    world.stream("ORDERS", &["orders.>"]).await;
    world.deploy("order-chain", "chain", &[]);
    let host = world.host(&[]);
    world.in_state("chain", "running").await;
    assert_eq!(address_in(&host.log()), None);
}
