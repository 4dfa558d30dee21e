//! How something that a person asked for fails: a command, a request over HTTP or to the NATS service. In: an error, and a hint where
//! we have one, or the error itself. Out: what failed, the chain of causes, what to do next, and the exit code; 1: it failed; 2:
//! arguments or configuration are wrong. Never: code 2 after anything was touched.

use std::fmt;

use crate::hint;
use crate::logs;

/// What helps a user who may not.
pub(crate) const PERMIT: &str =
    "permit it to this user (deploy/nats-server.conf shows who needs what), or come as another with --user or --creds";

/// A failed command.
#[derive(Debug)]
pub struct Fault {
    error: anyhow::Error,
    hint: Option<String>,
    code: u8,
    refused: Option<String>,
    in_json: bool,
}

impl Fault {
    /// A fault whose exit code and hint are known.
    pub fn new(error: impl Into<anyhow::Error>, code: u8, hint: Option<String>) -> Self {
        let error = error.into();
        let hint = hint.or_else(|| hint::split(&error.to_string()).1.map(str::to_owned));
        Self { error, hint, code, refused: None, in_json: false }
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

    /// Has it told as a line of a log in JSON.
    #[must_use]
    pub fn as_logged(mut self, format: logs::Format) -> Self {
        self.in_json = format == logs::Format::Json;
        self
    }

    /// What failed with its causes, in one line, and what to do next, where that is known.
    #[must_use]
    pub fn told(&self) -> (String, Option<&str>) {
        (self.account().replace("\n  because: ", ": ").replace('\n', "; "), self.hint.as_deref())
    }

    /// The process's exit code.
    #[must_use]
    pub fn code(&self) -> u8 {
        self.code
    }
}

impl Fault {
    /// What failed, and the chain of causes, a line each.
    fn account(&self) -> String {
        let mut said = self.error.to_string();
        let mut account = hint::split(&said).0.to_owned();
        for cause in self.error.chain().skip(1) {
            let cause = cause.to_string();
            // Many errors already carry their source's sentence.
            if !said.contains(&cause) {
                account.push_str("\n  because: ");
                account.push_str(&cause);
                said = cause;
            }
        }
        if let Some(told) = &self.refused {
            account.push_str("\n  because: the server said: ");
            account.push_str(told);
        }
        account
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let account = self.account();
        if self.in_json {
            let account = account.replace("\n  ", "; ");
            return f.write_str(&logs::error_in_json(&account, self.hint.as_deref()));
        }
        write!(f, "error: {account}")?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_is_told_in_one_line_and_its_hint_beside_it() {
        let cause = anyhow::anyhow!("gone\nfor good").context("no");
        assert_eq!(Fault::failed(cause).hint("look").told(), ("no: gone; for good".to_owned(), Some("look")));
        assert_eq!(Fault::usage(anyhow::anyhow!("no")).told(), ("no".to_owned(), None));
        assert_eq!(Fault::failed(anyhow::anyhow!("no; hint: try")).told(), ("no".to_owned(), Some("try")));
    }
}
