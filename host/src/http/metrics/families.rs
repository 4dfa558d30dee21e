//! Every family that a host exports, with its name, its words and its samples. Units are base units and stand in the name. Pure.

use super::page::Kind::{Counter, Gauge, Histogram};
use super::page::{Page, and, labels};
use super::{Own, Told};
use crate::lag::Lag;
use crate::numbers::{LATENCY_MICROSECONDS, Numbers, Rates};
use crate::overview::Overview;

/// What a handler may be doing; `not-reporting` is any silence of its host.
const STATES: [&str; 9] =
    ["starting", "running", "retrying", "failing", "paused", "standing-by", "stopped", "not-started", "not-reporting"];

const MICROSECOND: f64 = 1e-6;

pub(super) fn of_the_host(page: &mut Page, overview: Option<&Overview>, own: &Own) {
    page.family(Gauge, "millstream_build_info", "The program; always 1.");
    page.put(&labels(&[("version", env!("CARGO_PKG_VERSION")), ("host", &own.host)]), true);
    page.family(Gauge, "millstream_host_connected", "Whether this host is connected with NATS.");
    page.put("", own.connected);
    page.family(Gauge, "millstream_overview_success", "Whether the numbers below could be read from JetStream.");
    page.put("", overview.is_some());
    page.family(Gauge, "millstream_overview_read_seconds", "How long reading them took.");
    page.put("", own.read.as_secs_f64());
    page.family(Gauge, "millstream_hosts", "Hosts that announced themselves in the last 5 seconds.");
    if let Some(overview) = overview {
        page.put("", overview.hosts.len() as u64);
    }
}

/// What can be told of a handler whether its host lives or not.
pub(super) fn of_handlers(page: &mut Page, told: &[Told<'_>]) {
    page.family(Gauge, "millstream_handler_info", "What runs, or is deployed; always 1.");
    for one in told {
        let handler = one.handler;
        let digest: String = handler.digest.chars().take(12).collect();
        let version = handler.state_version.to_string();
        let more = [
            ("kind", handler.kind.as_str()),
            ("digest", &digest),
            ("label", &handler.label),
            ("state_version", &version),
        ];
        page.put(&format!("{},{}", one.labels, labels(&more)), true);
    }
    page.family(Gauge, "millstream_handler_state", "1 for what the handler is doing, 0 for all else.");
    for one in told {
        for word in STATES {
            page.put(&and(&one.labels, "state", word), word == one.handler.state);
        }
    }
    page.family(Gauge, "millstream_host_report_age_seconds", "Age of the host's last word on the handler.");
    each(page, told, |one| one.handler.reported_seconds_ago);
    page.family(Gauge, "millstream_handler_deployment_refused", "Whether the last deployment is not run.");
    each(page, told, |one| Some(one.handler.refused.is_some()));
    of_streams(page, told);
    page.family(
        Counter,
        "millstream_handler_events_total",
        "Decided events by outcome; the sum is all that were delivered.",
    );
    for one in told {
        let counts = &one.handler.counts;
        for (outcome, count) in [
            ("applied", counts.applied),
            ("irrelevant", counts.irrelevant),
            ("ignored", counts.ignored),
            ("parked", counts.parked),
            ("expired", counts.expired),
        ] {
            page.put(&and(&one.labels, "outcome", outcome), count);
        }
    }
    page.family(Counter, "millstream_handler_delivered_events_total", "Events that records cover.");
    each(page, told, |one| Some(one.handler.counts.delivered));
    page.family(
        Gauge,
        "millstream_handler_outcomes_add_up",
        "Whether the outcomes are as many as the delivered events.",
    );
    each(page, told, |one| Some(one.handler.outcomes_add_up));
    page.family(
        Counter,
        "millstream_handler_lost_events_total",
        "Messages that a stream dropped before they were decided, at most: others than the handler's may be among them.",
    );
    each(page, told, |one| Some(one.handler.counts.lost));
    page.family(Gauge, "millstream_handler_undelivered_effects", "Effects that nobody takes at present.");
    each(page, told, |one| one.reported.then_some(one.handler.undelivered_effects as u64));
}

fn of_streams(page: &mut Page, told: &[Told<'_>]) {
    page.family(Gauge, "millstream_handler_lag_known", "Whether the lag could be told.");
    each(page, told, |one| Some(one.handler.lag_fault.is_empty()));
    page.family(Gauge, "millstream_handler_lag_events", "Undecided events.");
    rows(page, told, |lag| Some(lag.events as f64));
    page.family(Gauge, "millstream_handler_lag_seconds", "Age of the oldest undecided event.");
    rows(page, told, |lag| Some(lag.seconds));
    page.family(Gauge, "millstream_handler_position", "Last decided sequence.");
    rows(page, told, |lag| Some(lag.position as f64));
    page.family(Gauge, "millstream_handler_head", "Last sequence of the stream.");
    rows(page, told, |lag| Some(lag.head as f64));
    page.family(Gauge, "millstream_handler_incoming_events_per_second", "Events that come in under the filters.");
    rates(page, told, |rates| Some(rates.in_rate));
    page.family(Gauge, "millstream_handler_decided_events_per_second", "Events that are decided.");
    rates(page, told, |rates| Some(rates.out_rate));
    page.family(Gauge, "millstream_handler_lag_trend_events_per_second", "By how much the lag grows.");
    rates(page, told, |rates| Some(rates.trend));
    page.family(
        Gauge,
        "millstream_handler_eta_seconds",
        "Until nothing is undecided, at this pace; none where it grows.",
    );
    rates(page, told, |rates| rates.eta_seconds);
}

/// What only its host can know; nothing where it is silent.
pub(super) fn of_what_hosts_measure(page: &mut Page, told: &[Told<'_>], now: i64) {
    page.family(Gauge, "millstream_handler_start_timestamp_seconds", "When the host began with the handler.");
    measured(page, told, |numbers| Some(seconds(numbers.since)));
    page.family(Gauge, "millstream_handler_last_decided_timestamp_seconds", "When the last batch was decided.");
    measured(page, told, |numbers| numbers.last_decided.map(seconds));
    page.family(Counter, "millstream_handler_batches_total", "Batches decided since the host began with the handler.");
    measured(page, told, |numbers| Some(numbers.batches));
    page.family(Counter, "millstream_handler_busy_seconds_total", "Where the pipeline's time went.");
    for one in told {
        let Some(numbers) = one.numbers() else { continue };
        let busy = numbers.busy;
        for (part, microseconds) in [
            ("waiting", busy.waiting),
            ("loading", busy.loading),
            ("guest", busy.guest),
            ("commit", busy.commit),
            ("held-back", busy.held_back),
        ] {
            page.put(&and(&one.labels, "part", part), microseconds as f64 * MICROSECOND);
        }
    }
    page.family(Counter, "millstream_handler_fuel_total", "Fuel that the guest used: about one for each instruction.");
    measured(page, told, |numbers| Some(numbers.fuel));
    page.family(Gauge, "millstream_handler_guest_memory_bytes", "Memory of the live guest.");
    measured(page, told, |numbers| Some(numbers.guest_memory_bytes));
    latency(page, told);
    sizes(page, told);
    page.family(Gauge, "millstream_handler_parked_keys", "Keys that are parked.");
    measured(page, told, |numbers| numbers.parked_keys);
    page.family(Gauge, "millstream_handler_oldest_parked_age_seconds", "Since when the oldest of them is.");
    measured(page, told, |numbers| numbers.oldest_parked.map(|parked| age(now, parked)));
}

fn sizes(page: &mut Page, told: &[Told<'_>]) {
    page.family(Gauge, "millstream_handler_journal_records", "Records in the journal.");
    sampled(page, told, |numbers| numbers.sizes.journal_records);
    page.family(Gauge, "millstream_handler_journal_bytes", "Their bytes.");
    sampled(page, told, |numbers| numbers.sizes.journal_bytes);
    page.family(Gauge, "millstream_handler_documents", "Keys in the bucket, markers of deleted ones included.");
    sampled(page, told, |numbers| numbers.sizes.documents);
    page.family(Gauge, "millstream_handler_documents_bytes", "Their bytes.");
    sampled(page, told, |numbers| numbers.sizes.documents_bytes);
}

fn latency(page: &mut Page, told: &[Told<'_>]) {
    let help = "From an event's storing until it was decided, while the handler was not behind.";
    page.family(Histogram, "millstream_handler_decide_latency_seconds", help);
    for one in told {
        let Some(numbers) = one.numbers() else { continue };
        let mut sum = 0;
        for (count, bound) in numbers.latency.buckets.iter().zip(LATENCY_MICROSECONDS) {
            sum += count;
            // Divided, not multiplied by a millionth: 50,000 is 0.05 then, as people write it.
            let bound = (bound as f64 / 1e6).to_string();
            page.put_as("_bucket", &and(&one.labels, "le", &bound), sum);
        }
        let all = numbers.latency.buckets.iter().sum::<u64>();
        page.put_as("_bucket", &and(&one.labels, "le", "+Inf"), all);
        page.put_as("_sum", &one.labels, numbers.latency.sum as f64 * MICROSECOND);
        page.put_as("_count", &one.labels, all);
    }
}

pub(super) fn of_sagas(page: &mut Page, told: &[Told<'_>], now: i64) {
    let counted: Vec<_> = told
        .iter()
        .filter_map(|one| one.numbers().and_then(|numbers| numbers.census.as_ref()).map(|census| (one, census)))
        .collect();
    page.family(Gauge, "millstream_saga_instances", "Instances by where they stand.");
    for (one, census) in &counted {
        for (status, count) in [
            ("running", census.running),
            ("compensating", census.compensating),
            ("completed", census.completed),
            ("compensated", census.compensated),
            ("compensation-failed", census.compensation_failed),
            ("failed", census.failed),
        ] {
            page.put(&and(&one.labels, "status", status), count);
        }
    }
    page.family(
        Gauge,
        "millstream_saga_oldest_running_age_seconds",
        "Since the running instance last changed that changed longest ago.",
    );
    for (one, census) in &counted {
        if let Some((_, changed)) = &census.oldest_running {
            page.put(&one.labels, age(now, *changed));
        }
    }
    page.family(Gauge, "millstream_saga_timers_pending", "Timers that instances wait for.");
    counted.iter().for_each(|(one, census)| page.put(&one.labels, census.timers_pending));
    page.family(Gauge, "millstream_saga_timers_overdue", "Of these, the ones whose time has passed.");
    counted.iter().for_each(|(one, census)| page.put(&one.labels, census.timers_overdue));
    page.family(Gauge, "millstream_saga_census_age_seconds", "Age of these counts.");
    counted.iter().for_each(|(one, census)| page.put(&one.labels, age(now, census.time)));
    page.family(Gauge, "millstream_saga_census_partial", "1: there are more instances than these counts say.");
    counted.iter().for_each(|(one, census)| page.put(&one.labels, u64::from(census.partial)));
}

/// Alerts of the handlers that this host tells, and of no handler at all.
pub(super) fn of_alerts(page: &mut Page, overview: &Overview, told: &[Told<'_>]) {
    page.family(
        Gauge,
        "millstream_alert_raised_age_seconds",
        "Alerts that are raised, and for how long they have been.",
    );
    for alert in &overview.alerts {
        let host = told.iter().find(|one| one.handler.handler == alert.handler);
        let name = ("alert", alert.alert.as_str());
        match host {
            Some(one) => page.put(&format!("{},{}", one.labels, labels(&[name])), age(overview.time, alert.since)),
            None if alert.handler.is_empty() => {
                page.put(&labels(&[("handler", ""), ("host", ""), name]), age(overview.time, alert.since));
            }
            None => {}
        }
    }
}

impl Told<'_> {
    /// What the host measured, where it does and says so.
    fn numbers(&self) -> Option<&Numbers> {
        (self.reported && self.handler.numbers.since > 0).then_some(&self.handler.numbers)
    }
}

fn each<V: Into<super::page::Value>>(page: &mut Page, told: &[Told<'_>], value: impl Fn(&Told<'_>) -> Option<V>) {
    for one in told {
        if let Some(value) = value(one) {
            page.put(&one.labels, value);
        }
    }
}

fn measured<V: Into<super::page::Value>>(page: &mut Page, told: &[Told<'_>], value: impl Fn(&Numbers) -> Option<V>) {
    each(page, told, |one| one.numbers().and_then(&value));
}

fn sampled(page: &mut Page, told: &[Told<'_>], value: impl Fn(&Numbers) -> u64) {
    measured(page, told, |numbers| (numbers.sizes.time > 0).then(|| value(numbers)));
}

fn rows(page: &mut Page, told: &[Told<'_>], value: impl Fn(&Lag) -> Option<f64>) {
    for one in told {
        for lag in &one.handler.lag {
            if let Some(value) = value(lag) {
                page.put(&and(&one.labels, "stream", &lag.stream), value);
            }
        }
    }
}

fn rates(page: &mut Page, told: &[Told<'_>], value: impl Fn(&Rates) -> Option<f64>) {
    rows(page, told, |lag| lag.rates.as_ref().and_then(&value));
}

fn seconds(nanoseconds: i64) -> f64 {
    nanoseconds as f64 / 1e9
}

fn age(now: i64, since: i64) -> f64 {
    seconds(now.saturating_sub(since).max(0))
}
