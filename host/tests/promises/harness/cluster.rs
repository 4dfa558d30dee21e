//! Three nats-servers that form one JetStream cluster on loopback, and links to it that can be cut.

use std::net::TcpListener as Std;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use async_nats::jetstream::{self, Context};
use millstream::server::Server;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::{PATIENCE, pause};

/// The servers, and a client of all of them.
pub struct Cluster {
    pub servers: Vec<Server>,
    pub jetstream: Context,
}

/// A port that is free now.
fn free_port() -> u16 {
    Std::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address").port()
}

impl Cluster {
    pub async fn new() -> Self {
        let routes: Vec<u16> = (0..3).map(|_| free_port()).collect();
        let all = routes.iter().map(|port| format!("nats://127.0.0.1:{port}")).collect::<Vec<_>>().join(", ");
        let start = |number: usize| {
            // What a client learns of the others would lead it past its link.
            let extra = format!(
                "server_name: s{number}\ncluster {{ name: chaos, listen: \"127.0.0.1:{}\", no_advertise: true, routes: [{all}] }}\n",
                routes[number]
            );
            Server::builder().extra(extra).start()
        };
        let (one, two, three) = tokio::join!(start(0), start(1), start(2));
        let servers: Vec<Server> = [one, two, three].into_iter().map(|server| server.expect("a server")).collect();
        let urls: Vec<String> = servers.iter().map(Server::url).collect();
        let options = async_nats::ConnectOptions::new()
            .max_reconnects(None)
            .reconnect_delay_callback(|_| Duration::from_millis(50));
        let client = options.connect(urls).await.expect("client connects");
        let mut jetstream = jetstream::new(client);
        jetstream.set_timeout(Duration::from_secs(5));
        let cluster = Self { servers, jetstream };
        let deadline = Instant::now() + PATIENCE;
        while cluster.jetstream.query_account().await.is_err() {
            assert!(Instant::now() < deadline, "the cluster has no leader");
            pause().await;
        }
        cluster
    }

    pub fn ports(&self) -> Vec<u16> {
        self.servers.iter().map(Server::port).collect()
    }

    /// Makes a stream with three replicas.
    pub async fn stream(&self, name: &str, subjects: &[&str]) {
        let deadline = Instant::now() + PATIENCE;
        let config = jetstream::stream::Config {
            name: name.to_owned(),
            subjects: subjects.iter().map(ToString::to_string).collect(),
            num_replicas: 3,
            allow_direct: true,
            ..Default::default()
        };
        while let Err(error) = self.jetstream.create_stream(config.clone()).await {
            assert!(Instant::now() < deadline, "{name} cannot be made: {error}");
            pause().await;
        }
    }

    /// Asks the leader of a stream to step down; false where there is none at the moment.
    pub async fn step_down(&self, stream: &str) -> bool {
        let subject = format!("STREAM.LEADER.STEPDOWN.{stream}");
        let asked = self.jetstream.request::<_, _, serde_json::Value>(subject, &serde_json::json!({})).await;
        asked.is_ok_and(|answer| answer["success"] == true)
    }
}

/// A way into the cluster that can be cut: bytes go to the first server that takes them.
pub struct Link {
    port: u16,
    is_cut: Arc<AtomicBool>,
    cuts: watch::Sender<u64>,
}

impl Link {
    pub async fn new(mut servers: Vec<u16>, first: usize) -> Self {
        servers.rotate_left(first);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let (is_cut, (cuts, cut)) = (Arc::new(AtomicBool::new(false)), watch::channel(0));
        let refuses = Arc::clone(&is_cut);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                if refuses.load(Ordering::SeqCst) {
                    continue;
                }
                tokio::spawn(carry(client, servers.clone(), cut.clone()));
            }
        });
        Self { port, is_cut, cuts }
    }

    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// Nothing gets through until it is mended.
    pub fn cut(&self) {
        self.is_cut.store(true, Ordering::SeqCst);
        self.cuts.send_modify(|cuts| *cuts += 1);
    }

    pub fn mend(&self) {
        self.is_cut.store(false, Ordering::SeqCst);
    }
}

async fn carry(mut client: TcpStream, servers: Vec<u16>, mut cut: watch::Receiver<u64>) {
    cut.mark_unchanged();
    for port in servers {
        let Ok(mut server) = TcpStream::connect(("127.0.0.1", port)).await else { continue };
        let _ = (client.set_nodelay(true), server.set_nodelay(true));
        tokio::select! {
            _ = tokio::io::copy_bidirectional(&mut client, &mut server) => {}
            _ = cut.changed() => {}
        }
        return;
    }
}
