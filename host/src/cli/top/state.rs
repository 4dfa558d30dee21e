//! What `top` shows, and what keys change of it. In: overviews, keys. Out: the rows to draw, in order, and what was typed. Pure. Never:
//! reads a terminal or a server.

use std::cmp::Ordering;
use std::collections::{HashMap, VecDeque};

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use crate::lag::FAILING;
use crate::numbers::{Busy, Rates};
use crate::overview::{Glimpse, Handler};
use crate::registry::Past;

/// Lags remembered of each handler.
const TRAIL: usize = 60;

/// Longest filter.
const FILTER: usize = 64;

/// What the rows are sorted by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Sort {
    #[default]
    Name,
    Lag,
    Oldest,
    In,
    Out,
    State,
}

impl Sort {
    pub(super) fn in_words(self) -> &'static str {
        match self {
            Self::Name => "name",
            Self::Lag => "lag",
            Self::Oldest => "oldest",
            Self::In => "in/s",
            Self::Out => "out/s",
            Self::State => "state",
        }
    }

    fn next(self) -> Self {
        match self {
            Self::Name => Self::Lag,
            Self::Lag => Self::Oldest,
            Self::Oldest => Self::In,
            Self::In => Self::Out,
            Self::Out => Self::State,
            Self::State => Self::Name,
        }
    }
}

/// Whether to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    Go,
    Quit,
}

/// What is remembered of one handler.
#[derive(Default)]
pub(super) struct Trail {
    pub(super) lags: VecDeque<u64>,
    busy: Busy,
    /// Share of the time in which it does not wait for events.
    pub(super) share: Option<f64>,
}

/// All of it.
#[derive(Default)]
pub(super) struct State {
    pub(super) server: String,
    pub(super) glimpse: Option<Glimpse>,
    /// Why nothing newer is shown.
    pub(super) fault: Option<String>,
    pub(super) trails: HashMap<String, Trail>,
    pub(super) sort: Sort,
    pub(super) reverse: bool,
    pub(super) filter: String,
    pub(super) typing: bool,
    /// By name, so that it stays where it is when rows move.
    pub(super) selected: Option<String>,
    /// First row on the screen, and how many fit: the drawing says.
    pub(super) top: usize,
    pub(super) page: usize,
    pub(super) opened: Option<String>,
    pub(super) scroll: usize,
    pub(super) past: Option<(String, Vec<Past>)>,
}

impl State {
    pub(super) fn new(server: String) -> Self {
        Self { server, page: 1, ..Self::default() }
    }

    pub(super) fn take(&mut self, glimpse: Glimpse) {
        let handlers = &glimpse.overview.handlers;
        self.trails.retain(|name, _| handlers.iter().any(|handler| handler.handler == *name));
        for handler in handlers {
            let trail = self.trails.entry(handler.handler.clone()).or_default();
            trail.lags.push_back(handler.events());
            if trail.lags.len() > TRAIL {
                trail.lags.pop_front();
            }
            trail.share = share(&trail.busy, &handler.numbers.busy).or(trail.share);
            trail.busy = handler.numbers.busy;
        }
        self.glimpse = Some(glimpse);
        self.fault = None;
        if self.selected().is_none() {
            self.selected = self.rows().first().map(|handler| handler.handler.clone());
        }
    }

    pub(super) fn fault(&mut self, fault: &str) {
        self.fault = Some(fault.to_owned());
    }

    pub(super) fn handlers(&self) -> &[Handler] {
        self.glimpse.as_ref().map_or(&[], |glimpse| &glimpse.overview.handlers)
    }

    /// The rows that are to be seen, in order.
    pub(super) fn rows(&self) -> Vec<&Handler> {
        let filter = self.filter.to_lowercase();
        let is_meant = |handler: &&Handler| {
            handler.handler.to_lowercase().contains(&filter) || handler.state_in_words().contains(&filter)
        };
        let mut rows: Vec<&Handler> = self.handlers().iter().filter(is_meant).collect();
        rows.sort_by(|one, other| {
            let order = self.order(one, other);
            let order = if self.reverse { order.reverse() } else { order };
            order.then_with(|| one.handler.cmp(&other.handler))
        });
        rows
    }

    /// The worst first, where there is a worst.
    fn order(&self, one: &Handler, other: &Handler) -> Ordering {
        let rate = |handler: &Handler, rate: fn(&Rates) -> f64| handler.rates().map_or(-1.0, |rates| rate(&rates));
        match self.sort {
            Sort::Name => one.handler.cmp(&other.handler),
            Sort::Lag => other.events().cmp(&one.events()),
            Sort::Oldest => other.oldest_seconds().total_cmp(&one.oldest_seconds()),
            Sort::In => rate(other, |rates| rates.in_rate).total_cmp(&rate(one, |rates| rates.in_rate)),
            Sort::Out => rate(other, |rates| rates.out_rate).total_cmp(&rate(one, |rates| rates.out_rate)),
            Sort::State => {
                let rank = |handler: &Handler| match handler.state.as_str() {
                    FAILING => 0,
                    state if state.starts_with("not-") => 1,
                    "running" => 3,
                    _ => 2,
                };
                rank(one).cmp(&rank(other))
            }
        }
    }

    /// Which row is selected.
    pub(super) fn selected(&self) -> Option<usize> {
        let selected = self.selected.as_ref()?;
        self.rows().iter().position(|handler| handler.handler == *selected)
    }

    fn select(&mut self, to: impl Fn(usize, usize) -> usize) {
        let at = self.selected().unwrap_or_default();
        let rows = self.rows();
        let last = rows.len().saturating_sub(1);
        self.selected = rows.get(to(at, last).min(last)).map(|handler| handler.handler.clone());
    }

    /// A key was pressed.
    pub(super) fn press(&mut self, key: KeyEvent) -> Next {
        if key.modifiers.contains(KeyModifiers::CONTROL) && key.code == KeyCode::Char('c') {
            return Next::Quit;
        }
        if self.typing {
            self.type_filter(key.code);
            return Next::Go;
        }
        match (key.code, self.opened.is_some()) {
            (KeyCode::Char('q'), _) => return Next::Quit,
            (KeyCode::Esc | KeyCode::Backspace | KeyCode::Left, true) => self.opened = None,
            (KeyCode::Esc, false) if !self.filter.is_empty() => self.filter.clear(),
            (KeyCode::Esc, false) => return Next::Quit,
            (KeyCode::Up | KeyCode::Char('k'), true) => self.scroll = self.scroll.saturating_sub(1),
            (KeyCode::Down | KeyCode::Char('j'), true) => self.scroll += 1,
            (KeyCode::PageUp, true) => self.scroll = self.scroll.saturating_sub(self.page),
            (KeyCode::PageDown, true) => self.scroll += self.page,
            (KeyCode::Home, true) => self.scroll = 0,
            (KeyCode::Up | KeyCode::Char('k'), false) => self.select(|at, _| at.saturating_sub(1)),
            (KeyCode::Down | KeyCode::Char('j'), false) => self.select(|at, _| at + 1),
            (KeyCode::PageUp, false) => {
                let page = self.page;
                self.select(|at, _| at.saturating_sub(page));
            }
            (KeyCode::PageDown, false) => {
                let page = self.page;
                self.select(|at, _| at + page);
            }
            (KeyCode::Home, false) => self.select(|_, _| 0),
            (KeyCode::End, false) => self.select(|_, last| last),
            (KeyCode::Enter | KeyCode::Right, false) => self.open(),
            (KeyCode::Char('s'), false) => self.sort = self.sort.next(),
            (KeyCode::Char('r'), false) => self.reverse = !self.reverse,
            (KeyCode::Char('/'), false) => self.typing = true,
            _ => {}
        }
        Next::Go
    }

    fn open(&mut self) {
        if self.selected().is_some() {
            self.opened.clone_from(&self.selected);
            (self.scroll, self.past) = (0, None);
        }
    }

    fn type_filter(&mut self, code: KeyCode) {
        match code {
            KeyCode::Char(letter) if self.filter.len() < FILTER && !letter.is_control() => self.filter.push(letter),
            KeyCode::Backspace => drop(self.filter.pop()),
            KeyCode::Enter => self.typing = false,
            KeyCode::Esc => {
                self.filter.clear();
                self.typing = false;
            }
            _ => {}
        }
        if self.selected().is_none() {
            self.select(|_, _| 0);
        }
    }
}

/// The share of the time between two totals that was work; none where no time has passed.
fn share(before: &Busy, now: &Busy) -> Option<f64> {
    let work = |busy: &Busy| busy.loading + busy.guest + busy.commit + busy.held_back;
    // A host that begins anew counts anew.
    let worked = work(now).checked_sub(work(before))?;
    let waited = now.waiting.checked_sub(before.waiting)?;
    (worked + waited > 0).then(|| worked as f64 / (worked + waited) as f64)
}
