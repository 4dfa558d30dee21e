//! One handler of `top`, with all that is known of it. In: the state and a name. Out: lines on the screen, scrolled. Pure. Never: a
//! letter that a terminal would obey.

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::style::{Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::Paragraph;

use super::draw::{rate, sparkline};
use super::state::State;
use crate::cli::output::{cut, duration, legible, thousands};
use crate::clock;
use crate::numbers::{Busy, Census};
use crate::overview::{Glimpse, Handler};
use crate::registry::Past;
use crate::settings::Settings;

/// Widest text of others in a line.
const TEXT: usize = 200;

/// Digits of a digest.
const DIGEST: usize = 12;

/// Draws it, or says that it is gone.
pub(super) fn draw(frame: &mut Frame, state: &mut State, name: &str, area: Rect) {
    let lines = match state.handlers().iter().find(|handler| handler.handler == name) {
        Some(handler) => lines(state, handler, usize::from(area.width)),
        None => vec![format!("{} is not deployed any more", legible(name))],
    };
    let last = lines.len().saturating_sub(usize::from(area.height));
    state.scroll = state.scroll.min(last);
    let styled = |(at, line): (usize, String)| {
        let is_title = at == 0 || !line.starts_with(' ');
        let style = if is_title { Style::new().add_modifier(Modifier::BOLD) } else { Style::new() };
        Line::from(line).style(style)
    };
    let shown: Vec<Line> = lines.into_iter().enumerate().skip(state.scroll).map(styled).collect();
    frame.render_widget(Paragraph::new(shown), area);
}

fn lines(state: &State, handler: &Handler, width: usize) -> Vec<String> {
    let mut lines = vec![format!("{}  {}", legible(&handler.handler), legible(&handler.state_in_words()))];
    if let Some(trail) = state.trails.get(&handler.handler) {
        let bars = width.saturating_sub(10).min(60);
        lines.push(format!("  lag     {}", sparkline(&trail.lags, bars)));
    }
    for (what, text) in [("why", &handler.reason), ("lag", &handler.lag_fault)] {
        if !text.is_empty() {
            lines.push(format!("  {what:<7} {}", cut(text, TEXT)));
        }
    }
    let Some(glimpse) = &state.glimpse else { return lines };
    alerts(&mut lines, glimpse, handler);
    streams(&mut lines, handler);
    host(&mut lines, state, handler);
    if let Some(census) = &handler.numbers.census {
        instances(&mut lines, census, glimpse.overview.time);
    }
    if let Some(settings) = glimpse.settings.get(&handler.handler) {
        limits(&mut lines, settings);
    }
    let past = state.past.as_ref().filter(|(name, _)| *name == handler.handler);
    deployments(&mut lines, handler, past.map_or(&[], |(_, past)| past));
    lines
}

fn alerts(lines: &mut Vec<String>, glimpse: &Glimpse, handler: &Handler) {
    let ours: Vec<_> = glimpse.overview.alerts.iter().filter(|alert| alert.handler == handler.handler).collect();
    if ours.is_empty() {
        return;
    }
    lines.push("Alerts".to_owned());
    for alert in ours {
        let since = duration((glimpse.overview.time - alert.since) as f64 / 1e9);
        lines.push(format!("  ! {} for {since}: {}", legible(&alert.alert), cut(&alert.text, TEXT)));
    }
}

fn streams(lines: &mut Vec<String>, handler: &Handler) {
    lines.push(format!("{:<24} {:>11} {:>7} {:>6} {:>6} {:>6}", "Streams", "LAG", "OLDEST", "IN/S", "OUT/S", "ETA"));
    for row in &handler.lag {
        let (events, oldest) = (thousands(row.events), duration(row.seconds));
        let [taken, decided] = [row.rates.map(|rates| rates.in_rate), row.rates.map(|rates| rates.out_rate)].map(rate);
        let eta = row.rates.and_then(|rates| rates.eta_seconds).map_or("-".to_owned(), duration);
        let stream = cut(&row.stream, 22);
        lines.push(format!("  {stream:<22} {events:>11} {oldest:>7} {taken:>6} {decided:>6} {eta:>6}"));
        lines.push(format!("    position {} of {}", thousands(row.position), thousands(row.head)));
    }
}

fn host(lines: &mut Vec<String>, state: &State, handler: &Handler) {
    let numbers = &handler.numbers;
    lines.push("Host".to_owned());
    let ago = handler.reported_seconds_ago.map_or("never".to_owned(), |ago| format!("{} ago", duration(ago)));
    lines.push(format!(
        "  {}, reported {ago}",
        if handler.host.is_empty() { "none".into() } else { cut(&handler.host, 40) }
    ));
    let share = state.trails.get(&handler.handler).and_then(|trail| trail.share);
    if let Some(share) = share {
        lines.push(format!("  busy {:.0} %; since it began:", share * 100.0));
        lines.push(format!("  {}", split(&numbers.busy)));
    }
    let counts = &handler.counts;
    lines.push(format!(
        "  {} delivered: {} applied, {} irrelevant, {} ignored, {} parked, {} expired; {} lost",
        thousands(counts.delivered),
        thousands(counts.applied),
        thousands(counts.irrelevant),
        thousands(counts.ignored),
        thousands(counts.parked),
        thousands(counts.expired),
        thousands(counts.lost)
    ));
    let per_event = numbers.fuel.checked_div(numbers.events).map_or("-".to_owned(), thousands);
    lines.push(format!("  guest: {} memory, {per_event} fuel an event", bytes(numbers.guest_memory_bytes)));
    let sizes = &numbers.sizes;
    lines.push(format!(
        "  stored: {} documents in {}, {} records in {}",
        thousands(sizes.documents),
        bytes(sizes.documents_bytes),
        thousands(sizes.journal_records),
        bytes(sizes.journal_bytes)
    ));
    let parked = numbers.parked_keys.unwrap_or_default();
    if parked > 0 || handler.undelivered_effects > 0 {
        let effects = thousands(handler.undelivered_effects as u64);
        lines.push(format!("  {} keys parked, {effects} effects that nobody takes", thousands(parked)));
    }
}

/// Where the time went, of all of it.
fn split(busy: &Busy) -> String {
    let all = (busy.waiting + busy.loading + busy.guest + busy.commit + busy.held_back).max(1);
    let parts = [
        ("waiting", busy.waiting),
        ("loading", busy.loading),
        ("guest", busy.guest),
        ("commit", busy.commit),
        ("held back", busy.held_back),
    ];
    parts.map(|(name, part)| format!("{name} {:.0} %", part as f64 * 100.0 / all as f64)).join(", ")
}

fn instances(lines: &mut Vec<String>, census: &Census, now: i64) {
    // What was broken off has counted so many at least.
    let count = |count: u64| format!("{}{}", if census.partial { "≥ " } else { "" }, thousands(count));
    lines.push("Instances".to_owned());
    lines.push(format!(
        "  {} running, {} compensating, {} completed, {} compensated, {} failed",
        count(census.running),
        count(census.compensating),
        count(census.completed),
        count(census.compensated),
        count(census.failed)
    ));
    lines.push(format!("  {} compensations failed", count(census.compensation_failed)));
    let (pending, overdue) = (count(census.timers_pending), count(census.timers_overdue));
    lines.push(format!("  {pending} timers set, {overdue} overdue"));
    if let Some((key, changed)) = &census.oldest_running {
        let ago = duration((now - changed) as f64 / 1e9);
        lines.push(format!("  unchanged for longest: {}, {ago}", cut(key, 60)));
    }
}

fn limits(lines: &mut Vec<String>, settings: &Settings) {
    let set = |number: u64, unit: &str| (number > 0).then(|| format!("{}{unit}", thousands(number)));
    lines.push("Limits".to_owned());
    lines.push(format!(
        "  fuel {} a call, memory {}, batch {} events, {}",
        thousands(settings.limits.fuel_per_call),
        bytes(settings.limits.memory_bytes as u64),
        thousands(settings.batch_events as u64),
        set(settings.throttle_events_per_second, " events a second").unwrap_or("no throttle".to_owned())
    ));
    let lag = [set(settings.alert_lag_events, " events"), set(settings.alert_lag_seconds, " s")];
    let lag: Vec<String> = lag.into_iter().flatten().collect();
    lines.push(format!(
        "  alerts: lag {}; stuck {}; growing {}",
        if lag.is_empty() { "any".to_owned() } else { format!("over {}", lag.join(" or ")) },
        set(settings.alert_stuck_seconds, " s").map_or("never".to_owned(), |after| format!("after {after}")),
        if settings.alert_lag_growing { "yes" } else { "no" }
    ));
}

fn deployments(lines: &mut Vec<String>, handler: &Handler, past: &[Past]) {
    lines.push("Deployments".to_owned());
    let kind = if handler.kind.is_empty() { "handler" } else { &handler.kind };
    let digest = cut_digest(&handler.digest);
    lines.push(format!("  {} of state version {}, module {digest}", legible(kind), handler.state_version));
    if let Some(refused) = &handler.refused {
        let what = match refused.digest.is_empty() {
            true => format!("revision {}", refused.revision),
            false => format!("module {}", cut_digest(&refused.digest)),
        };
        lines.push(format!("  refused: {what}: {}", cut(&refused.reason, TEXT)));
    }
    for one in past {
        let time = clock::text(one.time);
        let time = time.split('.').next().unwrap_or_default().trim_end_matches('Z').replace('T', " ");
        let what = match &one.deployment {
            None => "removed".to_owned(),
            Some(Err(error)) => cut(&error.to_string(), TEXT),
            Some(Ok(deployment)) => {
                let (digest, wanted) = (deployment.digest.short().to_string(), deployment.desired.in_words());
                [digest, wanted.to_owned(), cut(&deployment.label, 30), cut(&deployment.note, TEXT)].join("  ")
            }
        };
        lines.push(format!("  {:>4}  {time}  {}", one.revision, what.trim_end()));
    }
}

fn cut_digest(digest: &str) -> String {
    legible(digest).chars().take(DIGEST).collect()
}

fn bytes(bytes: u64) -> String {
    match bytes {
        b if b < 10_000 => format!("{b} B"),
        b if b < 10_000_000 => format!("{} kB", b / 1000),
        b if b < 10_000_000_000 => format!("{} MB", b / 1_000_000),
        b => format!("{} GB", b / 1_000_000_000),
    }
}
