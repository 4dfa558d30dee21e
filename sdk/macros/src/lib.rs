//! The derive macros of `millstream-sdk`. In: a user's enum. Out: its decoding, or an error at the line to change. This
//! file only meets the compiler; what is generated, and why something is refused, lies in `event`. Never: reads a file.

mod event;

use proc_macro::TokenStream;
use syn::{DeriveInput, parse_macro_input};

/// Derives `millstream_sdk::Event` for an enum with one variant per event type.
///
/// | variant | payload |
/// |---|---|
/// | `Placed { customer: String, cents: u64 }` | a JSON object with these fields, others are ignored |
/// | `Placed(OrderPlaced)` | whatever `OrderPlaced: Deserialize` reads |
/// | `Placed` | not looked at |
///
/// The event type is the variant's name unless `#[event(name = "…")]` says otherwise; `#[event(alias = "…")]`, as often as
/// needed, adds further names. `#[serde(…)]` on a field, or on a variant with named fields, does what it does on a struct.
#[proc_macro_derive(Event, attributes(event, serde))]
pub fn derive_event(input: TokenStream) -> TokenStream {
    let input = parse_macro_input!(input as DeriveInput);
    event::derive(&input).unwrap_or_else(syn::Error::into_compile_error).into()
}
