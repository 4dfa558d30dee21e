//! Step three's answer: what becomes of the document after an event. In: the user's words, or any error. Out: keep,
//! delete, or a refusal with its reason. Never: a panic.

use std::fmt;

/// What `apply` answers: [`keep`], [`delete`], or an error, which refuses the event for this key.
///
/// `?` works on any error, so a failed parse is a refusal with its own words as the reason.
///
/// ```
/// use millstream_sdk::{Verdict, keep, refuse};
///
/// fn add(total: &mut u64, amount: &str) -> Verdict {
///     let amount: u64 = amount.parse()?;
///     match total.checked_add(amount) {
///         Some(sum) => *total = sum,
///         None => return refuse("the total overflows"),
///     }
///     keep()
/// }
///
/// let mut total = 1;
/// assert!(add(&mut total, "2").is_ok());
/// assert_eq!(add(&mut total, "two").unwrap_err().reason(), "invalid digit found in string");
/// ```
pub type Verdict = Result<Then, Refusal>;

/// What becomes of the document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// It stays, as it is now.
    Keep,
    /// It goes. A later event of its key starts from `Default`.
    Delete,
}

/// Why an event cannot be applied to a document.
///
/// The document stays exactly as it was before the event, whatever `apply` had already done to it. The host stops the
/// handler at the event, with everything before it decided, until somebody mends one of the two.
// It is no `std::error::Error` itself: only so can every error become one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal(String);

impl Refusal {
    /// A refusal for a reason that an operator will read.
    pub fn new(reason: impl fmt::Display) -> Self {
        Self(reason.to_string())
    }

    /// The reason.
    #[must_use]
    pub fn reason(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<E: std::error::Error> From<E> for Refusal {
    fn from(error: E) -> Self {
        Self::new(error)
    }
}

/// The document stays, as it is now.
///
/// # Errors
/// None: it is a [`Verdict`] so that it can end `apply`.
pub const fn keep() -> Verdict {
    Ok(Then::Keep)
}

/// The document goes. A later event of its key starts from `Default`.
///
/// # Errors
/// None: it is a [`Verdict`] so that it can end `apply`.
pub const fn delete() -> Verdict {
    Ok(Then::Delete)
}

/// The event cannot be applied to this document; see [`Refusal`]. It ends `apply`, `react` and `wake` alike.
///
/// # Errors
/// Always: the refusal.
pub fn refuse<T>(reason: impl fmt::Display) -> Result<T, Refusal> {
    Err(Refusal::new(reason))
}
