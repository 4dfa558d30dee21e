//! Waiting for conditions, with a deadline. Nothing here waits for a time to pass.

use std::time::{Duration, Instant};

/// How long a condition may take on a loaded machine with two cores.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Lets others run before a condition is looked at again. The condition's deadline is the caller's.
pub async fn pause() {
    tokio::time::sleep(Duration::from_millis(20)).await;
}

/// Waits until `condition` answers something.
#[track_caller]
pub fn until<'a, T, F: Future<Output = Option<T>>>(
    what: &'a str,
    mut condition: impl FnMut() -> F + 'a,
) -> impl Future<Output = T> + 'a {
    let caller = std::panic::Location::caller();
    async move {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(found) = condition().await {
                return found;
            }
            assert!(Instant::now() < deadline, "{caller}: {what} did not happen in time");
            pause().await;
        }
    }
}
