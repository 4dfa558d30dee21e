//! The same effects come again, after the duplicate window or before: what is stored is not stored twice.

use super::*;

#[tokio::test]
async fn what_is_published_twice_is_stored_once() {
    let world = World::new().await;
    world.stream("A", Config::default()).await;
    timers::open(&world.jetstream, 1).await.unwrap();
    let mut effects = numbered(50, &["a.one", "a.two"]);
    effects.push(timer("h.t", now() + HOUR));
    for round in 0..2 {
        let driven = world.drive();
        driven.outbox.republish(4, now(), effects.clone());
        driven.until_acted(4).await;
        assert_eq!(driven.outbox.counts().known, 51 * round);
    }
    assert_eq!((world.ids("A").await.len(), world.ids(names::TIMERS).await.len()), (50, 1));
}

#[tokio::test]
async fn a_recovery_after_the_duplicate_window_publishes_only_what_is_missing() {
    let world = World::new().await;
    let short = || Config { duplicate_window: SHORT, ..Config::default() };
    world.stream("KEEPS", short()).await;
    world.stream("QUEUE", Config { retention: RetentionPolicy::WorkQueue, ..short() }).await;
    world.short_timers().await;
    let mut effects = numbered(100, &["keeps.one", "keeps.two", "queue.one"]);
    effects.extend([timer("h.later", now() + HOUR), timer("h.past", now() - HOUR), timer("h.soon", now() + 1)]);
    let (before, stored) = (effects[..50].to_vec(), now());
    {
        let first = world.drive();
        first.outbox.publish(4, Stamp::now(), [before, effects[100..].to_vec()].concat());
        first.until_acted(4).await;
    }
    let fired = async || world.ids(names::TIMERS).await.len() == 3 && world.subjects_of_timers().await == 2;
    while !fired().await {}
    tokio::join!(world.window_over("keeps.p"), world.window_over("queue.p"), world.window_over("millstream.timers.p"));
    let second = world.drive();
    second.outbox.republish(4, stored, effects.clone());
    second.until_acted(4).await;
    assert_eq!(second.outbox.counts(), Counts { published: 50, known: 53, failed: 0 });
    let mut ids = [world.ids("KEEPS").await, world.ids("QUEUE").await].concat();
    ids.sort_by_key(|id| id[2..].parse::<usize>().unwrap());
    assert_eq!(ids, Vec::from_iter((0..100).map(|number| format!("h.{number}"))));
    let mut timers = world.ids(names::TIMERS).await;
    timers.sort();
    assert_eq!(timers, ["h.later", "h.past", "h.soon"]);
}

#[tokio::test]
async fn an_owner_that_stood_still_asks_before_it_publishes() {
    let world = World::new().await;
    world.stream("A", Config { duplicate_window: SHORT, ..Config::default() }).await;
    let (asked, answer) = (Arc::new(AtomicU64::new(0)), Arc::new(Mutex::new(Ok(true))));
    let (count, says) = (Arc::clone(&asked), Arc::clone(&answer));
    let mut driven = world.drive_while(move || {
        count.fetch_add(1, Ordering::SeqCst);
        lock(&says).clone()
    });
    let sent = Stamp::now();
    driven.outbox.publish(1, sent, vec![message("h.0", "a.x", "k")]);
    driven.until_acted(1).await;
    if sent.age(Stamp::now()) < SHORT / 4 {
        assert_eq!(asked.load(Ordering::SeqCst), 0, "a commit is a proof for a while");
    }
    let stood_still = Stamp::stored(now() - 60_000_000_000);
    *lock(&answer) = Err("the journal's leader is away".to_owned());
    let before = asked.load(Ordering::SeqCst);
    driven.outbox.publish(2, stood_still, vec![message("h.1", "a.x", "k")]);
    driven.until("nobody asks", |_| asked.load(Ordering::SeqCst) > before + 1).await;
    assert_eq!(driven.outbox.counts().published, 1, "without an answer nothing leaves");
    *lock(&answer) = Ok(true);
    driven.until_acted(2).await;
    *lock(&answer) = Ok(false);
    driven.outbox.publish(3, stood_still, vec![message("h.2", "a.x", "k")]);
    let error = tokio::time::timeout(WITHIN, &mut driven.task).await.unwrap().unwrap();
    assert!(matches!(error, Error::Fenced));
    assert_eq!(world.ids("A").await, ["h.0", "h.1"]);
    assert_eq!(driven.outbox.acted_through(), 2);
}

#[tokio::test]
async fn an_owner_that_stood_still_looks_for_what_its_heir_published() {
    let world = World::new().await;
    world.stream("A", Config { duplicate_window: SHORT, ..Config::default() }).await;
    let stood_still = Stamp::now();
    {
        let heir = world.drive();
        heir.outbox.republish(1, stood_still.wall, vec![message("h.0", "a.x", "k")]);
        heir.until_acted(1).await;
    }
    world.window_over("a.p").await;
    let driven = world.drive();
    driven.outbox.publish(1, stood_still, vec![message("h.0", "a.x", "k"), message("h.1", "a.x", "k")]);
    driven.until_acted(1).await;
    assert_eq!(world.ids("A").await, ["h.0", "h.1"]);
}
