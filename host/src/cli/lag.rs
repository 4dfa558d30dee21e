//! `millstream lag`: how far behind each handler is, and when it will have caught up. In: JetStream itself, with or without a host
//! running; rates from hosts that report. Out: a row per handler and input stream, once or every second; with limits, the exit
//! code says whether they are kept. Never: believes what a host says of itself where the stream can be read.

use std::io::IsTerminal as _;
use std::time::Duration;

use async_nats::jetstream::{self, Context};
use clap::Args;
use ratatui::crossterm::terminal;

use super::{Fault, alerts, connect, output, reasons, span, versions};
use crate::journal::Counts;
use crate::lag::{self, Lag};
use crate::numbers::Rates;
use crate::overview::{self, Handler, Overview};

/// Widest table.
const WIDTH: usize = 100;

/// A name is not cut below this.
const LEAST_NAME: usize = 8;

/// Between two tables.
const EVERY: Duration = Duration::from_secs(1);

/// Show how far behind the handlers are.
#[derive(Debug, Args)]
pub(super) struct LagCommand {
    /// Only these handlers.
    handlers: Vec<String>,
    /// Tell it anew every second, until Ctrl-C.
    #[arg(long, conflicts_with_all = ["max_lag", "max_age"])]
    watch: bool,
    /// Exit with 1 if a handler has more undecided events than this in a stream.
    #[arg(long, value_name = "EVENTS")]
    max_lag: Option<u64>,
    /// Exit with 1 if a handler's oldest undecided event is older than this, such as 30s or 5m.
    #[arg(long, value_name = "TIME", value_parser = span::nanoseconds)]
    max_age: Option<i64>,
}

impl LagCommand {
    pub(super) async fn run(self, connection: &connect::Connection, json: bool) -> Result<(), Fault> {
        let jetstream = jetstream::new(super::open(connection).await?);
        let overview = overview::of(&jetstream, &self.handlers).await?;
        if let Some(unknown) =
            self.handlers.iter().find(|name| !overview.handlers.iter().any(|handler| handler.handler == **name))
        {
            return Err(versions::not_deployed(unknown));
        }
        if self.watch {
            return self.watch(&jetstream, overview, json).await;
        }
        if json {
            print_json(&overview)?;
        } else if overview.handlers.is_empty() {
            eprintln!("nothing is deployed here\nhint: millstream deploy MODULE.wasm");
        } else {
            let rows: Vec<&Lag> = rows(&overview).collect();
            if !rows.is_empty() {
                output::line(&table(&rows))?;
            }
            for line in remarks(&overview) {
                eprintln!("{line}");
            }
        }
        self.judge(&overview)
    }

    /// Tells it every second. A server that is away for a while ends nothing.
    async fn watch(&self, jetstream: &Context, first: Overview, json: bool) -> Result<(), Fault> {
        let in_place = !json && std::io::stdout().is_terminal();
        if in_place {
            output::text("\u{1b}[2J")?;
        }
        let mut ticks = tokio::time::interval(EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        ticks.tick().await;
        let mut read = Ok(first);
        // Heard all the while, also between two looks.
        let mut interrupted = std::pin::pin!(tokio::signal::ctrl_c());
        loop {
            match &read {
                Ok(overview) if json => print_json(overview)?,
                Ok(overview) if in_place => output::text(&frame(overview, screen()))?,
                Ok(overview) => output::line(&(block(overview, WIDTH) + "\n"))?,
                Err(error) => eprintln!("warning: {error:#}; trying again"),
            }
            let next = async {
                ticks.tick().await;
                overview::of(jetstream, &self.handlers).await
            };
            tokio::select! {
                _ = &mut interrupted => return Ok(()),
                next = next => read = next,
            }
        }
    }

    /// Whether all handlers keep the limits that were given.
    fn judge(&self, overview: &Overview) -> Result<(), Fault> {
        let untold: Vec<String> = overview
            .handlers
            .iter()
            .filter(|handler| !handler.lag_fault.is_empty())
            .map(|handler| format!("{}: {}", handler.handler, handler.lag_fault))
            .collect();
        if self.max_lag.is_none() && self.max_age.is_none() {
            return match untold.is_empty() {
                true => Ok(()),
                false => Err(Fault::failed(anyhow::anyhow!(
                    "the lag of some handlers cannot be told: {}",
                    untold.join("; ")
                ))
                .hint("see what is deployed with `millstream list`")),
            };
        }
        let excesses: Vec<String> = rows(overview).flat_map(|row| self.excesses(row)).collect();
        if excesses.is_empty() && untold.is_empty() {
            return Ok(());
        }
        let untold = untold.into_iter().map(|untold| format!("the lag cannot be told of {untold}"));
        let told: Vec<String> = excesses.into_iter().chain(untold).collect();
        Err(Fault::failed(anyhow::anyhow!("too far behind: {}", told.join("; ")))
            .hint("see why with `millstream lag`; docs/lag.md says what to do"))
    }

    fn excesses(&self, row: &Lag) -> Vec<String> {
        let mut excesses = Vec::new();
        if let Some(most) = self.max_lag.filter(|most| row.events > *most) {
            let (events, most) = (output::thousands(row.events), output::thousands(most));
            excesses.push(format!("{} has {events} undecided events in {}, more than {most}", row.handler, row.stream));
        }
        if let Some(most) = self.max_age.map(|most| most as f64 / 1e9).filter(|most| row.seconds > *most) {
            let (age, most) = (output::duration(row.seconds), output::duration(most));
            excesses.push(format!(
                "{}'s oldest undecided event in {} is {age} old, more than {most}",
                row.handler, row.stream
            ));
        }
        excesses
    }
}

fn rows(overview: &Overview) -> impl Iterator<Item = &Lag> {
    overview.handlers.iter().flat_map(|handler| &handler.lag)
}

fn print_json(overview: &Overview) -> anyhow::Result<()> {
    rows(overview).try_for_each(output::json)
}

/// Columns and lines of the terminal.
fn screen() -> (usize, usize) {
    terminal::size().map_or((WIDTH, 24), |(columns, lines)| (columns.into(), lines.into()))
}

/// Table and remarks, for one look of several.
fn block(overview: &Overview, width: usize) -> String {
    let rows: Vec<&Lag> = rows(overview).collect();
    let untold = overview.handlers.iter().filter(|handler| !handler.lag_fault.is_empty());
    let untold = untold.map(|handler| format!("{}: the lag cannot be told: {}", handler.handler, handler.lag_fault));
    let lines: Vec<String> =
        std::iter::once(table_within(&rows, width)).chain(remarks(overview)).chain(untold).collect();
    lines.join("\n")
}

/// A block over the one before it, from the upper left corner on. A line that wrapped, or one too many, would move all that is drawn
/// after it.
fn frame(overview: &Overview, (columns, lines): (usize, usize)) -> String {
    let block = block(overview, WIDTH.min(columns));
    let (room, all) = (lines.saturating_sub(1).max(1), block.lines().count());
    let shown = if all > room { room.saturating_sub(1) } else { all };
    let mut text = "\u{1b}[H".to_owned();
    for line in block.lines().take(shown) {
        text.push_str(&output::cut(line, columns));
        text.push_str("\u{1b}[K\n");
    }
    if all > room {
        let more = format!("… and {} lines more; `millstream top` shows them all", all - shown);
        text.push_str(&output::cut(&more, columns));
        text.push_str("\u{1b}[K\n");
    }
    text + "\u{1b}[J"
}

/// What people should know beside the table: what is raised, why something does not run, and a sum that is wrong.
fn remarks(overview: &Overview) -> Vec<String> {
    let mut lines = Vec::new();
    if !overview.alerts.is_empty() {
        lines.push(format!("{}; see `millstream alerts`", alerts::summary(&overview.alerts)));
    }
    for Handler { handler, state, reason, counts, outcomes_add_up, lag_fault, .. } in &overview.handlers {
        if !reason.is_empty() && reason != lag_fault {
            lines.push(format!("{handler}: {}", reasons::with_hint(handler, state, reason, false)));
        }
        if !outcomes_add_up {
            let Counts { delivered, applied, irrelevant, ignored, parked, expired, .. } = counts;
            lines.push(format!(
                "warning: {handler}: outcomes do not add up: {delivered} delivered, but {applied} applied, {irrelevant} irrelevant, \
                 {ignored} ignored, {parked} parked, {expired} expired; this is a defect of Millstream: please report it"
            ));
        }
    }
    lines
}

/// The rows as a table of at most 100 columns; long names are cut.
pub(super) fn table(rows: &[&Lag]) -> String {
    table_within(rows, WIDTH)
}

/// The same of at most so many columns, as far as cut names can do it.
fn table_within(rows: &[&Lag], width: usize) -> String {
    let header = ["HANDLER", "STREAM", "STATE", "LAG", "OLDEST", "IN/S", "OUT/S", "ETA", "REPORTED"];
    let mut cells: Vec<Vec<String>> = rows.iter().map(|row| cells(row)).collect();
    fit(&header, &mut cells, width);
    output::table(&header, &[3, 4, 5, 6, 7], cells)
}

fn cells(row: &Lag) -> Vec<String> {
    let rate = |rate: fn(&Rates) -> f64| row.rates.as_ref().map_or("-".to_owned(), |rates| number(rate(rates)));
    let eta = row.rates.and_then(|rates| rates.eta_seconds);
    let reported = row.reported_seconds_ago.map_or_else(
        || if row.state == lag::NOT_STARTED { "never" } else { "unknown" }.to_owned(),
        |ago| format!("{} ago", output::duration(ago)),
    );
    vec![
        row.handler.clone(),
        row.stream.clone(),
        lag::in_words(&row.state, row.reported_seconds_ago),
        output::thousands(row.events),
        output::duration(row.seconds),
        rate(|rates| rates.in_rate),
        rate(|rates| rates.out_rate),
        eta.map_or("-".to_owned(), output::duration),
        reported,
    ]
}

/// A rate: small ones with a decimal.
fn number(rate: f64) -> String {
    if rate > 0.0 && rate < 9.95 { format!("{rate:.1}") } else { output::thousands(rate.round() as u64) }
}

/// Cuts the names, the first two columns, to what the others leave of them.
fn fit(header: &[&str], cells: &mut [Vec<String>], most: usize) {
    let width = |cells: &[Vec<String>], column: usize| {
        let widths = cells.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        widths.chain(header.get(column).map(|title| title.len())).max().unwrap_or_default()
    };
    let others: usize = (2..header.len()).map(|column| width(cells, column) + 2).sum();
    // The last column has no blanks behind it; the first two have.
    let left = (most + 2).saturating_sub(others + 4);
    let (handler, stream) = (width(cells, 0), width(cells, 1));
    if handler + stream <= left {
        return;
    }
    // The shorter one is only cut where it takes more than half.
    let half = left / 2;
    let least = LEAST_NAME.min(handler);
    let handler = if handler <= half { handler } else { half.max(left.saturating_sub(stream)) }.max(least);
    let stream = left.saturating_sub(handler).max(LEAST_NAME);
    for row in cells {
        for (cell, most) in row.iter_mut().zip([handler, stream]) {
            *cell = output::cut(cell, most);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(handler: &str, stream: &str, state: &str, rates: Option<Rates>) -> Lag {
        let (handler, stream, state) = (handler.to_owned(), stream.to_owned(), state.to_owned());
        let reported_seconds_ago = Some(0.72);
        Lag { handler, stream, state, events: 1234, seconds: 12.0, rates, reported_seconds_ago, ..Lag::default() }
    }

    #[test]
    fn usual_names_stand_whole() {
        let rates = Rates { in_rate: 2.54, out_rate: 1234.4, trend: -1231.9, eta_seconds: Some(90.0) };
        let rows = [row("customer-spend", "ORDERS", "running", Some(rates)), row("chain", "ORDERS", "paused", None)];
        let text = table(&rows.iter().collect::<Vec<_>>());
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines,
            [
                "HANDLER         STREAM  STATE      LAG  OLDEST  IN/S  OUT/S   ETA  REPORTED",
                "customer-spend  ORDERS  running  1,234    12 s   2.5  1,234  90 s  0.7 s ago",
                "chain           ORDERS  paused   1,234    12 s     -      -     -  0.7 s ago",
            ]
        );
    }

    #[test]
    fn long_names_are_cut_to_what_a_hundred_columns_leave() {
        let long = |name: &str| name.repeat(20);
        for (handler, stream) in [(long("ha"), long("S")), ("h".to_owned(), long("ST")), (long("ha"), "S".to_owned())] {
            let silent = Lag { reported_seconds_ago: Some(86400.0), ..row(&handler, &stream, "not-reporting", None) };
            let text = table(&[&silent]);
            assert!(text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
            assert!(text.lines().any(|line| line.chars().count() == WIDTH), "none is cut more than it must:\n{text}");
        }
    }

    #[test]
    fn limits_name_who_exceeds_what() {
        let limits = |max_lag, max_age| LagCommand { handlers: Vec::new(), watch: false, max_lag, max_age };
        let row = row("spend", "ORDERS", "running", None);
        assert_eq!(limits(Some(1234), Some(12_000_000_000)).excesses(&row), Vec::<String>::new());
        assert_eq!(
            limits(Some(1233), Some(11_000_000_000)).excesses(&row),
            [
                "spend has 1,234 undecided events in ORDERS, more than 1,233",
                "spend's oldest undecided event in ORDERS is 12 s old, more than 11 s"
            ]
        );
    }

    #[test]
    fn a_frame_clears_what_it_covers_and_never_moves_the_screen() {
        let handler = |number: usize| {
            let name = format!("handler-{number:02}-{}", "of-a-long-name".repeat(3));
            let lag = vec![row(&name, "ORDERS", "not-reporting", None)];
            Handler { handler: name, reason: "r".repeat(300), lag, outcomes_add_up: true, ..Handler::default() }
        };
        for (handlers, columns, lines) in
            [(2, 80, 24), (30, 80, 24), (30, 40, 5), (1, 200, 50), (30, 1, 1), (0, 80, 24)]
        {
            let overview = Overview { handlers: (0..handlers).map(handler).collect(), ..Overview::default() };
            let text = frame(&overview, (columns, lines));
            let body = text.strip_prefix("\u{1b}[H").and_then(|text| text.strip_suffix("\u{1b}[J")).expect("a frame");
            let drawn: Vec<&str> = body.lines().map(|line| line.strip_suffix("\u{1b}[K").expect("cleared")).collect();
            assert!(drawn.iter().all(|line| line.chars().count() <= columns), "{columns}x{lines}:\n{text}");
            assert!(drawn.len() < lines.max(2), "{} lines on {columns}x{lines}", drawn.len());
            let is_cut = 2 * handlers + 1 > lines;
            assert_eq!(drawn.last().is_some_and(|line| line.starts_with('…')), is_cut, "{columns}x{lines}");
        }
    }

    #[test]
    fn a_sum_that_is_wrong_is_told() {
        let counts = Counts { delivered: 5, applied: 3, ignored: 1, ..Counts::default() };
        let of = |counts: Counts| {
            let handler = "h".to_owned();
            let outcomes_add_up = counts.add_up();
            let handlers = vec![Handler { handler, counts, outcomes_add_up, ..Handler::default() }];
            remarks(&Overview { handlers, ..Overview::default() })
        };
        assert!(of(counts)[0].starts_with("warning: h: outcomes do not add up: 5 delivered, but 3 applied"));
        assert_eq!(of(Counts { expired: 1, ..counts }), Vec::<String>::new());
    }
}
