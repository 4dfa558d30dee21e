//! One start of a server. In: a binary and a folder. Out: a child that answers, behind a shell script that ends it with
//! us. Never: two servers on one folder; it is locked.

use std::fs::{File, TryLockError};
use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use super::{Builder, Error, io_error};

/// How long a server may take until it answers. Recovering a large store takes most of it.
const START_DEADLINE: Duration = Duration::from_secs(30);
/// How long to wait for the server that still uses the folder or the port, e.g. of a parent that was just killed.
const HANDOVER_DEADLINE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(5);
const LOG_LINES_SHOWN: usize = 12;
const LOG_BYTES_SHOWN: u64 = 8 * 1024;

/// The parent's end of stdin closes when the parent ends, however it ends. Then the watcher ends the server: politely, and after
/// five seconds not. When the server ends by itself, the watcher is not needed any more.
/// Stdin is moved to 3 because a shell gives its background jobs /dev/null as stdin.
const WRAPPER: &str = r#"
exec 3<&0 </dev/null
"$@" >&2 3<&- &
server=$!
echo "$server"
exec >/dev/null
(
  read -r _ <&3
  kill -TERM "$server"
  tries=0
  while kill -0 "$server" && [ "$tries" -lt 50 ]; do sleep 0.1; tries=$((tries + 1)); done
  kill -KILL "$server"
) 2>/dev/null &
watcher=$!
wait "$server"
code=$?
kill -KILL "$watcher" 2>/dev/null
exit "$code"
"#;

/// The script that minds the server.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) wrapper: Child,
    // Closing it ends the server.
    lifeline: Option<ChildStdin>,
}

impl Running {
    pub(super) fn end(mut self) {
        drop(self.lifeline.take());
        // The wrapper ends within seconds, whatever the server does. A failure means that it is gone already.
        let _ = self.wrapper.wait();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.lifeline.take());
        let _ = self.wrapper.wait();
    }
}

pub(super) fn log_in(folder: &Path) -> PathBuf {
    folder.join("nats-server.log")
}

/// Starts wrapper and server; answers the server's pid and port when it takes connections.
pub(super) fn launch(builder: &Builder, binary: &Path, folder: &Path, port: u16) -> Result<(Running, u32, u16), Error> {
    let configuration = folder.join("nats-server.conf");
    let log = log_in(folder);
    let locked = lock_log(folder, &log)?;
    let text = builder.configuration(folder, port);
    std::fs::write(&configuration, text).map_err(io_error(format!("write {configuration:?}")))?;

    let deadline = Instant::now() + HANDOVER_DEADLINE;
    loop {
        // The lock travels with the log's descriptor and ends when wrapper and server are both gone.
        let log_for_child = locked.try_clone().map_err(io_error(format!("share {log:?}")))?;
        match launch_once(builder, binary, &configuration, log_for_child, folder, port) {
            // The old server's port can stay taken for a moment.
            Err(Error::Start { lines, .. })
                if port != 0 && lines.contains("address already in use") && Instant::now() < deadline =>
            {
                std::thread::sleep(POLL * 20);
            }
            done => return done,
        }
    }
}

fn launch_once(
    builder: &Builder,
    binary: &Path,
    configuration: &Path,
    log: File,
    folder: &Path,
    port: u16,
) -> Result<(Running, u32, u16), Error> {
    let mut wrapper = Command::new("/bin/sh")
        .args(["-c", WRAPPER, "millstream-nats-server"])
        .arg(binary)
        .arg("-c")
        .arg(configuration)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(log)
        // Out of the terminal's group: Ctrl-C must not end the server before its parent is done with it.
        .process_group(0)
        .spawn()
        .map_err(io_error("run /bin/sh"))?;
    let (lifeline, said) = (wrapper.stdin.take(), wrapper.stdout.take());
    let mut running = Running { wrapper, lifeline };

    let mut line = String::new();
    if let Some(said) = said {
        BufReader::new(said).read_line(&mut line).map_err(io_error("read nats-server's process id"))?;
    }
    let not_a_pid = |_| io_error("read nats-server's process id")(io::ErrorKind::InvalidData.into());
    let pid = line.trim().parse::<u32>().map_err(not_a_pid)?;
    let port = wait_until_ready(&mut running, builder.jetstream, folder, pid, port)?;
    Ok((running, pid, port))
}

fn lock_log(folder: &Path, log: &Path) -> Result<File, Error> {
    let file = File::options().create(true).append(true).read(true).open(log);
    let file = file.map_err(io_error(format!("open {log:?}")))?;
    let deadline = Instant::now() + HANDOVER_DEADLINE;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => std::thread::sleep(POLL),
            Err(TryLockError::WouldBlock) => return Err(Error::InUse { folder: folder.to_owned() }),
            Err(TryLockError::Error(error)) => return Err(io_error(format!("lock {log:?}"))(error)),
        }
    }
}

fn wait_until_ready(running: &mut Running, jetstream: bool, folder: &Path, pid: u32, port: u16) -> Result<u16, Error> {
    let failed = |what| Error::Start { what, log: log_in(folder), lines: last_lines(&log_in(folder)) };
    let deadline = Instant::now() + START_DEADLINE;
    while Instant::now() < deadline {
        if running.wrapper.try_wait().map_err(io_error("look after nats-server"))?.is_some() {
            return Err(failed("ended while starting"));
        }
        let port = if port == 0 { port_from_file(folder, pid) } else { Some(port) };
        if let Some(port) = port
            && answers(port, jetstream)
        {
            return Ok(port);
        }
        std::thread::sleep(POLL);
    }
    Err(failed("did not answer in time"))
}

/// The server writes the port it chose into a file named after its binary and process id.
fn port_from_file(folder: &Path, pid: u32) -> Option<u16> {
    let end = format!("_{pid}.ports");
    let mut files = std::fs::read_dir(folder).ok()?.filter_map(Result::ok).map(|file| file.path());
    let path = files.find(|path| path.to_string_lossy().ends_with(&end))?;
    let text = std::fs::read(path).ok()?;
    let ports: serde_json::Value = serde_json::from_slice(&text).ok()?;
    let url = ports.get("nats")?.get(0)?.as_str()?;
    url.rsplit_once(':')?.1.parse().ok()
}

/// Whether a server greets on this port and, if wanted, has JetStream up.
fn answers(port: u16, jetstream: bool) -> bool {
    let patience = Duration::from_secs(1);
    let Ok(stream) = TcpStream::connect_timeout(&SocketAddr::from(([127, 0, 0, 1], port)), patience) else {
        return false;
    };
    if stream.set_read_timeout(Some(patience)).is_err() {
        return false;
    }
    let mut greeting = String::new();
    // A greeting is under 64 KiB; a stranger on that port may send anything.
    if BufReader::new(stream.take(64 * 1024)).read_line(&mut greeting).is_err() {
        return false;
    }
    let Some(greeting) = greeting.strip_prefix("INFO ") else { return false };
    let Ok(greeting) = serde_json::from_str::<serde_json::Value>(greeting) else { return false };
    !jetstream || greeting.get("jetstream").and_then(serde_json::Value::as_bool) == Some(true)
}

fn last_lines(log: &Path) -> String {
    let read = || -> io::Result<Vec<u8>> {
        let mut file = File::open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LOG_BYTES_SHOWN)))?;
        let mut end = Vec::new();
        file.read_to_end(&mut end)?;
        Ok(end)
    };
    let end = read().unwrap_or_default();
    let text = String::from_utf8_lossy(&end);
    let lines: Vec<&str> = text.lines().collect();
    let shown = lines.get(lines.len().saturating_sub(LOG_LINES_SHOWN)..).unwrap_or_default();
    shown.join("\n")
}
