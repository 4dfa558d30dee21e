//! Which generations a handler has, and what is wanted of them: a JSON value per handler in the KV bucket `MILLSTREAM_GENERATIONS`.
//! In: wishes of people and of hosts. Out: the next value, written by compare-and-set, or the sentence why not. A handler without a
//! value has generation 1, live. Never: proves anything; what a generation is, its own last record says.

use std::collections::HashMap;
use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::kv::{self, CreateErrorKind, Store, UpdateErrorKind};
use serde::{Deserialize, Serialize};

use crate::buckets;
use crate::journal::Position;
use crate::latest::{self, Latest};
use crate::names;
use crate::policy::Signature;
use crate::sandbox::Digest;

/// Values kept as history.
pub(crate) const HISTORY: i64 = 32;

/// Generations beside the live one, at most: each costs as much as the handler itself.
pub const SHADOWS: usize = 8;

/// Tries against others who write the same value.
const TRIES: usize = 10;

/// The generations of one handler.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ledger {
    /// The generation that readers see.
    pub live: u32,
    /// The highest number that was ever used.
    pub last: u32,
    /// All others.
    #[serde(default)]
    pub shadows: Vec<Shadow>,
    /// A promotion that is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub promotion: Option<Promotion>,
    /// How the last one ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<Ending>,
}

/// A generation that is not live.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shadow {
    /// Its number.
    pub number: u32,
    /// Its module.
    pub digest: Digest,
    /// The module's name for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub label: String,
    /// The module's own subject filters.
    pub subjects: Vec<String>,
    /// Who vouches for the module under the handler's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<Signature>,
    /// Upper bound of its rate, events per second. 0: none.
    #[serde(default)]
    pub throttle: u64,
    /// What is wanted of it.
    pub wanted: Wanted,
    /// When it became a shadow, nanoseconds since 1970.
    pub since: i64,
}

/// What is wanted of a shadow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Wanted {
    /// It shall be built from the first event, and follow.
    Building,
    /// It was live, and follows in case somebody wants it back.
    Kept,
    /// It shall be removed.
    Abandoned,
}

/// One generation shall take the place of another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Promotion {
    /// Which promotion: never used twice.
    pub id: u64,
    /// The live one.
    pub from: u32,
    /// The one that shall be live.
    pub to: u32,
    /// Also where instances differ.
    #[serde(default)]
    pub force: bool,
    /// When it was asked for, nanoseconds since 1970.
    pub since: i64,
    /// What the live one will be as a shadow.
    pub before: Shadow,
    /// A host may have written the cut: from here on nobody takes it back.
    #[serde(default)]
    pub cut: bool,
    /// Why it does not get on, as its host said last.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub trouble: String,
}

/// How a promotion ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ending {
    /// Which promotion.
    pub id: u64,
    /// The generation that was live.
    pub from: u32,
    /// The one that should be.
    pub to: u32,
    /// Why it was given up; empty: the other is live.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// The cut: the last events that the one before decided.
    #[serde(default)]
    pub positions: Vec<Position>,
    /// Documents that were written into the handler's bucket, or deleted there.
    #[serde(default)]
    pub written: u64,
    /// Milliseconds in which nothing was decided.
    #[serde(default)]
    pub pause_milliseconds: u64,
    /// Revision of the deployment that names the new module; 0 where it was given up.
    #[serde(default)]
    pub revision: u64,
    /// When it was through, nanoseconds since 1970; 0 where it was given up.
    #[serde(default)]
    pub time: i64,
}

impl Ending {
    /// Whether its revision is one of the bucket of deployments that was made at `created`, nanoseconds since 1970: one that was made anew
    /// since counts anew.
    #[must_use]
    pub(crate) fn counts_in(&self, created: i64) -> bool {
        self.time == 0 || created <= self.time
    }

    /// The other is not live, for this reason.
    #[must_use]
    pub fn given_up(id: u64, from: u32, to: u32, reason: String) -> Self {
        Self { id, from, to, reason, positions: Vec::new(), written: 0, pause_milliseconds: 0, revision: 0, time: 0 }
    }
}

/// Why a wish is not granted. All are the user's to mend.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Nothing but the live generation.
    #[error("handler {0} has one generation, {1}, and it is live: there is nothing to promote")]
    NothingToPromote(String, u32),
    /// That one is live.
    #[error("generation {1} of handler {0} is live")]
    IsLive(String, u32),
    /// Nobody knows it.
    #[error("handler {handler} has no generation {number}")]
    Unknown {
        /// The handler.
        handler: String,
        /// The number.
        number: u32,
    },
    /// Several, and nobody said which.
    #[error("handler {handler} has several generations beside the live one: {}", listed(.numbers))]
    Several {
        /// The handler.
        handler: String,
        /// Their numbers.
        numbers: Vec<u32>,
    },
    /// It is on its way out.
    #[error("generation {1} of handler {0} is being removed")]
    IsAbandoned(String, u32),
    /// One at a time.
    #[error("generation {to} of handler {handler} is being promoted")]
    UnderWay {
        /// The handler.
        handler: String,
        /// The one that shall be live.
        to: u32,
    },
    /// There is nothing to take back.
    #[error("no generation of handler {0} is being promoted")]
    NothingUnderWay(String),
    /// Too late.
    #[error(
        "generation {to} of handler {handler} takes over already: generation {from} is about to stop or has stopped, so \
         it is not taken back any more"
    )]
    IsCut {
        /// The handler.
        handler: String,
        /// The one that was live.
        from: u32,
        /// The one that shall be.
        to: u32,
    },
    /// Each costs as much as the handler.
    #[error("handler {0} has {SHADOWS} generations beside the live one, which is the most")]
    TooMany(String),
}

impl Refusal {
    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::NothingToPromote(handler, _) => format!("build another with `millstream rebuild {handler}`"),
            Self::IsLive(handler, _) | Self::Unknown { handler, .. } => {
                format!("see its generations with `millstream rebuild {handler} --list`")
            }
            Self::Several { .. } => "say which with --generation N".to_owned(),
            Self::IsAbandoned(handler, _) => format!("build another with `millstream rebuild {handler}`"),
            Self::UnderWay { handler, .. } => format!(
                "see how it gets on with `millstream rebuild {handler} --list`, or take it back with `millstream promote \
                 {handler} --cancel`"
            ),
            Self::NothingUnderWay(handler) => format!("see its generations with `millstream rebuild {handler} --list`"),
            Self::IsCut { handler, from, .. } => format!(
                "`millstream rebuild {handler} --list` says what it waits for; when it is through, go back with \
                 `millstream promote {handler} --generation {from}`"
            ),
            Self::TooMany(handler) => format!("remove one with `millstream abandon {handler} --generation N`"),
        }
    }
}

fn listed(numbers: &[u32]) -> String {
    numbers.iter().map(u32::to_string).collect::<Vec<_>>().join(", ")
}

impl Default for Ledger {
    fn default() -> Self {
        Self { live: 1, last: 1, shadows: Vec::new(), promotion: None, ended: None }
    }
}

impl Ledger {
    /// The shadow of this number.
    #[must_use]
    pub fn shadow(&self, number: u32) -> Option<&Shadow> {
        self.shadows.iter().find(|shadow| shadow.number == number)
    }

    /// Adds a generation; answers its number. `shadow.number` is not looked at.
    ///
    /// # Errors
    /// While a promotion is under way, or when there are too many.
    pub fn begin(&mut self, handler: &str, shadow: Shadow) -> Result<u32, Refusal> {
        self.may_begin(handler)?;
        self.last += 1;
        self.shadows.push(Shadow { number: self.last, ..shadow });
        Ok(self.last)
    }

    /// Whether a generation can be added.
    ///
    /// # Errors
    /// While a promotion is under way, or when there are too many.
    pub fn may_begin(&self, handler: &str) -> Result<(), Refusal> {
        self.stands_still(handler)?;
        if self.shadows.len() >= SHADOWS { Err(Refusal::TooMany(handler.to_owned())) } else { Ok(()) }
    }

    /// The newest shadow with this module that is there to be used.
    #[must_use]
    pub fn with_module(&self, digest: Digest) -> Option<&Shadow> {
        let there = self.shadows.iter().filter(|shadow| shadow.wanted != Wanted::Abandoned);
        there.filter(|shadow| shadow.digest == digest).max_by_key(|shadow| shadow.number)
    }

    /// The shadow that is meant: the one of this number, or the newest that is not a former live one, or the only one.
    ///
    /// # Errors
    /// When there is none, or it is not clear which.
    pub fn meant(&self, handler: &str, number: Option<u32>) -> Result<&Shadow, Refusal> {
        let name = || handler.to_owned();
        if let Some(number) = number {
            return match self.shadow(number) {
                _ if number == self.live => Err(Refusal::IsLive(name(), number)),
                None => Err(Refusal::Unknown { handler: name(), number }),
                Some(shadow) if shadow.wanted == Wanted::Abandoned => Err(Refusal::IsAbandoned(name(), number)),
                Some(shadow) => Ok(shadow),
            };
        }
        let there: Vec<&Shadow> = self.shadows.iter().filter(|shadow| shadow.wanted != Wanted::Abandoned).collect();
        let built: Vec<&Shadow> = there.iter().filter(|shadow| shadow.wanted == Wanted::Building).copied().collect();
        match (built.as_slice(), there.as_slice()) {
            ([one], _) | ([], [one]) => Ok(one),
            ([], []) => Err(Refusal::NothingToPromote(name(), self.live)),
            ([], several) | (several, _) => {
                Err(Refusal::Several { handler: name(), numbers: several.iter().map(|shadow| shadow.number).collect() })
            }
        }
    }

    /// Asks for a promotion.
    ///
    /// # Errors
    /// While another is under way, or the generation is none that can be promoted.
    pub fn promote(&mut self, handler: &str, promotion: Promotion) -> Result<(), Refusal> {
        self.stands_still(handler)?;
        let to = self.meant(handler, Some(promotion.to))?.number;
        self.promotion = Some(Promotion { from: self.live, to, ..promotion });
        Ok(())
    }

    /// The promotion is through: what was live is a shadow now, described by `before`. The oldest generations that were live once,
    /// beyond `keep`, are to go.
    pub fn promoted(&mut self, ending: Ending, before: Shadow, keep: usize) {
        if self.promotion.as_ref().is_none_or(|promotion| promotion.id != ending.id) {
            return;
        }
        self.shadows.retain(|shadow| shadow.number != ending.to && shadow.number != ending.from);
        self.shadows.push(Shadow { number: ending.from, wanted: Wanted::Kept, ..before });
        self.live = ending.to;
        self.promotion = None;
        self.ended = Some(ending);
        let mut kept: Vec<(i64, u32)> = self.kept().map(|shadow| (shadow.since, shadow.number)).collect();
        kept.sort_unstable();
        let surplus = kept.len().saturating_sub(keep);
        for (_, number) in kept.into_iter().take(surplus) {
            self.set(number, Wanted::Abandoned);
        }
    }

    /// The promotion came to nothing. False: a host may have written the cut meanwhile, and it is not `fenced`.
    pub fn given_up(&mut self, ending: Ending, fenced: bool) -> bool {
        if let Some(promotion) = self.promotion.as_ref().filter(|promotion| promotion.id == ending.id) {
            if promotion.cut && !fenced {
                return false;
            }
            self.promotion = None;
            self.ended = Some(ending);
        }
        true
    }

    /// A host is about to write the cut. False: the promotion was taken back.
    pub fn cut(&mut self, id: u64) -> bool {
        let promotion = self.promotion.as_mut().filter(|promotion| promotion.id == id);
        promotion.map(|promotion| promotion.cut = true).is_some()
    }

    /// The promotion does not get on, for this reason.
    pub fn troubled(&mut self, id: u64, reason: &str) {
        if let Some(promotion) = self.promotion.as_mut().filter(|promotion| promotion.id == id) {
            reason.clone_into(&mut promotion.trouble);
        }
    }

    /// Takes the promotion back; answers from which generation to which it would have led.
    ///
    /// # Errors
    /// When there is none, it is another's, or a host may have written the cut.
    pub fn take_back(&mut self, handler: &str, number: Option<u32>, reason: &str) -> Result<(u32, u32), Refusal> {
        let name = || handler.to_owned();
        let Some(promotion) = &self.promotion else { return Err(Refusal::NothingUnderWay(name())) };
        let Promotion { id, from, to, cut, .. } = *promotion;
        if number.is_some_and(|number| number != to) {
            return Err(Refusal::UnderWay { handler: name(), to });
        }
        if cut {
            return Err(Refusal::IsCut { handler: name(), from, to });
        }
        let reason = reason.to_owned();
        self.given_up(Ending::given_up(id, from, to, reason), false);
        Ok((from, to))
    }

    /// Has a shadow removed.
    ///
    /// # Errors
    /// When it is live, unknown, or taking part in a promotion.
    pub fn abandon(&mut self, handler: &str, number: u32) -> Result<(), Refusal> {
        self.stands_still(handler)?;
        if self.shadow(number).is_none_or(|shadow| shadow.wanted != Wanted::Abandoned) {
            self.meant(handler, Some(number))?;
        }
        self.set(number, Wanted::Abandoned);
        Ok(())
    }

    /// Nothing of this shadow is left.
    pub fn forget(&mut self, number: u32) {
        self.shadows.retain(|shadow| shadow.number != number || shadow.wanted != Wanted::Abandoned);
    }

    fn kept(&self) -> impl Iterator<Item = &Shadow> {
        self.shadows.iter().filter(|shadow| shadow.wanted == Wanted::Kept)
    }

    fn set(&mut self, number: u32, wanted: Wanted) {
        for shadow in self.shadows.iter_mut().filter(|shadow| shadow.number == number) {
            shadow.wanted = wanted;
        }
    }

    fn stands_still(&self, handler: &str) -> Result<(), Refusal> {
        match &self.promotion {
            Some(Promotion { to, .. }) => Err(Refusal::UnderWay { handler: handler.to_owned(), to: *to }),
            None => Ok(()),
        }
    }
}

/// What can go wrong with the bucket.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The server refused or is away.
    #[error("the generations of {handler} are not reachable: {reason}")]
    Unreachable {
        /// The handler.
        handler: String,
        /// The client's words.
        reason: String,
    },
    /// Not readable.
    #[error(
        "the generations of {handler} cannot be read: {reason}; hint: look with `nats kv history {bucket} {handler}`, and put a value back \
         that is whole with `nats kv revert {bucket} {handler} REVISION` or `nats kv put {bucket} {handler} VALUE`",
        bucket = names::GENERATIONS
    )]
    Malformed {
        /// The handler.
        handler: String,
        /// Serde's account.
        reason: String,
    },
    /// The wish cannot be granted.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

/// The bucket of all ledgers.
#[derive(Clone)]
pub struct Ledgers {
    pub(crate) store: Store,
}

fn unreachable<E: std::fmt::Display>(handler: &str) -> impl Fn(E) -> Error {
    move |error| Error::Unreachable { handler: handler.to_owned(), reason: error.to_string() }
}

impl Ledgers {
    /// Opens the bucket, making it when it is missing.
    ///
    /// # Errors
    /// When the server refuses or is away.
    pub async fn open(jetstream: &Context) -> Result<Self, Error> {
        if let Ok(store) = jetstream.get_key_value(names::GENERATIONS).await {
            return Ok(Self { store });
        }
        let config = kv::Config {
            bucket: names::GENERATIONS.to_owned(),
            description: "Generations of Millstream handlers".to_owned(),
            history: HISTORY,
            max_age: Duration::ZERO,
            ..kv::Config::default()
        };
        let store = buckets::make(jetstream, config).await.map_err(unreachable("all handlers"))?;
        Ok(Self { store })
    }

    /// The ledger of one handler with its revision; the default where there is none.
    ///
    /// # Errors
    /// When it cannot be read, or the server is away.
    pub async fn read(&self, handler: &str) -> Result<(Ledger, u64), Error> {
        let (ledger, revision) = self.find(handler).await?;
        Ok((ledger.unwrap_or_default(), revision))
    }

    /// The ledger of one handler, if it has one, with the revision to be replaced.
    ///
    /// # Errors
    /// When it cannot be read, or the server is away.
    pub(crate) async fn find(&self, handler: &str) -> Result<(Option<Ledger>, u64), Error> {
        let entry = self.store.entry(handler).await.map_err(unreachable(handler))?;
        match entry {
            Some(entry) if entry.operation == kv::Operation::Put => {
                Ok((Some(parse(handler, &entry.value)?), entry.revision))
            }
            Some(entry) => Ok((None, entry.revision)),
            None => Ok((None, 0)),
        }
    }

    /// Changes a ledger by compare-and-set, again where others were faster; answers it and what `change` did.
    ///
    /// # Errors
    /// What `change` refuses, or a server that does not answer.
    pub async fn change<T>(
        &self,
        handler: &str,
        mut change: impl FnMut(&mut Ledger) -> Result<T, Refusal>,
    ) -> Result<(Ledger, T), Error> {
        for _ in 0..TRIES {
            let (before, revision) = self.read(handler).await?;
            let mut after = before.clone();
            let done = change(&mut after)?;
            if after == before || self.write(handler, &after, revision).await? {
                return Ok((after, done));
            }
        }
        Err(unreachable(handler)("others write to it all the time"))
    }

    /// Forgets all generations of a handler that is removed.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn remove(&self, handler: &str) -> Result<(), Error> {
        self.store.purge(handler).await.map_err(unreachable(handler))
    }

    /// False: somebody else was faster.
    async fn write(&self, handler: &str, ledger: &Ledger, revision: u64) -> Result<bool, Error> {
        let value = serde_json::to_vec(ledger).map_err(unreachable(handler))?;
        if revision == 0 {
            return match self.store.create(handler, value.into()).await {
                Ok(_) => Ok(true),
                Err(error) if error.kind() == CreateErrorKind::AlreadyExists => Ok(false),
                Err(error) => Err(unreachable(handler)(error)),
            };
        }
        match self.store.update(handler, value.into(), revision).await {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == UpdateErrorKind::WrongLastRevision => Ok(false),
            Err(error) => Err(unreachable(handler)(error)),
        }
    }
}

/// The number of a handler's live generation, for readers; 1 where nobody ever made another.
///
/// # Errors
/// When it cannot be read, or the server is away.
pub async fn live(jetstream: &Context, handler: &str) -> Result<u32, Error> {
    Ok(look(jetstream, handler).await?.live)
}

/// The ledger of a handler, for readers; the default where there is none.
///
/// # Errors
/// When it cannot be read, or the server is away.
pub async fn look(jetstream: &Context, handler: &str) -> Result<Ledger, Error> {
    Ok(find(jetstream, handler).await?.unwrap_or_default())
}

/// The ledger of a handler, for readers, if it has one.
///
/// # Errors
/// When it cannot be read, or the server is away.
pub(crate) async fn find(jetstream: &Context, handler: &str) -> Result<Option<Ledger>, Error> {
    match buckets::peek(jetstream, names::GENERATIONS).await.map_err(unreachable(handler))? {
        Some(store) => Ok(Ledgers { store }.find(handler).await?.0),
        None => Ok(None),
    }
}

/// The numbers of all live generations, of handlers that ever had another than the first.
///
/// # Errors
/// When the server is away.
pub(crate) async fn all_live(jetstream: &Context) -> Result<HashMap<String, u32>, Error> {
    Ok(all(jetstream).await?.into_iter().map(|(handler, ledger)| (handler, ledger.live)).collect())
}

/// The ledgers of all handlers that have one.
///
/// # Errors
/// When the server is away.
pub(crate) async fn all(jetstream: &Context) -> Result<HashMap<String, Ledger>, Error> {
    let store = buckets::peek(jetstream, names::GENERATIONS).await.map_err(unreachable("all handlers"))?;
    let Some(store) = store else { return Ok(HashMap::new()) };
    let all = latest::of(jetstream, &store, "*").await.map_err(unreachable("all handlers"))?;
    // One that cannot be read is told of by its host; readers show the first.
    let readable = |latest: Latest| Some((parse(&latest.key, &latest.value).ok()?, latest.key));
    Ok(all.into_iter().filter_map(readable).map(|(ledger, handler)| (handler, ledger)).collect())
}

/// Reads a ledger's JSON.
///
/// # Errors
/// Names the handler and what is wrong.
pub fn parse(handler: &str, value: &[u8]) -> Result<Ledger, Error> {
    serde_json::from_slice(value)
        .map_err(|error| Error::Malformed { handler: handler.to_owned(), reason: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shadow(number: u32, wanted: Wanted, since: i64) -> Shadow {
        let (digest, label, subjects) = (Digest([7; 32]), String::new(), vec!["s.>".to_owned()]);
        Shadow { number, digest, label, subjects, signature: None, throttle: 0, wanted, since }
    }

    fn promotion(id: u64, to: u32) -> Promotion {
        let before = shadow(0, Wanted::Kept, 5);
        Promotion { id, from: 0, to, force: false, since: 5, before, cut: false, trouble: String::new() }
    }

    fn ending(id: u64, from: u32, to: u32) -> Ending {
        Ending::given_up(id, from, to, String::new())
    }

    #[test]
    fn a_generation_is_built_promoted_and_taken_back() {
        let mut ledger = Ledger::default();
        assert_eq!(ledger.begin("h", shadow(0, Wanted::Building, 1)), Ok(2));
        ledger.promote("h", promotion(1, 2)).unwrap();
        assert_eq!(ledger.promote("h", promotion(2, 2)), Err(Refusal::UnderWay { handler: "h".into(), to: 2 }));
        ledger.promoted(ending(9, 1, 2), shadow(1, Wanted::Kept, 2), 1);
        assert_eq!(ledger.live, 1, "another promotion's word counts for nothing");
        ledger.promoted(ending(1, 1, 2), shadow(1, Wanted::Kept, 2), 1);
        assert_eq!((ledger.live, ledger.meant("h", None).unwrap().number), (2, 1));
        ledger.promote("h", promotion(3, 1)).unwrap();
        ledger.promoted(ending(3, 2, 1), shadow(2, Wanted::Kept, 3), 1);
        assert_eq!((ledger.live, ledger.last, ledger.shadows.len()), (1, 2, 1));
    }

    #[test]
    fn a_promotion_is_taken_back_until_a_host_is_about_to_cut() {
        let mut ledger = Ledger::default();
        assert_eq!(ledger.take_back("h", None, "no"), Err(Refusal::NothingUnderWay("h".into())));
        ledger.begin("h", shadow(0, Wanted::Building, 1)).unwrap();
        ledger.promote("h", promotion(1, 2)).unwrap();
        assert_eq!(ledger.take_back("h", Some(3), "no"), Err(Refusal::UnderWay { handler: "h".into(), to: 2 }));
        assert_eq!(ledger.take_back("h", Some(2), "no"), Ok((1, 2)));
        assert_eq!(ledger.ended.as_ref().map(|ended| (ended.id, ended.reason.as_str())), Some((1, "no")));
        assert!(!ledger.cut(1), "whoever comes late does not cut");
        ledger.promote("h", promotion(2, 2)).unwrap();
        assert!(!ledger.cut(1) && ledger.cut(2));
        let cut = Refusal::IsCut { handler: "h".into(), from: 1, to: 2 };
        assert_eq!(ledger.take_back("h", None, "no"), Err(cut));
        assert!(!ledger.given_up(ending(2, 1, 2), false) && ledger.promotion.is_some());
        assert!(ledger.given_up(ending(2, 1, 2), true) && ledger.promotion.is_none());
    }

    #[test]
    fn as_many_are_kept_as_wanted_and_the_oldest_go() {
        let shadows = vec![shadow(2, Wanted::Kept, 20), shadow(1, Wanted::Kept, 10), shadow(4, Wanted::Building, 40)];
        for (keep, gone) in [(0, vec![1, 2, 3]), (1, vec![1, 2]), (2, vec![1]), (3, vec![])] {
            let mut ledger = Ledger { live: 3, last: 4, shadows: shadows.clone(), ..Ledger::default() };
            ledger.promote("h", promotion(1, 4)).unwrap();
            ledger.promoted(ending(1, 3, 4), shadow(3, Wanted::Kept, 30), keep);
            let mut abandoned: Vec<u32> =
                ledger.shadows.iter().filter(|s| s.wanted == Wanted::Abandoned).map(|s| s.number).collect();
            abandoned.sort_unstable();
            assert_eq!(abandoned, gone, "keep {keep}");
        }
    }

    #[test]
    fn a_value_that_is_cut_off_is_told_with_the_way_to_a_whole_one() {
        let told = parse("h", br#"{"live":"#).unwrap_err().to_string();
        let (matter, hint) = crate::hint::split(&told);
        assert!(matter.starts_with("the generations of h cannot be read: EOF"), "{matter}");
        let hint = hint.expect("a hint");
        assert!(hint.starts_with("look with `nats kv history MILLSTREAM_GENERATIONS h`"), "{hint}");
        assert!(hint.contains("`nats kv revert MILLSTREAM_GENERATIONS h REVISION`"), "{hint}");
    }

    #[test]
    fn what_cannot_be_is_named() {
        let mut ledger = Ledger::default();
        assert_eq!(ledger.meant("h", None), Err(Refusal::NothingToPromote("h".into(), 1)));
        assert_eq!(ledger.meant("h", Some(1)), Err(Refusal::IsLive("h".into(), 1)));
        assert_eq!(ledger.abandon("h", 5), Err(Refusal::Unknown { handler: "h".into(), number: 5 }));
        for _ in 0..SHADOWS {
            ledger.begin("h", shadow(0, Wanted::Building, 1)).unwrap();
        }
        assert_eq!(ledger.begin("h", shadow(0, Wanted::Building, 1)), Err(Refusal::TooMany("h".into())));
        assert!(matches!(ledger.meant("h", None), Err(Refusal::Several { .. })));
        ledger.abandon("h", 2).unwrap();
        assert_eq!(ledger.meant("h", Some(2)), Err(Refusal::IsAbandoned("h".into(), 2)));
        ledger.forget(3);
        assert!(ledger.shadow(3).is_some(), "only what was abandoned is forgotten");
        ledger.forget(2);
        assert_eq!(ledger.shadow(2), None);
    }
}
