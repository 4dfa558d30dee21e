//! A connection that knows when something moved on it last. In: a socket. Out: the same, and the word when nothing has moved for long: a
//! client that asks nothing, or takes nothing of its answer. Never: takes bytes that wait in our own buffers for ones that moved.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;

/// A socket that is watched.
pub(super) struct Watched {
    socket: TcpStream,
    moved: Moved,
}

/// When something moved last.
#[derive(Clone)]
pub(super) struct Moved {
    begun: Instant,
    milliseconds: Arc<AtomicU64>,
}

/// Watches a socket.
pub(super) fn watched(socket: TcpStream) -> (Watched, Moved) {
    let moved = Moved { begun: Instant::now(), milliseconds: Arc::default() };
    (Watched { socket, moved: moved.clone() }, moved)
}

impl Moved {
    fn note(&self) {
        let since = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.milliseconds.store(since, Ordering::Relaxed);
    }

    /// Resolves when nothing has moved for so long.
    pub(super) async fn nothing_for(&self, long: Duration) {
        loop {
            let last = self.begun + Duration::from_millis(self.milliseconds.load(Ordering::Relaxed));
            if last.elapsed() >= long {
                return;
            }
            tokio::time::sleep_until(last + long).await;
        }
    }

    fn noted<T>(&self, done: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if matches!(done, Poll::Ready(Ok(_))) {
            self.note();
        }
        done
    }
}

impl AsyncRead for Watched {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let done = Pin::new(&mut self.socket).poll_read(cx, buffer);
        self.moved.noted(done)
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let done = Pin::new(&mut self.socket).poll_write(cx, bytes);
        self.moved.noted(done)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let done = Pin::new(&mut self.socket).poll_write_vectored(cx, parts);
        self.moved.noted(done)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn who_takes_nothing_is_noticed_and_who_takes_something_is_not() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let taking = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (socket, _) = listener.accept().await.unwrap();
        let (mut socket, moved) = watched(socket);
        let long = Duration::from_millis(300);
        let begun = Instant::now();
        // Written at once, until the system's buffers are full; the other side takes none of it.
        let written = tokio::select! {
            written = async { loop { socket.write_all(&[0; 4096]).await.unwrap() } } => written,
            () = moved.nothing_for(long) => begun.elapsed(),
        };
        assert!(written >= long, "{written:?}");
        // It takes what is there: things move again.
        let mut taking = taking;
        let drain = tokio::spawn(async move { tokio::io::copy(&mut taking, &mut tokio::io::sink()).await });
        let moves = async {
            for _ in 0..100 {
                socket.write_all(&[0; 65536]).await.unwrap();
            }
        };
        moves.await;
        let last = moved.milliseconds.load(Ordering::Relaxed);
        assert!(u128::from(last) > written.as_millis() - long.as_millis(), "{last}");
        drop(socket);
        drain.await.unwrap().unwrap();
    }
}
