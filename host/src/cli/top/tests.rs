use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::state::{Next, State};
use super::*;
use crate::lag::Lag;
use crate::numbers::{Census, Rates};
use crate::overview::{Alert, Handler, Overview};

/// So many handlers, the first with as much as there can be.
fn glimpse(count: usize, lag: u64) -> Glimpse {
    let handler = |number: usize| {
        let rates = Rates { in_rate: 1.5, out_rate: 200_000.0, trend: 1.0, eta_seconds: Some(99.0) };
        let row = Lag {
            stream: "ORDERS\u{1b}[2J".to_owned(),
            events: lag * number as u64,
            seconds: 75.0,
            position: 7,
            head: 9,
            rates: Some(rates),
            ..Lag::default()
        };
        let name = if number == 0 { "a".repeat(64) } else { format!("handler-{number:03}") };
        Handler {
            handler: name,
            state: if number == 2 { "not-reporting" } else { "running" }.to_owned(),
            reason: if number == 1 { "event S:1 \u{1b}]0;title\u{7} is bad\nvery".to_owned() } else { String::new() },
            host: "h\u{202e}1".to_owned(),
            reported_seconds_ago: Some(if number == 2 { 12.4 } else { 0.4 }),
            lag: vec![row],
            numbers: crate::numbers::Numbers {
                census: Some(Census {
                    running: 3,
                    oldest_running: Some(("key\u{1b}[31m\r\n".repeat(20), 0)),
                    ..Census::default()
                }),
                ..Default::default()
            },
            ..Handler::default()
        }
    };
    let alert = Alert {
        handler: "handler-001".to_owned(),
        alert: "stuck".to_owned(),
        text: "5 events wait\u{1b}[2J".to_owned(),
        ..Alert::default()
    };
    let alerts = if count > 1 { vec![alert] } else { Vec::new() };
    let handlers: Vec<Handler> = (0..count).map(handler).collect();
    let settings = handlers.iter().map(|handler| (handler.handler.clone(), crate::settings::Settings::default()));
    let settings = settings.collect();
    let overview =
        Overview { time: 60_000_000_000, handlers, hosts: vec!["h1".to_owned()], alerts, ..Overview::default() };
    Glimpse { overview, settings, ..Glimpse::default() }
}

fn screen(state: &mut State, width: u16, height: u16) -> Vec<String> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw::draw(frame, state)).unwrap();
    let buffer = terminal.backend().buffer().clone();
    let row = |y: u16| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>().trim_end().to_owned();
    (0..height).map(row).collect()
}

fn press(state: &mut State, codes: &[KeyCode]) -> Next {
    codes.iter().fold(Next::Go, |_, code| state.press(KeyEvent::new(*code, KeyModifiers::NONE)))
}

#[test]
fn every_size_shows_the_essentials_and_nothing_that_a_terminal_obeys() {
    for (width, height) in [(80, 24), (60, 20), (120, 40)] {
        for count in [0, 3, 200] {
            let mut state = State::new("127.0.0.1:4222".to_owned());
            assert!(screen(&mut state, width, height)[3].starts_with("reading"));
            for lag in 0..70 {
                state.take(glimpse(count, lag));
            }
            for opened in [false, true] {
                if opened {
                    press(&mut state, &[KeyCode::Down, KeyCode::Enter]);
                }
                let rows = screen(&mut state, width, height);
                let all = rows.join("\n");
                assert!(rows[0].starts_with("millstream 127.0.0.1:4222  1 host, "), "{all}");
                assert!(rows[usize::from(height) - 1].starts_with("q quit"), "{all}");
                assert!(!all.chars().any(|letter| letter != '\n' && letter.is_control()), "{all:?}");
                match (count, opened) {
                    (0, _) => assert!(rows[3].starts_with("nothing is deployed here"), "{all}"),
                    (_, false) => {
                        assert!(rows[1].starts_with("! 1 alert: handler-001 stuck"), "{all}");
                        assert!(rows[2].contains("LAG") && rows[2].contains("OUT/S"), "{all}");
                        assert!(rows[3].starts_with("aaaaaaaa") && rows[3].contains('…'), "{all}");
                        assert!(rows[4].starts_with("! handle") && rows[4].contains(" 69 "), "{all}");
                        assert!(rows[5].contains("silent 12 s"), "{all}");
                    }
                    (_, true) => {
                        assert!(all.contains("handler-001  running") && all.contains("position 7 of 9"), "{all}");
                        assert!(all.contains("! stuck for 60 s: 5 events wait\\u{1b}"), "{all}");
                        assert!(all.contains("3 running, 0 compensating"), "{all}");
                    }
                }
            }
        }
    }
}

#[test]
fn a_screen_of_three_handlers_looks_like_this() {
    let mut state = State::new("127.0.0.1:4222".to_owned());
    for lag in [0, 500, 1000] {
        state.take(glimpse(3, lag));
    }
    let rows = screen(&mut state, 80, 8);
    assert_eq!(
        rows,
        [
            "millstream 127.0.0.1:4222  1 host, 3 handlers, lag 3,000",
            "! 1 alert: handler-001 stuck",
            "HANDLER               LAG, 1 MIN   STATE               LAG  OLDEST  OUT/S    ETA",
            "aaaaaaaaaaaaaaaaaaaa…          ▁▁▁ running               0    75 s   200k   99 s",
            "! handler-001                  ▁▄▇ running           1,000    75 s   200k   99 s",
            "handler-002                    ▁▄▇ silent 12 s       2,000    75 s   200k   99 s",
            "",
            "q quit  ↑↓ Enter look into  s sort (name)  r turn  / filter",
        ]
    );
}

#[test]
fn keys_select_sort_filter_open_and_end() {
    let mut state = State::new("s".to_owned());
    state.take(glimpse(200, 1));
    screen(&mut state, 80, 24);
    press(&mut state, &[KeyCode::End]);
    assert_eq!(state.selected.as_deref(), Some("handler-199"));
    assert!(screen(&mut state, 80, 24).iter().any(|row| row.contains("handler-199")), "it is on the screen");
    press(&mut state, &[KeyCode::PageUp, KeyCode::Home, KeyCode::Down]);
    assert_eq!(state.selected.as_deref(), Some("handler-001"));
    press(&mut state, &[KeyCode::Char('s')]);
    assert_eq!(state.rows()[0].handler, "handler-199", "the most lag first");
    press(&mut state, &[KeyCode::Char('r')]);
    assert_eq!(state.rows()[1].handler, "handler-001");
    assert_eq!(state.selected.as_deref(), Some("handler-001"), "selected is who was");

    press(&mut state, &[KeyCode::Char('/'), KeyCode::Char('1'), KeyCode::Char('9'), KeyCode::Char('q')]);
    assert!(screen(&mut state, 80, 24)[3].starts_with("no handler matches"));
    press(&mut state, &[KeyCode::Backspace, KeyCode::Enter]);
    assert_eq!(state.rows().len(), 12, "19, 119, and 190 to 199");
    press(&mut state, &[KeyCode::Enter]);
    assert!(state.opened.as_deref().is_some_and(|name| name.contains("19")));
    let before = screen(&mut state, 80, 10);
    press(&mut state, &[KeyCode::PageDown, KeyCode::PageDown, KeyCode::PageDown, KeyCode::PageDown]);
    assert_ne!(screen(&mut state, 80, 10), before);
    assert_eq!(press(&mut state, &[KeyCode::Esc]), Next::Go, "back");
    assert_eq!(press(&mut state, &[KeyCode::Esc]), Next::Go, "all rows");
    assert_eq!(state.rows().len(), 200);
    assert_eq!(press(&mut state, &[KeyCode::Esc]), Next::Quit);
    assert_eq!(press(&mut state, &[KeyCode::Char('q')]), Next::Quit);
    let interrupt = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
    press(&mut state, &[KeyCode::Char('/')]);
    assert_eq!(state.press(interrupt), Next::Quit, "also while a filter is typed");
}

#[test]
fn what_was_seen_stays_while_the_server_is_away() {
    let mut state = State::new("s".to_owned());
    state.take(glimpse(3, 5));
    state.fault("timed out\u{1b}");
    let rows = screen(&mut state, 80, 24);
    assert!(rows[1].starts_with("! not up to date: timed out\\u{1b}"), "{rows:?}");
    assert!(rows[4].contains("handler-001"));
    state.take(glimpse(1, 5));
    assert_eq!(state.selected().map(|at| state.rows()[at].handler.len()), Some(64));
}

#[test]
fn tiny_screens_do_no_harm() {
    for (width, height) in [(1, 1), (10, 3), (20, 5)] {
        let mut state = State::new("s".to_owned());
        state.take(glimpse(3, 5));
        screen(&mut state, width, height);
        press(&mut state, &[KeyCode::Enter]);
        screen(&mut state, width, height);
    }
}
