//! A secret, given as it is or in a file: what stands on a command line, every list of processes shows. Never: shows it.

use std::path::Path;

use anyhow::Context as _;

use super::Fault;

/// The secret, if there is one; a line end behind it is none of it.
pub(super) fn of(plain: Option<&str>, file: Option<&Path>, what: &str) -> Result<Option<String>, Fault> {
    let plain = || plain.filter(|secret| !secret.is_empty()).map(str::to_owned);
    let Some(file) = file.filter(|file| !file.as_os_str().is_empty()) else { return Ok(plain()) };
    let unusable = |error: anyhow::Error| {
        Fault::usage(error).hint("name a file that this user may read, with the secret as its only line")
    };
    let text = std::fs::read_to_string(file)
        .with_context(|| format!("{what} cannot be read from {}", file.display()))
        .map_err(unusable)?;
    if is_open_to_all(file) {
        tracing::warn!(file = %file.display(), "everybody on this machine may read {what}; close it with chmod 600");
    }
    let secret = text.trim_end_matches(['\r', '\n']);
    if secret.is_empty() || secret.contains('\n') {
        return Err(unusable(anyhow::anyhow!("{what} is not the only line of {}", file.display())));
    }
    Ok(Some(secret.to_owned()))
}

fn is_open_to_all(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::metadata(file).is_ok_and(|found| found.permissions().mode() & 0o004 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_everybody_may_read_is_seen() {
        use std::os::unix::fs::PermissionsExt as _;
        let file = tempfile::NamedTempFile::new().unwrap();
        for (mode, open) in [(0o600, false), (0o640, false), (0o644, true), (0o604, true)] {
            std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(is_open_to_all(file.path()), open, "{mode:o}");
        }
    }

    #[test]
    fn a_secret_is_one_line_of_a_file_or_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("secret");
        for (text, secret) in [
            ("s3cret", Some("s3cret")),
            ("s3cret\n", Some("s3cret")),
            (" s3 cret \r\n", Some(" s3 cret ")),
            ("", None),
            ("\n", None),
            ("one\ntwo\n", None),
        ] {
            std::fs::write(&file, text).unwrap();
            let read = of(None, Some(&file), "the word");
            assert_eq!(read.as_ref().ok().and_then(|read| read.as_deref()), secret, "{text:?}");
            assert!(read.is_ok() || read.is_err_and(|fault| fault.code() == 2));
        }
        let told = of(None, Some(&folder.path().join("none")), "the word").unwrap_err().to_string();
        assert!(told.contains("the word cannot be read from") && told.contains("hint: "), "{told}");
        assert_eq!(of(Some("plain"), None, "the word").unwrap().as_deref(), Some("plain"));
        assert_eq!(of(Some(""), Some(Path::new("")), "the word").unwrap(), None);
    }
}
