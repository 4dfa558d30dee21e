//! `millstream publish` against a real server: order, ids, refusals, the loss of the server, and going on with a half-published file.

use std::fmt::Write as _;
use std::io::{Cursor, Read};
use std::time::{Duration, Instant};

use async_nats::jetstream::{self, stream};
use futures::StreamExt as _;
use millstream::cli::connect::Connection;
use millstream::cli::progress::grouped;
use millstream::cli::publish::{Error, Options, Problem, Summary, publish};
use millstream::server::Server;

use crate::harness::{data, refused, until};

const TEMPLATE: &str = "fines.{aggregateId}";

/// Events number `from..to`, an id each.
fn events(from: usize, to: usize) -> String {
    (from..to).fold(String::new(), |mut text, number| {
        let aggregate = number % 97;
        writeln!(text, r#"{{"eventId":"e{number}","eventType":"Paid","aggregateId":"S{aggregate}","n":{number}}}"#)
            .unwrap();
        text
    })
}

async fn server_with(config: stream::Config) -> (Server, stream::Stream) {
    let server = Server::builder().start().await.unwrap();
    let client = Connection::to(server.url()).connect().await.unwrap();
    let stream = jetstream::new(client).create_stream(config).await.unwrap();
    (server, stream)
}

fn fines() -> stream::Config {
    stream::Config { name: "FINES".into(), subjects: vec!["fines.*".into()], ..Default::default() }
}

async fn publish_text(server: &Server, options: &Options, text: impl Into<Vec<u8>>) -> Result<Summary, Error> {
    publish(&Connection::to(server.url()), options, Cursor::new(text.into()), |_| {}).await
}

/// Everything in the stream, in its order.
async fn bodies(stream: &stream::Stream) -> Vec<String> {
    let count = stream.get_info().await.unwrap().state.messages;
    if count == 0 {
        return Vec::new();
    }
    let consumer = stream.create_consumer(jetstream::consumer::pull::OrderedConfig::default()).await.unwrap();
    let messages = consumer.messages().await.unwrap().take(usize::try_from(count).unwrap());
    messages.map(|message| String::from_utf8(message.unwrap().payload.to_vec()).unwrap()).collect().await
}

fn lines(text: &str) -> Vec<String> {
    text.lines().map(str::to_owned).collect()
}

#[tokio::test]
async fn each_line_is_stored_once_in_order_and_again_it_is_already_there() {
    let (server, stream) = server_with(fines()).await;
    let text = events(0, 10_000);
    let summary = publish_text(&server, &Options::new(TEMPLATE), text.clone()).await.unwrap();
    assert_eq!((summary.published, summary.already_there, summary.bytes_read), (10_000, 0, text.len() as u64));
    let summary = publish_text(&server, &Options::new(TEMPLATE), text.clone()).await.unwrap();
    assert_eq!((summary.published, summary.already_there, summary.losses), (0, 10_000, 0));
    assert_eq!(bodies(&stream).await, lines(&text));
    let last = stream.get_last_raw_message_by_subject("fines.S8").await.unwrap();
    assert_eq!(last.headers.get("Nats-Msg-Id").unwrap().as_str(), "e9999");
}

#[tokio::test]
async fn lines_after_a_bad_one_are_not_published() {
    let (server, stream) = server_with(fines()).await;
    let text = format!("{}oops\n{}", events(0, 700), events(700, 2000));
    let error = publish_text(&server, &Options::new(TEMPLATE), text).await.unwrap_err();
    assert!(matches!(error, Error::Line { line: 701, stored: 700, problem: Problem::NotJson(_) }), "{error:?}");
    assert_eq!(error.exit_code(), 2);
    assert_eq!(bodies(&stream).await, lines(&events(0, 700)));
    let no_field = publish_text(&server, &Options::new("fines.{customer}"), events(700, 701)).await.unwrap_err();
    assert!(matches!(no_field, Error::Line { line: 1, stored: 0, problem: Problem::Field(_) }), "{no_field:?}");
}

#[tokio::test]
async fn without_a_stream_for_the_subject_nothing_is_published() {
    let (server, stream) = server_with(stream::Config { subjects: vec!["fines.S1".into()], ..fines() }).await;
    let error = publish_text(&server, &Options::new("orders.{aggregateId}"), events(0, 10)).await.unwrap_err();
    assert!(matches!(&error, Error::NoStream { filter } if filter == "orders.*"), "{error:?}");
    assert!(error.hint().unwrap().contains("nats stream add"));
    // A stream that holds some of the subjects takes those, up to the first that it does not hold.
    let error = publish_text(&server, &Options::new(TEMPLATE), events(1, 10)).await.unwrap_err();
    assert!(matches!(&error, Error::Line { line: 2, stored: 1, problem: Problem::NotHeld { .. } }), "{error:?}");
    assert_eq!(bodies(&stream).await, lines(&events(1, 2)));
}

#[tokio::test]
async fn a_line_that_the_server_refuses_ends_the_run_with_its_number() {
    let (server, stream) = server_with(stream::Config { max_message_size: 200, ..fines() }).await;
    let large = format!(r#"{{"eventId":"large","aggregateId":"S1","text":"{}"}}"#, "x".repeat(300));
    let text = format!("{}{large}\n", events(0, 100));
    let error = publish_text(&server, &Options::new(TEMPLATE), text).await.unwrap_err();
    assert!(matches!(&error, Error::Rejected { place, stored: 100, .. } if place.line == 101), "{error:?}");
    assert_eq!(bodies(&stream).await.len(), 100);
    let full =
        stream::Config { name: "FULL".into(), subjects: vec!["full".into()], max_messages: 5, ..Default::default() };
    let full = stream::Config { discard: stream::DiscardPolicy::New, ..full };
    let client = Connection::to(server.url()).connect().await.unwrap();
    jetstream::new(client).create_stream(full).await.unwrap();
    let error = publish_text(&server, &Options::new("full"), events(0, 6)).await.unwrap_err();
    assert!(matches!(&error, Error::Rejected { place, stored: 5, .. } if place.line == 6), "{error:?}");
}

/// A server whose JetStream keeps a megabyte in all.
async fn small_server() -> (tempfile::TempDir, Server) {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("small");
    let limits = format!("jetstream {{ store_dir: {store:?}, max_file_store: 1MB }}");
    let server = Server::builder().jetstream(false).folder(folder.path()).extra(limits).start().await.unwrap();
    (folder, server)
}

#[tokio::test(flavor = "multi_thread")]
async fn full_storage_ends_the_run_at_once_in_the_servers_words() {
    let (folder, server) = small_server().await;
    let file = folder.path().join("events.ndjson");
    std::fs::write(&file, events(0, 20_000)).unwrap();
    let client = Connection::to(server.url()).connect().await.unwrap();
    let stream = jetstream::new(client).create_stream(fines()).await.unwrap();
    let file = file.to_str().unwrap();
    let said = refused(&server.url(), 1, &["publish", file, "--subject", TEMPLATE]);
    let stored = bodies(&stream).await.len();
    assert!((1000..20_000).contains(&stored), "{stored}");
    let line = stored + 1;
    assert!(said.contains(&format!("error: line {line} (subject \"fines.S")), "{said}");
    assert!(
        said.contains(&format!(", stream \"FINES\") was refused; {} lines are stored", grouped(stored as u64))),
        "{said}"
    );
    assert!(said.contains("insufficient resources (code 503, error code 10023)"), "{said}");
    assert!(said.contains("max_file_store") && !said.contains("lost") && !said.contains("again"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_at_its_limits_is_named_and_its_limit_in_the_servers_words() {
    let limits = [
        (stream::Config { max_messages: 5, ..fines() }, "maximum messages exceeded"),
        (stream::Config { max_bytes: 1000, ..fines() }, "maximum bytes exceeded"),
    ];
    for (config, words) in limits {
        let (server, stream) = server_with(stream::Config { discard: stream::DiscardPolicy::New, ..config }).await;
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), events(0, 100)).unwrap();
        let said = refused(&server.url(), 1, &["publish", file.path().to_str().unwrap(), "--subject", TEMPLATE]);
        let stored = bodies(&stream).await.len();
        let line = format!("error: line {} (subject \"fines.S{stored}\", stream \"FINES\") was refused", stored + 1);
        assert!(said.contains(&line), "{said}");
        assert!(said.contains(words) && said.contains("hint: raise the limits of stream \"FINES\""), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_stops_to_acknowledge_is_named_and_no_loss_of_the_server_is_claimed() {
    let (server, stream) = server_with(fines()).await;
    let (open, go_on) = std::sync::mpsc::channel();
    let parts = vec![Cursor::new(events(0, 1).into_bytes()), Cursor::new(events(1, 3).into_bytes())];
    let connection = Connection::to(server.url());
    let options = Options { give_up_seconds: 1, ..Options::new(TEMPLATE) };
    let running = tokio::spawn(async move { publish(&connection, &options, Gate { parts, go_on }, |_| {}).await });
    until("the first line", async || (stream.get_info().await.unwrap().state.messages == 1).then_some(())).await;
    // As with a disk that is full: the server says nothing, neither yes nor no.
    let client = Connection::to(server.url()).connect().await.unwrap();
    jetstream::new(client).update_stream(stream::Config { no_ack: true, ..fines() }).await.unwrap();
    open.send(()).unwrap();
    let error = running.await.unwrap().unwrap_err();
    assert!(matches!(&error, Error::Unacknowledged { place, stored: 1, .. } if place.line == 2), "{error:?}");
    assert!(error.to_string().starts_with("stream \"FINES\" has acknowledged nothing for "), "{error}");
    assert!(error.hint().unwrap().contains("no space left"), "{error:?}");
    assert_eq!(error.exit_code(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subject_that_no_control_line_can_hold_is_found_before_it_is_sent() {
    let (server, stream) = server_with(fines()).await;
    let event = |length: usize| format!("{{\"eventId\":\"{length}\",\"aggregateId\":\"{}\"}}\n", "x".repeat(length));
    // The longest that the server takes: 4,096 bytes with the reply subject and the sizes.
    let longest = 4025 - "fines.".len();
    publish_text(&server, &Options::new(TEMPLATE), event(longest)).await.unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), format!("{}{}{}", events(0, 1), event(longest + 1), events(1, 2))).unwrap();
    let said = refused(&server.url(), 2, &["publish", file.path().to_str().unwrap(), "--subject", TEMPLATE]);
    assert!(said.contains("error: line 2 cannot be published; 1 before it are stored, nothing after it"), "{said}");
    assert!(said.contains("its subject \"fines.xxx") && said.contains("has 4,026 bytes"), "{said}");
    assert!(said.contains("maximum control line exceeded") && said.contains("hint: shorten"), "{said}");
    assert!(said.len() < 1000 && !said.contains("lost"), "{said}");
    assert_eq!(stream.get_info().await.unwrap().state.messages, 2);
}

#[tokio::test]
async fn a_file_that_begins_with_a_byte_order_mark_is_published_without_it() {
    let (server, stream) = server_with(fines()).await;
    let text = events(0, 3);
    let summary = publish_text(&server, &Options::new(TEMPLATE), format!("\u{feff}{text}")).await.unwrap();
    assert_eq!((summary.published, summary.bytes_read), (3, text.len() as u64 + 3));
    assert_eq!(bodies(&stream).await, lines(&text));
}

/// A reader that gives its text in two parts and waits in between until it may go on.
struct Gate {
    parts: Vec<Cursor<Vec<u8>>>,
    go_on: std::sync::mpsc::Receiver<()>,
}

impl Read for Gate {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        while let Some(part) = self.parts.first_mut() {
            let length = part.read(buffer)?;
            if length > 0 {
                return Ok(length);
            }
            self.parts.remove(0);
            if !self.parts.is_empty() {
                self.go_on.recv().ok();
            }
        }
        Ok(0)
    }
}

/// Kills the server three times in the middle of a run; the run must end well.
async fn publish_through_losses(options: &Options, text: &str, total: u64) -> (Server, stream::Stream, Summary) {
    let (mut server, stream) = server_with(fines()).await;
    let connection = Connection::to(server.url());
    let (told, mut hears) = tokio::sync::watch::channel(0_u64);
    let running = tokio::spawn({
        let (options, text) = (options.clone(), text.to_owned());
        async move {
            let slow = Slow { text: Cursor::new(text.into_bytes()) };
            publish(&connection, &options, slow, |summary| {
                told.send_replace(summary.published);
            })
            .await
        }
    });
    for share in 1..=3 {
        hears.wait_for(|published| *published > total * share / 5).await.unwrap();
        server.kill();
        server.restart().await.unwrap();
    }
    let summary = running.await.unwrap().unwrap();
    (server, stream, summary)
}

/// Slow enough that kills meet a run in its middle.
struct Slow {
    text: Cursor<Vec<u8>>,
}

impl Read for Slow {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        std::thread::sleep(Duration::from_millis(1));
        let part = buffer.len().min(16 * 1024);
        self.text.read(&mut buffer[..part])
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_line_is_stored_once_in_order_though_the_server_dies_three_times() {
    let text = events(0, 100_000);
    let (_server, stream, summary) = publish_through_losses(&Options::new(TEMPLATE), &text, 100_000).await;
    assert_eq!((summary.published, summary.already_there, summary.maybe_twice), (100_000, 0, 0));
    assert!(summary.losses >= 3, "{summary:?}");
    let stored = bodies(&stream).await;
    assert_eq!(stored.len(), 100_000);
    assert!(stored == lines(&text), "order or content differs");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lines_without_an_id_are_never_lost_and_said_to_be_maybe_twice() {
    let options = Options { id_field: "none".into(), ..Options::new(TEMPLATE) };
    let text = events(0, 100_000);
    let (_server, stream, summary) = publish_through_losses(&options, &text, 100_000).await;
    assert_eq!(summary.published, 100_000);
    let stored = bodies(&stream).await;
    let extra = stored.len() as u64 - 100_000;
    assert!(extra <= summary.maybe_twice, "{extra} are there twice, {summary:?}");
    let mut seen = std::collections::HashSet::new();
    let firsts: Vec<String> = stored.into_iter().filter(|line| seen.insert(line.clone())).collect();
    assert!(firsts == lines(&text), "a line is missing or out of order");
}

#[tokio::test]
async fn a_file_published_in_part_goes_on_beyond_the_duplicate_window() {
    let window = Duration::from_millis(100);
    let (server, stream) = server_with(stream::Config { duplicate_window: window, ..fines() }).await;
    let text = events(0, 5000);
    let options = Options { in_flight: 64, ..Options::new(TEMPLATE) };
    let part = Options { limit: Some(3000), ..options.clone() };
    publish_text(&server, &part, text.clone()).await.unwrap();
    // The window is over when the server takes the same id again.
    let deadline = Instant::now() + Duration::from_secs(10);
    let client = Connection::to(server.url()).connect().await.unwrap();
    let jetstream = jetstream::new(client);
    let again = || jetstream::message::PublishMessage::build().message_id("e2999");
    while jetstream.send_publish("fines.other", again()).await.unwrap().await.unwrap().duplicate {
        assert!(Instant::now() < deadline);
    }

    let resume = Options { resume: true, ..options };
    let summary = publish_text(&server, &resume, text.clone()).await.unwrap();
    assert_eq!((summary.skipped, summary.published), (3000, 2000));
    let stored: Vec<String> = bodies(&stream).await.into_iter().filter(|body| !body.is_empty()).collect();
    assert_eq!(stored, lines(&text));
    let summary = publish_text(&server, &resume, text).await.unwrap();
    assert_eq!((summary.skipped, summary.published), (5000, 0));
    let error = publish_text(&server, &resume, events(9000, 9010)).await.unwrap_err();
    assert!(matches!(&error, Error::Line { problem: Problem::NothingToResume, .. }), "{error:?}");
    assert_eq!(stream.get_info().await.unwrap().state.messages, 5001);
}

#[tokio::test]
async fn resuming_finds_a_sparse_filter_far_back_and_begins_an_empty_stream() {
    let (server, stream) =
        server_with(stream::Config { subjects: vec!["fines.*".into(), "noise".into()], ..fines() }).await;
    let resume = Options { in_flight: 8, resume: true, ..Options::new(TEMPLATE) };
    let summary = publish_text(&server, &resume, events(0, 40)).await.unwrap();
    assert_eq!((summary.skipped, summary.published), (0, 40));
    publish_text(&server, &Options::new("noise"), events(1000, 4000)).await.unwrap();
    let summary = publish_text(&server, &resume, events(0, 50)).await.unwrap();
    assert_eq!((summary.skipped, summary.published), (40, 10));
    assert_eq!(stream.get_info().await.unwrap().state.messages, 3050);
}

#[tokio::test]
async fn a_line_of_a_slow_writer_does_not_wait_for_the_next() {
    let (server, stream) = server_with(fines()).await;
    let (open, go_on) = std::sync::mpsc::channel();
    let parts = vec![Cursor::new(events(0, 1).into_bytes()), Cursor::new(events(1, 2).into_bytes())];
    let connection = Connection::to(server.url());
    let running =
        tokio::spawn(async move { publish(&connection, &Options::new(TEMPLATE), Gate { parts, go_on }, |_| {}).await });
    let deadline = Instant::now() + Duration::from_secs(10);
    while stream.get_info().await.unwrap().state.messages < 1 {
        assert!(Instant::now() < deadline, "the first line waits for the second");
    }
    open.send(()).unwrap();
    assert_eq!(running.await.unwrap().unwrap().published, 2);
}

#[tokio::test]
async fn real_events_are_published_whole() {
    let Some(file) = data::file("traffic-fines/events.ndjson.gz") else { return };
    let file = std::fs::File::open(file).unwrap();
    let (server, stream) = server_with(fines()).await;
    let summary = publish(&Connection::to(server.url()), &Options::new(TEMPLATE), file, |_| {}).await.unwrap();
    println!("{summary:?}");
    assert_eq!((summary.published, summary.already_there, summary.losses), (561_470, 0, 0));
    let state = stream.get_info().await.unwrap().state;
    assert_eq!((state.messages, state.subjects_count), (561_470, 150_370));
}
