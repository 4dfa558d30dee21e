//! The screen of `top`. In: a frame and the state. Out: the frame, drawn: a header, the table or one handler, the keys. Pure but for the
//! state's idea of what fits. Never: a letter that a terminal would obey; what others wrote is made legible first.

use std::collections::VecDeque;

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::Paragraph;

use super::detail;
use super::state::State;
use crate::cli::alerts::summary;
use crate::cli::output::{cut, duration, legible, thousands};
use crate::lag::FAILING;
use crate::overview::Handler;

/// Narrowest name.
const NAME: usize = 12;

/// The bars of a sparkline, the lowest first.
const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// A column beside the name.
struct Column {
    title: &'static str,
    width: usize,
    /// The least width of a screen that has it.
    from: u16,
    is_number: bool,
    cell: fn(&State, &Handler, usize) -> String,
}

const COLUMNS: [Column; 8] = [
    Column {
        title: "LAG, 1 MIN",
        width: 12,
        from: 76,
        is_number: false,
        cell: |state, handler, width| {
            state.trails.get(&handler.handler).map_or_else(String::new, |trail| sparkline(&trail.lags, width))
        },
    },
    Column {
        title: "STATE",
        width: 13,
        from: 40,
        is_number: false,
        cell: |_, handler, width| cut(&handler.state_in_words().replace("not reporting for", "silent"), width),
    },
    Column {
        title: "LAG",
        width: 9,
        from: 0,
        is_number: true,
        cell: |_, handler, _| {
            if handler.lag_fault.is_empty() { short(handler.events() as f64) } else { "?".to_owned() }
        },
    },
    Column {
        title: "OLDEST",
        width: 7,
        from: 48,
        is_number: true,
        cell: |_, handler, _| {
            if handler.lag_fault.is_empty() { duration(handler.oldest_seconds()) } else { "?".to_owned() }
        },
    },
    Column {
        title: "IN/S",
        width: 6,
        from: 100,
        is_number: true,
        cell: |_, handler, _| rate(handler.rates().map(|rates| rates.in_rate)),
    },
    Column {
        title: "OUT/S",
        width: 6,
        from: 58,
        is_number: true,
        cell: |_, handler, _| rate(handler.rates().map(|rates| rates.out_rate)),
    },
    Column {
        title: "ETA",
        width: 6,
        from: 80,
        is_number: true,
        cell: |_, handler, _| {
            let eta = handler.rates().and_then(|rates| rates.eta_seconds);
            eta.map_or("-".to_owned(), duration)
        },
    },
    Column {
        title: "BUSY",
        width: 5,
        from: 90,
        is_number: true,
        cell: |state, handler, _| {
            let share = state.trails.get(&handler.handler).and_then(|trail| trail.share);
            share.map_or("-".to_owned(), |share| format!("{:.0} %", share * 100.0))
        },
    },
];

/// Draws all of it.
pub(super) fn draw(frame: &mut Frame, state: &mut State) {
    let [header, body, footer] =
        Layout::vertical([Constraint::Length(2), Constraint::Min(1), Constraint::Length(1)]).areas(frame.area());
    frame.render_widget(Paragraph::new(head(state, header.width)), header);
    state.page = usize::from(body.height).saturating_sub(1).max(1);
    match state.opened.clone() {
        Some(opened) => detail::draw(frame, state, &opened, body),
        None => table(frame, state, body),
    }
    frame.render_widget(Paragraph::new(keys(state)), footer);
}

fn head(state: &State, width: u16) -> Vec<Line<'static>> {
    let bold = Style::new().add_modifier(Modifier::BOLD);
    let (mut told, mut second) = (String::new(), Line::default());
    if let Some(glimpse) = &state.glimpse {
        let (hosts, handlers) = (glimpse.overview.hosts.len(), &glimpse.overview.handlers);
        let lag: u64 = handlers.iter().map(Handler::events).sum();
        let plural = |count: usize| if count == 1 { "" } else { "s" };
        told = format!(
            "  {hosts} host{}, {} handler{}, lag {}",
            plural(hosts),
            handlers.len(),
            plural(handlers.len()),
            thousands(lag)
        );
        if !glimpse.overview.alerts.is_empty() {
            let text = cut(&format!("! {}", summary(&glimpse.overview.alerts)), usize::from(width));
            second = Line::from(Span::styled(text, bold.fg(Color::Red)));
        }
    }
    if let Some(fault) = &state.fault {
        let text = cut(&format!("! not up to date: {fault}"), usize::from(width));
        second = Line::from(Span::styled(text, bold.fg(Color::Yellow)));
    }
    let server = legible(&state.server).into_owned();
    vec![Line::from(vec![Span::styled("millstream ", bold), Span::raw(server), Span::raw(told)]), second]
}

fn keys(state: &State) -> Line<'static> {
    let dim = Style::new().add_modifier(Modifier::DIM);
    if state.typing {
        return Line::from(format!("/{}_   Enter keep  Esc clear", legible(&state.filter)));
    }
    let text = if state.opened.is_some() {
        "q quit  Esc back  ↑↓ scroll".to_owned()
    } else {
        let turned = if state.reverse { ", turned" } else { "" };
        let filter = if state.filter.is_empty() { String::new() } else { format!(" [{}]", legible(&state.filter)) };
        format!("q quit  ↑↓ Enter look into  s sort ({}{turned})  r turn  / filter{filter}", state.sort.in_words())
    };
    Line::from(Span::styled(text, dim))
}

fn table(frame: &mut Frame, state: &mut State, area: Rect) {
    let columns: Vec<&Column> = COLUMNS.iter().filter(|column| area.width >= column.from).collect();
    let others: usize = columns.iter().map(|column| column.width + 1).sum();
    let name = usize::from(area.width).saturating_sub(others).max(NAME);
    let selected = state.selected();
    scroll_to(state, selected);
    let rows = state.rows();
    let mut lines = vec![title(&columns, name)];
    if rows.is_empty() {
        lines.push(Line::from(nothing(state)));
    }
    for (at, handler) in rows.iter().enumerate().skip(state.top).take(state.page) {
        let alerts = state.glimpse.as_ref().map_or(&[][..], |glimpse| &glimpse.overview.alerts);
        let is_alerted = alerts.iter().any(|alert| alert.handler == handler.handler);
        lines.push(row(state, handler, &columns, name, is_alerted).style(if selected == Some(at) {
            Style::new().add_modifier(Modifier::REVERSED)
        } else {
            Style::new()
        }));
    }
    frame.render_widget(Paragraph::new(lines), area);
}

/// Keeps the selected row on the screen.
fn scroll_to(state: &mut State, selected: Option<usize>) {
    let selected = selected.unwrap_or_default();
    let last = state.rows().len().saturating_sub(state.page);
    state.top = state.top.min(selected).max((selected + 1).saturating_sub(state.page)).min(last);
}

fn nothing(state: &State) -> &'static str {
    match &state.glimpse {
        None => "reading ...",
        Some(_) if !state.filter.is_empty() => "no handler matches; Esc shows all",
        Some(_) => "nothing is deployed here; millstream deploy MODULE.wasm",
    }
}

fn title(columns: &[&Column], name: usize) -> Line<'static> {
    let mut text = format!("{:<name$}", "HANDLER");
    for column in columns {
        text.push(' ');
        text.push_str(&fit(column.title, column));
    }
    Line::from(Span::styled(text, Style::new().add_modifier(Modifier::BOLD)))
}

fn row(state: &State, handler: &Handler, columns: &[&Column], name: usize, is_alerted: bool) -> Line<'static> {
    // Colour alone says nothing.
    let mark = if is_alerted { "! " } else { "" };
    let shown = cut(&format!("{mark}{}", handler.handler), name);
    let mut spans = vec![Span::raw(format!("{shown:<name$}"))];
    for column in columns {
        let text = format!(" {}", fit(&(column.cell)(state, handler, column.width), column));
        let style = if column.title == "STATE" { Style::new().fg(colour(&handler.state)) } else { Style::new() };
        spans.push(Span::styled(text, style));
    }
    Line::from(spans)
}

fn fit(text: &str, column: &Column) -> String {
    let (width, text) = (column.width, cut(text, column.width));
    if column.is_number { format!("{text:>width$}") } else { format!("{text:<width$}") }
}

fn colour(state: &str) -> Color {
    match state {
        "running" => Color::Green,
        FAILING => Color::Red,
        state if state.starts_with("not-") => Color::Red,
        _ => Color::Yellow,
    }
}

/// The last lags of `width` samples, as bars of the highest of them.
pub(super) fn sparkline(lags: &VecDeque<u64>, width: usize) -> String {
    let shown: Vec<u64> = lags.iter().copied().skip(lags.len().saturating_sub(width)).collect();
    let highest = shown.iter().copied().max().unwrap_or_default().max(1);
    let bar = |lag: u64| {
        let step = if lag == 0 { 0 } else { 1 + (lag.saturating_sub(1)).saturating_mul(6) / highest };
        BARS.get(usize::try_from(step).unwrap_or_default()).copied().unwrap_or('█')
    };
    let text: String = shown.into_iter().map(bar).collect();
    format!("{text:>width$}")
}

/// A rate within six letters.
pub(super) fn rate(rate: Option<f64>) -> String {
    match rate {
        None => "-".to_owned(),
        Some(rate) if rate > 0.0 && rate < 9.95 => format!("{rate:.1}"),
        Some(rate) => short(rate),
    }
}

/// A number within nine letters; within six up to a hundred thousand.
fn short(number: f64) -> String {
    match number {
        n if n < 99_999.5 => thousands(n.round() as u64),
        n if n < 9_999_500.0 => format!("{}k", (n / 1e3).round()),
        n if n < 9_999_500_000.0 => format!("{}M", (n / 1e6).round()),
        n => format!("{:.0}G", n / 1e9),
    }
}
