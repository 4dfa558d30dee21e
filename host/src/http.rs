//! What a host shows over HTTP: metrics, health, a page for people. In: an address, perhaps a token. Out: reads for whoever may connect;
//! actions for who shows the token. Bounded: connections, headers, bodies, time, readers of the server. Never: reads JetStream once for
//! each who asks (`reader.rs` reads for all), keeps the handlers waiting, or serves actions without a token.

mod actions;
mod answer;
mod dead;
mod events;
mod guard;
mod handlers;
mod health;
mod idle;
pub mod metrics;
mod page;
mod places;
mod sagas;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_nats::connection::State;
use async_nats::jetstream::Context;
use axum::Router;
use axum::extract::{Request, State as Shared};
use axum::http::{HeaderMap, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::reader::Reader;
use crate::registry::Registry;
use crate::vitals::Vitals;
pub use guard::TOKEN_LETTERS;
use guard::Token;
use places::{Place, Places};

/// Where a bare `--http` listens.
pub const DEFAULT_ADDRESS: &str = "127.0.0.1:7070";

/// Who has not said what he wants within this is let go.
const HEADERS_WITHIN: Duration = Duration::from_secs(10);

/// Bytes of a request's head.
const HEAD_BYTES: usize = 16 << 10;

/// A connection on which nothing has moved for so long is let go. A live page hears something every few seconds.
const IDLE: Duration = Duration::from_secs(60);

/// A connection does not live longer, so that one that takes nothing more cannot stay for ever; a live page comes back by itself.
const CONNECTION_LIVES: Duration = Duration::from_secs(3600);

/// Drill-downs at once: each reads many messages.
const DRILLS: usize = 2;

/// Something to wait before a failed accept is tried again, for want of file descriptors.
const AFTER_REFUSAL: Duration = Duration::from_millis(100);

/// What all requests share.
#[derive(Clone)]
struct Host(Arc<Parts>);

struct Parts {
    jetstream: Context,
    registry: Registry,
    name: String,
    vitals: Arc<Vitals>,
    /// The handlers that it looks after; all where empty.
    only: Vec<String>,
    reader: Arc<Reader>,
    ready: health::Ready,
    token: Option<Token>,
    drills: Semaphore,
    pages: Semaphore,
}

impl std::ops::Deref for Host {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.0
    }
}

/// A host that may be asked.
pub struct Asked {
    /// The client.
    pub jetstream: Context,
    /// The host's name.
    pub name: String,
    /// How it is.
    pub vitals: Arc<Vitals>,
    /// The handlers that it looks after; all where empty.
    pub only: Vec<String>,
    /// Reads for it.
    pub reader: Arc<Reader>,
    /// Who shows this may act.
    pub token: Option<String>,
    /// Names, beside addresses, under which actions may be asked for.
    pub known_as: Vec<String>,
}

/// The socket.
pub struct Door {
    listener: TcpListener,
    address: SocketAddr,
}

impl Door {
    /// Listens.
    ///
    /// # Errors
    /// When the system does not let us.
    pub async fn open(address: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        Ok(Self { listener, address })
    }

    /// Where it listens: with port 0 the system has chosen one.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers until it is dropped.
    ///
    /// # Errors
    /// When the registry cannot be opened.
    pub async fn serve(self, asked: Asked) -> anyhow::Result<()> {
        let registry = Registry::open(&asked.jetstream).await?;
        let loopback = self.address.ip().is_loopback();
        let guard = guard::Guard { loopback, known_as: asked.known_as.into() };
        let host = Host(Arc::new(Parts {
            jetstream: asked.jetstream,
            registry,
            name: asked.name,
            vitals: asked.vitals,
            only: asked.only,
            reader: asked.reader,
            ready: health::Ready::default(),
            token: asked.token.map(|token| Token::new(&token)),
            drills: Semaphore::new(DRILLS),
            pages: Semaphore::new(events::PAGES),
        }));
        let (all, probes) = (router(host.clone(), guard.clone()), router_of_probes(host, guard));
        let mut places = Places::new();
        // They end with us.
        let mut connections = JoinSet::new();
        loop {
            match self.listener.accept().await {
                Ok((socket, _)) => {
                    let place = places.next().await?;
                    let has_asked = Arc::new(AtomicBool::new(false));
                    let once = matches!(place, Place::Probe(_));
                    let (router, lives) = match &place {
                        Place::All(_) => (all.clone(), CONNECTION_LIVES),
                        Place::Probe(_) => (noting(probes.clone(), &has_asked), HEADERS_WITHIN),
                    };
                    let connection = connections.spawn(async move {
                        let _place = place;
                        let _ = tokio::time::timeout(lives, converse(socket, router, once)).await;
                    });
                    if once {
                        places.came(has_asked, connection);
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection cannot be accepted");
                    tokio::time::sleep(AFTER_REFUSAL).await;
                }
            }
            while connections.try_join_next().is_some() {}
        }
    }
}

async fn converse(socket: TcpStream, router: Router, once: bool) {
    let _ = socket.set_nodelay(true);
    let (socket, moved) = idle::watched(socket);
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEADERS_WITHIN).max_buf_size(HEAD_BYTES).keep_alive(!once);
    // What a client does wrong it hears itself; here it is no news.
    tokio::select! {
        _ = http.serve_connection(TokioIo::new(socket), TowerToHyperService::new(router)) => {}
        () = moved.nothing_for(IDLE) => {}
    }
}

/// The same, which notes that something was asked.
fn noting(router: Router, has_asked: &Arc<AtomicBool>) -> Router {
    let has_asked = Arc::clone(has_asked);
    router.layer(middleware::from_fn(move |request: Request, next: Next| {
        has_asked.store(true, Ordering::Release);
        next.run(request)
    }))
}

/// What is answered where there is no place any more.
fn router_of_probes(host: Host, guard: guard::Guard) -> Router {
    Router::new()
        .route("/healthz", get(health::healthz))
        .route("/readyz", get(health::readyz))
        .fallback(|| async { answer::busy("this host") })
        .layer(middleware::from_fn_with_state(guard, guard::check))
        .with_state(host)
}

fn router(host: Host, guard: guard::Guard) -> Router {
    Router::new()
        .route("/", get(page::page))
        .route("/metrics", get(scrape))
        .route("/healthz", get(health::healthz))
        .route("/readyz", get(health::readyz))
        .route("/events", get(events::events))
        .route("/api/host", get(handlers::host))
        .route("/api/overview", get(handlers::overview))
        .route("/api/handlers/{handler}", get(handlers::handler))
        .route("/api/handlers/{handler}/dead", get(dead::list))
        .route("/api/handlers/{handler}/sagas", get(sagas::list))
        .route("/api/handlers/{handler}/sagas/{key}", get(sagas::story))
        .route("/api/handlers/{handler}/{action}", post(actions::act))
        .fallback(answer::not_found)
        .method_not_allowed_fallback(answer::not_allowed)
        .layer(middleware::from_fn_with_state(guard, guard::check))
        .with_state(host)
}

/// `GET /metrics`.
async fn scrape(Shared(host): Shared<Host>, headers: HeaderMap) -> Response {
    let accept = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    let format = metrics::Format::accepted(accept);
    let seen = host.reader.look().await;
    let own = metrics::Own {
        host: host.name.clone(),
        connected: host.jetstream.client().connection_state() == State::Connected,
        read: seen.took,
    };
    let text = metrics::render(seen.overview(), &own, format);
    ([(header::CONTENT_TYPE, format.media_type())], text).into_response()
}
