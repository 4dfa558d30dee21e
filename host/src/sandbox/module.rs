//! From a file's bytes to something that can be instantiated: identify, refuse foreign imports, wrap, compile, link.
//! In: bytes of a core module or a component. Out: `Module`. Never: runs guest code (that is `instance.rs`).

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use wasmtime::component::{Component, HasSelf, Linker};

use super::share::Share;
use super::{Cache, Limits, Sandbox, bindings, instance::Guarded};

/// sha256 of a module's bytes as they were deployed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// Digest of these bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// The first 12 hexadecimal digits, enough for people.
    #[must_use]
    pub fn short(&self) -> String {
        let mut text = self.to_string();
        text.truncate(12);
        text
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

impl TryFrom<String> for Digest {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(&text, &mut bytes).map_err(|_| format!("`{text}` is not a sha256 digest"))?;
        Ok(Self(bytes))
    }
}

/// Why a file is not a handler. All of these are the user's to mend.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Larger than the limit.
    #[error("the module has {size} bytes; the limit is {limit}")]
    TooLarge {
        /// Bytes of the file.
        size: usize,
        /// Limit in bytes.
        limit: usize,
    },
    /// No WASM at all, or a damaged file.
    #[error("not a WASM module: {0}")]
    Malformed(String),
    /// Wants something from the outside.
    #[error("the module imports `{0}`, which no handler may have: a handler gets `log` and nothing else")]
    ForeignImport(String),
    /// Lacks part of the contract.
    #[error("the module does not export the handler contract: {0}")]
    Contract(String),
    /// Cranelift refused it.
    #[error("the module does not compile: {0}")]
    Compile(String),
    /// The engine itself could not be made.
    #[error("the WASM engine could not be made: {0}")]
    Engine(String),
}

impl Error {
    pub(super) fn engine(error: wasmtime::Error) -> Self {
        Self::Engine(format!("{error:#}"))
    }
}

/// Which form the file had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// A core module with the contract in a custom section, as `cargo build --target wasm32-unknown-unknown` makes it.
    Core,
    /// A component.
    Component,
}

/// A compiled handler, linked to `log`, ready to be instantiated any number of times.
#[derive(Clone)]
pub struct Module {
    pub(super) linked: bindings::HandlerPre<Guarded>,
    pub(super) sandbox: Sandbox,
    pub(super) limits: Limits,
    /// Of all its instances together.
    pub(super) share: Arc<Share>,
    digest: Digest,
}

impl Module {
    /// Checks, wraps and compiles `bytes`, or takes the compiled form from `cache`. Blocks for about 60 ms when it compiles.
    ///
    /// # Errors
    /// One of `Error`, naming the defect.
    pub fn prepare(sandbox: &Sandbox, cache: &Cache, limits: &Limits, bytes: &[u8]) -> Result<Self, Error> {
        if bytes.len() > limits.module_bytes {
            return Err(Error::TooLarge { size: bytes.len(), limit: limits.module_bytes });
        }
        let digest = Digest::of(bytes);
        let name = format!("{digest}-{}", sandbox.compatibility());
        let component = match cache.load(sandbox, &name) {
            Some(component) => component,
            None => {
                let compiled = Sandbox::compile(&wrap(bytes)?).map_err(|error| Error::Compile(format!("{error:#}")))?;
                cache.store(&name, &compiled);
                Cache::link(sandbox, &compiled).map_err(Error::engine)?
            }
        };
        let (linked, share) = (link(sandbox, &component)?, Arc::default());
        Ok(Self { linked, sandbox: sandbox.clone(), limits: limits.clone(), share, digest })
    }

    /// Digest of the deployed bytes.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.digest
    }
}

fn link(sandbox: &Sandbox, component: &Component) -> Result<bindings::HandlerPre<Guarded>, Error> {
    for (name, _) in component.component_type().imports(sandbox.engine()) {
        if name != "log" && !name.starts_with("millstream:handler/types@1.") {
            return Err(Error::ForeignImport(name.to_owned()));
        }
    }
    let mut linker = Linker::<Guarded>::new(sandbox.engine());
    bindings::Handler::add_to_linker::<_, HasSelf<_>>(&mut linker, |state| state).map_err(Error::engine)?;
    let contract = |error: wasmtime::Error| Error::Contract(format!("{error:#}"));
    bindings::HandlerPre::new(linker.instantiate_pre(component).map_err(contract)?).map_err(contract)
}

/// Tells core modules and components apart by their first eight bytes.
fn source(bytes: &[u8]) -> Result<Source, Error> {
    if wasmparser::Parser::is_component(bytes) {
        Ok(Source::Component)
    } else if wasmparser::Parser::is_core_wasm(bytes) {
        Ok(Source::Core)
    } else {
        Err(Error::Malformed("the file does not begin like one (`\\0asm` and a version)".to_owned()))
    }
}

/// The component form of `bytes`.
fn wrap(bytes: &[u8]) -> Result<Vec<u8>, Error> {
    if source(bytes)? == Source::Component {
        return Ok(bytes.to_vec());
    }
    refuse_foreign_imports(bytes)?;
    wit_component::ComponentEncoder::default()
        .validate(true)
        .module(bytes)
        .and_then(|mut encoder| encoder.encode())
        .map_err(|error| Error::Contract(format!("{error:#}")))
}

fn refuse_foreign_imports(core: &[u8]) -> Result<(), Error> {
    let malformed = |error: wasmparser::BinaryReaderError| Error::Malformed(error.to_string());
    for payload in wasmparser::Parser::new(0).parse_all(core) {
        if let wasmparser::Payload::ImportSection(imports) = payload.map_err(malformed)? {
            for import in imports.into_imports() {
                let import = import.map_err(malformed)?;
                if (import.module, import.name) != ("$root", "log") {
                    return Err(Error::ForeignImport(format!("{}.{}", import.module, import.name)));
                }
            }
        }
    }
    Ok(())
}
