//! Streams that are missing or full, and a server that dies: nothing is lost, and nothing else is held up.

use super::*;

#[tokio::test]
async fn a_subject_without_a_stream_is_listed_and_stops_nobody_else() {
    let world = World::new().await;
    world.stream("A", Config::default()).await;
    timers::open(&world.jetstream, 1).await.unwrap();
    let driven = world.drive();
    driven.outbox.publish(1, Stamp::now(), vec![message("h.0", "a.x", "k")]);
    let lost = vec![message("h.1", "lost.x", "k"), wait("h.1.deadline"), message("h.2", "a.x", "k")];
    driven.outbox.publish(2, Stamp::now(), lost);
    let more = numbered(303, &["lost.x", "lost.y", "a.x"]).split_off(3);
    driven.outbox.publish(3, Stamp::now(), more);
    let flowed = |outbox: &Outbox| outbox.counts().published == 2 + 100 && outbox.undelivered().0 == 1 + 200;
    driven.until("others do not flow", flowed).await;
    assert_eq!(driven.outbox.acted_through(), 1);
    assert_eq!(world.ids(names::TIMERS).await, Vec::<String>::new(), "nobody has seen the command yet");
    let (_, listed) = driven.outbox.undelivered();
    assert_eq!(listed.len(), LISTED);
    let first = listed.iter().find(|undelivered| undelivered.subject == "lost.x").unwrap();
    let reason = "no stream holds this subject".to_owned();
    let expected = Undelivered { key: "k".into(), subject: "lost.x".into(), id: "h.1".into(), reason };
    assert_eq!(*first, expected);
    world.stream("LOST", Config::default()).await;
    driven.until_acted(3).await;
    assert_eq!(driven.outbox.undelivered(), (0, Vec::new()));
    assert_eq!(world.ids(names::TIMERS).await, ["h.1.deadline"]);
    let stored = world.stored("LOST").await;
    for subject in ["lost.x", "lost.y"] {
        let of_subject = stored.iter().filter(|(name, _)| name == subject);
        let ids = of_subject.map(|(_, headers)| headers.get("ce-id").unwrap().as_str()[2..].parse::<u32>().unwrap());
        assert!(ids.clone().is_sorted() && ids.count() >= 100, "{subject}");
    }
}

#[tokio::test]
async fn a_message_that_its_stream_refuses_holds_back_its_instance_and_nothing_else() {
    let world = World::new().await;
    world.stream("A", Config { max_message_size: 2000, ..Config::default() }).await;
    let driven = world.drive();
    let large = |id: &str, key: &str| match message(id, "a.x", key) {
        Outgoing::Message(large) => Outgoing::Message(Message { payload: vec![b'x'; 3000], ..large }),
        other => other,
    };
    // One body is too large for the stream, one chain of ids for any stream.
    let long = match message("h.long", "a.x", "l") {
        Outgoing::Message(long) => Outgoing::Message(Message { correlation: "c".repeat(66_000), ..long }),
        other => other,
    };
    driven.outbox.publish(1, Stamp::now(), vec![large("h.large", "k"), message("h.behind", "a.y", "k"), long]);
    driven.until("they are not refused", |outbox| outbox.undelivered().0 == 3).await;
    driven.outbox.publish(2, Stamp::now(), numbered(200, &["a.x"]));
    driven.until("others wait", |outbox| outbox.counts().published == 200 && outbox.undelivered().0 == 3).await;
    assert_eq!(driven.outbox.acted_through(), 0);
    let (_, listed) = driven.outbox.undelivered();
    let reasons: Vec<(&str, &str)> = listed.iter().map(|one| (one.id.as_str(), one.reason.as_str())).collect();
    assert_eq!(
        reasons,
        [
            (
                "h.large",
                "message size exceeds maximum allowed (10054); hint: let stream A take larger messages: \
                 `nats stream edit A --max-msg-size=-1`"
            ),
            ("h.long", reasons[1].1),
            ("h.behind", "waits for h.large, which is refused"),
        ]
    );
    let stream = world.jetstream.get_stream("A").await.unwrap();
    let widened = Config { max_message_size: -1, ..stream.cached_info().config.clone() };
    world.jetstream.update_stream(widened).await.unwrap();
    driven.until("the large one", |outbox| outbox.counts().published == 202).await;
    let (count, listed) = driven.outbox.undelivered();
    assert_eq!((count, listed[0].id.as_str()), (1, "h.long"));
    assert!(listed[0].reason.contains("(10097); hint: "), "{}", listed[0].reason);
    let ids = world.ids("A").await;
    assert_eq!(ids[200..], ["h.large", "h.behind"], "an instance's effects in their order");
}

#[tokio::test]
async fn a_stream_that_fails_in_between_loses_nothing_and_keeps_the_order_of_each_key() {
    let world = World::new().await;
    let config = || Config { max_messages: 40, discard: jetstream::stream::DiscardPolicy::New, ..Config::default() };
    world.stream("A", config()).await;
    let driven = world.drive();
    for (record, effects) in numbered(300, &["a.x"]).chunks(10).enumerate() {
        driven.outbox.publish(1 + record as u64, Stamp::now(), effects.to_vec());
    }
    driven.until("the stream is not full", |outbox| outbox.undelivered().0 > 0).await;
    let (_, listed) = driven.outbox.undelivered();
    assert!(listed[0].reason.contains("maximum messages exceeded"), "{}", listed[0].reason);
    assert!(driven.outbox.acted_through() < 30);
    let stream = world.jetstream.get_stream("A").await.unwrap();
    let widened = Config { max_messages: 100_000, ..stream.cached_info().config.clone() };
    world.jetstream.update_stream(widened).await.unwrap();
    driven.until_acted(30).await;
    let ids = world.ids("A").await;
    assert_eq!(ids.len(), 300);
    for key in 0..7 {
        let numbers = ids.iter().map(|id| id[2..].parse::<usize>().unwrap()).filter(|number| number % 7 == key);
        assert!(numbers.is_sorted());
    }
}

#[tokio::test]
async fn a_server_that_dies_in_between_loses_nothing_and_stores_nothing_twice() {
    let mut world = World::new().await;
    world.stream("A", Config::default()).await;
    let driven = world.drive();
    let effects = numbered(6000, &["a.x", "a.y"]);
    for (record, effects) in effects.chunks(100).enumerate() {
        driven.outbox.publish(1 + record as u64, Stamp::now(), effects.to_vec());
    }
    driven.until("nothing is published", |outbox| outbox.counts().published >= 500).await;
    world.server.kill();
    let at_death = driven.outbox.counts();
    assert!(at_death.published < 6000, "it died too late to prove anything");
    world.server.restart().await.unwrap();
    driven.until_acted(60).await;
    let counts = driven.outbox.counts();
    assert_eq!(counts.published + counts.known, 6000);
    let ids = world.ids("A").await;
    let numbers: Vec<usize> = ids.iter().map(|id| id[2..].parse().unwrap()).collect();
    for lane in 0..14 {
        assert!(numbers.iter().filter(|number| **number % 14 == lane).is_sorted());
    }
    let mut all = numbers;
    all.sort_unstable();
    assert_eq!(all, Vec::from_iter(0..6000));
}
