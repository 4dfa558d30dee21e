//! `millstream top`: the handlers on a full screen, live. In: what `lag` reads, once a second, and keys. Out: a table, and one handler
//! in detail. Never: writes on the server; leaves the terminal other than it was, however it ends.

mod detail;
mod draw;
mod state;

use std::io::IsTerminal as _;
use std::time::Duration;

use async_nats::jetstream::{self, Context};
use clap::Args;
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyEventKind};
use tokio::sync::{mpsc, watch};

use super::{Fault, connect, run};
use crate::overview::{Glance, Glimpse};
use crate::registry::{Past, Registry};
use state::{Next, State};

/// Between two looks.
const EVERY: Duration = Duration::from_secs(1);

/// A server that has not answered for so long is asked anew.
const WITHIN: Duration = Duration::from_secs(10);

/// How long the terminal is listened to before it is looked whether to go on.
const LISTEN: Duration = Duration::from_millis(200);

/// Deployments shown of one handler.
const PAST: usize = 8;

/// Watch the handlers on a full screen.
#[derive(Debug, Args)]
pub(super) struct Top {}

/// What was read, or why not.
struct Seen {
    read: anyhow::Result<Glimpse>,
    /// The handler that is open, and what was deployed of it, newest first.
    past: Option<(String, Vec<Past>)>,
}

impl Top {
    pub(super) async fn run(self, connection: &connect::Connection) -> Result<(), Fault> {
        if !std::io::stdout().is_terminal() || !std::io::stdin().is_terminal() {
            return Err(Fault::usage(anyhow::anyhow!("there is no terminal to show it on"))
                .hint("for plain text use `millstream lag --watch`"));
        }
        let client = super::open(connection).await?;
        let server = run::address_of(&client).await;
        let jetstream = jetstream::new(client);
        let (opened, opens) = watch::channel(None);
        let (sees, seen) = mpsc::channel(1);
        let reading = tokio::spawn(read(jetstream, opens, sees));
        let (types, keys) = mpsc::channel(64);
        std::thread::spawn(move || listen(&types));
        // From here on a panic restores the terminal, too.
        let mut terminal = ratatui::try_init().map_err(Fault::failed)?;
        let shown = show(&mut terminal, State::new(server), seen, keys, &opened).await;
        ratatui::restore();
        reading.abort();
        Ok(shown?)
    }
}

/// Shows until somebody has seen enough.
async fn show(
    terminal: &mut DefaultTerminal,
    mut state: State,
    mut seen: mpsc::Receiver<Seen>,
    mut keys: mpsc::Receiver<Event>,
    opened: &watch::Sender<Option<String>>,
) -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut ends, mut hangs) = (signal(SignalKind::terminate())?, signal(SignalKind::hangup())?);
    let mut interrupts = signal(SignalKind::interrupt())?;
    loop {
        terminal.draw(|frame| draw::draw(frame, &mut state))?;
        tokio::select! {
            _ = ends.recv() => return Ok(()),
            _ = hangs.recv() => return Ok(()),
            _ = interrupts.recv() => return Ok(()),
            Some(Seen { read, past }) = seen.recv() => {
                match read {
                    Ok(glimpse) => state.take(glimpse),
                    Err(error) => state.fault(&format!("{error:#}")),
                }
                state.past = past;
            }
            event = keys.recv() => match event {
                Some(Event::Key(key)) if key.kind != KeyEventKind::Release => {
                    if state.press(key) == Next::Quit {
                        return Ok(());
                    }
                    opened.send_if_modified(|opened| {
                        let is_new = *opened != state.opened;
                        opened.clone_from(&state.opened);
                        is_new
                    });
                }
                // A new size: it is drawn anew.
                Some(_) => {}
                // Nobody can be heard any more.
                None => return Ok(()),
            },
        }
    }
}

/// Hands on what the terminal says, in a thread of its own, for reading it blocks.
fn listen(types: &mpsc::Sender<Event>) {
    while !types.is_closed() {
        match event::poll(LISTEN) {
            Ok(false) => {}
            Ok(true) => {
                let Ok(event) = event::read() else { return };
                if types.blocking_send(event).is_err() {
                    return;
                }
            }
            Err(_) => return,
        }
    }
}

/// Reads all there is to show, once a second, and at once when a handler is opened.
async fn read(jetstream: Context, mut opens: watch::Receiver<Option<String>>, sees: mpsc::Sender<Seen>) {
    let mut glance = Glance::new(jetstream.clone(), usize::MAX);
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! { _ = ticks.tick() => {}, changed = opens.changed() => if changed.is_err() { return } }
        let opened = opens.borrow_and_update().clone();
        let reading = async { (glance.look().await, past(&jetstream, opened).await) };
        let seen = match tokio::time::timeout(WITHIN, reading).await {
            Ok((read, past)) => Seen { read, past },
            Err(_) => Seen { read: Err(anyhow::anyhow!("the server has not answered for {WITHIN:?}")), past: None },
        };
        if sees.send(seen).await.is_err() {
            return;
        }
    }
}

async fn past(jetstream: &Context, opened: Option<String>) -> Option<(String, Vec<Past>)> {
    let handler = opened?;
    let registry = Registry::peek(jetstream).await.ok()??;
    let mut past = registry.history(&handler).await.ok()?;
    past.truncate(PAST);
    Some((handler, past))
}

#[cfg(test)]
mod tests;
