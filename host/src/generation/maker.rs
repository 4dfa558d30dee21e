//! Makes a handler of a module, for a generation. In: a digest and settings. Out: a handler that can run. Never: runs it.

use std::sync::Arc;

use super::Generation;
use crate::handler::Handler;
use crate::progress::Progress;
use crate::registry::Registry;
use crate::saga::Facts;
use crate::sandbox::wire::Kind;
use crate::sandbox::{Cache, Digest, Guest, Instantiate, Module, Sandbox};
use crate::settings::Settings;

/// What handlers are made with.
#[derive(Clone)]
pub(crate) struct Maker {
    pub(crate) registry: Registry,
    pub(crate) sandbox: Sandbox,
    pub(crate) cache: Cache,
    pub(crate) host: String,
}

impl Maker {
    /// Fetches, compiles and asks the module.
    pub(crate) async fn handler(
        &self,
        generation: Generation,
        digest: Digest,
        settings: Settings,
        progress: Arc<Progress>,
    ) -> anyhow::Result<Handler> {
        let bytes = self.registry.module(digest).await?;
        let (sandbox, cache, limits) = (self.sandbox.clone(), self.cache.clone(), settings.limits.clone());
        let module = tokio::task::spawn_blocking(move || Module::prepare(&sandbox, &cache, &limits, &bytes)).await??;
        let name = generation.handler.clone();
        let description = module.instantiate(&name)?.describe()?;
        let saga = match description.kind {
            Kind::Projection => None,
            Kind::Saga => Some(Arc::new(Facts::parse(&description.extra)?)),
        };
        let guest = name.clone();
        let instantiate: Instantiate =
            Arc::new(move || module.instantiate(&guest).map(|instance| Box::new(instance) as Box<dyn Guest>));
        Ok(Handler {
            name,
            generation,
            bound: None,
            host: self.host.clone(),
            digest,
            subjects: description.subjects,
            settings,
            instantiate,
            progress,
            saga,
        })
    }
}
