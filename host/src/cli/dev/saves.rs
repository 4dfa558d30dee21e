//! Files that are saved. In: the crates' folders, watched by the operating system. Out: which crate, and when. Several saves at once
//! are one. Never: looks at what a build writes.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::crates::Crate;

/// Editors write several times; this long after the last time a save is over.
const CALM: Duration = Duration::from_millis(30);

/// The watch.
pub(super) struct Saves {
    /// Watches for as long as it lives.
    _watcher: RecommendedWatcher,
    events: mpsc::UnboundedReceiver<(PathBuf, Instant)>,
    folders: Vec<PathBuf>,
    /// Crates that were saved while another one was told of.
    waiting: Vec<(usize, Instant)>,
}

impl Saves {
    /// Begins to watch.
    ///
    /// # Errors
    /// When the operating system refuses, as it does when too much is watched.
    pub(super) fn watch(crates: &[Crate]) -> anyhow::Result<Self> {
        let (sender, events) = mpsc::unbounded_channel();
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            let Ok(event) = event else { return };
            if matches!(event.kind, EventKind::Access(_)) {
                return;
            }
            let now = Instant::now();
            for path in event.paths.into_iter().filter(|path| is_source(path)) {
                // Nobody listens any more: the program is about to end.
                let _ = sender.send((path, now));
            }
        })
        .context("files cannot be watched")?;
        let folders: Vec<PathBuf> = crates.iter().map(|one| one.folder.clone()).collect();
        for folder in &folders {
            // Not the whole folder: what is built lies there too.
            watcher.watch(folder, RecursiveMode::NonRecursive)?;
            for inner in ["src", "tests"].map(|name| folder.join(name)).iter().filter(|inner| inner.is_dir()) {
                watcher.watch(inner, RecursiveMode::Recursive)?;
            }
        }
        Ok(Self { _watcher: watcher, events, folders, waiting: Vec::new() })
    }

    /// The next crate that was saved, and when that began.
    pub(super) async fn next(&mut self) -> (usize, Instant) {
        while self.waiting.is_empty() {
            let Some(first) = self.events.recv().await else { return std::future::pending().await };
            self.note(&first);
            while let Ok(Some(more)) = tokio::time::timeout(CALM, self.events.recv()).await {
                self.note(&more);
            }
        }
        self.waiting.remove(0)
    }

    fn note(&mut self, (path, at): &(PathBuf, Instant)) {
        let of = self.folders.iter().position(|folder| path.starts_with(folder));
        if let Some(number) = of.filter(|number| !self.waiting.iter().any(|(waiting, _)| waiting == number)) {
            self.waiting.push((number, *at));
        }
    }
}

/// Sources and manifests; not what editors keep beside them.
fn is_source(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "rs") || path.ends_with("Cargo.toml")
}
