//! The log of a host, for machines: each line is one JSON object that says which handler, stream and event it is about. What guests
//! say is theirs, harmless, and of a bounded number; what is left out is counted.

use std::time::Instant;

use serde_json::Value;

use crate::harness::{World, cli, orders, until};
use crate::hostile::{Mischief, NEVER_PARK, SOUND, TRIGGER, file, wasm};

/// Says 60 lines that would turn a terminal red, about every batch.
const TALKER: Mischief = Mischief {
    functions: "(func $chatter (local $line i32)
        (loop $again (call $log (i32.const 2) (i32.const 5000) (i32.const 4))
        (br_if $again (i32.lt_u (local.tee $line (i32.add (local.get $line) (i32.const 1))) (i32.const 60)))))",
    always: "(call $chatter)",
    words: &[(5000, &[0x3133_5b1b])],
    ..SOUND
};

const TRAP: Mischief = Mischief { stage: "unreachable", ..SOUND };

const JSON: [(&str, &str); 1] = [("MILLSTREAM_LOG_FORMAT", "json")];

/// The lines so far; the last may be half written.
fn lines(log: &str) -> Vec<Value> {
    let whole = log.rsplit_once('\n').map(|(whole, _)| whole).unwrap_or_default();
    let line = |line: &str| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    whole.lines().map(line).collect()
}

async fn world(handlers: &[(&str, Mischief, &str)]) -> World {
    let world = World::new().await;
    world.stream("ORDERS", &["orders.>"]).await;
    let folder = tempfile::tempdir().expect("a folder");
    for (name, mischief, setting) in handlers {
        let path = file(&folder, name, &wasm(*mischief));
        let path = path.to_str().expect("path");
        world.ok(&["deploy", path, "--name", name, "--no-wait", "--set", setting, "--set", NEVER_PARK]);
    }
    world
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_floods_the_log_is_cut_short_and_what_is_missing_is_counted() {
    let world = world(&[("talker", TALKER, "batch_events=1"), ("crowd", TALKER, "batch_wait_milliseconds=500")]).await;
    world.publish(&orders(0, 50)).await;
    let begun = Instant::now();
    let mut host = world.host(&JSON);
    for handler in ["talker", "crowd"] {
        world.caught_up(handler).await;
    }
    host.signal("TERM");
    assert!(host.end().await.success(), "{}", host.log());
    let seconds = begun.elapsed().as_secs() + 1;
    let log = lines(&host.log());
    let of = |handler: &str| -> Vec<&Value> {
        log.iter().filter(|line| line["target"] == "guest" && line["handler"] == handler).collect()
    };
    let said = of("talker");
    let (told, shown): (Vec<&Value>, Vec<&Value>) = said.into_iter().partition(|line| line.get("dropped").is_some());
    let dropped: u64 = told.iter().map(|line| line["dropped"].as_u64().expect("a number")).sum();
    assert_eq!(shown.len() as u64 + dropped, 50 * 60, "each line is shown or counted");
    assert!(shown.len() as u64 <= 100 * (seconds + 1), "{} lines in {seconds} s", shown.len());
    assert!(!told.is_empty() && told.len() as u64 <= seconds + 1, "told once a second: {told:?}");
    for line in told {
        let sentence = format!("{} lines of this handler's log were dropped", line["dropped"]);
        assert_eq!((&line["message"], &line["level"]), (&Value::from(sentence), &Value::from("WARN")));
    }
    for line in &shown {
        assert_eq!(line["message"], "\\u{1b}[31", "{line}");
        assert_eq!((&line["stream"], line["digest"].as_str().map(str::len)), (&Value::from("ORDERS"), Some(12)));
        assert!((1..=50).contains(&line["sequence"].as_u64().expect("which event")), "{line}");
        assert!(line.get("sequences").is_none() && line["time"].is_string(), "{line}");
    }
    let together: Vec<&str> = of("crowd").iter().filter_map(|line| line["sequences"].as_str()).collect();
    assert!(together.iter().any(|range| range.split_once('-').is_some()), "{together:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_line_is_json_and_says_which_handler_and_which_event() {
    let world = world(&[("trap", TRAP, "batch_events=5")]).await;
    world.publish(&orders(0, 20)).await;
    let mut host = world.host(&JSON);
    world.in_state("trap", "failing").await;
    let blamed = until("the event is named", async || {
        lines(&host.log()).into_iter().find(|line| line["message"] == "this event cannot be applied")
    })
    .await;
    assert_eq!((&blamed["handler"], &blamed["stream"]), (&Value::from("trap"), &Value::from("ORDERS")));
    assert_eq!((&blamed["sequence"], &blamed["class"]), (&Value::from(TRIGGER), &Value::from("trap")));
    assert_eq!((&blamed["level"], &blamed["target"]), (&Value::from("ERROR"), &Value::from("millstream::pipeline")));
    host.signal("TERM");
    assert!(host.end().await.success(), "{}", host.log());
    let log = lines(&host.log());
    for line in &log {
        for name in ["time", "level", "target", "message"] {
            assert!(line[name].is_string(), "{name}: {line}");
        }
    }
    let stopped = log.iter().find(|line| line["message"] == "stopped").expect("the handler's end");
    assert_eq!(stopped["handler"], "trap");
    assert!(stopped["reason"].as_str().is_some_and(|reason| reason.contains("ORDERS:7")), "{stopped}");
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_for_people_have_the_same_and_no_colour_in_a_file() {
    let world = world(&[("trap", TRAP, "batch_events=5")]).await;
    world.publish(&orders(0, 20)).await;
    let host = world.host(&[]);
    world.in_state("trap", "failing").await;
    let line = until("the event is named", async || {
        host.log().lines().find(|line| line.contains("this event cannot be applied")).map(str::to_owned)
    })
    .await;
    let fields = "handler=\"trap\" stream=\"ORDERS\" sequence=7 class=\"trap\"";
    assert!(line.contains(" ERROR millstream::pipeline: ") && line.ends_with(fields), "{line}");
    assert!(!host.log().contains('\u{1b}'), "{}", host.log());
}

#[test]
fn what_ends_the_program_is_json_as_well() {
    let output = cli("nats://127.0.0.1:1", &["--log-format", "json", "list"]);
    let stderr = String::from_utf8(output.stderr).expect("text");
    let lines = lines(&stderr);
    let last = lines.last().expect("a line");
    assert_eq!((output.status.code(), &last["level"]), (Some(1), &Value::from("ERROR")), "{stderr}");
    assert!(last["message"].is_string() && last["hint"].is_string(), "{stderr}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_filter_is_told_and_passed_over() {
    let world = World::new().await;
    let host = world.host(&[("MILLSTREAM_LOG", "[[[")]);
    until("it is told", async || host.log().contains("MILLSTREAM_LOG is no filter and is passed over").then_some(()))
        .await;
    until("the host begins", async || host.log().contains(" INFO ").then_some(())).await;
}
