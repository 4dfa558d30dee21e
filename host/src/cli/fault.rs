//! How a command fails. In: an error, and a hint where we have one. Out: what failed, the chain of causes, what to do
//! next, and the exit code; 1: it failed; 2: arguments or configuration are wrong. Never: code 2 after anything was
//! touched.

use std::fmt;

/// What helps a user who may not.
pub(super) const PERMIT: &str =
    "permit it to this user (deploy/nats-server.conf shows who needs what), or come as another with --user or --creds";

/// A failed command.
#[derive(Debug)]
pub struct Fault {
    error: anyhow::Error,
    hint: Option<String>,
    code: u8,
    refused: Option<String>,
}

impl Fault {
    /// A fault whose exit code and hint are known.
    pub fn new(error: impl Into<anyhow::Error>, code: u8, hint: Option<String>) -> Self {
        Self { error: error.into(), hint, code, refused: None }
    }

    /// Something went wrong.
    pub fn failed(error: impl Into<anyhow::Error>) -> Self {
        Self::new(error, 1, None)
    }

    /// The user asked for something that cannot be.
    pub fn usage(error: impl Into<anyhow::Error>) -> Self {
        Self::new(error, 2, None)
    }

    /// Adds the next command to try.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Names what the server did not let this user do, if anything: it explains most of what fails after it.
    #[must_use]
    pub fn refused(mut self, told: Option<String>) -> Self {
        if told.is_some() && self.code == 1 {
            self.hint = Some(PERMIT.to_owned());
        }
        self.refused = told;
        self
    }

    /// The process's exit code.
    #[must_use]
    pub fn code(&self) -> u8 {
        self.code
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", self.error)?;
        let mut said = self.error.to_string();
        for cause in self.error.chain().skip(1) {
            let cause = cause.to_string();
            // Many errors already carry their source's sentence.
            if !said.contains(&cause) {
                write!(f, "\n  because: {cause}")?;
                said = cause;
            }
        }
        if let Some(told) = &self.refused {
            write!(f, "\n  because: the server said: {told}")?;
        }
        match &self.hint {
            Some(hint) => write!(f, "\nhint: {hint}"),
            None => Ok(()),
        }
    }
}

impl<E: Into<anyhow::Error>> From<E> for Fault {
    fn from(error: E) -> Self {
        Self::failed(error)
    }
}
