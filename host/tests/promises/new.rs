//! `millstream new`: what it makes passes its own test, builds, deploys and counts.

use std::path::PathBuf;
use std::process::Command;

use crate::harness::World;

#[tokio::test(flavor = "multi_thread")]
async fn a_new_handler_passes_its_test_builds_and_runs_as_generated() {
    let folder = tempfile::tempdir().expect("a folder");
    let world = World::new().await;
    world.stream("EVENTS", &["events.>"]).await;
    let output = world.cli(&["new", "my-counter", "--path", folder.path().to_str().expect("path")]);
    let made = folder.path().join("my-counter");
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && told.contains(&format!("`millstream dev {}`", made.display())), "{told}");
    // Dependencies are taken as the workspace locked them, so that nothing is fetched.
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
    std::fs::copy(root.join("Cargo.lock"), made.join("Cargo.lock")).expect("copied");
    let target = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("new");
    let cargo = |arguments: &[&str]| {
        let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command.current_dir(&made).arg("--offline").args(arguments).env("CARGO_TARGET_DIR", &target);
        let output = command.env_remove("RUSTFLAGS").output().expect("cargo runs");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "cargo {}:\n{stderr}", arguments.join(" "));
        assert!(!stderr.contains("warning:"), "cargo {}:\n{stderr}", arguments.join(" "));
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    let tested = cargo(&["test"]);
    assert!(tested.contains("test tests::counts_by_name ... ok"), "{tested}");
    cargo(&["build", "--profile", "module", "--target", "wasm32-unknown-unknown"]);

    let module = target.join("wasm32-unknown-unknown/module/my_counter.wasm");
    world.ok(&["deploy", module.to_str().expect("path"), "--no-wait"]);
    for name in ["a", "b", "a"] {
        let body = format!(r#"{{"name":"{name}"}}"#);
        let ack = world.jetstream.publish("events.happened", body.into()).await.expect("sent");
        ack.await.expect("stored");
    }
    let _host = world.host(&[]);
    let expected = [("a", 2), ("b", 1)].map(|(name, count)| (name.to_owned(), format!(r#"{{"count":{count}}}"#)));
    world.settled("my-counter", &expected.into()).await;
}
