//! What the engine runs: one adapter for each kind of handler. In: the user's type. Out: what it makes of an event,
//! whether that may begin an instance, and what it asks for; the kinds differ in nothing else. Never: keeps anything.

use std::marker::PhantomData;
use std::sync::Arc;

use serde::{Serialize, de::DeserializeOwned};
use serde_json::json;

use crate::contract::{self, Batch, Description, Kind};
use crate::timer::Timer;
use crate::{Effects, Event, Keys, Projection, Reaction, Recorded, Saga, Verdict, delete, keep};

/// A handler as the engine sees it.
pub trait Handler: 'static {
    /// What lies under a key.
    type Document: Default + Serialize + DeserializeOwned;
    /// An event as it is kept between `stage` and `apply`.
    type Unit;
    /// About how much memory may hold documents between batches.
    const CACHE_BYTES: usize;
    /// It may ask for effects; what does not, carries no code for them.
    const ASKS: bool = true;
    /// Nothing lies under its keys: the host need not look.
    const STATELESS: bool = false;

    /// What the host must know. `crate_name` is the name of a handler that has none of its own.
    fn describe(crate_name: &str) -> Description;

    /// Makes a unit of an event of the batch; `None`: irrelevant.
    ///
    /// # Errors
    /// Why its payload does not fit.
    fn decode(batch: &Arc<Batch>, envelope: contract::Event) -> Result<Option<Self::Unit>, String>;

    /// The keys that it touches.
    fn keys(unit: &Self::Unit) -> Keys<'_>;

    /// Whether it may begin an instance.
    fn starts(unit: &Self::Unit) -> bool;

    /// Folds it into the document of one of its keys and says what else is wanted.
    ///
    /// # Errors
    /// A refusal: document and effects are undefined and must not be used.
    fn fold(document: &mut Self::Document, unit: &Self::Unit, effects: &mut Effects) -> Verdict;
}

/// A projection: never asks for anything.
pub struct ProjectionOf<P>(PhantomData<P>);

impl<P: Projection> Handler for ProjectionOf<P> {
    type Document = P;
    type Unit = Recorded<P::Event>;
    const CACHE_BYTES: usize = P::CACHE_BYTES;
    const ASKS: bool = false;

    fn describe(crate_name: &str) -> Description {
        Description {
            name: name(P::NAME, crate_name),
            kind: Kind::Projection,
            subjects: subjects(P::SUBJECTS),
            state_version: P::STATE_VERSION,
            extra: concat!(r#"{"sdk":"millstream-sdk "#, env!("CARGO_PKG_VERSION"), r#""}"#).to_owned(),
        }
    }

    fn decode(batch: &Arc<Batch>, envelope: contract::Event) -> Result<Option<Self::Unit>, String> {
        recorded(batch, envelope)
    }

    fn keys(unit: &Self::Unit) -> Keys<'_> {
        P::key(unit)
    }

    fn starts(_unit: &Self::Unit) -> bool {
        true
    }

    fn fold(document: &mut P, unit: &Self::Unit, _effects: &mut Effects) -> Verdict {
        document.apply(unit)
    }
}

/// A saga: its document is its state, which it never deletes; that is the host's to do.
pub struct SagaOf<S>(PhantomData<S>);

/// What a saga meets.
pub enum Input<E> {
    /// An event.
    Event(Recorded<E>),
    /// A timer of its own that fired.
    Timer(Timer),
}

impl<S: Saga> Handler for SagaOf<S> {
    type Document = S;
    type Unit = Input<S::Event>;
    const CACHE_BYTES: usize = S::CACHE_BYTES;

    fn describe(crate_name: &str) -> Description {
        let saga = json!({
            "late": S::LATE.as_str(),
            "sends": S::SENDS,
            "stateless": false,
            "keep_completed_seconds": S::KEEP_COMPLETED_SECONDS,
        });
        Description {
            name: name(S::NAME, crate_name),
            kind: Kind::Saga,
            subjects: subjects(S::SUBJECTS),
            state_version: S::STATE_VERSION,
            extra: json!({ "sdk": SDK, "saga": saga }).to_string(),
        }
    }

    fn decode(batch: &Arc<Batch>, envelope: contract::Event) -> Result<Option<Self::Unit>, String> {
        match Timer::decode(batch, &envelope)? {
            Some(timer) => Ok(Some(Input::Timer(timer))),
            None => Ok(recorded(batch, envelope)?.map(Input::Event)),
        }
    }

    fn keys(unit: &Self::Unit) -> Keys<'_> {
        match unit {
            Input::Event(event) => S::correlate(event),
            Input::Timer(timer) => Keys::one(timer.key()),
        }
    }

    fn starts(unit: &Self::Unit) -> bool {
        match unit {
            Input::Event(event) => S::starts(event),
            Input::Timer(_) => false,
        }
    }

    fn fold(state: &mut S, unit: &Self::Unit, effects: &mut Effects) -> Verdict {
        match unit {
            Input::Event(event) => state.react(event, effects)?,
            Input::Timer(timer) => state.wake(timer, effects)?,
        }
        keep()
    }
}

/// A reaction: a saga without state, an instance of its own per event.
pub struct ReactionOf<R>(PhantomData<R>);

impl<R: Reaction> Handler for ReactionOf<R> {
    type Document = ();
    type Unit = Recorded<R::Event>;
    const CACHE_BYTES: usize = 0;
    const STATELESS: bool = true;

    fn describe(crate_name: &str) -> Description {
        let saga = json!({ "late": "start", "sends": R::SENDS, "stateless": true, "keep_completed_seconds": 0 });
        Description {
            name: name(R::NAME, crate_name),
            kind: Kind::Saga,
            subjects: subjects(R::SUBJECTS),
            state_version: 1,
            extra: json!({ "sdk": SDK, "saga": saga }).to_string(),
        }
    }

    fn decode(batch: &Arc<Batch>, envelope: contract::Event) -> Result<Option<Self::Unit>, String> {
        recorded(batch, envelope)
    }

    fn keys(unit: &Self::Unit) -> Keys<'_> {
        Keys::one(unit.id())
    }

    fn starts(_unit: &Self::Unit) -> bool {
        true
    }

    fn fold(_document: &mut (), unit: &Self::Unit, effects: &mut Effects) -> Verdict {
        R::react(unit, effects)?;
        delete()
    }
}

const SDK: &str = concat!("millstream-sdk ", env!("CARGO_PKG_VERSION"));

fn name(own: &str, crate_name: &str) -> String {
    if own.is_empty() { crate_name } else { own }.to_owned()
}

fn subjects(subjects: &[&str]) -> Vec<String> {
    subjects.iter().map(|subject| (*subject).to_owned()).collect()
}

fn recorded<E: Event>(batch: &Arc<Batch>, envelope: contract::Event) -> Result<Option<Recorded<E>>, String> {
    let event_type = contract::text(&batch.blob, envelope.event_type);
    let payload = contract::bytes(&batch.blob, envelope.payload);
    match E::decode(event_type, payload) {
        Ok(decoded) => Ok(decoded.map(|payload| Recorded::new(payload, Arc::clone(batch), envelope))),
        Err(error) => Err(error.to_string()),
    }
}
