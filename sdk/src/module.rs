//! Ties a handler to the exports of a module. In: a handler's type. Out: `describe`, `stage` and `apply`. Never:
//! anything natively, so that the same crate is a library with tests.

/// Makes a module of a handler, once per crate: `export!(CustomerSpend);` for a [`Projection`](crate::Projection),
/// `export!(saga Fulfilment);` for a [`Saga`](crate::Saga), `export!(reaction Confirm);` for a [`Reaction`](crate::Reaction).
///
/// A panic of the handler goes to the host's log as `panic: message, at file:line:column` before the call traps.
///
/// The kind must be the handler's own:
///
/// ```compile_fail
/// # use millstream_sdk::prelude::*;
/// # #[derive(Default, Serialize, Deserialize)] struct Spend;
/// # impl Projection for Spend {
/// #     const SUBJECTS: &'static [&'static str] = &[">"];
/// #     type Event = Raw;
/// #     fn key(_: &Recorded<Raw>) -> Keys<'_> { Keys::none() }
/// #     fn apply(&mut self, _: &Recorded<Raw>) -> Verdict { keep() }
/// # }
/// export!(saga Spend); // error: `Spend` is not a saga
/// # fn main() {}
/// ```
#[macro_export]
macro_rules! export {
    (saga $handler:ty) => {
        $crate::export!(@ $crate::guest::SagaOf<$handler>);
    };
    (reaction $handler:ty) => {
        $crate::export!(@ $crate::guest::ReactionOf<$handler>);
    };
    (@ $handler:ty) => {
        #[cfg(target_arch = "wasm32")]
        #[allow(unsafe_code, reason = "the exports of a module are symbols by name")]
        const _: () = {
            ::std::thread_local! {
                static RUNTIME: ::std::cell::RefCell<$crate::guest::Runtime<$handler>> =
                    ::std::cell::RefCell::new($crate::private::start());
            }

            struct Module;

            impl $crate::contract::bindings::Guest for Module {
                fn describe() -> $crate::contract::Description {
                    <$handler as $crate::guest::Handler>::describe(::core::env!("CARGO_PKG_NAME"))
                }

                fn stage(batch: $crate::contract::Batch) -> $crate::contract::Staged {
                    RUNTIME.with_borrow_mut(|runtime| runtime.stage(batch))
                }

                fn apply(
                    documents: $crate::contract::Documents,
                    skip: ::std::vec::Vec<u32>,
                ) -> $crate::contract::Outcome {
                    RUNTIME.with_borrow_mut(|runtime| runtime.apply(&documents, &skip))
                }
            }

    $crate::contract::bindings::export_handler!(Module with_types_in $crate::contract::bindings);
        };

        // Natively too, a type that is no handler of that kind does not compile.
        #[cfg(not(target_arch = "wasm32"))]
        const _: fn() -> $crate::contract::Description =
            || <$handler as $crate::guest::Handler>::describe(::core::env!("CARGO_PKG_NAME"));
    };
    ($handler:ty) => {
        $crate::export!(@ $crate::guest::ProjectionOf<$handler>);
    };
    ($($other:tt)*) => {
        ::core::compile_error!(
            "write `export!(Type);` for a projection, `export!(saga Type);` for a saga, `export!(reaction Type);` for a reaction"
        );
    };
}

/// What the generated exports call.
pub mod private {
    /// Sets the panic hook and makes the engine.
    #[cfg(target_arch = "wasm32")]
    pub fn start<H: crate::guest::Handler>() -> crate::guest::Runtime<H> {
        std::panic::set_hook(Box::new(|panic| {
            let message = panic.payload_as_str().unwrap_or("without a message");
            match panic.location() {
                Some(location) => crate::log::error(format_args!("panic: {message}, at {location}")),
                None => crate::log::error(format_args!("panic: {message}")),
            }
        }));
        crate::guest::Runtime::new()
    }
}
