//! Builds the example modules with cargo, from the clone that the demo is run in.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};

/// Builds these handlers and answers their names and bytes.
pub(super) fn build(handlers: &[&str]) -> anyhow::Result<Vec<(String, Vec<u8>)>> {
    let root =
        workspace().context("the examples are built from a clone of the repository: run `cargo demo` inside one")?;
    super::say("modules", &format!("building {}", handlers.join(" and ")));
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.current_dir(&root).args(["build", "--quiet", "--profile", "module", "--target", "wasm32-unknown-unknown"]);
    for handler in handlers {
        command.args(["--package", handler]);
    }
    let status = command.status().context("cargo could not be started")?;
    ensure!(status.success(), "the examples do not build; hint: rustup target add wasm32-unknown-unknown");
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    let folder = target.join("wasm32-unknown-unknown/module");
    let read = |handler: &&str| {
        let file = folder.join(format!("{}.wasm", handler.replace('-', "_")));
        let bytes = std::fs::read(&file).with_context(|| format!("{} cannot be read", file.display()))?;
        Ok(((*handler).to_owned(), bytes))
    };
    handlers.iter().map(read).collect()
}

/// The folder above us that holds the examples.
fn workspace() -> Option<PathBuf> {
    let start = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from).or_else(|| std::env::current_dir().ok())?;
    let holds = |folder: &&Path| folder.join("handlers/customer-spend/Cargo.toml").is_file();
    start.ancestors().find(holds).map(Path::to_owned)
}
