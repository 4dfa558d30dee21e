//! A finding: what is wrong with which thing, why that matters, and the command that mends it. Pure. Never: without such a command.

use serde::Serialize;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Something does not work, or will lose what it should keep.
    Error,
    /// It works until something else happens.
    Warning,
    /// Worth knowing.
    Note,
}

impl Severity {
    /// In a word.
    #[must_use]
    pub fn in_words(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Note => "note",
        }
    }
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// Which check, in a word that stays the same.
    pub check: &'static str,
    /// The stream, bucket, handler, user or server.
    pub thing: String,
    /// What is wrong with it.
    pub problem: String,
    /// Why that matters.
    pub why: String,
    /// The command that mends it, or the line to change where no command can.
    pub mend: String,
}

impl Finding {
    /// Something that does not work.
    pub(super) fn error(check: &'static str, thing: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::new(Severity::Error, check, thing.into(), problem.into())
    }

    /// Something that works for now.
    pub(super) fn warning(check: &'static str, thing: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::new(Severity::Warning, check, thing.into(), problem.into())
    }

    /// Something worth knowing.
    pub(super) fn note(check: &'static str, thing: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::new(Severity::Note, check, thing.into(), problem.into())
    }

    fn new(severity: Severity, check: &'static str, thing: String, problem: String) -> Self {
        Self { severity, check, thing, problem, why: String::new(), mend: String::new() }
    }

    /// Why it matters.
    pub(super) fn why(self, why: impl Into<String>) -> Self {
        Self { why: why.into(), ..self }
    }

    /// What mends it.
    pub(super) fn mend(self, mend: impl Into<String>) -> Self {
        Self { mend: mend.into(), ..self }
    }
}
