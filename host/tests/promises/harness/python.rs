//! A Python with the parsers that Prometheus and its tools use, installed by pip into the build's folder. In: a script's arguments and
//! stdin. Out: its JSON. Skips where there is no pip, but not in CI.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use serde_json::Value;

use super::data;

const PACKAGES: [&str; 3] = ["prometheus-client==0.26.0", "promql-parser==0.12.0", "pyyaml==6.0.3"];
const SCRIPT: &str = include_str!("prometheus.py");

/// Runs `prometheus.py`; none, and said, where it cannot run here.
#[track_caller]
pub fn prometheus(arguments: &[&str], stdin: &str) -> Option<Value> {
    static PYTHON: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let python = match PYTHON.get_or_init(install) {
        Ok(python) => python,
        Err(error) if data::is_ci() => panic!("{error}"),
        Err(error) => {
            data::skip(error);
            return None;
        }
    };
    let mut command = Command::new(python);
    command.args(["-c", SCRIPT]).args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("python runs");
    let mut pipe = child.stdin.take().expect("stdin");
    let text = stdin.to_owned();
    let writing = std::thread::spawn(move || pipe.write_all(text.as_bytes()));
    let output = child.wait_with_output().expect("python ends");
    let _ = writing.join();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{arguments:?}: {said}\n{}",
        stdin.lines().take(40).collect::<Vec<_>>().join("\n")
    );
    Some(serde_json::from_slice(&output.stdout).expect("JSON"))
}

fn install() -> Result<PathBuf, String> {
    // By version, so that other versions are another folder.
    let folder =
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("python-{}", PACKAGES.join("-").replace("==", "-")));
    let python = folder.join("bin/python");
    let runs = |python: &Path| {
        let import = Command::new(python).args(["-c", "import prometheus_client, promql_parser, yaml"]).output();
        import.is_ok_and(|output| output.status.success())
    };
    if runs(&python) {
        return Ok(python);
    }
    run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&folder))?;
    let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--only-binary=:all:"];
    run(Command::new(&python).args(pip).args(PACKAGES))?;
    Ok(python)
}

fn run(command: &mut Command) -> Result<(), String> {
    let output = command.stdin(Stdio::null()).output().map_err(|error| format!("{command:?}: {error}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.success() { Ok(()) } else { Err(format!("{command:?}: {}", said.trim())) }
}
