//! Handler crates on disk, as cargo sees them. In: folders. Out: where each one's sources are and its module will be; tests and builds
//! with what cargo has to say on stderr. Never: changes a file of the crate.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail, ensure};
use serde::Deserialize;

/// A handler crate.
#[derive(Clone, Debug)]
pub(super) struct Crate {
    package: String,
    /// The folder of its manifest.
    pub(super) folder: PathBuf,
    /// Where cargo builds into.
    target: PathBuf,
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    target_directory: PathBuf,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    manifest_path: PathBuf,
    targets: Vec<Target>,
}

#[derive(Deserialize)]
struct Target {
    crate_types: Vec<String>,
}

/// The handler crates in these folders.
///
/// # Errors
/// Names the folder without one.
pub(super) fn find(folders: &[PathBuf]) -> anyhow::Result<Vec<Crate>> {
    folders.iter().map(|folder| one(folder)).collect()
}

fn one(folder: &Path) -> anyhow::Result<Crate> {
    let folder = folder.canonicalize().with_context(|| format!("{} is no folder", folder.display()))?;
    let manifest = folder.join("Cargo.toml");
    ensure!(
        manifest.is_file(),
        "{} has no Cargo.toml; hint: name the folder of a handler crate, or make one with `millstream new NAME`",
        folder.display()
    );
    let mut command = cargo(&folder);
    command.args(["metadata", "--no-deps", "--format-version", "1", "--manifest-path"]).arg(&manifest);
    let output = command.output().context("cargo could not be started")?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let metadata: Metadata = serde_json::from_slice(&output.stdout).context("cargo metadata")?;
    let package = metadata.packages.into_iter().find(|package| package.manifest_path == manifest);
    let package = package.with_context(|| format!("{} has no package", manifest.display()))?;
    let is_module = |target: &Target| target.crate_types.iter().any(|kind| kind == "cdylib");
    ensure!(
        package.targets.iter().any(is_module),
        "{} is no handler: its library is no `cdylib`; hint: compare with one that `millstream new NAME` makes",
        package.name
    );
    Ok(Crate { package: package.name, folder, target: metadata.target_directory })
}

impl Crate {
    /// Its module, once built.
    pub(super) fn module(&self) -> PathBuf {
        self.target.join("wasm32-unknown-unknown/module").join(format!("{}.wasm", self.package.replace('-', "_")))
    }

    /// Runs its native tests.
    ///
    /// # Errors
    /// When one fails; cargo has said which.
    pub(super) fn test(&self) -> anyhow::Result<()> {
        let status = self.cargo(&["test", "--quiet"])?;
        ensure!(status.success(), "tests of {} fail; what runs goes on", self.package);
        Ok(())
    }

    /// Builds its module.
    ///
    /// # Errors
    /// When it does not build; cargo has said why.
    pub(super) fn build(&self) -> anyhow::Result<()> {
        let status = self.cargo(&["build", "--quiet", "--profile", "module", "--target", "wasm32-unknown-unknown"])?;
        ensure!(status.success(), "{} does not build; what runs goes on", self.package);
        Ok(())
    }

    fn cargo(&self, arguments: &[&str]) -> anyhow::Result<std::process::ExitStatus> {
        let mut command = cargo(&self.folder);
        // stdout is for documents.
        let stderr = std::io::stderr();
        command.args(arguments).args(["--package", &self.package]);
        command.stdout(std::process::Stdio::from(std::os::fd::AsFd::as_fd(&stderr).try_clone_to_owned()?));
        command.status().context("cargo could not be started")
    }
}

/// A cargo in this folder: the one that its toolchain file asks for, whoever runs us.
fn cargo(folder: &Path) -> Command {
    let mut command = Command::new("cargo");
    command.current_dir(folder).stdin(std::process::Stdio::null());
    command
}
