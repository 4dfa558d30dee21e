//! Builds the example modules, and the services that answer the saga, with cargo. In: the clone that the demo is run in. Out: their
//! bytes, and the services' program. Never: fetches sources.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};

use crate::examples;

/// What the demo runs.
pub(super) struct Built {
    /// Names and bytes.
    pub(super) modules: Vec<(String, Vec<u8>)>,
    /// The program that answers commands.
    pub(super) services: PathBuf,
}

/// Builds these handlers, and the services.
pub(super) fn build(handlers: &[&str]) -> anyhow::Result<Built> {
    let root =
        workspace().context("the examples are built from a clone of the repository: run `cargo demo` inside one")?;
    super::say("modules", &format!("building {}", handlers.join(", ")));
    // Together with this program, which is built already: so both use the same builds of what they depend on.
    let mut command = examples::cargo(&root);
    command.args(["build", "--quiet", "--package", "millstream", "--package", "order-services"]);
    if !cfg!(debug_assertions) {
        command.arg("--release");
    }
    // What `cargo run` says of this package would make build scripts run again, and what depends on them build again.
    let is_ours = |name: &str| ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_"].iter().any(|of| name.starts_with(of));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(is_ours)) {
        command.env_remove(name);
    }
    let status = command.status().context("cargo could not be started")?;
    ensure!(status.success(), "the services of the example do not build");
    let profile = if cfg!(debug_assertions) { "debug" } else { "release" };
    let services =
        examples::target(&root).join(profile).join(format!("order-services{}", std::env::consts::EXE_SUFFIX));
    examples::build(&root, handlers)?;
    let read = |handler: &&str| {
        let file = examples::module(&root, handler);
        let bytes = std::fs::read(&file).with_context(|| format!("{} cannot be read", file.display()))?;
        Ok(((*handler).to_owned(), bytes))
    };
    let modules = handlers.iter().map(read).collect::<anyhow::Result<_>>()?;
    Ok(Built { modules, services })
}

/// The folder above us that holds the examples.
fn workspace() -> Option<PathBuf> {
    let start = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from).or_else(|| std::env::current_dir().ok())?;
    let holds = |folder: &&Path| folder.join("handlers/customer-spend/Cargo.toml").is_file();
    start.ancestors().find(holds).map(Path::to_owned)
}
