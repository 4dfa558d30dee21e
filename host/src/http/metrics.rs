//! What Prometheus is told. In: the overview, and what this host knows of itself. Out: the text exposition format, or OpenMetrics.
//! A host tells of the handlers that it runs, and of those that nobody reports, with an empty `host`: so two hosts that are scraped never
//! tell the same handler twice while it runs, and one whose host died is still told. Pure. Never: a label per key, instance or
//! event, or a number that its host measured and nobody has confirmed since.

mod families;
mod page;

pub use page::Format;

use std::time::Duration;

use crate::lag::SILENT_AFTER_SECONDS;
use crate::overview::{Handler, Overview};

/// What this host knows without asking anybody.
#[derive(Clone, Debug, Default)]
pub struct Own {
    /// Its name.
    pub host: String,
    /// Whether it is connected with NATS.
    pub connected: bool,
    /// How long the overview took to read.
    pub read: Duration,
}

/// A handler as this host tells it.
struct Told<'a> {
    handler: &'a Handler,
    /// Labels `handler` and `host`, written out.
    labels: String,
    /// Whether its host's measurements are of now.
    reported: bool,
}

/// The page. Without an overview (the server does not answer) it says so, and has no number that could be of yesterday.
#[must_use]
pub fn render(overview: Option<&Overview>, own: &Own, format: Format) -> String {
    let mut page = page::Page::new(format);
    families::of_the_host(&mut page, overview, own);
    let nothing = Overview::default();
    let overview = overview.unwrap_or(&nothing);
    let told: Vec<Told<'_>> = overview.handlers.iter().filter_map(|handler| told(handler, &own.host)).collect();
    families::of_handlers(&mut page, &told);
    families::of_what_hosts_measure(&mut page, &told, overview.time);
    families::of_sagas(&mut page, &told, overview.time);
    families::of_alerts(&mut page, overview, &told);
    page.end()
}

/// Whether and how this host tells of a handler.
fn told<'a>(handler: &'a Handler, own: &str) -> Option<Told<'a>> {
    let reported = handler.reported_seconds_ago.is_some_and(|ago| ago <= SILENT_AFTER_SECONDS);
    let host = match (reported, handler.host == own) {
        (true, true) => own,
        (true, false) => return None,
        (false, _) => "",
    };
    let labels = page::labels(&[("handler", &handler.handler), ("host", host)]);
    Some(Told { handler, labels, reported })
}

#[cfg(test)]
mod tests;
