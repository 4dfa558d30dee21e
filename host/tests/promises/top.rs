//! `millstream top` and `millstream lag --watch` on a real terminal: they start, show what is so, end, and leave the terminal as it was.

use std::io::{Read as _, Write};
use std::sync::{Arc, Mutex};

use portable_pty::{Child, CommandBuilder, MasterPty, PtySize, native_pty_system};

use crate::harness::{MILLSTREAM, World, orders, until};

/// The program on a terminal of its own.
struct Screen {
    master: Box<dyn MasterPty + Send>,
    child: Box<dyn Child + Send + Sync>,
    types: Box<dyn Write + Send>,
    shown: Arc<Mutex<vt100::Parser>>,
}

impl Screen {
    fn start(url: &str) -> Self {
        Self::of(url, &["top"], (24, 80))
    }

    fn of(url: &str, arguments: &[&str], (rows, cols): (u16, u16)) -> Self {
        let size = PtySize { rows, cols, pixel_width: 0, pixel_height: 0 };
        let pair = native_pty_system().openpty(size).expect("a terminal");
        let mut command = CommandBuilder::new(MILLSTREAM);
        command.args(["--server", url]);
        command.args(arguments);
        command.env("TERM", "xterm-256color");
        let child = pair.slave.spawn_command(command).expect("millstream runs");
        let shown = Arc::new(Mutex::new(vt100::Parser::new(size.rows, size.cols, 0)));
        let (mut reader, all) = (pair.master.try_clone_reader().expect("a reader"), Arc::clone(&shown));
        std::thread::spawn(move || {
            let mut part = [0; 4096];
            while let Ok(count @ 1..) = reader.read(&mut part) {
                all.lock().expect("not poisoned").process(&part[..count]);
            }
        });
        let types = pair.master.take_writer().expect("a writer");
        Self { master: pair.master, child, types, shown }
    }

    fn types(&mut self, keys: &str) {
        self.types.write_all(keys.as_bytes()).expect("typed");
        self.types.flush().expect("typed");
    }

    /// What is on it.
    fn text(&self) -> String {
        self.shown.lock().expect("not poisoned").screen().contents()
    }

    fn resize(&self, rows: u16, cols: u16) {
        self.shown.lock().expect("not poisoned").screen_mut().set_size(rows, cols);
        let size = PtySize { rows, cols, pixel_width: 0, pixel_height: 0 };
        self.master.resize(size).expect("resized");
    }

    async fn shows(&self, what: &str) {
        until(&format!("{what:?} is shown"), async || self.text().contains(what).then_some(())).await;
    }

    /// How it ended, and that the screen before it is back.
    async fn ended(self) -> u32 {
        let child = Mutex::new(self.child);
        let ended = || child.lock().expect("not poisoned").try_wait().expect("a child");
        let status = until("it ends", async || ended()).await;
        until("the terminal is restored", async || {
            (!self.shown.lock().expect("not poisoned").screen().alternate_screen()).then_some(())
        })
        .await;
        status.exit_code()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn top_shows_a_handler_s_lag_and_quits() {
    let world = World::new().await;
    world.stream("ORDERS", &["orders.>"]).await;
    world.deploy("order-chain", "chain", &[]);
    world.publish(&orders(0, 4321)).await;
    let mut screen = Screen::start(&world.server.url());
    screen.shows("4,321").await;
    screen.shows("not started").await;
    screen.shows("q quit").await;
    screen.types("\r");
    screen.shows("position 0 of 4,321").await;
    screen.shows("Deployments").await;
    // Smaller, while it runs.
    screen.resize(20, 60);
    screen.shows("position 0 of 4,321").await;
    until("the keys are in its last row", async || {
        screen.text().lines().nth(19).is_some_and(|row| row.starts_with("q quit")).then_some(())
    })
    .await;
    let _host = world.host(&[]);
    world.caught_up("chain").await;
    screen.shows("position 4,321").await;
    screen.types("q");
    assert_eq!(screen.ended().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_terminal_is_restored_on_a_signal() {
    let world = World::new().await;
    for signal in ["TERM", "INT"] {
        let screen = Screen::start(&world.server.url());
        screen.shows("nothing is deployed here").await;
        let id = screen.child.process_id().expect("its id").to_string();
        let sent = std::process::Command::new("kill").args([&format!("-{signal}"), &id]).status();
        assert!(sent.expect("kill runs").success());
        assert_eq!(screen.ended().await, 0, "{signal}");
    }
    let mut screen = Screen::start(&world.server.url());
    screen.shows("nothing is deployed here").await;
    screen.types("\u{3}");
    assert_eq!(screen.ended().await, 0, "Ctrl-C");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_terminal_top_names_what_to_use() {
    let world = World::new().await;
    let told = world.refused(2, &["top"]);
    assert!(told.contains("`millstream lag --watch`"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn lag_that_is_watched_stays_in_its_place_on_a_small_terminal() {
    let world = World::new().await;
    world.stream("ORDERS", &["orders.>"]).await;
    for number in 0..6 {
        world.deploy("order-chain", &format!("a-handler-with-quite-a-long-name-{number}"), &[]);
    }
    world.publish(&orders(0, 1234)).await;
    let screen = Screen::of(&world.server.url(), &["lag", "--watch"], (6, 70));
    screen.shows("1,234").await;
    for (events, shown) in [(1, "1,235"), (1000, "2,235")] {
        let from = if events == 1 { 1234 } else { 1235 };
        world.publish(&orders(from, events)).await;
        screen.shows(shown).await;
        let text = screen.text();
        let rows: Vec<&str> = text.lines().filter(|row| !row.is_empty()).collect();
        assert!(rows[0].starts_with("HANDLER ") && rows[1].starts_with("a-handl"), "{text}");
        assert_eq!(rows.iter().filter(|row| row.contains(shown)).count(), 3, "a row for each line:\n{text}");
        assert!(rows[4].starts_with("… and ") && rows.len() == 5, "{text}");
    }
    screen.resize(24, 80);
    until("all of them fit", async || {
        let text = screen.text();
        (text.matches("2,235").count() == 6 && !text.contains("… and ")).then_some(())
    })
    .await;
}
