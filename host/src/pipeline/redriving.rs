//! Parked units are taken up again, between two batches. In: a wish, and the dead letters that it means. Out: a record for each
//! portion of a key's letters, which are removed once it is committed; and what came of the wish. A key is parked until none of its
//! letters is left: what arrives meanwhile stands in line behind them. Never: passes over a letter that fails; what stands behind it
//! stays.

use std::collections::VecDeque;
use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;

use super::{Error, Leave, Pipeline};
use crate::alerts;
use crate::blame::{Blame, Verdict};
use crate::clock;
use crate::decision::{Decision, Fault, Undecided};
use crate::intake::Arrival;
use crate::journal::{Counts, Kind, Unparked};
use crate::parking::aside::Culprits;
use crate::parking::letter::Letter;
use crate::parking::wishes::{Left, Outcome, Pending, What, Wishes};
use crate::parking::{self, FOLLOWS, Parked};

/// How often to look whether somebody wants something, while there is something parked.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Letters of a portion, in batches: more than live events of the same key can add meanwhile.
const PORTION: usize = 2;

/// What somebody wants of parked keys, and how far that is.
pub(super) struct Redriving {
    looks: bool,
    next_look: Instant,
    under_way: Option<UnderWay>,
}

struct UnderWay {
    pending: Pending,
    items: VecDeque<Item>,
    /// A portion of the first item is done.
    is_begun: bool,
    blame: Blame,
    outcome: Outcome,
}

/// What is taken up in one go.
enum Item {
    /// All of a key.
    Key(String),
    /// One event that never got as far as a key.
    Letter(Box<Letter>),
}

/// What became of a portion.
enum Portion {
    /// So many units are done.
    Done(u64),
    /// Fewer must be tried.
    Narrower,
    /// The first of it fails.
    Fails(Left),
    /// There is nothing left.
    Nothing,
}

impl Redriving {
    /// A claim begins.
    pub(super) fn new() -> Self {
        // Once in any case: an owner may have died between its last record and its word about it.
        Self { looks: true, next_look: Instant::now(), under_way: None }
    }

    /// Something was parked, or not.
    pub(super) fn wakes(&mut self, parked: &Parked) {
        self.looks |= !parked.is_empty();
    }

    pub(super) fn is_under_way(&self) -> bool {
        self.under_way.is_some()
    }

    /// Resolves when it is time to look.
    pub(super) async fn is_due(&self) {
        if self.under_way.is_some() || !self.looks {
            return std::future::pending().await;
        }
        tokio::time::sleep_until(self.next_look).await;
    }
}

/// Letters that somebody removed by hand: what follows them would be applied to a document that lacks them.
fn gone(key: &str, what: &str) -> Left {
    let reason = format!(
        "{what}; hint: give up the rest with `millstream discard`, or build the documents anew with `millstream rebuild`"
    );
    tracing::warn!(key, reason, "a key cannot be taken up");
    Left::of_letters(Some(key), "gone", reason)
}

/// Letters that cannot be read stay as they are; no other key waits for them.
fn unread(key: Option<&str>, error: &parking::Error) -> Left {
    Left::of_letters(key, Fault::Unreadable, error.to_string())
}

impl Pipeline {
    /// Looks whether somebody wants something done with what is parked.
    pub(super) async fn look_for_wishes(&mut self) -> Result<(), Error> {
        self.redriving.next_look = Instant::now() + LOOK_EVERY;
        let wishes = Wishes::of(&self.documents.jetstream, &self.dead.generation);
        let pending = match wishes.pending().await {
            Ok(pending) => pending,
            Err(error) => {
                tracing::debug!(handler = self.documents.handler, %error, "wishes cannot be read");
                return Ok(());
            }
        };
        self.redriving.looks = !self.parked.is_empty();
        let Some(pending) = pending else { return Ok(()) };
        self.finish().await?;
        let (items, left) = match self.meant(&pending.wish.what).await {
            Ok(meant) => meant,
            Err(error) => {
                tracing::warn!(handler = self.documents.handler, %error, "parked keys are wanted, but cannot be read");
                return Ok(());
            }
        };
        tracing::info!(handler = self.documents.handler, items = items.len(), "parked units are taken up");
        let outcome = Outcome { id: pending.wish.id, left, ..Outcome::default() };
        let under_way = UnderWay { pending, items, is_begun: false, blame: Blame::default(), outcome };
        self.redriving.under_way = Some(under_way);
        Ok(())
    }

    /// The parked keys, and events without one, that a wish means; and what of that cannot be taken up.
    async fn meant(&self, what: &What) -> Result<(VecDeque<Item>, Vec<Left>), Error> {
        let mut keys = self.parked.keys();
        keys.sort();
        if let What::Key { key } = what {
            keys.retain(|parked| parked.as_ref() == Some(key));
        }
        let is_meant = |letter: u64, class: &str| match what {
            What::All | What::Key { .. } => true,
            What::Letter { sequence } => letter == *sequence,
            What::Class { class: meant } => class == meant,
        };
        let (mut items, mut left) = (VecDeque::new(), Vec::new());
        for key in keys {
            // What is wrong with its letters is told when it is its turn.
            if let (Some(key), What::All | What::Key { .. }) = (&key, what) {
                items.push_back(Item::Key(key.clone()));
                continue;
            }
            let units = self.parked.units(key.as_deref());
            let most = if key.is_some() { 1 } else { usize::MAX };
            match (self.dead.letters(key.as_deref(), units, most, usize::MAX).await, key) {
                (Ok(letters), key) => {
                    let letters = letters.into_iter().filter(|letter| is_meant(letter.sequence, &letter.class));
                    items.extend(letters.map(|letter| match &key {
                        Some(key) => Item::Key(key.clone()),
                        None => Item::Letter(Box::new(letter)),
                    }));
                }
                (Err(error @ parking::Error::Foreign { sequence }), key) => {
                    match key {
                        _ if !is_meant(sequence, &Fault::Unreadable.to_string()) => {}
                        Some(key) => items.push_back(Item::Key(key)),
                        // It holds up the events without a key; no key waits for it.
                        None => left.push(unread(None, &error)),
                    }
                }
                (Err(error), _) => return Err(error.into()),
            }
        }
        Ok((items, left))
    }

    /// Takes up a portion of what is wanted, if something is.
    pub(super) async fn redrive_some(&mut self) -> Result<(), Error> {
        let Some(mut under_way) = self.redriving.under_way.take() else { return Ok(()) };
        self.finish().await?;
        if Instant::now() >= self.redriving.next_look && self.is_taken_back(&under_way.pending).await {
            // What is done stays done.
            under_way.items.clear();
        }
        let Some(item) = under_way.items.pop_front() else { return self.redriven(under_way).await };
        let is_begun = std::mem::take(&mut under_way.is_begun);
        let portion = match (&item, &under_way.pending.wish.discard) {
            (item, Some(reason)) => self.discard(item, reason).await?,
            (Item::Key(key), None) => self.redrive_key(key, is_begun, &mut under_way.blame).await?,
            (Item::Letter(letter), None) => self.redrive_letter(letter).await?,
        };
        match portion {
            Portion::Done(units) => {
                under_way.outcome.units += units;
                let is_left = matches!(&item, Item::Key(key) if self.parked.has(key));
                if is_left {
                    under_way.is_begun = true;
                    under_way.items.push_front(item);
                } else {
                    under_way.outcome.keys += 1;
                }
            }
            Portion::Narrower => {
                under_way.is_begun = is_begun;
                under_way.items.push_front(item);
            }
            Portion::Fails(left) => under_way.outcome.left.push(left),
            Portion::Nothing => {}
        }
        self.redriving.under_way = Some(under_way);
        Ok(())
    }

    /// Whether somebody took back a wish that is under way; not as long as nobody can tell.
    async fn is_taken_back(&mut self, pending: &Pending) -> bool {
        self.redriving.next_look = Instant::now() + LOOK_EVERY;
        let wishes = Wishes::of(&self.documents.jetstream, &self.dead.generation);
        match wishes.entry_since(pending).await {
            Ok(Some(entry)) => entry.wanted.is_none_or(|wanted| wanted.id != pending.wish.id),
            Ok(None) | Err(_) => false,
        }
    }

    /// The first letters of a key, which are of one stream, in one record. `is_begun`: those before them are done.
    async fn redrive_key(&mut self, key: &str, is_begun: bool, blame: &mut Blame) -> Result<Portion, Error> {
        let units = self.parked.units(Some(key));
        let settings = &self.version.settings;
        let most = blame.take(settings.batch_events.saturating_mul(PORTION));
        let mut letters = match self.dead.letters(Some(key), units, most, settings.batch_bytes).await {
            Ok(letters) => letters,
            Err(error) => return Ok(Portion::Fails(unread(Some(key), &error))),
        };
        if (letters.len() as u64) < units.min(most as u64) {
            let left = self.dead.units(Some(key)).await?;
            if left < units {
                let what = "dead letters are gone, and nobody took them up or gave them up";
                return Ok(Portion::Fails(gone(key, &format!("{} of its {units} {what}", units - left))));
            }
        }
        let Some(first) = letters.first() else { return Ok(Portion::Nothing) };
        let missing = self.parked.missing();
        if missing > 0 && first.class == FOLLOWS && !is_begun {
            let what = format!("its first dead letter followed another one, and {missing} of the handler's are gone");
            return Ok(Portion::Fails(gone(key, &what)));
        }
        let (stream, counts) = (first.stream.clone(), first.counts);
        let alike = letters.iter().take_while(|letter| letter.stream == stream && letter.counts == counts).count();
        letters.truncate(blame.take(alike));
        let arrivals: Vec<Arrival> = letters.iter().map(|letter| letter.event.clone()).collect();
        let only = |one: &str| one == key;
        match self.decide_but(&stream, &arrivals, Leave::all_but(&only)).await {
            Ok(decision) => {
                blame.passed(letters.len());
                self.take_up(&letters, decision).await
            }
            Err(Undecided::Trouble(error)) => Err(error),
            Err(Undecided::Guilty { index, class, reason, .. }) => {
                self.forget_undecided();
                if blame.failed(letters.len(), index) == Verdict::Narrow {
                    return Ok(Portion::Narrower);
                }
                let sequence = letters.first().map(|letter| letter.event.sequence);
                let (class, attempt) = (class.to_string(), 0);
                Ok(Portion::Fails(Left { key: Some(key.to_owned()), stream, sequence, class, reason, attempt }))
            }
        }
    }

    /// An event that never got as far as a key, with all of its units; those of keys that are parked stand in line there.
    async fn redrive_letter(&mut self, letter: &Letter) -> Result<Portion, Error> {
        let one = std::slice::from_ref(&letter.event);
        let none = Culprits::new();
        let leave = Leave { may_park: false, ..Leave::culprits(&none) };
        match self.decide_but(&letter.stream, one, leave).await {
            Ok(decision) => self.take_up(std::slice::from_ref(letter), decision).await,
            Err(Undecided::Trouble(error)) => Err(error),
            Err(Undecided::Guilty { class, reason, .. }) => {
                self.forget_undecided();
                let (stream, sequence, class) = (letter.stream.clone(), Some(letter.event.sequence), class.to_string());
                Ok(Portion::Fails(Left { key: None, stream, sequence, class, reason, attempt: 0 }))
            }
        }
    }

    /// Commits what these letters, all of one key and stream, were decided to be, and removes them.
    async fn take_up(&mut self, letters: &[Letter], decision: Decision) -> Result<Portion, Error> {
        let Some(last) = letters.last() else { return Ok(Portion::Nothing) };
        let units = letters.len() as u64;
        if last.counts {
            let Counts { applied, irrelevant, ignored, parked, expired, .. } = decision.counts;
            self.counts.parked = self.counts.parked.saturating_sub(units);
            let moved = Counts { applied, irrelevant, ignored, parked, expired, ..Counts::default() };
            self.counts.add(&moved);
        }
        let input = self.positions.iter().position(|position| position.stream == last.stream).unwrap_or(usize::MAX);
        let unparked = Unparked { key: last.key.clone(), through: last.sequence, units, discarded: None };
        self.parked.unpark(last.key.as_deref(), units);
        self.parked.park(&decision.parks, self.counts.delivered, clock::now());
        self.write(Kind::Redrive, input, decision, Some(unparked), None)?;
        self.finish().await?;
        Ok(Portion::Done(units))
    }

    /// Gives up all letters of a key, or one without a key. They stay counted as parked.
    async fn discard(&mut self, item: &Item, reason: &str) -> Result<Portion, Error> {
        let (key, units, through) = match item {
            Item::Key(key) => {
                let (units, through) = (self.parked.units(Some(key)), self.dead.last_of(key).await?);
                let foreign = match self.parked.foreign() {
                    0 => 0,
                    _ => self.dead.foreign(key, units).await?,
                };
                self.parked.discard(key, foreign);
                (Some(key.clone()), units, through)
            }
            Item::Letter(letter) => {
                self.parked.unpark(None, 1);
                (None, 1, letter.sequence)
            }
        };
        let unparked = Unparked { key, through, units, discarded: Some(reason.to_owned()) };
        self.write(Kind::Discard, 0, Decision::default(), Some(unparked), None)?;
        self.finish().await?;
        Ok(Portion::Done(units))
    }

    /// Tells what came of a wish.
    async fn redriven(&mut self, under_way: UnderWay) -> Result<(), Error> {
        let UnderWay { pending: Pending { wish, .. }, mut outcome, .. } = under_way;
        let oldest = self.dead.oldest().await?;
        self.parked.set_oldest(oldest);
        self.redriving.looks = true;
        self.tell();
        outcome.time = clock::now();
        let handler = &self.documents.handler;
        let wishes = Wishes::of(&self.documents.jetstream, &self.dead.generation);
        let parked = |key: &str| self.parked.has(key);
        let outcome = match wishes.done(outcome, &parked).await {
            Ok(outcome) => outcome,
            Err(error) => {
                // It is still wanted, and what is left of it is done once more.
                tracing::warn!(handler, %error, "nobody hears what came of the parked units");
                return Ok(());
            }
        };
        let what = if wish.discard.is_some() { "discarded" } else { "redriven" };
        let body = json!({ "wanted": wish, "outcome": outcome });
        let id = format!("{handler}.{what}.{}.{}", self.dead.generation.number, wish.id);
        let news = alerts::News { id: &id, time: outcome.time, body: &body };
        let (jetstream, replicas) = (&self.documents.jetstream, self.version.settings.replicas);
        if self.dead.generation.acts()
            && let Err(error) = alerts::tell_once(jetstream, handler, what, replicas, &news).await
        {
            tracing::warn!(handler, %error, "nobody is told that parked units were taken up");
        }
        Ok(())
    }
}
