//! The example handlers of this repository, built with cargo for demo, tests and benchmarks. In: the workspace and handlers by name.
//! Out: their modules. Never: part of a host; who runs a host brings modules of their own.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};

/// Builds these handlers.
///
/// # Errors
/// When cargo cannot be had, or a handler does not build.
pub fn build(workspace: &Path, handlers: &[&str]) -> anyhow::Result<()> {
    let mut command = cargo(workspace);
    command.args(["build", "--quiet", "--profile", "module", "--target", "wasm32-unknown-unknown"]);
    for handler in handlers {
        command.args(["--package", handler]);
    }
    let status = command.status().context("cargo could not be started")?;
    ensure!(status.success(), "the examples do not build; hint: rustup target add wasm32-unknown-unknown");
    Ok(())
}

/// The module of a handler that was built.
#[must_use]
pub fn module(workspace: &Path, handler: &str) -> PathBuf {
    target(workspace).join("wasm32-unknown-unknown/module").join(format!("{}.wasm", handler.replace('-', "_")))
}

/// A cargo for this workspace: the one that runs us, where one does.
#[must_use]
pub fn cargo(workspace: &Path) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace);
    command
}

/// The folder that cargo builds into.
#[must_use]
pub fn target(workspace: &Path) -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace.join("target"), PathBuf::from)
}
