//! What an alert says: when it is raised, and as long as it stands. In: how a handler looks. Out: a sentence with its figures of now,
//! or the one of when it was raised, marked as such, where nobody knows newer ones. Pure. Never: an old figure as if it were of now.

use super::Alarm;
use crate::lag::{FAILING, RETRYING, SILENT_AFTER_SECONDS};
use crate::legible::{counted, cut, duration, thousands};
use crate::overview::{Alert, Handler};

/// Widest reason of others in a text.
const REASON: usize = 500;

/// Below this nothing is said to grow, events per second.
const GROWS: f64 = 0.05;

/// Gives alerts that stand the figures of now.
pub fn bring_up_to_date(alerts: &mut [Alert], handlers: &[Handler], now: i64) {
    for alert in alerts {
        let handler = handlers.iter().find(|handler| handler.handler == alert.handler);
        let alarm = Alarm::ALL.into_iter().find(|alarm| alarm.name() == alert.alert);
        let told = handler.zip(alarm).and_then(|(handler, alarm)| of_now(alarm, handler, alert.since, now));
        alert.text = told.unwrap_or_else(|| format!("when it was raised: {}", alert.text));
    }
}

/// None: nobody knows.
fn of_now(alarm: Alarm, handler: &Handler, since: i64, now: i64) -> Option<String> {
    let census = handler.numbers.census.as_ref();
    let is_known = handler.lag_fault.is_empty();
    let is_told = is_known && handler.events() > 0;
    let is_silent = handler.reported_seconds_ago.is_none_or(|ago| ago > SILENT_AFTER_SECONDS);
    match alarm {
        Alarm::Lag | Alarm::LagGrowing | Alarm::Stuck
            if is_known && !is_told && handler.reported_seconds_ago.is_some() =>
        {
            Some("no event waits any more".to_owned())
        }
        Alarm::Lag => is_told.then(|| lag(handler)),
        Alarm::LagGrowing => is_told.then(|| growing(handler, handler.rates().map_or(0.0, |rates| rates.trend))),
        Alarm::Stuck => {
            is_told.then(|| stuck(handler, now - handler.numbers.last_decided.map_or(since, |last| last.max(since))))
        }
        Alarm::NotReporting => is_silent.then(|| silent(handler)),
        Alarm::Failing if handler.state == RETRYING => Some(retrying(&handler.reason, now - since)),
        Alarm::Failing => (handler.state == FAILING).then(|| failing(handler)),
        Alarm::Parked => handler.numbers.parked_keys.filter(|keys| *keys > 0).map(|keys| parked(handler, keys, now)),
        Alarm::CompensationsFailed => {
            census.map(|census| census.compensation_failed).filter(|failed| *failed > 0).map(compensations_failed)
        }
        Alarm::Undelivered => (!is_silent && handler.undelivered_effects > 0).then(|| undelivered(handler)),
        Alarm::TimersOverdue => {
            census.map(|census| census.timers_overdue).filter(|overdue| *overdue > 0).map(timers_overdue)
        }
        Alarm::OutcomesDiffer => (!handler.counts.add_up()).then(|| outcomes(handler)),
        Alarm::DeadLetters | Alarm::EventsLost | Alarm::LimitNear => None,
    }
}

pub(super) fn lag(handler: &Handler) -> String {
    let (events, oldest) = (handler.events(), duration(handler.oldest_seconds()));
    format!("{}, the oldest for {oldest}", counted(events, "event waits", "events wait"))
}

pub(super) fn growing(handler: &Handler, slope: f64) -> String {
    let (events, oldest) = (thousands(handler.events()), duration(handler.oldest_seconds()));
    if slope < GROWS {
        return format!("lag has grown: {events} wait, the oldest for {oldest}");
    }
    format!("lag grows by about {slope:.1} events a second: {events} wait, the oldest for {oldest}")
}

pub(super) fn stuck(handler: &Handler, stood: i64) -> String {
    let events = counted(handler.events(), "event waits", "events wait");
    format!("{events}, and nothing was decided for {}", duration(stood as f64 / 1e9))
}

pub(super) fn silent(handler: &Handler) -> String {
    match handler.reported_seconds_ago {
        Some(ago) => format!("host {} has said nothing for {}", cut(&handler.host, REASON), duration(ago)),
        None => "no host says that it runs it".to_owned(),
    }
}

pub(super) fn failing(handler: &Handler) -> String {
    cut(&handler.reason, REASON)
}

pub(super) fn retrying(reason: &str, tried: i64) -> String {
    format!("it has been trying again for {}: {}", duration(tried as f64 / 1e9), cut(reason, REASON))
}

pub(super) fn parked(handler: &Handler, keys: u64, now: i64) -> String {
    let oldest = handler.numbers.oldest_parked.map_or(0.0, |oldest| (now - oldest) as f64 / 1e9);
    format!("{} parked, the oldest for {}", counted(keys, "key is", "keys are"), duration(oldest))
}

pub(super) fn dead_letters(new: u64) -> String {
    format!("{} parked", counted(new, "more event was", "more events were"))
}

pub(super) fn lost(new: u64) -> String {
    // Nobody knows which of them the handler would have read.
    format!("up to {} dropped before being decided", counted(new, "event was", "events were"))
}

pub(super) fn compensations_failed(failed: u64) -> String {
    format!("the compensation of {} failed", counted(failed, "instance", "instances"))
}

pub(super) fn undelivered(handler: &Handler) -> String {
    format!("nobody takes {} of its effects", thousands(handler.undelivered_effects as u64))
}

pub(super) fn timers_overdue(overdue: u64) -> String {
    format!("{} overdue", counted(overdue, "timer is", "timers are"))
}

pub(super) fn outcomes(handler: &Handler) -> String {
    let counts = &handler.counts;
    let told = counts.applied + counts.irrelevant + counts.ignored + counts.parked + counts.expired;
    format!("{} events were delivered, but {} have an outcome", thousands(counts.delivered), thousands(told))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lag::Lag;

    #[test]
    fn an_alert_tells_the_figures_of_now_or_says_that_they_are_old() {
        let mut handler = Handler { handler: "h".to_owned(), host: "h1".to_owned(), ..Handler::default() };
        handler.reported_seconds_ago = Some(0.5);
        handler.lag = vec![Lag { events: 5330, seconds: 42.0, ..Lag::default() }];
        handler.numbers.parked_keys = Some(2);
        let mut silent = Handler { handler: "s".to_owned(), host: "h2".to_owned(), ..Handler::default() };
        silent.reported_seconds_ago = Some(30.0);
        let done = Handler { handler: "done".to_owned(), reported_seconds_ago: Some(0.5), ..Handler::default() };
        let mut tries = Handler { handler: "tries".to_owned(), reported_seconds_ago: Some(0.5), ..Handler::default() };
        (tries.state, tries.reason) = (RETRYING.to_owned(), "no stream".to_owned());
        let handlers = [handler, silent, done, tries];
        for (whose, alarm, text) in [
            ("h", "lag", "5,330 events wait, the oldest for 42 s"),
            ("h", "lag-growing", "lag has grown: 5,330 wait, the oldest for 42 s"),
            ("h", "stuck", "5,330 events wait, and nothing was decided for 60 s"),
            ("h", "parked", "2 keys are parked, the oldest for 0 s"),
            ("h", "limit-near", "when it was raised: as it was"),
            ("h", "compensations-failed", "when it was raised: as it was"),
            ("done", "lag", "no event waits any more"),
            ("done", "stuck", "no event waits any more"),
            ("tries", "failing", "it has been trying again for 60 s: no stream"),
            ("s", "parked", "when it was raised: as it was"),
            ("s", "undelivered", "when it was raised: as it was"),
            ("s", "not-reporting", "host h2 has said nothing for 30 s"),
            ("gone", "lag", "when it was raised: as it was"),
            ("", "storage-near-limit", "when it was raised: as it was"),
        ] {
            let alert = Alert {
                handler: whose.to_owned(),
                alert: alarm.to_owned(),
                text: "as it was".to_owned(),
                ..Alert::default()
            };
            let mut alerts = [alert];
            bring_up_to_date(&mut alerts, &handlers, 60_000_000_000);
            assert_eq!(alerts[0].text, text, "{whose} {alarm}");
        }
    }
}
