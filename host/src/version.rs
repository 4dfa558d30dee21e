//! A module that is ready to run a handler, and whether it may take over from another. In: a module's bytes and a deployment's
//! settings. Out: `Version`, examined under limits. Pure but for compiling. Never: touches NATS or what runs.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::journal::Makes;
use crate::saga::{self, Facts};
use crate::sandbox::wire::{Batch, Description, Documents, Kind, Span};
use crate::sandbox::{self, Cache, Digest, Failure, Guest, Instantiate, Module, Sandbox};
use crate::settings::Settings;
use crate::subject;

/// A module with the settings that it runs under.
#[derive(Clone)]
pub struct Version {
    /// Digest of the module.
    pub digest: Digest,
    /// What the module says of itself.
    pub description: Description,
    /// What it says of itself as a saga, where it is one.
    pub saga: Option<Arc<Facts>>,
    /// The deployment's settings.
    pub settings: Settings,
    /// Makes a guest.
    pub instantiate: Instantiate,
    /// Revision of the deployment that it runs as; 0 where that is not known. The same version can be deployed once more.
    pub revision: Arc<AtomicU64>,
}

/// Why a module cannot be a version. All of these are the user's to mend.
#[derive(Debug, thiserror::Error)]
pub enum Defect {
    /// The bytes are no handler.
    #[error(transparent)]
    Module(#[from] sandbox::Error),
    /// A call that does nothing fails.
    #[error("the module fails at {call}: {failure}")]
    Call {
        /// `describe`, or what it was given.
        call: &'static str,
        /// How.
        failure: Failure,
    },
    /// A saga that says too little of itself.
    #[error(transparent)]
    Facts(#[from] saga::FactsError),
}

/// How one version may follow another that runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Succession {
    /// They are the same.
    Same,
    /// Between two batches.
    Swap,
    /// By a new claim: settings that a claim is opened with are others.
    Reopen,
    /// Not at all, and why.
    Never(String),
}

impl Version {
    /// Compiles a module unless that was done before, has it describe itself, and gives it a batch of nothing. Blocks for about 60 ms
    /// where it compiles.
    ///
    /// # Errors
    /// What is wrong with the module.
    pub fn prepare(
        sandbox: &Sandbox,
        cache: &Cache,
        handler: &str,
        settings: Settings,
        bytes: &[u8],
    ) -> Result<Self, Defect> {
        let module = Module::prepare(sandbox, cache, &settings.limits, bytes)?;
        let failed = |call| move |failure| Defect::Call { call, failure };
        let voice = module.voice(handler);
        let mut instance = module.instantiate_aside(&voice).map_err(failed("its start"))?;
        let description = instance.describe().map_err(failed("describe"))?;
        let saga = match description.kind {
            Kind::Projection => None,
            Kind::Saga => Some(Arc::new(Facts::parse(&description.extra)?)),
        };
        let nothing = Span { start: 0, length: 0 };
        let batch = Batch { source: nothing, events: Vec::new(), blob: Vec::new() };
        instance.stage(&batch).map_err(failed("a batch of nothing"))?;
        let documents = Documents { documents: Vec::new(), blob: Vec::new() };
        instance.apply(&documents, &[]).map_err(failed("a batch of nothing"))?;
        let digest = module.digest();
        let instantiate: Instantiate =
            Arc::new(move || module.instantiate(&voice).map(|instance| Box::new(instance) as Box<dyn Guest>));
        Ok(Self { digest, description, saga, settings, instantiate, revision: Arc::default() })
    }

    /// This deployment is what it runs as from here on.
    pub(crate) fn runs_as(&self, revision: u64) {
        self.revision.store(revision, Ordering::Release);
    }

    /// Revision of that deployment; 0 where it is not known.
    pub(crate) fn revision(&self) -> u64 {
        self.revision.load(Ordering::Acquire)
    }

    /// The subject filters in force.
    #[must_use]
    pub fn filters(&self) -> &[String] {
        if self.settings.subjects.is_empty() { &self.description.subjects } else { &self.settings.subjects }
    }

    /// In words: projection or saga.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        kind(self.description.kind)
    }

    /// What it makes.
    #[must_use]
    pub fn makes(&self) -> Makes {
        Makes { saga: self.saga.is_some(), state_version: self.description.state_version }
    }

    /// How this one may follow `before`, whose documents it would go on with.
    #[must_use]
    pub fn after(&self, before: &Self) -> Succession {
        if self.digest == before.digest && self.settings == before.settings {
            return Succession::Same;
        }
        if self.description.kind != before.description.kind {
            return Succession::Never(other_kind(self.kind(), before.kind()));
        }
        let (old, new) = (before.description.state_version, self.description.state_version);
        if old != new {
            return Succession::Never(other_state(new, old));
        }
        if let Some(reason) = widened(before.filters(), self.filters()) {
            return Succession::Never(reason);
        }
        let limits_aside = |settings: &Settings| Settings { limits: sandbox::Limits::default(), ..settings.clone() };
        let opened_alike = self.filters() == before.filters()
            && limits_aside(&self.settings) == limits_aside(&before.settings)
            && self.has_timers() == before.has_timers();
        if opened_alike { Succession::Swap } else { Succession::Reopen }
    }

    /// A saga that keeps instances may set timers, and its compensation may fail.
    #[must_use]
    pub fn has_timers(&self) -> bool {
        self.saga.as_ref().is_some_and(|saga| !saga.stateless)
    }
}

/// Why a module of one kind cannot follow one of the other.
#[must_use]
pub fn other_kind(new: &str, old: &str) -> String {
    format!("it is a {new}, and a {old} runs under this name; hint: deploy it under another with --name")
}

/// Why a module cannot go on with documents of another state version.
#[must_use]
pub fn other_state(new: u32, old: u32) -> String {
    format!(
        "its state version is {new}, and the documents here are of state version {old}; \
         hint: build them anew beside the old ones with `millstream rebuild NAME --module FILE`"
    )
}

/// Why a handler that has read these subjects cannot go on with others: there is one position for all.
#[must_use]
pub fn widened(old: &[String], new: &[String]) -> Option<String> {
    // Who wrote a deployment by hand may have said no subjects.
    let filter = new.iter().find(|filter| !old.is_empty() && !old.iter().any(|old| subject::covers(old, filter)))?;
    Some(format!(
        "it reads {} now; events of {filter} that it has already passed would never be applied; \
         hint: deploy it under a new name with --name, to read them all from the first one",
        old.join(", ")
    ))
}

/// Why a module cannot go on with documents that are something else.
#[must_use]
pub fn others_documents(found: Makes, module: Makes) -> String {
    let kind = |makes: Makes| kind(if makes.saga { Kind::Saga } else { Kind::Projection });
    if found.saga == module.saga {
        return other_state(module.state_version, found.state_version);
    }
    format!(
        "it is a {}, and the documents here are a {}'s; hint: deploy it under another name with --name",
        kind(module),
        kind(found)
    )
}

/// In words: projection or saga.
#[must_use]
pub fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::Projection => "projection",
        Kind::Saga => "saga",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(change: impl FnOnce(&mut Version)) -> Version {
        let description = Description {
            name: "spend".to_owned(),
            kind: Kind::Projection,
            subjects: vec!["orders.>".to_owned()],
            state_version: 1,
            extra: String::new(),
        };
        let unused = || Err(Failure { class: sandbox::Class::Host, message: String::new(), backtrace: String::new() });
        let mut version = Version {
            digest: Digest([0; 32]),
            description,
            saga: None,
            settings: Settings::default(),
            instantiate: Arc::new(unused),
            revision: Arc::default(),
        };
        change(&mut version);
        version
    }

    fn after(change: impl FnOnce(&mut Version)) -> Succession {
        version(change).after(&version(|_| {}))
    }

    #[test]
    fn code_and_limits_are_swapped_and_nothing_else() {
        assert_eq!(after(|_| {}), Succession::Same);
        assert_eq!(after(|new| new.digest = Digest([1; 32])), Succession::Swap);
        assert_eq!(after(|new| new.settings.limits.fuel_per_call += 1), Succession::Swap);
        assert_eq!(after(|new| new.settings.batch_events = 7), Succession::Reopen);
        let narrower = |new: &mut Version| {
            new.digest = Digest([1; 32]);
            new.description.subjects = vec!["orders.placed".to_owned()];
        };
        assert_eq!(after(narrower), Succession::Reopen);
        let Succession::Never(why) =
            after(|new| new.settings.subjects = vec!["orders.>".to_owned(), "more.>".to_owned()])
        else {
            panic!("events of more.> were passed already")
        };
        assert!(why.starts_with("it reads orders.> now; events of more.>"), "{why}");
    }

    #[test]
    fn another_kind_or_state_version_never_takes_over() {
        for (change, reason) in [
            (version(|new| new.description.kind = Kind::Saga), "it is a saga, and a projection runs"),
            (version(|new| new.description.state_version = 2), "its state version is 2, and the documents here are of"),
        ] {
            let changed = Version { digest: Digest([1; 32]), ..change };
            let Succession::Never(why) = changed.after(&version(|_| {})) else { panic!("{reason}") };
            assert!(why.starts_with(reason), "{why}");
            assert!(why.contains("; hint: "), "{why}");
        }
    }
}
