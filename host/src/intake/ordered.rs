//! Batches of several inputs in the order in which the server stored their events. In: the batches of each input. Out: the same,
//! cut where an event of another input was stored before the next. For generations that are built from the past: there the order of
//! arrival would be an accident, and a timer would come back before what set it. Never: waits for an input that has nothing older.

use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::stream::RawMessageErrorKind;
use futures::future::select_all;
use tokio::sync::mpsc;

use super::{Arrivals, Error};
use crate::inputs::Input;

/// How often an input that owes an event is asked whether it still does.
const ASK_EVERY: Duration = Duration::from_millis(20);

/// The inputs of one generation.
pub(super) struct Ordered {
    jetstream: Context,
    lines: Vec<Line>,
}

/// One input.
pub(super) struct Line {
    pub(super) input: Input,
    pub(super) batches: mpsc::Receiver<Result<Arrivals, Error>>,
    /// What came and was not handed on.
    pub(super) waiting: Option<Arrivals>,
    /// The last sequence that came.
    pub(super) last: u64,
}

impl Line {
    /// When the first event that waits was stored.
    fn stored(&self) -> Option<i64> {
        Some(self.waiting.as_ref()?.messages.first()?.stored)
    }

    /// Waits for the next batch, where none waits. What came stays when this is dropped.
    async fn fill(&mut self) -> Result<(), Error> {
        let interrupted = || Error::Interrupted { stream: self.input.stream.clone(), reason: "it ended".to_owned() };
        let arrivals = self.batches.recv().await.ok_or_else(interrupted)??;
        if let Some(newest) = arrivals.messages.last() {
            self.last = newest.sequence;
            self.waiting = Some(arrivals);
        }
        Ok(())
    }
}

impl Ordered {
    pub(super) fn new(jetstream: &Context, lines: Vec<Line>) -> Self {
        Self { jetstream: jetstream.clone(), lines }
    }

    /// The next batch, whenever it comes.
    pub(super) async fn next(&mut self) -> Result<Arrivals, Error> {
        loop {
            self.take_what_came()?;
            let earliest =
                self.lines.iter().enumerate().filter_map(|(index, line)| Some((line.stored()?, index))).min();
            let Some((_, index)) = earliest else {
                let fills = self.lines.iter_mut().map(|line| Box::pin(line.fill()));
                select_all(fills).await.0?;
                continue;
            };
            if self.nothing_older_is_owed().await? {
                return Ok(self.cut(index));
            }
        }
    }

    fn take_what_came(&mut self) -> Result<(), Error> {
        for line in self.lines.iter_mut().filter(|line| line.waiting.is_none()) {
            if let Ok(arrivals) = line.batches.try_recv() {
                let arrivals = arrivals?;
                if let Some(newest) = arrivals.messages.last() {
                    line.last = newest.sequence;
                    line.waiting = Some(arrivals);
                }
            }
        }
        Ok(())
    }

    /// Whether every input without an event here has none in its stream either: what it stores from now on is younger. Else waits
    /// for what it owes.
    async fn nothing_older_is_owed(&mut self) -> Result<bool, Error> {
        for line in self.lines.iter_mut().filter(|line| line.waiting.is_none()) {
            match next_after(&self.jetstream, &line.input, line.last).await {
                Ok(None) => {}
                Ok(Some(_)) => {
                    // It may be taken out of the stream instead of coming: then it owes nothing any more.
                    if let Ok(filled) = tokio::time::timeout(ASK_EVERY, line.fill()).await {
                        filled?;
                    }
                    return Ok(false);
                }
                Err(reason) => return Err(Error::Interrupted { stream: line.input.stream.clone(), reason }),
            }
        }
        Ok(true)
    }

    /// The events of this line that were stored no later than what waits in the others.
    fn cut(&mut self, index: usize) -> Arrivals {
        let others = self.lines.iter().enumerate().filter(|(other, _)| *other != index);
        let limit = others.filter_map(|(_, line)| line.stored()).min().unwrap_or(i64::MAX);
        let Some(line) = self.lines.get_mut(index) else { return Arrivals { input: index, messages: Vec::new() } };
        let Some(mut arrivals) = line.waiting.take() else { return Arrivals { input: index, messages: Vec::new() } };
        let count = arrivals.messages.iter().take_while(|arrival| arrival.stored <= limit).count();
        let later = arrivals.messages.split_off(count.max(1));
        if !later.is_empty() {
            line.waiting = Some(Arrivals { input: arrivals.input, messages: later });
        }
        arrivals
    }
}

/// The first event of an input after this sequence, from the stream's leader.
pub(crate) async fn next_after(jetstream: &Context, input: &Input, position: u64) -> Result<Option<u64>, String> {
    let stream = jetstream.get_stream_no_info(&input.stream).await.map_err(|error| error.to_string())?;
    let mut next: Option<u64> = None;
    for filter in &input.filters {
        match stream.get_first_raw_message_by_subject(filter, position + 1).await {
            Ok(message) => next = Some(next.map_or(message.sequence, |next| next.min(message.sequence))),
            Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => {}
            Err(error) => return Err(error.to_string()),
        }
    }
    Ok(next)
}
