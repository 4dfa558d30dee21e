//! What goes well: everything arrives once, whole and in order.

use super::*;

#[tokio::test]
async fn what_is_published_is_read_back_in_full() {
    let world = World::new().await;
    world.stream("COMMANDS", Config { allow_message_ttl: true, ..Config::default() }).await;
    world.stream("EVENTS", Config::default()).await;
    let driven = world.drive();
    let command = |subject: &str| {
        let Outgoing::Message(message) = message("h.1", subject, "C 42 ü") else { unreachable!() };
        let payload = br#"{"eventType":"not me"}"#.to_vec();
        Outgoing::Message(Message { within_ms: Some(1_500_000), step: Some("pay".to_owned()), payload, ..message })
    };
    let sent = Stamp::now();
    driven.outbox.publish(3, sent, vec![command("commands.reserve"), command("events.x")]);
    driven.until_acted(3).await;
    for (stream, ttl) in [("COMMANDS", Some("1500")), ("EVENTS", None)] {
        let message = world.jetstream.get_stream(stream).await.unwrap().get_raw_message(1).await.unwrap();
        let (subject, payload) = (message.subject.as_str(), message.payload.as_ref());
        let arrival = Arrival { stream, sequence: 1, stored: 1, subject, payload };
        let event = decode(&arrival, pairs(&message.headers)).unwrap();
        assert_eq!((event.id.as_ref(), event.event_type.as_ref()), ("h.1", "Reserve"));
        assert_eq!((event.aggregate_id.as_ref(), event.time), ("C 42 ü", sent.wall));
        assert_eq!((event.correlation_id.as_ref(), event.causation_id.as_ref()), ("root", "e1"));
        assert_eq!(event.payload.as_ref(), br#"{"eventType":"not me"}"#);
        let header = |name: &str| message.headers.get(name).map(|value| value.as_str());
        assert_eq!(header("Nats-TTL"), ttl, "{stream}");
        assert_eq!(header("Millstream-Step"), Some("pay"));
        let deadline: jiff::Timestamp = header("Millstream-Deadline").unwrap().parse().unwrap();
        let waited = deadline.as_nanosecond() - i128::from(sent.wall) - 1_500_000_000_000;
        assert!((0..WITHIN.as_nanos() as i128).contains(&waited));
    }
}

#[tokio::test]
async fn a_thousand_effects_are_stored_once_each_in_their_order() {
    let world = World::new().await;
    world.stream("A", Config::default()).await;
    world.stream("B", Config::default()).await;
    timers::open(&world.jetstream, 1).await.unwrap();
    let driven = world.drive();
    let mut effects = numbered(800, &["a.one", "a.two", "b.one"]);
    effects.extend((800..1000).map(|number| timer(&format!("h.{number}"), now() + HOUR)));
    for (record, effects) in effects.chunks(9).enumerate() {
        driven.outbox.publish(10 + 2 * record as u64, Stamp::now(), effects.to_vec());
    }
    driven.outbox.publish(999, Stamp::now(), Vec::new());
    driven.until_acted(999).await;
    assert_eq!(driven.outbox.counts(), Counts { published: 1000, known: 0, failed: 0 });
    let mut all = Vec::new();
    for (stream, subject) in [("A", "a.one"), ("A", "a.two"), ("B", "b.one")] {
        let stored = world.stored(stream).await;
        let of_subject = stored.iter().filter(|(name, _)| name == subject);
        let ids: Vec<usize> =
            of_subject.map(|(_, headers)| headers.get("ce-id").unwrap().as_str()[2..].parse().unwrap()).collect();
        assert!(ids.is_sorted(), "{subject}: {ids:?}");
        all.extend(ids);
    }
    let timers = world.ids(names::TIMERS).await;
    all.extend(timers.iter().map(|id| id[2..].parse::<usize>().unwrap()));
    all.sort_unstable();
    assert_eq!(all, Vec::from_iter(0..1000));
}

#[tokio::test]
async fn timers_fire_once_unless_they_are_cancelled() {
    let world = World::new().await;
    timers::open(&world.jetstream, 1).await.unwrap();
    let driven = world.drive();
    let soon = now() + 300_000_000;
    let mut effects: Vec<Outgoing> = (0..50).map(|number| timer(&format!("h.{number}"), soon)).collect();
    effects.extend((0..50).filter(|number| number % 2 == 0).map(|number| cancel(&format!("h.{number}"))));
    effects.push(timer("h.past", now() - HOUR));
    // After all the others.
    effects.push(timer("h.last", soon + 500_000_000));
    driven.outbox.publish(1, Stamp::now(), effects);
    driven.until_acted(1).await;
    let stream = world.jetstream.get_stream(names::TIMERS).await.unwrap();
    let config = pull::Config { filter_subject: names::timer_due_subject("h"), ..pull::Config::default() };
    let mut due = stream.create_consumer(config).await.unwrap().messages().await.unwrap();
    let mut ids = Vec::new();
    while ids.last().is_none_or(|id| id != "h.last") {
        let message = tokio::time::timeout(WITHIN, due.next()).await.unwrap().unwrap().unwrap();
        ids.push(message.headers.as_ref().unwrap().get("ce-id").unwrap().to_string());
    }
    assert_eq!(ids.first().map(String::as_str), Some("h.past"));
    let mut fired = ids[1..ids.len() - 1].to_vec();
    fired.sort_by_key(|id| id[2..].parse::<usize>().unwrap());
    assert_eq!(fired, Vec::from_iter((1..50).step_by(2).map(|number| format!("h.{number}"))));
}

#[tokio::test]
async fn a_full_outbox_says_so_until_there_is_room() {
    let world = World::new().await;
    let limits = Limits { queued_effects: 10, ..Limits::default() };
    let outbox = Arc::new(Outbox::new(&world.jetstream, "h", 0, limits));
    outbox.publish(1, Stamp::now(), numbered(9, &["a.x"]));
    assert!(!outbox.is_full());
    outbox.publish(2, Stamp::now(), vec![message("h.9", "a.x", "k")]);
    assert!(outbox.is_full());
    world.stream("A", Config::default()).await;
    let driven = Arc::clone(&outbox);
    let task = tokio::spawn(async move { driven.run(|| std::future::ready(Ok(true))).await.unwrap_err() });
    let driven = Driven { outbox, task };
    driven.until_acted(2).await;
    assert!(!driven.outbox.is_full());
    assert_eq!(world.ids("A").await.len(), 10);
}
