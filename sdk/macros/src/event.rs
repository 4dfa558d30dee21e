//! `#[derive(Event)]`: an enum in, a `match` over event types out. Each variant with named fields gets a hidden struct
//! that serde fills, so that the field attributes of serde keep their meaning. All that can be wrong is found here,
//! with a sentence. Never: a panic, or an error in code that the user did not write.

use proc_macro2::TokenStream;
use quote::{format_ident, quote};
use syn::punctuated::Punctuated;
use syn::spanned::Spanned;
use syn::{Attribute, Data, DeriveInput, Error, Field, Fields, LitStr, Result, Token, Variant};

/// Generates the implementation of `Event`, or says what has to change.
pub(crate) fn derive(input: &DeriveInput) -> Result<TokenStream> {
    let variants = variants(input)?;
    let mut taken: Vec<(String, &Variant)> = Vec::new();
    let mut arms = Vec::with_capacity(variants.len());
    for variant in variants {
        let names = names(variant)?;
        for name in &names {
            if let Some((_, owner)) = taken.iter().find(|(other, _)| *other == name.value()) {
                return Err(Error::new(
                    name.span(),
                    format!(
                        "event type `{}` is claimed twice: by `{}` and by `{}`",
                        name.value(),
                        owner.ident,
                        variant.ident
                    ),
                ));
            }
            taken.push((name.value(), variant));
        }
        let body = decode_variant(variant)?;
        arms.push(quote! { #(#names)|* => { #body } });
    }

    let event = &input.ident;
    Ok(quote! {
        #[automatically_derived]
        impl ::millstream_sdk::Event for #event {
            fn decode(
                event_type: &str,
                payload: &[u8],
            ) -> ::core::result::Result<::core::option::Option<Self>, ::millstream_sdk::DecodeError> {
                match event_type {
                    #(#arms)*
                    _ => ::core::result::Result::Ok(::core::option::Option::None),
                }
            }
        }
    })
}

/// The variants of an enum that can be derived for.
fn variants(input: &DeriveInput) -> Result<&Punctuated<Variant, Token![,]>> {
    let Data::Enum(data) = &input.data else {
        return Err(Error::new(
            input.ident.span(),
            format!(
                "`Event` is derived for an enum with a variant per event type: write `enum {} {{ … }}`, \
                 and keep a struct as the payload of a variant",
                input.ident
            ),
        ));
    };
    if !input.generics.params.is_empty() {
        return Err(Error::new(
            input.generics.span(),
            "an event enum has no parameters: fields own what they hold (`String`, not `&str`)",
        ));
    }
    if let Some(attribute) = attributes(&input.attrs, "serde").next() {
        return Err(Error::new(
            attribute.span(),
            "`#[serde(…)]` has no effect on the enum: put it on the variant or on the field",
        ));
    }
    if let Some(attribute) = attributes(&input.attrs, "event").next() {
        return Err(Error::new(
            attribute.span(),
            "`#[event(…)]` names the event type of a variant: put it on the variant",
        ));
    }
    if data.variants.is_empty() {
        return Err(Error::new(
            input.ident.span(),
            "an event enum needs a variant for each event type that the handler wants",
        ));
    }
    Ok(&data.variants)
}

/// The event types that a variant stands for: its name, then its aliases.
fn names(variant: &Variant) -> Result<Vec<LitStr>> {
    let mut name: Option<LitStr> = None;
    let mut aliases = Vec::new();
    for attribute in attributes(&variant.attrs, "event") {
        attribute.parse_nested_meta(|meta| {
            if meta.path.is_ident("name") {
                let value = meta.value()?.parse::<LitStr>()?;
                if name.replace(value).is_some() {
                    return Err(meta.error("a variant has one `name`: write further event types as `alias = \"…\"`"));
                }
                Ok(())
            } else if meta.path.is_ident("alias") {
                aliases.push(meta.value()?.parse::<LitStr>()?);
                Ok(())
            } else {
                Err(meta.error("expected `name = \"…\"` or `alias = \"…\"`"))
            }
        })?;
    }

    let name = name.unwrap_or_else(|| LitStr::new(&variant.ident.to_string(), variant.ident.span()));
    let mut names = vec![name];
    names.append(&mut aliases);
    match names.iter().find(|name| name.value().is_empty()) {
        Some(empty) => Err(Error::new(empty.span(), "an event type cannot be empty")),
        None => Ok(names),
    }
}

/// The expression that turns `payload` into `Ok(Some(variant))`.
fn decode_variant(variant: &Variant) -> Result<TokenStream> {
    let ident = &variant.ident;
    let serde_on_variant = attributes(&variant.attrs, "serde").next();
    match &variant.fields {
        Fields::Named(fields) => Ok(decode_fields(variant, &fields.named)),
        _ if serde_on_variant.is_some() => Err(Error::new(
            serde_on_variant.span(),
            "`#[serde(…)]` on a variant is for named fields: put it on the payload's own type",
        )),
        Fields::Unnamed(fields) if fields.unnamed.len() == 1 => Ok(quote! {
            ::core::result::Result::Ok(::core::option::Option::Some(
                Self::#ident(::millstream_sdk::DecodeError::json(event_type, payload)?)
            ))
        }),
        Fields::Unnamed(fields) => Err(Error::new(
            fields.span(),
            format!(
                "`{ident}` holds {} unnamed fields, but a payload is one value: name the fields, or wrap them in one type",
                fields.unnamed.len()
            ),
        )),
        Fields::Unit => Ok(quote! {
            ::core::result::Result::Ok(::core::option::Option::Some(Self::#ident))
        }),
    }
}

/// A hidden struct with the fields of the variant, the errors of serde name the variant.
fn decode_fields(variant: &Variant, fields: &Punctuated<Field, Token![,]>) -> TokenStream {
    let ident = &variant.ident;
    let shape = format_ident!("__{ident}Payload");
    let expecting = format!("the fields of `{ident}`");
    let on_variant = attributes(&variant.attrs, "serde");
    let names: Vec<_> = fields.iter().map(|field| &field.ident).collect();
    let members = fields.iter().map(|field| {
        let attributes = attributes(&field.attrs, "serde");
        let (name, kind) = (&field.ident, &field.ty);
        quote! { #(#attributes)* #name: #kind }
    });
    quote! {
        #[derive(::millstream_sdk::serde::Deserialize)]
        #[serde(crate = "::millstream_sdk::serde", expecting = #expecting)]
        #(#on_variant)*
        struct #shape { #(#members),* }
        let #shape { #(#names),* } = ::millstream_sdk::DecodeError::json(event_type, payload)?;
        ::core::result::Result::Ok(::core::option::Option::Some(Self::#ident { #(#names),* }))
    }
}

fn attributes<'a>(all: &'a [Attribute], name: &'a str) -> impl Iterator<Item = &'a Attribute> {
    all.iter().filter(move |attribute| attribute.path().is_ident(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_derived_is_refused_with_a_sentence() {
        let cases = [
            ("struct Shop { cents: u64 }", "derived for an enum with a variant per event type"),
            ("union Shop { a: u64 }", "derived for an enum with a variant per event type"),
            ("enum Shop<'a> { Placed { customer: &'a str } }", "`String`, not `&str`"),
            ("enum Shop<T> { Placed(T) }", "an event enum has no parameters"),
            ("enum Shop {}", "needs a variant for each event type"),
            ("#[serde(rename_all = \"camelCase\")] enum Shop { Placed }", "put it on the variant or on the field"),
            ("#[event(name = \"x\")] enum Shop { Placed }", "put it on the variant"),
            ("enum Shop { Placed(u64, u64) }", "`Placed` holds 2 unnamed fields"),
            ("enum Shop { Placed() }", "`Placed` holds 0 unnamed fields"),
            ("enum Shop { #[serde(default)] Placed(u64) }", "put it on the payload's own type"),
            ("enum Shop { #[event(name = \"\")] Placed }", "cannot be empty"),
            ("enum Shop { #[event(nmae = \"x\")] Placed }", "expected `name = \"…\"` or `alias = \"…\"`"),
            ("enum Shop { #[event(name = \"x\", name = \"y\")] Placed }", "a variant has one `name`"),
            ("enum Shop { A, #[event(alias = \"A\")] B }", "event type `A` is claimed twice: by `A` and by `B`"),
            ("enum Shop { #[event(alias = \"A\")] A }", "claimed twice: by `A` and by `A`"),
        ];
        for (source, expected) in cases {
            let input: DeriveInput = syn::parse_str(source).unwrap();
            let error = derive(&input).expect_err(source).to_string();
            assert!(error.contains(expected), "{source}\n  says: {error}\n  not:  {expected}");
        }
    }

    #[test]
    fn each_name_and_alias_of_a_variant_is_an_arm() {
        let input: DeriveInput =
            syn::parse_str("enum Shop { #[event(name = \"OrderPlaced\", alias = \"placed\", alias = \"p\")] A }")
                .unwrap();
        let generated = derive(&input).unwrap().to_string();
        assert!(generated.contains(r#""OrderPlaced" | "placed" | "p" =>"#), "{generated}");
    }
}
