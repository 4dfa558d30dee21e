//! `millstream dev`: a save is live a moment later, and what does not build or pass its tests never is.

use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use crate::harness::{MILLSTREAM, until};

/// Collects the lines of a stream as they come.
fn lines(stream: impl std::io::Read + Send + 'static) -> Arc<Mutex<Vec<String>>> {
    let lines = Arc::new(Mutex::new(Vec::new()));
    let collected = Arc::clone(&lines);
    std::thread::spawn(move || {
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            collected.lock().unwrap().push(line);
        }
    });
    lines
}

/// How many lines hold this.
fn count(lines: &Arc<Mutex<Vec<String>>>, text: &str) -> usize {
    lines.lock().unwrap().iter().filter(|line| line.contains(text)).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_save_is_live_a_moment_later_unless_it_fails_its_tests() {
    let folder = tempfile::tempdir().expect("a folder");
    let made =
        Command::new(MILLSTREAM).args(["new", "my-counter", "--path"]).arg(folder.path()).output().expect("it runs");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let crate_folder = folder.path().join("my-counter");
    // Dependencies are taken as the workspace locked them, and built as the test of `millstream new` builds them.
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
    std::fs::copy(root.join("Cargo.lock"), crate_folder.join("Cargo.lock")).expect("copied");
    let target = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("new");
    // What it depends on is built beforehand: how long that takes is the machine's.
    for arguments in
        [&["test", "--no-run"][..], &["build", "--profile", "module", "--target", "wasm32-unknown-unknown"]]
    {
        let mut command = Command::new("cargo");
        command
            .current_dir(&crate_folder)
            .args(["--quiet", "--offline"])
            .args(arguments)
            .env("CARGO_TARGET_DIR", &target);
        assert!(command.env_remove("RUSTFLAGS").status().expect("cargo runs").success());
    }
    let mut child = Command::new(MILLSTREAM)
        .arg("dev")
        .arg(&crate_folder)
        .env("CARGO_TARGET_DIR", &target)
        .env("CARGO_NET_OFFLINE", "true")
        .env_remove("RUSTFLAGS")
        .env_remove("NATS_URL")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("millstream dev runs");
    let said = lines(child.stderr.take().expect("stderr"));
    let documents = lines(child.stdout.take().expect("stdout"));
    until("the first round", async || (count(&said, "watching") == 1).then_some(())).await;
    assert_eq!(count(&said, " live  my-counter "), 1, "{said:?}");
    let url = said.lock().unwrap().iter().find_map(|line| {
        let (_, rest) = line.split_once("nats://")?;
        Some(format!("nats://{}", rest.split(' ').next()?))
    });
    let client = async_nats::connect(url.expect("its server")).await.expect("connected");
    let jetstream = async_nats::jetstream::new(client);
    let publish = async || {
        let ack = jetstream.publish("events.happened", r#"{"name":"a"}"#.into()).await.expect("sent");
        ack.await.expect("stored");
    };
    publish().await;
    until("a document", async || (count(&documents, r#"my-counter "a" {"count":1}"#) == 1).then_some(())).await;

    // Its own test asks for steps of one: what fails it does not run.
    let source = crate_folder.join("src/lib.rs");
    let text = std::fs::read_to_string(&source).expect("the source");
    std::fs::write(&source, text.replace("self.count += 1", "self.count += 10")).expect("saved");
    until("the second round", async || (count(&said, "watching") == 2).then_some(())).await;
    assert_eq!(count(&said, "tests of my-counter fail; what runs goes on"), 1, "{said:?}");
    publish().await;
    until("the old code", async || (count(&documents, r#"my-counter "a" {"count":2}"#) == 1).then_some(())).await;

    let with_test = text.replace("self.count += 1", "self.count += 10").replace("{ count: 2 }", "{ count: 20 }");
    std::fs::write(&source, with_test).expect("saved");
    until("the third round", async || (count(&said, "watching") == 3).then_some(())).await;
    assert_eq!(count(&said, " live  my-counter "), 2, "{said:?}");
    publish().await;
    until("the new code", async || (count(&documents, r#"my-counter "a" {"count":12}"#) == 1).then_some(())).await;

    let interrupted = Command::new("kill").args(["-INT", &child.id().to_string()]).status().expect("kill runs");
    assert!(interrupted.success());
    let child = Mutex::new(child);
    let ended = until("the end", async || child.lock().unwrap().try_wait().expect("a child of ours")).await;
    assert!(ended.success(), "{said:?}");
}
