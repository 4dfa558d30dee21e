//! The program under test, as a person or a service manager runs it: a command to its end, or a host that lives on.

use std::io::Write as _;
use std::process::{Child, Command, Output, Stdio};
use std::time::Instant;

use super::{PATIENCE, pause};

/// The program under test.
pub const MILLSTREAM: &str = env!("CARGO_BIN_EXE_millstream");

/// Runs the program to its end.
pub fn cli(url: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new(MILLSTREAM);
    command.args(["--server", url]).args(arguments).stdin(Stdio::null());
    command.output().expect("millstream runs")
}

/// Runs the program, insists on this exit code and a hint, and answers its stderr.
#[track_caller]
pub fn refused(url: &str, code: i32, arguments: &[&str]) -> String {
    let output = cli(url, arguments);
    let stderr = String::from_utf8(output.stderr).expect("stderr is UTF-8");
    assert_eq!(output.status.code(), Some(code), "millstream {}:\n{stderr}", arguments.join(" "));
    // A guest's own lines and a host's log may stand before it.
    let told = stderr.lines().any(|line| line.starts_with("error: "));
    assert!(told, "millstream {}:\n{stderr}", arguments.join(" "));
    assert!(stderr.contains("\nhint: "), "no hint from millstream {}:\n{stderr}", arguments.join(" "));
    assert!(output.stdout.is_empty(), "stdout is data");
    stderr
}

/// A host process.
pub struct Host {
    child: Child,
    log: tempfile::NamedTempFile,
}

impl Host {
    pub fn start(url: &str, environment: &[(&str, &str)]) -> Self {
        let log = tempfile::NamedTempFile::new().expect("a log file");
        let mut command = Command::new(MILLSTREAM);
        command.args(["--server", url, "run"]).stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(log.reopen().expect("the log file")).envs(environment.iter().copied());
        Self { child: command.spawn().expect("millstream runs"), log }
    }

    /// kill -9.
    pub fn kill(&mut self) {
        self.child.kill().expect("killed");
        self.child.wait().expect("reaped");
    }

    /// Sends a signal by name.
    pub fn signal(&self, signal: &str) {
        let status = Command::new("kill").args([&format!("-{signal}"), &self.child.id().to_string()]).status();
        assert!(status.expect("kill runs").success());
    }

    /// Whether it stands still, as after SIGSTOP.
    pub fn is_stopped(&self) -> bool {
        let state = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap_or_default();
        // After the name in parentheses, which may hold anything.
        state.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T'))
    }

    /// Its memory.
    pub fn resident_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("it lives");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its memory");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") << 10
    }

    /// The exit code, if it has ended.
    pub fn ended(&mut self) -> Option<std::process::ExitStatus> {
        self.child.try_wait().expect("a child of ours")
    }

    /// Waits for the end.
    pub async fn end(&mut self) -> std::process::ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.ended() {
                return status;
            }
            assert!(Instant::now() < deadline, "the host did not end; its log:\n{}", self.log());
            pause().await;
        }
    }

    /// What it has said.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log.path()).expect("the log file")
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let _ = std::io::stderr().write_all(format!("--- a host's log ---\n{}", self.log()).as_bytes());
        }
    }
}
