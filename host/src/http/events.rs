//! The live page's news: server-sent events. In: each overview as it is read. Out: the same to every page that is open; one that is slow
//! misses some, and none waits for it. Never: a queue per page.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::stream;

use super::Host;
use super::answer::busy;

/// Pages at once.
pub(super) const PAGES: usize = 64;

/// A page hears something at least this often, so that it knows its connection is there.
const SIGN_OF_LIFE: Duration = Duration::from_secs(3);

/// `GET /events`. A page that lost its connection comes back after a second.
pub(super) async fn events(State(host): State<Host>) -> Response {
    let owner = Host(Arc::clone(&host.0));
    let Ok(place) = owner.pages.try_acquire() else { return busy("the live page") };
    place.forget();
    let place = Place(owner);
    let first = host.reader.look().await;
    let news = host.reader.follow();
    let begin = Bytes::from_static(b"retry: 1000\n\n");
    let events =
        stream::unfold((Some(vec![first.event.clone(), begin]), news, place), async |(waiting, mut news, place)| {
            let mut waiting = waiting.unwrap_or_default();
            let next = match waiting.pop() {
                Some(next) => next,
                None => match tokio::time::timeout(SIGN_OF_LIFE, news.changed()).await {
                    Ok(Ok(())) => news.borrow_and_update().event.clone(),
                    Ok(Err(_)) => return None,
                    Err(_) => Bytes::from_static(b"event: alive\ndata: 0\n\n"),
                },
            };
            Some((Ok::<_, std::convert::Infallible>(next), (Some(waiting), news, place)))
        });
    let kind =
        [(header::CONTENT_TYPE, "text/event-stream"), (header::HeaderName::from_static("x-accel-buffering"), "no")];
    (kind, Body::from_stream(events)).into_response()
}

/// A page's place, given back when it goes.
struct Place(Host);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.pages.add_permits(1);
    }
}
