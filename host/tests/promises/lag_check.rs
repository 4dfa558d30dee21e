//! `millstream lag` for scripts and for people who watch: exit codes, a block a second, and who falls silent.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use millstream::overview;

use crate::harness::{MILLSTREAM, World, orders, until};

/// Exit code, stdout and stderr.
fn run(world: &World, arguments: &[&str]) -> (i32, String, String) {
    let output = world.cli(arguments);
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    (output.status.code().expect("it ended"), text(output.stdout), text(output.stderr))
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_decide_the_exit_code_and_name_who_exceeds_what() {
    let world = World::new().await;
    let (code, out, _) = run(&world, &["lag", "--max-lag", "0"]);
    assert_eq!((code, out.as_str()), (0, ""), "nobody is behind where nothing is deployed");
    world.stream("ORDERS", &["orders.>"]).await;
    world.deploy("order-chain", "chain", &[]);
    assert_eq!(run(&world, &["lag", "--max-lag", "0", "--max-age", "0s"]).0, 0, "an empty stream");
    world.publish(&orders(0, 1001)).await;
    let (code, out, said) = run(&world, &["lag", "--max-lag", "1000"]);
    assert!(code == 1 && out.starts_with("HANDLER"), "the table is shown all the same: {code} {out}");
    assert!(
        said.contains("error: too far behind: chain has 1,001 undecided events in ORDERS, more than 1,000\n"),
        "{said}"
    );
    assert_eq!(run(&world, &["lag", "--max-lag", "1001", "--max-age", "1h"]).0, 0);
    let (code, out, said) = run(&world, &["lag", "chain", "--json", "--max-age", "1ms"]);
    assert!(code == 1 && said.contains("chain's oldest undecided event in ORDERS is "), "{code} {said}");
    assert_eq!(serde_json::from_str::<serde_json::Value>(&out).expect("one row")["events"], 1001);

    // Of one whose lag cannot be told nobody knows that it is within the limits.
    world.jetstream.delete_stream("ORDERS").await.expect("it is deleted");
    let (code, _, said) = run(&world, &["lag", "--max-lag", "1000000"]);
    assert!(code == 1 && said.contains("too far behind: the lag cannot be told of chain: no stream holds"), "{said}");

    for wrong in [
        ["--max-lag", "many"],
        ["--max-lag", "-1"],
        ["--max-age", "30"],
        ["--max-age", "soon"],
        ["--watch", "--max-lag=1"],
        ["nobody", "--max-lag=1"],
    ] {
        let (code, out, said) = run(&world, &[&["lag"][..], &wrong].concat());
        assert_eq!((code, out.as_str()), (2, ""), "{wrong:?}: {said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_watches_through_a_pipe_gets_a_block_a_second_until_he_ends_it() {
    let world = World::new().await;
    world.stream("ORDERS", &["orders.>"]).await;
    world.deploy("order-chain", "chain", &[]);
    for (json, first) in [(false, "HANDLER"), (true, "{")] {
        let begun = Instant::now();
        let mut command = Command::new(MILLSTREAM);
        command.args(["--server", &world.server.url(), "lag", "--watch"]).stdout(Stdio::piped());
        if json {
            command.arg("--json");
        }
        let mut child = command.spawn().expect("millstream runs");
        let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines().map(|line| line.expect("text"));
        for block in 0..3 {
            let line = lines.next().expect("a block");
            assert!(line.starts_with(first) && !line.contains('\u{1b}'), "{block}: {line}");
            if !json {
                assert!(lines.next().expect("a row").starts_with("chain "));
                assert_eq!(lines.next().expect("a blank line"), "");
            }
        }
        assert!(begun.elapsed() >= Duration::from_millis(1900), "two seconds lie between three blocks");
        let status = Command::new("kill").args(["-INT", &child.id().to_string()]).status();
        assert!(status.expect("kill runs").success());
        assert_eq!(child.wait().expect("it ends").code(), Some(0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_hangs_without_traffic_is_said_not_to_report_and_one_that_goes_on_reports() {
    let world = World::new().await;
    world.stream("ORDERS", &["orders.>"]).await;
    world.deploy("order-chain", "chain", &[]);
    let host = world.host(&[]);
    world.in_state("chain", "running").await;
    let look = async || overview::read(&world.jetstream).await.expect("an overview").handlers.remove(0);
    let rates = async || look().await.lag[0].rates;
    assert_eq!(until("rates", rates).await.in_rate, 0.0);
    host.signal("STOP");
    until("it stands still", async || host.is_stopped().then_some(())).await;
    let begun = Instant::now();
    let silent = async || Some(look().await).filter(|handler| handler.state == "not-reporting");
    let handler = until("the silence is told", silent).await;
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(15), "{took:?}");
    assert_eq!((handler.lag[0].events, handler.lag[0].rates), (0, None), "a rate of 0 would be a lie");
    host.signal("CONT");
    world.in_state("chain", "running").await;
    until("rates", rates).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_is_killed_is_said_not_to_report_within_the_lease() {
    let world = World::new().await;
    world.stream("ORDERS", &["orders.>"]).await;
    world.deploy("order-chain", "chain", &["--set", "throttle_events_per_second=100"]);
    let mut host = world.host(&[]);
    world.publish(&orders(0, 2000)).await;
    let look = async || overview::read(&world.jetstream).await.expect("an overview").handlers.remove(0);
    until("it works", async || look().await.lag[0].rates.filter(|rates| rates.out_rate > 0.0)).await;
    host.kill();
    let begun = Instant::now();
    let silent = async || Some(look().await).filter(|handler| handler.state == "not-reporting");
    let handler = until("the silence is told", silent).await;
    let took = begun.elapsed();
    // A lease of five seconds; the rest is this test's.
    assert!(took < Duration::from_millis(5500), "{took:?}");
    let lag = &handler.lag[0];
    assert!(lag.rates.is_none() && lag.events + lag.position == 2000 && lag.events > 0, "{lag:?}");
}
