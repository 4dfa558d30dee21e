//! Makes a version of a module that is in the registry, for a generation. In: a digest and settings. Out: what a handler runs.
//! Never: runs it.

use crate::registry::{self, Registry};
use crate::sandbox::{Cache, Digest, Sandbox};
use crate::settings::Settings;
use crate::version::{Defect, Version};

/// What versions are made with.
#[derive(Clone)]
pub(crate) struct Maker {
    pub(crate) registry: Registry,
    pub(crate) sandbox: Sandbox,
    pub(crate) cache: Cache,
    pub(crate) host: String,
}

/// Why no version can be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unprepared {
    #[error(transparent)]
    Registry(#[from] registry::Error),
    #[error(transparent)]
    Defect(#[from] Defect),
    #[error("the module could not be prepared: {0}")]
    Broken(#[from] tokio::task::JoinError),
}

impl Unprepared {
    /// The server was away; it may be there the next time.
    pub(crate) fn is_passing(&self) -> bool {
        matches!(self, Self::Registry(registry::Error::Unreachable { .. }))
    }
}

impl Maker {
    /// Fetches, compiles and asks the module.
    pub(crate) async fn version(
        &self,
        handler: &str,
        digest: Digest,
        settings: Settings,
    ) -> Result<Version, Unprepared> {
        let bytes = self.registry.module(digest).await?;
        let (sandbox, cache, name) = (self.sandbox.clone(), self.cache.clone(), handler.to_owned());
        let version = move || Version::prepare(&sandbox, &cache, &name, settings, &bytes);
        Ok(tokio::task::spawn_blocking(version).await??)
    }
}
