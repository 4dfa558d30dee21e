//! `millstream replay`: a parked key once more, here, without a server. In: a capsule file and a module. Out: the document that the
//! module makes of it, or where and why it fails, with the guest's own frames. Never: touches a server.

use std::path::PathBuf;

use clap::Args;

use super::{Fault, deploy, output};
use crate::parking::capsule::{Capsule, Replayed};

/// Run a module on a parked key that was saved.
#[derive(Debug, Args)]
pub(super) struct Replay {
    /// A file that `millstream dead --save` wrote.
    capsule: PathBuf,
    /// The module to try.
    #[arg(long, value_name = "MODULE.WASM")]
    module: PathBuf,
    /// A setting in place of the saved one, as in `millstream deploy`.
    #[arg(long = "set", value_name = "NAME=VALUE")]
    settings: Vec<String>,
}

impl Replay {
    pub(super) fn run(self, json: bool) -> Result<(), Fault> {
        let path = self.capsule.display();
        let bytes = std::fs::read(&self.capsule).map_err(|error| unreadable(&path, error))?;
        let capsule = Capsule::read(&bytes).map_err(|error| unreadable(&path, error))?;
        let settings = capsule
            .settings
            .with(&self.settings)
            .map_err(|error| Fault::usage(error).hint("the settings and their names are in docs/deploy-and-run.md"))?;
        let module = std::fs::read(&self.module).map_err(|error| {
            Fault::usage(anyhow::Error::new(error).context(format!("{} cannot be read", self.module.display())))
                .hint("name a module with --module")
        })?;
        let version = deploy::examine(&module, settings).map_err(|error| deploy::no_handler(&self.module, error))?;
        let replayed = capsule.replay(&version)?;
        if matches!(replayed, Replayed::Irrelevant(_)) {
            eprintln!(
                "none of its {} events matters to this module, which {}; the document stays as it was",
                capsule.events.len(),
                if version.description.name == capsule.handler {
                    "passes them by".to_owned()
                } else {
                    format!("is {}; they are of {}", version.description.name, capsule.handler)
                }
            );
        }
        match replayed {
            Replayed::Document(Some(document)) | Replayed::Irrelevant(Some(document)) => Ok(output::bytes(&document)?),
            Replayed::Document(None) | Replayed::Irrelevant(None) => {
                eprintln!("the key has no document after its {} events", capsule.events.len());
                Ok(())
            }
            Replayed::Failed(failed) => {
                if json {
                    output::json(&failed)?;
                }
                let frames =
                    if failed.backtrace.is_empty() { String::new() } else { format!("\n{}", failed.backtrace) };
                Err(Fault::failed(anyhow::anyhow!(
                    "event {} of {}, {}:{}, fails ({}): {}{frames}",
                    failed.event + 1,
                    capsule.events.len(),
                    failed.stream,
                    failed.sequence,
                    failed.class,
                    failed.reason
                ))
                .hint("mend the module and try again; once it takes all of them, deploy it and redrive the key"))
            }
        }
    }
}

fn unreadable(path: &std::path::Display<'_>, error: impl Into<anyhow::Error>) -> Fault {
    Fault::usage(error.into().context(format!("{path} cannot be read")))
        .hint("write one with `millstream dead HANDLER --key KEY --save FILE`")
}
