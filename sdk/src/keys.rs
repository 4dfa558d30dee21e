//! Step two: which documents an event touches. In: an event. Out: none, one or many keys. Text is borrowed from the
//! event where possible, so naming a key is free. Never: escapes one; the host does.

use std::borrow::Cow;

/// The keys of one event: none, one or many. None means that the event is irrelevant; the same key twice counts once.
///
/// A key is any text but the empty one (an event that names an empty key is rejected). The host escapes what a NATS bucket
/// does not allow.
///
/// ```
/// use millstream_sdk::Keys;
///
/// let customer = String::from("C42");
/// let one = Keys::one(&customer); // borrows
/// let made = Keys::one(format!("{customer}|2026"));
/// let many = Keys::many(["C42", "C43"]);
/// let perhaps = Keys::from(customer.strip_prefix("X"));
/// assert_eq!(many.iter().collect::<Vec<_>>(), ["C42", "C43"]);
/// assert_eq!(perhaps.iter().count(), 0);
/// # let _ = (one, made);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Keys<'a>(Held<'a>);

#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Held<'a> {
    #[default]
    None,
    One(Cow<'a, str>),
    Many(Vec<Cow<'a, str>>),
}

impl<'a> Keys<'a> {
    /// The event touches nothing: it is irrelevant.
    #[must_use]
    pub const fn none() -> Self {
        Self(Held::None)
    }

    /// The event touches one document.
    pub fn one(key: impl Into<Cow<'a, str>>) -> Self {
        Self(Held::One(key.into()))
    }

    /// The event touches each of these documents, in this order.
    pub fn many<K: Into<Cow<'a, str>>>(keys: impl IntoIterator<Item = K>) -> Self {
        Self(Held::Many(keys.into_iter().map(Into::into).collect()))
    }

    /// The keys as they were given.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        let keys = match &self.0 {
            Held::None => &[],
            Held::One(key) => std::slice::from_ref(key),
            Held::Many(keys) => keys.as_slice(),
        };
        keys.iter().map(AsRef::as_ref)
    }
}

impl<'a> From<&'a str> for Keys<'a> {
    fn from(key: &'a str) -> Self {
        Self::one(key)
    }
}

impl<'a> From<&'a String> for Keys<'a> {
    fn from(key: &'a String) -> Self {
        Self::one(key)
    }
}

impl From<String> for Keys<'_> {
    fn from(key: String) -> Self {
        Self::one(key)
    }
}

impl<'a, K: Into<Keys<'a>>> From<Option<K>> for Keys<'a> {
    fn from(key: Option<K>) -> Self {
        key.map_or_else(Self::none, Into::into)
    }
}
