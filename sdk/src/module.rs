//! Ties a handler to the exports of a module. Natively nothing is exported, so that the same crate is a library with tests.

/// Makes a module of a handler: `export!(CustomerSpend);`, once per crate.
///
/// The type implements [`Projection`](crate::Projection). A panic of the handler goes to the host's log as
/// `panic: message, at file:line:column` before the call traps.
#[macro_export]
macro_rules! export {
    ($handler:ty) => {
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
                    $crate::guest::describe::<$handler>(::core::env!("CARGO_PKG_NAME"))
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

        // Natively too, a type that is no handler does not compile.
        #[cfg(not(target_arch = "wasm32"))]
        const _: fn() -> $crate::contract::Description =
            || $crate::guest::describe::<$handler>(::core::env!("CARGO_PKG_NAME"));
    };
}

/// What the generated exports call.
pub mod private {
    /// Sets the panic hook and makes the engine.
    #[cfg(target_arch = "wasm32")]
    pub fn start<P: crate::Projection>() -> crate::guest::Runtime<P> {
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
