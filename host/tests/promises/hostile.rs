//! Hostile modules. What can be seen at deploy is refused there and nothing is made; what only shows on real events stops that
//! one handler at that one event, where it shall park none, while its neighbour on the same host decides everything. No test trusts a guest's good will.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use millstream::journal::Counts;
use serde_json::json;

use crate::harness::{Event, World, chains, module, orders, spend, until};

/// The event that the modules here misbehave on.
pub const TRIGGER: u64 = 7;

/// Has a handler stop at the first event that it cannot take, instead of setting it aside.
pub const NEVER_PARK: &str = "max_parked_keys=0";

/// A sound answer of `stage`: event 0 touches the key `k`.
const STAGED: [u32; 8] = [3000, 1, 3100, 1, 0, 0, 3200, 1];

/// What a module of ours does differently from a sound one. Code is WAT, data overrides words at addresses.
#[derive(Clone, Copy)]
pub struct Mischief {
    pub functions: &'static str,
    /// Done in `stage` for every batch with events.
    pub always: &'static str,
    pub describe: &'static str,
    pub stage: &'static str,
    pub apply: &'static str,
    pub realloc: &'static str,
    pub words: &'static [(u32, &'static [u32])],
}

/// A core module of the contract in the canonical ABI. Batches without the trigger are irrelevant to it.
pub fn wasm(mischief: Mischief) -> Vec<u8> {
    let Mischief { functions, always, describe, stage, apply, realloc, words } = mischief;
    let mut data = String::new();
    let described: &[u32] = &[100, 7, 0, 1200, 1, 1, 300, 2];
    let sound: [(u32, &[u32]); 5] =
        [(1024, described), (1200, &[200, 8]), (2112, &STAGED), (3000, &[0, 1, 0]), (3100, &[0, 0, 1])];
    for (address, words) in sound.iter().chain(words) {
        let bytes: String = words.iter().flat_map(|word| word.to_le_bytes()).fold(String::new(), |mut text, byte| {
            let _ = write!(text, "\\{byte:02x}");
            text
        });
        let _ = writeln!(data, "(data (i32.const {address}) \"{bytes}\")");
    }
    let text = format!(
        r#"(module
        (import "$root" "log" (func $log (param i32 i32 i32)))
        (memory (export "memory") 32)
        (global $heap (mut i32) (i32.const 65536))
        (data (i32.const 100) "hostile") (data (i32.const 200) "orders.>") (data (i32.const 300) "{{}}")
        (data (i32.const 3200) "k")
        {data}
        {functions}
        (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32)
            (local $at i32)
            {realloc}
            (local.set $at (i32.and (i32.add (global.get $heap) (i32.const 15)) (i32.const -16)))
            (global.set $heap (i32.add (local.get $at) (local.get 3)))
            (local.get $at))
        (func $triggered (param $event i32) (param $count i32) (result i32)
            (block $none
                (loop $next
                    (br_if $none (i32.eqz (local.get $count)))
                    (if (i64.eq (i64.load (local.get $event)) (i64.const {TRIGGER})) (then (return (i32.const 1))))
                    (local.set $event (i32.add (local.get $event) (i32.const 88)))
                    (local.set $count (i32.sub (local.get $count) (i32.const 1)))
                    (br $next)))
            (i32.const 0))
        (func (export "describe") (result i32) {describe} (i32.const 1024))
        (func (export "stage") (param i32 i32 i32 i32 i32 i32) (result i32)
            (global.set $heap (i32.const 65536))
            (if (local.get 3) (then {always}))
            (if (i32.eqz (call $triggered (local.get 2) (local.get 3))) (then (return (i32.const 2048))))
            {stage}
            (i32.const 2112))
        (func (export "apply") (param i32 i32 i32 i32 i32 i32) (result i32)
            (global.set $heap (i32.const 65536))
            (if (i32.eqz (local.get 1)) (then (return (i32.const 2048))))
            {apply}
            (i32.const 2048)))"#
    );
    with_contract(wat::parse_str(text).expect("WAT"))
}

/// Adds the custom section that says which world a core module is for.
fn with_contract(mut core: Vec<u8>) -> Vec<u8> {
    let mut resolve = wit_parser::Resolve::default();
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../wit/handler.wit");
    let package = resolve.push_file(file).expect("the contract");
    let world = resolve.select_world(&[package], Some("handler")).expect("its world");
    wit_component::embed_component_metadata(&mut core, &resolve, world, wit_component::StringEncoding::UTF8)
        .expect("metadata");
    core
}

pub fn file(folder: &tempfile::TempDir, name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder.path().join(format!("{name}.wasm"));
    std::fs::write(&path, bytes).expect("a file");
    path
}

const FOREVER: &str = "(loop $again (br $again))";
const BOMB: &str = "(loop $again (drop (memory.grow (i32.const 256))) (br $again))";
const FLOOD: &str = "(loop $again (call $log (i32.const 2) (i32.const 524288) (i32.const 1048576)) (br $again))";
const DEEP: &str = "(func $deep (param i32) (result i32) (i32.add (call $deep (local.get 0)) (i32.const 1)))";

pub const SOUND: Mischief =
    Mischief { functions: "", always: "", describe: "", stage: "", apply: "", realloc: "", words: &[] };

/// Answers of `stage` with these words.
const fn staged(words: &'static [(u32, &'static [u32])]) -> Mischief {
    Mischief { words, ..SOUND }
}

/// Answers of `apply` with these words at 4000.
const fn outcome(words: &'static [(u32, &'static [u32])]) -> Mischief {
    Mischief { words, apply: "(return (i32.const 4000))", ..SOUND }
}

/// Name, what it does on the trigger, the class of its fault, and words of the reason that people see.
const MISCHIEFS: [(&str, Mischief, &str, &str); 22] = [
    ("endless", Mischief { stage: FOREVER, ..SOUND }, "fuel", "used up its fuel"),
    ("endless-apply", Mischief { apply: FOREVER, ..SOUND }, "fuel", "used up its fuel"),
    ("bomb", Mischief { stage: BOMB, ..SOUND }, "memory", "asked for more memory"),
    ("trap", Mischief { stage: "unreachable", ..SOUND }, "trap", "unreachable"),
    ("writes-afar", Mischief { stage: "(i32.store (i32.const -8) (i32.const 1))", ..SOUND }, "trap", "out of bounds"),
    (
        "fills-afar",
        Mischief { apply: "", stage: "(memory.fill (i32.const 65536) (i32.const 1) (i32.const 16777216))", ..SOUND },
        "trap",
        "out of bounds",
    ),
    (
        "calls-afar",
        Mischief {
            functions: "(table 1 funcref) (type $nothing (func))",
            stage: "(call_indirect (type $nothing) (i32.const 77))",
            ..SOUND
        },
        "trap",
        "undefined element",
    ),
    ("flood", Mischief { stage: FLOOD, ..SOUND }, "output", "logged more than"),
    ("deep", Mischief { functions: DEEP, stage: "(drop (call $deep (i32.const 1)))", ..SOUND }, "trap", "stack"),
    (
        "huge",
        Mischief {
            stage: "(drop (memory.grow (i32.const 1024))) (i32.store (i32.const 2140) (i32.const 67108864))
                    (i32.store (i32.const 2136) (i32.const 0))",
            ..SOUND
        },
        "output",
        "larger than the output limit",
    ),
    ("far-key", staged(&[(3000, &[0, 999])]), "answer", "outside the blob"),
    ("far-list", staged(&[(2112, &[u32::MAX - 99, 1])]), "answer", "could not be read"),
    ("long-list", staged(&[(2112, &[3000, u32::MAX / 4])]), "answer", "could not be read"),
    ("other-key", staged(&[(3100, &[0, 7])]), "answer", "a route's key is number 7"),
    ("other-event", staged(&[(3100, &[4_000_000_000, 0])]), "answer", "a route's event is number 4000000000"),
    ("twice", staged(&[(2112, &[3000, 2]), (3000, &[0, 1, 0, 0, 1, 0])]), "answer", "the same key stands twice"),
    ("rejects", staged(&[(2128, &[3300, 1]), (3300, &[0, 0, 1])]), "undecodable", "cannot be applied (undecodable): k"),
    ("unknown-route", outcome(&[(4000, &[4100, 1]), (4100, &[0, 9, 0, 0, 0])]), "answer", "does not touch its key"),
    ("unknown-key", outcome(&[(4000, &[4100, 1]), (4100, &[5, 0, 0, 0, 0])]), "answer", "a change's key is number 5"),
    ("far-value", outcome(&[(4000, &[4100, 1]), (4100, &[0, 0, 0, 3, 3])]), "answer", "outside the blob"),
    (
        "two-changes",
        outcome(&[(4000, &[4100, 2]), (4100, &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0])]),
        "answer",
        "a key was changed twice",
    ),
    (
        "acts",
        outcome(&[(4000, &[0, 0, 4100, 1]), (4100, &[0, 0, 0])]),
        "refused",
        "a projection may not ask for effects",
    ),
];

/// Talks a thousand lines in each batch, and is otherwise sound.
const TALKER: Mischief = Mischief {
    functions: "(func $chatter (result i32) (local $line i32)
        (loop $again (call $log (i32.const 2) (i32.const 100) (i32.const 7))
        (br_if $again (i32.lt_u (local.tee $line (i32.add (local.get $line) (i32.const 1))) (i32.const 1000))))
        (return (i32.const 2048)))",
    stage: "(return (call $chatter))",
    ..SOUND
};

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_handler_is_refused_at_deploy_and_nothing_is_made() {
    let world = World::new().await;
    world.stream("ORDERS", &["orders.>"]).await;
    let folder = tempfile::tempdir().expect("a folder");
    let chain = std::fs::read(module("order-chain")).expect("a module");
    let describing = |describe| wasm(Mischief { describe, ..SOUND });
    let foreign =
        r#"(module (import "wasi_snapshot_preview1" "fd_write" (func (param i32 i32 i32 i32) (result i32))))"#;
    let foreign_component = r#"(component (import "wasi:cli/stdout@0.2.0" (instance)))"#;
    let looping_start = wasm(Mischief { functions: "(func $start (loop $again (br $again))) (start $start)", ..SOUND });
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("empty", Vec::new(), "not a WASM module"),
        ("text", b"#!/bin/sh\nexit 0\n".to_vec(), "not a WASM module"),
        ("half", chain[..chain.len() / 2].to_vec(), "not a WASM module"),
        ("head", chain[..8].to_vec(), "does not export the handler contract"),
        ("zeroes", vec![0; 100 << 20], "the module has 104857600 bytes; the limit is 67108864"),
        ("fewer-zeroes", vec![0; 1 << 20], "not a WASM module"),
        ("no-exports", with_contract(wat::parse_str("(module)").expect("WAT")), "does not export the handler contract"),
        ("no-contract", wat::parse_str("(module)").expect("WAT"), "does not export the handler contract"),
        ("foreign", with_contract(wat::parse_str(foreign).expect("WAT")), "wasi_snapshot_preview1.fd_write"),
        ("foreign-component", wat::parse_str(foreign_component).expect("WAT"), "wasi:cli/stdout@0.2.0"),
        ("huge-table", wasm(Mischief { functions: "(table 100000000 funcref)", ..SOUND }), "table"),
        (
            "deep-describe",
            wasm(Mischief { functions: DEEP, describe: "(drop (call $deep (i32.const 1)))", ..SOUND }),
            "stack",
        ),
        ("other-component", wat::parse_str("(component)").expect("WAT"), "does not export the handler contract"),
        ("endless-describe", describing(FOREVER), "used up its fuel"),
        ("endless-start", looping_start, "used up its fuel"),
        ("bomb-describe", describing(BOMB), "asked for more memory"),
        ("trap-describe", describing("unreachable"), "trapped"),
        ("flood-describe", describing(FLOOD), "logged more than"),
        ("saga", wasm(Mischief { words: &[(1032, &[1])], ..SOUND }), "does not say how: missing field `saga`"),
        ("garbage-describe", wasm(Mischief { words: &[(1024, &[u32::MAX - 9, 7])], ..SOUND }), "could not be read"),
    ];
    let outside = [
        "sockets/tcp",
        "sockets/ip-name-lookup",
        "filesystem/types",
        "clocks/wall-clock",
        "clocks/monotonic-clock",
        "random/random",
        "cli/environment",
        "io/poll",
        "http/outgoing-handler",
    ];
    let outside = outside.map(|interface| format!("wasi:{interface}@0.2.0"));
    let component =
        |interface: &String| wat::parse_str(format!("(component (import \"{interface}\" (instance)))")).expect("WAT");
    let outside = outside.iter().map(|interface| ("outside", component(interface), interface.as_str()));
    let cases: Vec<(&str, Vec<u8>, &str)> = cases.into_iter().chain(outside).collect();
    for (name, bytes, expected) in &cases {
        let path = file(&folder, name, bytes);
        let path = path.to_str().expect("path");
        let arguments = ["deploy", path, "--name", name, "--no-wait", "--set", "limits.fuel_per_call=20000000"];
        let said = world.refused(2, &arguments);
        assert!(said.contains(expected), "{name}: {said}");
        assert!(said.contains(path), "{name}: the file is named: {said}");
    }
    assert_eq!(world.traces().await, Vec::<String>::new(), "nothing was made");
    let sound = file(&folder, "sound", &wasm(SOUND));
    world.ok(&["deploy", sound.to_str().expect("path"), "--name", "sound", "--no-wait"]);
    assert!(!world.traces().await.is_empty(), "the module that all were spoilt from is a handler");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_misbehaves_stops_at_that_event_and_its_neighbour_decides_everything() {
    let world = World::new().await;
    world.stream("ORDERS", &["orders.>"]).await;
    let folder = tempfile::tempdir().expect("a folder");
    let deploy = |name: &str, mischief: Mischief, settings: &[&str]| {
        let path = file(&folder, name, &wasm(mischief));
        world.ok(&[&["deploy", path.to_str().expect("path"), "--name", name, "--no-wait"], settings].concat());
    };
    for (name, mischief, _, _) in MISCHIEFS {
        // A guest that rejects or acts names the event itself: alone, so that it cannot name another one.
        let batch = if ["rejects", "acts"].contains(&name) { "batch_events=1" } else { "batch_events=500" };
        deploy(name, mischief, &["--set", batch, "--set", "limits.fuel_per_call=20000000", "--set", NEVER_PARK]);
    }
    deploy("talker", TALKER, &[]);
    world.deploy("order-chain", "neighbour", &["--set", "batch_events=10"]);
    let events = orders(0, 2000);
    world.publish(&events).await;

    let mut host = world.host(&[]);
    for (name, _, class, reason) in MISCHIEFS {
        let row = world.in_state(name, "failing").await;
        let said = row["reason"].as_str().expect("a reason");
        assert!(said.contains(&format!("ORDERS:{TRIGGER} ")), "{name}: the event is named: {said}");
        assert!(said.contains(&format!("({class})")), "{name}: the class is named: {said}");
        assert!(said.contains(reason), "{name}: {said}");
        let (_, counts, positions) = world.last_record(name).await.expect("a record");
        let before = TRIGGER - 1;
        let expected = Counts { delivered: before, irrelevant: before, ..Counts::default() };
        assert_eq!((counts, positions), (expected, vec![before]), "{name}: what came before is decided, nothing after");
        assert!(world.documents(name).await.is_empty(), "{name}");
    }
    world.settled("neighbour", &chains(&events)).await;
    world.caught_up("talker").await;
    assert!(host.log().contains("lines of this handler's log were dropped"), "{}", host.log());
    assert!(host.log().matches("handler=\"talker\"").count() < 20_000, "the log is bounded");
    let more = orders(2000, 500);
    world.publish(&more).await;
    world.settled("neighbour", &chains(&[events, more].concat())).await;
    assert!(host.ended().is_none(), "the host lives");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_module_that_hands_out_memory_that_it_has_not_is_stopped_at_its_first_event() {
    let world = World::new().await;
    world.stream("ORDERS", &["orders.>"]).await;
    let folder = tempfile::tempdir().expect("a folder");
    // Not aligned, or so that what is written there wraps around: seen before it gets a single event.
    let deploy = |name: &str, address: &str| {
        let realloc: &'static str = Box::leak(format!("(return (i32.const {address}))").into_boxed_str());
        let path = file(&folder, name, &wasm(Mischief { realloc, ..SOUND }));
        ["deploy", path.to_str().expect("path"), "--name", name, "--no-wait", "--set", NEVER_PARK].map(str::to_owned)
    };
    for (name, address) in [("odd", "65537"), ("wraps", "-16")] {
        let arguments = deploy(name, address);
        let said = world.refused(2, &arguments.each_ref().map(String::as_str));
        assert!(said.contains("could not be read"), "{name}: {said}");
    }
    // At the end of its memory nothing can be written, which shows once there is something to write.
    world.ok(&deploy("beyond", "2097152").each_ref().map(String::as_str));
    world.deploy("order-chain", "neighbour", &[]);
    let events = orders(0, 100);
    world.publish(&events).await;
    let mut host = world.host(&[]);
    let row = world.in_state("beyond", "failing").await;
    let said = row["reason"].as_str().expect("a reason");
    assert!(said.contains("ORDERS:1 "), "{said}");
    assert!(world.documents("beyond").await.is_empty());
    world.settled("neighbour", &chains(&events)).await;
    assert!(host.ended().is_none(), "the host lives");
}

fn cancel(number: u64, customer: &str, cents: u64) -> (Event, serde_json::Value) {
    let event = Event {
        id: format!("cancel-{number}"),
        subject: "orders.cancelled".to_owned(),
        aggregate: "order-0".to_owned(),
        customer: customer.to_owned(),
        cents,
    };
    let body = json!({ "eventId": event.id, "eventType": "OrderCancelled", "aggregateId": event.aggregate,
        "payload": { "customer": customer, "cents": cents } });
    (event, body)
}

async fn publish(world: &World, subject: &str, body: &serde_json::Value) {
    let ack = world.jetstream.publish(subject.to_owned(), body.to_string().into()).await.expect("sent");
    ack.await.expect("stored");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_event_stops_the_handler_there_until_a_module_that_takes_it_is_deployed() {
    let world = World::new().await;
    world.stream("ORDERS", &["orders.>"]).await;
    for (name, batch) in [("one", "1"), ("seven", "7"), ("many", "500")] {
        world.deploy("customer-spend", name, &["--set", &format!("batch_events={batch}"), "--set", NEVER_PARK]);
    }
    let events = orders(0, 150);
    world.publish(&events[..100]).await;
    let (event, body) = cancel(1, &events[0].customer, u64::MAX);
    publish(&world, &event.subject, &body).await;
    world.publish(&events[100..]).await;
    let _host = world.host(&[]);
    for name in ["one", "seven", "many"] {
        let row = world.in_state(name, "failing").await;
        let said = row["reason"].as_str().expect("a reason");
        assert!(
            said.contains("ORDERS:101 ") && said.contains("(refused)") && said.contains("cancels 18446744073709551615"),
            "{said}"
        );
        assert_eq!(row["counts"]["delivered"], 100, "{name}");
        world.settled(name, &spend(&events[..100])).await;
    }

    // A module to which every event is irrelevant takes the handler over and goes on from there.
    let folder = tempfile::tempdir().expect("a folder");
    let path = file(&folder, "indifferent", &wasm(SOUND));
    world.ok(&["deploy", path.to_str().expect("path"), "--name", "seven"]);
    world.caught_up("seven").await;
    let (_, counts, positions) = world.last_record("seven").await.expect("a record");
    assert_eq!((counts.delivered, counts.applied, counts.irrelevant, positions), (151, 100, 51, vec![151]));
    world.settled("seven", &spend(&events[..100])).await;
    assert_eq!(world.listed("one")["state"], "failing", "the others wait for their own deployment");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_cannot_be_decoded_stops_the_handler_there_and_is_named() {
    let world = World::new().await;
    world.stream("ORDERS", &["orders.>"]).await;
    world.deploy("customer-spend", "spend", &["--set", NEVER_PARK]);
    world.deploy("order-chain", "chain", &[]);
    let events = orders(0, 60);
    world.publish(&events[..40]).await;
    let torn = json!({ "eventId": "torn", "eventType": "OrderPlaced", "aggregateId": "order-0", "payload": { "customer": "C1" } });
    publish(&world, "orders.placed", &torn).await;
    world.publish(&events[40..]).await;
    let _host = world.host(&[]);
    let row = world.in_state("spend", "failing").await;
    let said = row["reason"].as_str().expect("a reason");
    assert!(
        said.contains("ORDERS:41 ") && said.contains("(undecodable)") && said.contains("missing field `cents`"),
        "{said}"
    );
    world.settled("spend", &spend(&events[..40])).await;
    let (_, counts, positions) = world.last_record("spend").await.expect("a record");
    assert_eq!((counts.delivered, positions), (40, vec![40]));
    // A handler that does not read the payload takes all 61.
    let decided = async || world.last_record("chain").await.filter(|(_, counts, _)| counts.applied == 61);
    until("the neighbour decides everything", decided).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_is_told_with_its_words_and_stops_the_handler_there() {
    let world = World::new().await;
    world.stream("EDITS", &["edits.>"]).await;
    world.deploy("channel-stats", "stats", &["--set", NEVER_PARK]);
    let edit = |added: u64| {
        json!({ "eventType": "PageEdited", "payload": { "channel": "#x", "user": "u", "added": added, "deleted": 0,
            "isRobot": false, "isAnonymous": false, "isNew": false } })
    };
    for added in [1, 2, u64::MAX, 3] {
        publish(&world, "edits.x", &edit(added)).await;
    }
    let _host = world.host(&[]);
    let row = world.in_state("stats", "failing").await;
    let said = row["reason"].as_str().expect("a reason");
    assert!(
        said.contains("EDITS:3 ") && said.contains("(trap)") && said.contains("attempt to add with overflow"),
        "{said}"
    );
    let document = r##"{"events":2,"added":3,"deleted":0,"robots":0,"anonymous":0,"created":0,"users":["u"]}"##;
    world.settled("stats", &[("#x".to_owned(), document.to_owned())].into()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_needs_more_fuel_goes_through_once_the_limit_is_raised() {
    let world = World::new().await;
    world.stream("ORDERS", &["orders.>"]).await;
    world.deploy("customer-spend", "spend", &["--set", "limits.fuel_per_call=3000000", "--set", NEVER_PARK]);
    let mut events = orders(0, 30);
    world.publish(&events[..20]).await;
    let large = json!({ "eventId": "large", "eventType": "OrderPlaced", "aggregateId": "order-0",
        "payload": { "customer": "C1", "cents": 5, "note": "\\ ".repeat(300_000) } });
    publish(&world, "orders.placed", &large).await;
    world.publish(&events[20..]).await;
    let _host = world.host(&[]);
    let row = world.in_state("spend", "failing").await;
    let said = row["reason"].as_str().expect("a reason");
    assert!(said.contains("ORDERS:21 ") && said.contains("(fuel)"), "{said}");
    world.settled("spend", &spend(&events[..20])).await;
    world.deploy("customer-spend", "spend", &["--set", "limits.fuel_per_call=500000000"]);
    events.push(Event { customer: "C1".to_owned(), cents: 5, ..events[0].clone() });
    world.settled("spend", &spend(&events)).await;
    assert_eq!(world.in_state("spend", "running").await["reason"], serde_json::Value::Null);
}
