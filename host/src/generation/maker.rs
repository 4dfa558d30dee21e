//! Makes a version of a module that is in the registry, if this host runs such modules at all. In: a deployment. Out: what a
//! handler runs. Never: runs it.

use std::sync::Arc;

use crate::monitor::Heads;
use crate::policy::{self, Policy};
use crate::registry::{self, Deployment, Registry};
use crate::sandbox::{Cache, Digest, Sandbox};
use crate::version::{Defect, Version};

/// What versions are made with.
#[derive(Clone)]
pub(crate) struct Maker {
    pub(crate) registry: Registry,
    pub(crate) sandbox: Sandbox,
    pub(crate) cache: Cache,
    pub(crate) policy: Arc<Policy>,
    pub(crate) heads: Heads,
    pub(crate) host: String,
}

/// Why no version can be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unprepared {
    #[error(transparent)]
    Registry(#[from] registry::Error),
    #[error(transparent)]
    Policy(#[from] policy::Error),
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

    /// The module that is not in the store.
    pub(crate) fn lacks(&self) -> Option<Digest> {
        match self {
            Self::Registry(registry::Error::NoModule(digest)) => Some(*digest),
            Self::Registry(_) | Self::Policy(_) | Self::Defect(_) | Self::Broken(_) => None,
        }
    }
}

impl Maker {
    /// Fetches, compiles and asks the module.
    pub(crate) async fn version(&self, handler: &str, deployment: &Deployment) -> Result<Version, Unprepared> {
        self.policy.check(handler, deployment)?;
        let settings = deployment.settings.clone();
        let bytes = self.registry.module(deployment.digest).await?;
        let (sandbox, cache, name) = (self.sandbox.clone(), self.cache.clone(), handler.to_owned());
        let version = move || Version::prepare(&sandbox, &cache, &name, settings, &bytes);
        Ok(tokio::task::spawn_blocking(version).await??)
    }
}
