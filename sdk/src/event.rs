//! Step one: event type and payload become a typed event. In: what the host decoded of the message. Out: an event, nothing
//! (irrelevant), or a [`DecodeError`]. Never looks at documents.

use serde::de::DeserializeOwned;

/// Derives [`Event`](trait@Event) for an enum with one variant per event type.
///
/// | variant | payload |
/// |---|---|
/// | `Placed { customer: String, cents: u64 }` | a JSON object with these fields, others are ignored |
/// | `Placed(OrderPlaced)` | whatever `OrderPlaced: Deserialize` reads |
/// | `Placed` | not looked at |
///
/// The event type is the variant's name unless `#[event(name = "…")]` says otherwise; `#[event(alias = "…")]`, as often as
/// needed, adds further names. `#[serde(…)]` on a field, or on a variant with named fields, does what it does on a struct.
///
/// ```
/// use millstream_sdk::prelude::*;
///
/// #[derive(Debug, PartialEq, Event)]
/// enum Shop {
///     #[event(alias = "placed")]
///     OrderPlaced {
///         customer: String,
///         #[serde(default)]
///         cents: u64,
///     },
///     ShopClosed,
/// }
///
/// let placed = Shop::decode("placed", br#"{"customer":"C42"}"#).unwrap();
/// assert_eq!(placed, Some(Shop::OrderPlaced { customer: "C42".into(), cents: 0 }));
/// assert_eq!(Shop::decode("ShopClosed", b"").unwrap(), Some(Shop::ShopClosed));
/// assert_eq!(Shop::decode("OrderShipped", b"{}").unwrap(), None);
///
/// let error = Shop::decode("placed", b"{}").unwrap_err();
/// assert_eq!(
///     error.to_string(),
///     "payload of event type `placed` does not fit: missing field `customer` at line 1 column 2"
/// );
/// ```
///
/// What cannot be derived does not compile, and the error says what to change:
///
/// ```compile_fail
/// #[derive(millstream_sdk::Event)]
/// struct Shop { cents: u64 } // an event is an enum
/// ```
/// ```compile_fail
/// #[derive(millstream_sdk::Event)]
/// enum Shop {
///     Placed,
///     #[event(name = "Placed")] // claimed twice
///     Ordered,
/// }
/// ```
/// ```compile_fail
/// #[derive(millstream_sdk::Event)]
/// enum Shop<'a> {
///     Placed { customer: &'a str }, // fields own what they hold
/// }
/// ```
pub use millstream_sdk_macros::Event;

/// What a handler can read: usually an enum with `#[derive(Event)]`, a variant per event type.
pub trait Event: Sized + 'static {
    /// Makes an event of a message's event type and payload (any bytes, usually JSON).
    ///
    /// `Ok(None)`: not an event type of this handler, so the message is irrelevant.
    ///
    /// # Errors
    /// The event type is known, but the payload does not fit. The host stops at such an event with this reason.
    fn decode(event_type: &str, payload: &[u8]) -> Result<Option<Self>, DecodeError>;
}

/// Every event, whatever its type, without looking at the payload: `type Event = Raw;`.
///
/// Event type and payload are read from the envelope: [`Recorded::event_type`](crate::Recorded::event_type) and
/// [`Recorded::payload_bytes`](crate::Recorded::payload_bytes).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Raw;

impl Event for Raw {
    fn decode(_event_type: &str, _payload: &[u8]) -> Result<Option<Self>, DecodeError> {
        Ok(Some(Self))
    }
}

/// A payload that does not fit its event type.
#[derive(Debug, thiserror::Error)]
#[error("payload of event type `{event_type}` does not fit: {reason}")]
pub struct DecodeError {
    event_type: String,
    reason: String,
}

impl DecodeError {
    /// For an [`Event`] written by hand: the event type and why its payload does not fit.
    pub fn new(event_type: impl Into<String>, reason: impl std::fmt::Display) -> Self {
        Self { event_type: event_type.into(), reason: reason.to_string() }
    }

    /// Reads a JSON payload; a failure names the event type, and line and column of the payload.
    ///
    /// # Errors
    /// The payload is not JSON, or not of this type.
    pub fn json<T: DeserializeOwned>(event_type: &str, payload: &[u8]) -> Result<T, Self> {
        serde_json::from_slice(payload).map_err(|error| Self::new(event_type, error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, serde::Deserialize)]
    struct Parcel {
        grams: u32,
    }

    #[derive(Debug, PartialEq, Event)]
    enum Shop {
        #[event(name = "order.placed", alias = "placed")]
        Placed {
            #[serde(rename = "customerId", alias = "customer")]
            customer: String,
            note: Option<String>,
        },
        #[serde(rename_all = "camelCase", deny_unknown_fields)]
        Moved {
            from_shelf: u8,
        },
        Shipped(Parcel),
        Counted(Vec<i64>),
        Closed,
    }

    #[test]
    fn known_types_are_decoded() {
        let placed = |note: Option<&str>| Shop::Placed { customer: "C".into(), note: note.map(Into::into) };
        let cases = [
            ("order.placed", r#"{"customerId":"C"}"#, placed(None)),
            ("placed", r#"{"customer":"C","note":"n","more":[1]}"#, placed(Some("n"))),
            ("Moved", r#"{"fromShelf":3}"#, Shop::Moved { from_shelf: 3 }),
            ("Shipped", r#"{"grams":7}"#, Shop::Shipped(Parcel { grams: 7 })),
            ("Counted", "[1,-2]", Shop::Counted(vec![1, -2])),
            ("Closed", "not json", Shop::Closed),
        ];
        for (event_type, payload, expected) in cases {
            let decoded = Shop::decode(event_type, payload.as_bytes()).unwrap();
            assert_eq!(decoded, Some(expected), "{event_type} {payload}");
        }
    }

    #[test]
    fn other_types_are_irrelevant_whatever_they_carry() {
        for event_type in ["Placed", "closed", "", "shipped "] {
            assert_eq!(Shop::decode(event_type, b"\xff").unwrap(), None, "{event_type}");
        }
    }

    #[test]
    fn a_payload_that_does_not_fit_is_an_error_that_names_the_type() {
        let cases: [(&str, &[u8], &str); 5] = [
            ("placed", b"", "event type `placed` does not fit: EOF while parsing a value at line 1 column 0"),
            ("placed", b"{}", "event type `placed` does not fit: missing field `customerId` at line 1 column 2"),
            ("Moved", br#"{"fromShelf":300}"#, "invalid value: integer `300`, expected u8 at line 1 column 16"),
            ("Moved", br#"{"fromShelf":3,"x":1}"#, "unknown field `x`, expected `fromShelf`"),
            ("Moved", b"7", "invalid type: integer `7`, expected the fields of `Moved`"),
        ];
        for (event_type, payload, expected) in cases {
            let error = Shop::decode(event_type, payload).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
