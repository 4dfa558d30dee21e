//! The nats-server child process of `demo`, `dev`, tests and benches. In: what it shall be like. Out: a server that
//! answers. Never used by `run`: there the server is the user's.
//!
//! A real server with its own folder on a port of its own. It ends with its parent, even when the parent is killed with
//! -9: between the two sits a small shell script that reads a pipe which only the parent holds.

mod fetch;
mod launch;

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

use launch::{Running, launch, log_in};

pub use fetch::{fetch_version, find_or_fetch};

/// What can go wrong with the server of our own.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no nats-server, and none could be fetched.
    #[error("cannot fetch nats-server {version}: {reason}")]
    Fetch {
        /// The version that was wanted.
        version: String,
        /// Why not.
        reason: String,
    },
    /// `MILLSTREAM_NATS_SERVER` names something that is no nats-server.
    #[error("MILLSTREAM_NATS_SERVER names {path:?}, which does not run as a nats-server")]
    Override {
        /// What it names.
        path: PathBuf,
    },
    /// The fetched binary is not the one we know.
    #[error("nats-server {version} has sha256 {found}, expected {expected}")]
    Digest {
        /// The version that was fetched.
        version: String,
        /// The digest of what came.
        found: String,
        /// The pinned digest.
        expected: String,
    },
    /// Another server runs in the folder.
    #[error("folder {folder:?} is in use by another nats-server")]
    InUse {
        /// The folder.
        folder: PathBuf,
    },
    /// The server ended, or did not answer in time.
    #[error("nats-server {what}; the end of {log:?}:\n{lines}")]
    Start {
        /// Ended or silent.
        what: &'static str,
        /// Where its whole log is.
        log: PathBuf,
        /// The last lines of the log.
        lines: String,
    },
    /// A file or a process could not be handled.
    #[error("cannot {what}")]
    Io {
        /// What was tried.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
}

impl Error {
    /// The next thing to do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Fetch { .. } | Self::Digest { .. } => {
                Some("put nats-server 2.12 or later on PATH, or name one in MILLSTREAM_NATS_SERVER")
            }
            Self::Override { .. } => Some("unset MILLSTREAM_NATS_SERVER, or name a nats-server binary in it"),
            Self::InUse { .. } => Some("stop that server, or use another folder"),
            Self::Start { .. } | Self::Io { .. } => None,
        }
    }
}

fn io_error(what: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
    let what = what.into();
    move |source| Error::Io { what, source }
}

/// How a server is to be started.
#[derive(Debug, Clone)]
pub struct Builder {
    binary: Option<PathBuf>,
    folder: Option<PathBuf>,
    port: u16,
    jetstream: bool,
    sync_always: bool,
    max_payload: Option<usize>,
    extra: String,
}

impl Builder {
    /// The nats-server to run; else [`find_or_fetch`] finds one.
    pub fn binary(mut self, binary: impl Into<PathBuf>) -> Self {
        self.binary = Some(binary.into());
        self
    }

    /// Where its data, configuration and log go, and stay; else a folder that ends with the server.
    pub fn folder(mut self, folder: impl Into<PathBuf>) -> Self {
        self.folder = Some(folder.into());
        self
    }

    /// The port to listen on; 0, the default, takes a free one.
    pub fn port(mut self, port: u16) -> Self {
        self.port = port;
        self
    }

    /// Whether JetStream is on; it is by default.
    pub fn jetstream(mut self, on: bool) -> Self {
        self.jetstream = on;
        self
    }

    /// Whether each write reaches the disk before it is acknowledged.
    pub fn sync_always(mut self, on: bool) -> Self {
        self.sync_always = on;
        self
    }

    /// The largest message in bytes.
    pub fn max_payload(mut self, bytes: usize) -> Self {
        self.max_payload = Some(bytes);
        self
    }

    /// More configuration, in the server's own syntax: accounts, authorization, TLS.
    pub fn extra(mut self, configuration: impl Into<String>) -> Self {
        self.extra = configuration.into();
        self
    }

    /// Starts the server and waits until it answers.
    pub async fn start(self) -> Result<Server, Error> {
        blocking(move || Server::start(self)).await
    }

    fn configuration(&self, folder: &Path, port: u16) -> String {
        let listen = if port == 0 { "-1".to_owned() } else { port.to_string() };
        let mut text = format!("host: 127.0.0.1\nport: {listen}\nports_file_dir: {}\n", quoted(folder));
        if let Some(bytes) = self.max_payload {
            text.push_str(&format!("max_payload: {bytes}\n"));
        }
        if self.jetstream {
            let sync = if self.sync_always { ", sync_interval: always" } else { "" };
            text.push_str(&format!("jetstream {{ store_dir: {}{sync} }}\n", quoted(&folder.join("jetstream"))));
        }
        text.push_str(&self.extra);
        text.push('\n');
        text
    }
}

fn quoted(path: &Path) -> String {
    format!("\"{}\"", path.display().to_string().replace('\\', "\\\\").replace('"', "\\\""))
}

/// A running nats-server that ends when this is dropped, or when this process ends.
#[derive(Debug)]
pub struct Server {
    builder: Builder,
    binary: PathBuf,
    folder: PathBuf,
    port: u16,
    running: Option<Running>,
    pid: u32,
    // Last: removed after the server has ended.
    own_folder: Option<TempDir>,
}

impl Server {
    /// A server with JetStream, in a folder of its own, on a free port.
    pub fn builder() -> Builder {
        Builder {
            binary: None,
            folder: None,
            port: 0,
            jetstream: true,
            sync_always: false,
            max_payload: None,
            extra: String::new(),
        }
    }

    /// Where clients connect to.
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// The port it listens on.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The process id of the nats-server itself.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Where its data, configuration and log are.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Its log.
    pub fn log(&self) -> PathBuf {
        log_in(&self.folder)
    }

    /// Kills the server with -9 and returns when it is gone. [`Server::restart`] brings it back.
    pub fn kill(&mut self) {
        signal("-KILL", self.pid);
        self.end();
    }

    /// Ends the server if it runs, and starts it again with the same data and port.
    pub async fn restart(&mut self) -> Result<(), Error> {
        self.end();
        let (builder, binary, folder, port) =
            (self.builder.clone(), self.binary.clone(), self.folder.clone(), self.port);
        let (running, pid, _) = blocking(move || launch(&builder, &binary, &folder, port)).await?;
        (self.running, self.pid) = (Some(running), pid);
        Ok(())
    }

    /// Ends the server in good order and returns when it is gone.
    pub async fn stop(mut self) {
        let running = self.running.take();
        let _ = tokio::task::spawn_blocking(move || running.map(Running::end)).await;
    }

    fn start(builder: Builder) -> Result<Self, Error> {
        let binary = match &builder.binary {
            Some(binary) => binary.clone(),
            None => find_or_fetch(|_| {})?,
        };
        let (folder, own_folder) = match &builder.folder {
            Some(folder) => (folder.clone(), None),
            None => {
                let own = tempfile::Builder::new().prefix("millstream-nats-").tempdir();
                let own = own.map_err(io_error("make a folder for nats-server"))?;
                (own.path().to_owned(), Some(own))
            }
        };
        std::fs::create_dir_all(&folder).map_err(io_error(format!("make folder {folder:?}")))?;
        // The wrapper's server runs in the same place as we do; a relative path is one about ours.
        let folder = folder.canonicalize().map_err(io_error(format!("find folder {folder:?}")))?;
        let (running, pid, port) = launch(&builder, &binary, &folder, builder.port)?;
        Ok(Self { builder, binary, folder, port, running: Some(running), pid, own_folder })
    }

    fn end(&mut self) {
        if let Some(running) = self.running.take() {
            running.end();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.own_folder.is_some() && self.running.is_some() {
            // Nobody will read its data again: no need to wait for an orderly end.
            signal("-KILL", self.pid);
        }
        self.end();
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Error::Io { what: "start nats-server".to_owned(), source: io::Error::other(error) }),
    }
}

/// Sends a signal with the system's own tool: the call itself would need unsafe code.
fn signal(signal: &str, pid: u32) {
    let _ = Command::new("kill").arg(signal).arg(pid.to_string()).stderr(Stdio::null()).status();
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::time::{Duration, Instant};

    use super::*;

    const POLL: Duration = Duration::from_millis(5);

    async fn client(server: &Server) -> async_nats::Client {
        async_nats::connect(server.url()).await.unwrap()
    }

    fn is_alive(pid: u32) -> bool {
        Command::new("kill").args(["-0", &pid.to_string()]).stderr(Stdio::null()).status().unwrap().success()
    }

    fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !condition() {
            assert!(Instant::now() < deadline, "waited in vain: {what}");
            std::thread::sleep(POLL);
        }
    }

    async fn messages(server: &Server) -> u64 {
        let jetstream = async_nats::jetstream::new(client(server).await);
        let stream = jetstream.get_or_create_stream("KEPT").await.unwrap();
        jetstream.publish("KEPT", "one".into()).await.unwrap().await.unwrap();
        stream.get_info().await.unwrap().state.messages
    }

    #[tokio::test]
    async fn two_servers_run_side_by_side_and_end_when_dropped() {
        let (one, two) = tokio::join!(Server::builder().start(), Server::builder().jetstream(false).start());
        let (one, two) = (one.unwrap(), two.unwrap());
        assert_ne!(one.url(), two.url());
        assert_eq!(messages(&one).await, 1);
        assert!(!client(&two).await.server_info().jetstream);
        let (pids, folder) = ([one.pid(), two.pid()], one.folder().to_owned());
        assert!(pids.iter().all(|pid| is_alive(*pid)));
        drop((one, two));
        assert!(!pids.iter().any(|pid| is_alive(*pid)));
        assert!(!folder.exists());
    }

    #[tokio::test]
    async fn a_restart_keeps_data_and_port() {
        let mut server = Server::builder().sync_always(true).max_payload(4096).start().await.unwrap();
        let (url, pid) = (server.url(), server.pid());
        assert_eq!(client(&server).await.server_info().max_payload, 4096);
        assert_eq!(messages(&server).await, 1);
        server.kill();
        assert!(!is_alive(pid));
        server.restart().await.unwrap();
        assert_eq!(server.url(), url);
        assert_ne!(server.pid(), pid);
        assert_eq!(messages(&server).await, 2);
        server.restart().await.unwrap();
        assert_eq!(messages(&server).await, 3);
        let pid = server.pid();
        server.stop().await;
        assert!(!is_alive(pid));
    }

    #[tokio::test]
    async fn a_given_folder_stays_and_takes_one_server_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("a \"quoted\" place");
        let server = Server::builder().folder(&place).start().await.unwrap();
        assert_eq!(messages(&server).await, 1);
        assert!(File::open(server.log()).unwrap().try_lock().is_err(), "the folder is not locked");
        server.stop().await;
        let server = Server::builder().folder(&place).start().await.unwrap();
        assert_eq!(messages(&server).await, 2);
    }

    #[tokio::test]
    async fn a_server_that_cannot_start_shows_its_log() {
        let error = Server::builder().extra("no_such_setting: 1 }{").start().await.unwrap_err();
        assert!(
            matches!(&error, Error::Start { what: "ended while starting", lines, .. } if lines.contains("nats-server")),
            "{error}"
        );
    }

    #[tokio::test]
    async fn the_wrapper_ends_when_the_server_dies() {
        let mut server = Server::builder().start().await.unwrap();
        signal("-KILL", server.pid());
        let wrapper = &mut server.running.as_mut().unwrap().wrapper;
        wait_for("the wrapper ends", || wrapper.try_wait().unwrap().is_some());
    }

    /// Not a test by itself: the parent that [`the_server_ends_when_its_parent_is_killed`] kills.
    #[tokio::test]
    async fn helper_parent() {
        let Some(file) = std::env::var_os("MILLSTREAM_TEST_PARENT") else { return };
        let server = Server::builder().start().await.unwrap();
        let report = PathBuf::from(file);
        std::fs::write(report.with_extension("part"), format!("{} {}", server.pid(), server.folder().display()))
            .unwrap();
        std::fs::rename(report.with_extension("part"), &report).unwrap();
        std::future::pending::<()>().await;
    }

    #[test]
    fn the_server_ends_when_its_parent_is_killed() {
        let folder = tempfile::tempdir().unwrap();
        let report = folder.path().join("report");
        let name = "helper_parent";
        let mut parent = Command::new(std::env::current_exe().unwrap())
            .args([name, "--nocapture"])
            .env("MILLSTREAM_TEST_PARENT", &report)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        wait_for("the parent reports", || report.exists());
        let text = std::fs::read_to_string(&report).unwrap();
        let (pid, its_folder) = text.split_once(' ').unwrap();
        let pid: u32 = pid.parse().unwrap();
        assert!(is_alive(pid));
        parent.kill().unwrap();
        parent.wait().unwrap();
        wait_for("the server ends", || !is_alive(pid));
        // The killed parent could not remove it.
        std::fs::remove_dir_all(its_folder).unwrap();
    }
}
