//! One reader of JetStream for all who look, over HTTP or by the NATS service. In: that somebody looks. Out: the overview, a second old at most, or why there is
//! none. Reads while a page is open or a scrape waits, at most once a second and a fifth of the time. Never: more often for more
//! lookers, or for ever after the last one is gone.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::jetstream::Context;
use bytes::Bytes;
use tokio::sync::{Notify, watch};

use crate::overview::{self, Overview};

/// How old an overview may be for one who asks.
const FRESH: Duration = Duration::from_secs(1);

/// Reading rests so many times longer than it took.
const REST: u32 = 4;

/// A server that answers no sooner does not answer. Below the ten seconds after which Prometheus gives a scrape up.
const WITHIN: Duration = Duration::from_secs(8);

/// Who looks waits no longer, also where the reading itself has come to a stop.
const LOOK_WITHIN: Duration = Duration::from_secs(9);

/// What was read last.
pub(crate) struct Seen {
    /// When the reading began; none before the first.
    begun: Option<Instant>,
    pub(crate) took: Duration,
    read: Result<Overview, String>,
    /// As one event of a stream of server-sent events.
    pub(crate) event: Bytes,
}

impl Seen {
    fn nothing(fault: String) -> Self {
        let read = Err(fault);
        let event = event(&read);
        Self { begun: None, took: Duration::ZERO, read, event }
    }

    /// The overview, unless the server did not answer.
    pub(crate) fn overview(&self) -> Option<&Overview> {
        self.read.as_ref().ok()
    }

    /// Why there is none.
    pub(crate) fn fault(&self) -> &str {
        self.read.as_ref().err().map_or("", String::as_str)
    }

    fn is_fresh(&self) -> bool {
        self.begun.is_some_and(|begun| begun.elapsed() < FRESH.max(self.took * (REST + 1)))
    }
}

/// The reader.
pub struct Reader {
    jetstream: Context,
    seen: watch::Sender<Arc<Seen>>,
    asked: Notify,
}

impl Reader {
    /// A reader that has read nothing yet.
    #[must_use]
    pub fn new(jetstream: Context) -> Self {
        Self {
            jetstream,
            seen: watch::Sender::new(Arc::new(Seen::nothing("not read yet".to_owned()))),
            asked: Notify::new(),
        }
    }

    /// What is fresh, or as soon as it is.
    pub(crate) async fn look(&self) -> Arc<Seen> {
        let mut news = self.seen.subscribe();
        let last = Arc::clone(&news.borrow_and_update());
        if last.is_fresh() {
            return last;
        }
        self.asked.notify_one();
        match tokio::time::timeout(LOOK_WITHIN, news.changed()).await {
            Ok(_) => Arc::clone(&news.borrow()),
            Err(_) => Arc::new(Seen::nothing(format!("NATS has not answered for {} s", LOOK_WITHIN.as_secs()))),
        }
    }

    /// Everything that is read from here on, for as long as it is held.
    pub(crate) fn follow(&self) -> watch::Receiver<Arc<Seen>> {
        let news = self.seen.subscribe();
        self.asked.notify_one();
        news
    }

    /// Reads as long as somebody looks.
    pub async fn run(self: Arc<Self>) {
        loop {
            if self.seen.receiver_count() == 0 {
                self.asked.notified().await;
            }
            let begun = Instant::now();
            let read = match tokio::time::timeout(WITHIN, overview::read(&self.jetstream)).await {
                Ok(Ok(overview)) => Ok(overview),
                Ok(Err(error)) => Err(format!("{error:#}")),
                Err(_) => Err(format!("NATS has not answered for {} s", WITHIN.as_secs())),
            };
            let took = begun.elapsed();
            let event = event(&read);
            self.seen.send_replace(Arc::new(Seen { begun: Some(begun), took, read, event }));
            let rest = FRESH.saturating_sub(took).max(took * REST);
            tokio::time::sleep(rest).await;
        }
    }
}

/// An event with the overview, or with why there is none. JSON has no line ends.
fn event(read: &Result<Overview, String>) -> Bytes {
    let (name, data) = match read {
        Ok(overview) => ("overview", serde_json::to_string(overview)),
        Err(fault) => ("fault", serde_json::to_string(fault)),
    };
    Bytes::from(format!("event: {name}\ndata: {}\n\n", data.unwrap_or_default()))
}
