//! What a host says over HTTP, asked as any client would, byte by byte where that matters. In: an address and a request. Out: the answer.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{Host, PATIENCE, World, until};

/// An answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Answer {
    /// A header's value, or nothing.
    pub fn header(&self, name: &str) -> &str {
        let line = |line: &'_ str| line.split_once(": ").is_some_and(|(found, _)| found.eq_ignore_ascii_case(name));
        self.head.lines().find(|one| line(one)).and_then(|line| line.split_once(": ")).map_or("", |(_, value)| value)
    }

    /// The body as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// A host with HTTP at a free port, and where.
pub async fn web_host(world: &World, environment: &[(&str, &str)]) -> (Host, SocketAddr) {
    let host = world.host(&[&[("MILLSTREAM_HTTP", "127.0.0.1:0")], environment].concat());
    let address = until("the host tells its address", async || address_in(&host.log())).await;
    (host, address)
}

/// The address in a host's log.
pub fn address_in(log: &str) -> Option<SocketAddr> {
    let (_, rest) = log.split_once("for people at http://")?;
    rest.split_once('/')?.0.parse().ok()
}

/// Sends these bytes and reads to the end.
pub fn send(address: SocketAddr, request: &str) -> Answer {
    let mut socket = TcpStream::connect(address).expect("it listens");
    socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    // A server that has heard enough closes while we still write.
    let _ = socket.write_all(request.as_bytes());
    let mut bytes = Vec::new();
    let mut part = [0; 16384];
    while let Ok(length @ 1..) = socket.read(&mut part) {
        bytes.extend_from_slice(&part[..length]);
    }
    let text = String::from_utf8(bytes).expect("UTF-8");
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_default();
    Answer { status, head: head.to_owned(), body: body.to_owned() }
}

/// A request with these headers, each ended by `\r\n`.
pub fn request(address: SocketAddr, method: &str, path: &str, headers: &str) -> Answer {
    send(address, &format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n{headers}\r\n"))
}

/// Reads.
pub fn get(address: SocketAddr, path: &str) -> Answer {
    request(address, "GET", path, "")
}

/// The live page's news.
pub struct News {
    socket: TcpStream,
    text: String,
}

impl News {
    pub fn open(address: SocketAddr) -> Self {
        let mut socket = TcpStream::connect(address).expect("it listens");
        write!(socket, "GET /events HTTP/1.1\r\nHost: {address}\r\n\r\n").expect("it is asked");
        socket.set_read_timeout(Some(Duration::from_millis(100))).expect("a timeout");
        Self { socket, text: String::new() }
    }

    /// The next event of this name.
    #[track_caller]
    pub fn next(&mut self, name: &str) -> Value {
        let deadline = Instant::now() + PATIENCE;
        let begin = format!("event: {name}\ndata: ");
        loop {
            if let Some((_, rest)) = self.text.split_once(&begin)
                && let Some((data, rest)) = rest.split_once("\n\n")
            {
                // A chunk's length may stand between two pieces of an event.
                let value = serde_json::from_str(data).unwrap_or_else(|error| panic!("{error}: {data}"));
                self.text = rest.to_owned();
                return value;
            }
            assert!(Instant::now() < deadline, "no event {name}: {}", self.text);
            let mut part = [0; 1 << 16];
            if let Ok(length) = self.socket.read(&mut part) {
                assert!(length > 0, "the events ended: {}", self.text);
                self.text.push_str(&String::from_utf8_lossy(&part[..length]));
            }
        }
    }
}
