//! `millstream sagas`. In: a saga's bucket, and what its host says. Out: its instances, what each waits for, and what
//! of theirs nobody takes. Never: writes anything.

use clap::{Args, ValueEnum};
use millstream_saga::instance::{Step, StepState};
use millstream_saga::{Instance, Status};
use serde::Serialize;

use super::instances::{Found, Saga};
use super::{Fault, connect, output};
use crate::clock;
use crate::outbox::Undelivered;

/// Widest table.
const WIDTH: usize = 120;

/// List the instances of a saga.
#[derive(Debug, Args)]
pub(super) struct Sagas {
    /// The handler.
    #[arg(value_parser = super::handler_name)]
    handler: String,
    /// Only instances that stand so.
    #[arg(long)]
    status: Option<Stands>,
}

/// A status, on the command line.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Stands {
    Running,
    Compensating,
    Completed,
    Compensated,
    CompensationFailed,
    Failed,
}

/// The status of this name, or the names that there are.
pub(crate) fn status(name: &str) -> Result<Status, String> {
    let known = || Stands::value_variants().iter().filter_map(ValueEnum::to_possible_value);
    let names = || known().map(|known| known.get_name().to_owned()).collect::<Vec<_>>().join(", ");
    Stands::from_str(name, false).map(Status::from).map_err(|_| names())
}

/// An instance, for programs.
#[derive(Serialize)]
pub(crate) struct Row<'a> {
    handler: &'a str,
    key: &'a str,
    status: Status,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    open_steps: Vec<OpenStep<'a>>,
    timers: Vec<Waiting<'a>>,
    late: u64,
    /// Time of the event that changed it last.
    changed: Option<&'a str>,
    changed_seconds_ago: Option<f64>,
    /// Id of the event that began it.
    life: &'a str,
    correlation: &'a str,
}

#[derive(Serialize)]
struct OpenStep<'a> {
    step: &'a str,
    state: StepState,
    attempt: u32,
}

#[derive(Serialize)]
struct Waiting<'a> {
    name: &'a str,
    at: &'a str,
}

impl Sagas {
    pub(super) async fn run(self, connection: &connect::Connection, json: bool) -> Result<(), Fault> {
        let saga = Saga::open(connection, &self.handler).await?;
        let mut found = saga.instances().await?;
        found.retain(|found| self.status.is_none_or(|wanted| found.instance.status == Status::from(wanted)));
        let now = clock::now();
        let rows: Vec<Row<'_>> = found.iter().map(|found| Row::of(&self.handler, found, now)).collect();
        if json {
            for row in &rows {
                output::json(row)?;
            }
        } else if rows.is_empty() {
            eprintln!("{}: no instances", self.handler);
        } else {
            output::line(&table(&rows, now))?;
        }
        let report = saga.registry.status(&self.handler).await?.unwrap_or_default();
        warn(&self.handler, report.undelivered_effects, &report.undelivered);
        Ok(())
    }
}

/// Says what of the saga's effects nobody takes.
fn warn(handler: &str, count: usize, first: &[Undelivered]) {
    if count == 0 {
        return;
    }
    eprintln!("warning: {} effects of {handler} cannot be delivered yet; they are tried again", count);
    for effect in first {
        let key = output::cut(&effect.key, output::NAME);
        eprintln!("  {} of {key} to {}: {}", effect.id, effect.subject, output::legible(&effect.reason));
    }
    if count > first.len() {
        eprintln!("  and {} more", output::thousands((count - first.len()) as u64));
    }
}

impl<'a> Row<'a> {
    /// The instance at this moment.
    pub(crate) fn of(handler: &'a str, found: &'a Found, now: i64) -> Self {
        let instance = &found.instance;
        let changed = instance.history.last().map(|transition| transition.at.as_str());
        Self {
            handler,
            key: &found.key,
            status: instance.status,
            reason: instance.reason.as_deref(),
            open_steps: open_steps(instance),
            timers: instance.timers.iter().map(|timer| Waiting { name: &timer.name, at: &timer.at }).collect(),
            late: instance.late,
            changed,
            changed_seconds_ago: changed.and_then(clock::read).map(|time| (now - time).max(0) as f64 / 1e9),
            life: &instance.life,
            correlation: &instance.correlation,
        }
    }
}

/// Steps that wait for an answer, and one that cannot be taken back.
fn open_steps(instance: &Instance) -> Vec<OpenStep<'_>> {
    let open = |step: &&Step| match step.state {
        StepState::Sent | StepState::Undoing | StepState::UndoFailed => true,
        StepState::Confirmed | StepState::Rejected | StepState::TimedOut | StepState::Undone | StepState::Kept => false,
    };
    let attempt = |step: &Step| if step.state == StepState::Sent { step.attempt } else { step.undo_attempt };
    let steps = instance.steps.iter().filter(open).filter(|_| !instance.status.has_ended());
    steps.map(|step| OpenStep { step: &step.step, state: step.state, attempt: attempt(step) }).collect()
}

/// The rows as a table of at most 120 columns for usual names; the reason, last, is cut to what is left.
pub(super) fn table(rows: &[Row<'_>], now: i64) -> String {
    let cells = |row: &Row<'_>| {
        let steps: Vec<String> = row.open_steps.iter().map(OpenStep::in_words).collect();
        let timers: Vec<String> = row.timers.iter().map(|timer| timer.in_words(now)).collect();
        vec![
            output::cut(row.key, output::NAME),
            row.status.to_string(),
            output::cut(&steps.join(", "), output::NAME),
            output::cut(&timers.join(", "), output::NAME),
            output::thousands(row.late),
            row.changed_seconds_ago.map_or_else(String::new, |ago| format!("{} ago", output::duration(ago))),
            String::new(),
        ]
    };
    let header = ["KEY", "STATUS", "OPEN STEPS", "TIMERS", "LATE", "CHANGED", "REASON"];
    let mut cells: Vec<Vec<String>> = rows.iter().map(cells).collect();
    let width = |column: usize| {
        let widths = cells.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        widths.chain(header.get(column).map(|title| title.len())).max().unwrap_or_default() + 2
    };
    let left = WIDTH.saturating_sub((0..header.len() - 1).map(width).sum()).max(20);
    for (row, cells) in rows.iter().zip(&mut cells) {
        if let Some(last) = cells.last_mut() {
            *last = output::cut(row.reason.unwrap_or_default(), left);
        }
    }
    output::table(&header, &[4], cells)
}

impl OpenStep<'_> {
    fn in_words(&self) -> String {
        let state = match self.state {
            StepState::UndoFailed => "undo failed",
            StepState::Undoing => "undoing",
            _ => "sent",
        };
        let attempt = if self.attempt > 1 { format!(" #{}", self.attempt) } else { String::new() };
        format!("{} {state}{attempt}", self.step)
    }
}

impl Waiting<'_> {
    fn in_words(&self, now: i64) -> String {
        match clock::read(self.at) {
            Some(due) if due > now => format!("{} in {}", self.name, output::duration((due - now) as f64 / 1e9)),
            _ => format!("{} due", self.name),
        }
    }
}

impl From<Stands> for Status {
    fn from(stands: Stands) -> Self {
        match stands {
            Stands::Running => Self::Running,
            Stands::Compensating => Self::Compensating,
            Stands::Completed => Self::Completed,
            Stands::Compensated => Self::Compensated,
            Stands::CompensationFailed => Self::CompensationFailed,
            Stands::Failed => Self::Failed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(key: &str, document: &str) -> Found {
        let instance = Instance::read(document.as_bytes()).unwrap();
        Found { key: key.to_owned(), instance, record: 0, stored: 0 }
    }

    #[test]
    fn a_key_is_one_short_line_whatever_it_holds() {
        let document = r#"{"status":"running","state":null,"correlation":"c","life":"e"}"#;
        let rows = [found("a\nb\u{1b}[2J\0", document), found(&"k".repeat(1024), document)];
        let rows: Vec<Row<'_>> = rows.iter().map(|found| Row::of("h", found, 0)).collect();
        let text = table(&rows, 0);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines.len() == 3 && lines[1].starts_with(r"a\nb\u{1b}[2J\u{0} "), "{text}");
        assert!(lines.iter().all(|line| line.chars().count() <= WIDTH) && !text.contains('\u{1b}'), "{text}");
    }

    #[test]
    fn a_row_says_what_is_waited_for_and_never_wraps() {
        let long = "the service said ".repeat(20);
        let rows = [
            found(
                "o-1",
                r#"{"status":"running","state":null,"correlation":"c","life":"e","late":2,
                   "steps":[{"step":"a","state":"confirmed","id":"i","attempt":1},
                            {"step":"b","state":"sent","id":"j","attempt":2}],
                   "timers":[{"name":"abandoned","id":"t","at":"2026-01-01T02:00:00.000Z"},
                             {"name":"old","id":"u","at":"2025-01-01T02:00:00.000Z"}],
                   "history":[{"event":"e","type":"T","at":"2025-12-31T23:59:48.000Z","digest":"d","did":"begin"}]}"#,
            ),
            found(
                "o-2",
                &format!(
                    r#"{{"status":"compensation-failed","reason":"{long}","state":null,"correlation":"c","life":"e",
                       "steps":[{{"step":"a","state":"undo-failed","id":"i","attempt":1,"undo_attempt":4}}]}}"#
                ),
            ),
        ];
        let now = clock::read("2026-01-01T00:00:00Z").unwrap();
        let rows: Vec<Row<'_>> = rows.iter().map(|found| Row::of("h", found, now)).collect();
        let text = table(&rows, now);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[..2],
            [
                "KEY  STATUS               OPEN STEPS        TIMERS                     LATE  CHANGED   REASON",
                "o-1  running              b sent #2         abandoned in 2 h, old due     2  12 s ago",
            ]
        );
        let words: Vec<&str> = lines[2].split_whitespace().take(9).collect();
        assert_eq!(words.join(" "), "o-2 compensation-failed a undo failed #4 0 the service");
        assert_eq!(lines[2].find("the service"), lines[0].find("REASON"));
        assert!(lines.iter().all(|line| line.chars().count() <= WIDTH) && lines[2].ends_with('…'));
    }
}
