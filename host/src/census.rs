//! Counts a saga's instances. In: its bucket, read page by page. Out: how many stand where, and what waits. Reads no more at once than a
//! page, so that a saga may have any number of instances. Never: writes, or leaves a consumer behind. What changes while it
//! counts may be counted as it was, or twice.

use async_nats::jetstream::Context;
use millstream_saga::{Instance, Status};

use crate::clock;
use crate::direct_get::{self, From, Last};
use crate::keys;
use crate::names;
use crate::numbers::Census;

/// Messages and bytes of a page.
const PAGE: usize = 1000;
const PAGE_BYTES: usize = 4 << 20;

/// Pages of one count at most: it ends also where instances change faster than they are read.
const PAGES: usize = 10_000;

/// Counts the instances in this bucket.
///
/// # Errors
/// When the server refuses or stays silent.
pub(crate) async fn take(jetstream: &Context, bucket: &str) -> Result<Census, direct_get::Error> {
    let (stream, all) = (names::bucket_stream(bucket), names::bucket_subject(bucket, ">"));
    let now = clock::now();
    let mut census = Census { time: now, ..Census::default() };
    let mut from = 1;
    for _ in 0..PAGES {
        let page = direct_get::page(jetstream, &stream, &all, From::Sequence(from), PAGE, PAGE_BYTES).await?;
        let Some(last) = page.last() else { return Ok(census) };
        from = last.sequence + 1;
        for message in page.iter().filter(|message| !message.is_deletion()) {
            if let Some((key, instance)) = instance(bucket, message) {
                count(&mut census, &key, &instance, now);
            }
        }
        tokio::task::yield_now().await;
    }
    census.partial = true;
    Ok(census)
}

/// The instance in a message. One that cannot be read stops the handler at its next event, by name.
fn instance(bucket: &str, message: &Last) -> Option<(String, Instance)> {
    let key = message.subject.strip_prefix(&names::bucket_subject(bucket, ""))?;
    Some((keys::unescape(key).ok()?, Instance::read(&message.payload).ok()?))
}

fn count(census: &mut Census, key: &str, instance: &Instance, now: i64) {
    let of_status = match instance.status {
        Status::Running => &mut census.running,
        Status::Compensating => &mut census.compensating,
        Status::Completed => &mut census.completed,
        Status::Compensated => &mut census.compensated,
        Status::CompensationFailed => &mut census.compensation_failed,
        Status::Failed => &mut census.failed,
    };
    *of_status += 1;
    if instance.status == Status::Running
        && let Some(changed) = instance.history.last().and_then(|transition| clock::read(&transition.at))
        && census.oldest_running.as_ref().is_none_or(|(_, oldest)| changed < *oldest)
    {
        census.oldest_running = Some((key.to_owned(), changed));
    }
    if !instance.status.has_ended() {
        let overdue = |at: &str| clock::read(at).is_some_and(|due| due <= now);
        census.timers_pending += instance.timers.len() as u64;
        census.timers_overdue += instance.timers.iter().filter(|timer| overdue(&timer.at)).count() as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_instance_counts_once_and_only_who_runs_waits() {
        let document = |status: &str, changed: &str| {
            format!(
                r#"{{"status":"{status}","state":null,"correlation":"c","life":"e",
                   "timers":[{{"name":"a","id":"t","at":"2026-01-01T02:00:00Z"}},{{"name":"b","id":"u","at":"2025-01-01T02:00:00Z"}}],
                   "history":[{{"event":"e","type":"T","at":"{changed}","digest":"d","did":"begin"}}]}}"#
            )
        };
        let mut census = Census::default();
        let now = clock::read("2026-01-01T00:00:00Z").unwrap();
        for (key, status, changed) in [
            ("young", "running", "2025-12-31T23:00:00Z"),
            ("old", "running", "2025-12-01T00:00:00Z"),
            ("over", "completed", "2020-01-01T00:00:00Z"),
            ("back", "compensating", "2020-01-01T00:00:00Z"),
            ("stuck", "compensation-failed", "2020-01-01T00:00:00Z"),
            ("undone", "compensated", "2020-01-01T00:00:00Z"),
            ("dead", "failed", "2020-01-01T00:00:00Z"),
        ] {
            let instance = Instance::read(document(status, changed).as_bytes()).unwrap();
            count(&mut census, key, &instance, now);
        }
        let waiting = if Status::CompensationFailed.has_ended() { 3 } else { 4 };
        let expected = Census {
            running: 2,
            compensating: 1,
            completed: 1,
            compensated: 1,
            compensation_failed: 1,
            failed: 1,
            oldest_running: Some(("old".to_owned(), clock::read("2025-12-01T00:00:00Z").unwrap())),
            timers_pending: 2 * waiting,
            timers_overdue: waiting,
            time: 0,
            partial: false,
        };
        assert_eq!(census, expected);
    }
}
