//! Compiled modules on disk. In: a digest and an engine. Out: the compiled file. Several hosts may share the folder:
//! files appear whole or not at all, and a damaged or foreign one is compiled anew. Never: trusts a file in a folder
//! that others may write to.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};
use wasmtime::component::Component;

use super::Sandbox;

/// A folder of compiled modules.
#[derive(Clone, Debug)]
pub struct Cache {
    folder: Option<PathBuf>,
}

impl Cache {
    /// Uses `folder`, making it (private to this user) when it is missing. A folder that cannot be used is not an error:
    /// modules are then compiled at every start, and the log says so.
    #[must_use]
    pub fn at(folder: &Path) -> Self {
        match prepare(folder) {
            Ok(()) => Self { folder: Some(folder.to_owned()) },
            Err(reason) => {
                tracing::warn!(folder = %folder.display(), reason, "compiled modules will not be cached");
                Self::disabled()
            }
        }
    }

    /// Compiles every time.
    #[must_use]
    pub fn disabled() -> Self {
        Self { folder: None }
    }

    /// The folder for this user: `$MILLSTREAM_CACHE`, else `$XDG_CACHE_HOME/millstream`, else `~/.cache/millstream`.
    #[must_use]
    pub fn for_user() -> Self {
        let given = std::env::var_os("MILLSTREAM_CACHE").map(PathBuf::from);
        let xdg = || std::env::var_os("XDG_CACHE_HOME").map(|folder| PathBuf::from(folder).join("millstream"));
        let home = || std::env::home_dir().map(|folder| folder.join(".cache/millstream"));
        given.or_else(xdg).or_else(home).map_or_else(Self::disabled, |folder| Self::at(&folder.join("modules")))
    }

    /// The component stored under `name`, if its bytes are the ones that were written.
    pub(super) fn load(&self, sandbox: &Sandbox, name: &str) -> Option<Component> {
        let bytes = fs::read(self.folder.as_ref()?.join(name)).ok()?;
        let (digest, compiled) = bytes.split_at_checked(32)?;
        if Sha256::digest(compiled).as_slice() != digest {
            tracing::warn!(name, "a cached module is damaged and will be compiled anew");
            return None;
        }
        Self::link(sandbox, compiled).ok()
    }

    /// Writes beside and renames, so that a reader never sees half a file. Failing only costs a compilation later.
    pub(super) fn store(&self, name: &str, compiled: &[u8]) {
        let Some(folder) = &self.folder else { return };
        let write = || -> std::io::Result<()> {
            let mut file = tempfile::NamedTempFile::new_in(folder)?;
            file.write_all(Sha256::digest(compiled).as_slice())?;
            file.write_all(compiled)?;
            file.persist(folder.join(name))?;
            Ok(())
        };
        if let Err(error) = write() {
            tracing::warn!(name, %error, "a compiled module could not be cached");
        }
    }

    #[allow(
        unsafe_code,
        reason = "deserialize trusts its input to be Wasmtime's own output: the bytes are either fresh from the \
        compiler or carry the digest written beside them, in a folder that only this user can write to"
    )]
    pub(super) fn link(sandbox: &Sandbox, compiled: &[u8]) -> Result<Component, wasmtime::Error> {
        unsafe { Component::deserialize(sandbox.engine(), compiled) }
    }
}

/// Makes the folder and refuses one that other users can write to: its files are machine code.
fn prepare(folder: &Path) -> Result<(), String> {
    use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(|error| error.to_string())?;
    let mode = fs::metadata(folder).map_err(|error| error.to_string())?.permissions().mode();
    if mode & 0o022 != 0 {
        return Err(format!("its mode is {:o}: others may write to it", mode & 0o777));
    }
    Ok(())
}
