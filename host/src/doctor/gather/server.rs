//! What the server says of itself: over NATS its version, this user's permissions and its clock; over HTTP, where somebody names its
//! monitoring port, when it flushes to disk. In: a connection. Out: facts. Never: asks twice where once will do.

use std::time::{Duration, Instant};

use async_nats::Client;
use async_nats::jetstream::Context;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde::Deserialize;

use super::Error;
use crate::clock;
use crate::doctor::facts::{Clock, Flushing, Rules, Server, User};

/// Every server answers that to each of its users, about himself (2.9 and later).
const USER_INFO: &str = "$SYS.REQ.USER.INFO";

/// An answer that takes longer was refused: a server says nothing of that to who asks.
const WITHIN: Duration = Duration::from_secs(2);

/// Comparisons of clocks; the quickest answer is the surest.
const COMPARISONS: usize = 5;

/// Bytes of monitoring's answer, at most.
const ANSWER: usize = 4 << 20;

pub(super) async fn look(client: &Client, jetstream: &Context, monitors: &[String]) -> Result<Server, Error> {
    let info = client.server_info();
    let mut server = Server {
        numbers: numbers(&info.version),
        version: info.version,
        cluster: info.cluster.filter(|name| !name.is_empty()),
        ..Server::default()
    };
    server.no_jetstream = jetstream.query_account().await.err().map(|error| error.to_string());
    for address in monitors {
        server.flushing.push((address.clone(), flushing(address).await?));
    }
    Ok(server)
}

fn numbers(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.trim_start_matches('v').split('.');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[derive(Deserialize)]
struct Told {
    server: ToldServer,
    data: ToldUser,
}

#[derive(Deserialize)]
struct ToldServer {
    time: String,
}

#[derive(Deserialize)]
struct ToldUser {
    #[serde(default)]
    user: String,
    permissions: Option<Permissions>,
}

#[derive(Deserialize)]
struct Permissions {
    publish: Option<ToldRules>,
    subscribe: Option<ToldRules>,
    responses: Option<serde::de::IgnoredAny>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ToldRules {
    allow: Vec<String>,
    deny: Vec<String>,
}

impl From<ToldRules> for Rules {
    fn from(ToldRules { allow, deny }: ToldRules) -> Self {
        Self { allow, deny }
    }
}

/// Who asks, and how the server's clock compares to ours.
pub(super) async fn user(client: &Client) -> Result<(User, Clock), String> {
    let mut surest: Option<(Told, Clock)> = None;
    for _ in 0..COMPARISONS {
        let (begun, before) = (Instant::now(), clock::now());
        let answer = tokio::time::timeout(WITHIN, client.request(USER_INFO, Bytes::new())).await;
        let answer = answer.map_err(|_| format!("no answer to {USER_INFO}"))?.map_err(|error| error.to_string())?;
        let half = begun.elapsed().as_secs_f64() * 500.0;
        let told: Told = serde_json::from_slice(&answer.payload).map_err(|error| error.to_string())?;
        let server = clock::read(&told.server.time).ok_or_else(|| "its time cannot be read".to_owned())?;
        let clock = Clock { ahead: server.saturating_sub(before) as f64 / 1e6 - half, uncertain: half };
        if surest.as_ref().is_none_or(|(_, known)| clock.uncertain < known.uncertain) {
            surest = Some((told, clock));
        }
    }
    let (told, clock) = surest.ok_or_else(|| format!("no answer to {USER_INFO}"))?;
    let inbox = client.new_inbox();
    let inbox = inbox.rsplit_once('.').map_or(inbox.as_str(), |(prefix, _)| prefix).to_owned();
    let (publish, subscribe, answers) = match told.data.permissions {
        None => (None, None, true),
        Some(Permissions { publish, subscribe, responses }) => {
            // Who may publish anything may answer anybody.
            let answers = responses.is_some() || publish.is_none();
            (publish.map(Rules::from), subscribe.map(Rules::from), answers)
        }
    };
    Ok((User { name: told.data.user, inbox, publish, subscribe, answers }, clock))
}

#[derive(Deserialize)]
struct Jsz {
    config: Option<JszConfig>,
}

#[derive(Deserialize)]
struct JszConfig {
    #[serde(default)]
    sync_always: bool,
    #[serde(default)]
    sync_interval: u64,
}

async fn flushing(address: &str) -> Result<Flushing, Error> {
    let failed = |reason: String| Error::Monitor { address: address.to_owned(), reason };
    let url = format!("{}/jsz?config=1", address.trim_end_matches('/'));
    let uri: hyper::Uri = url.parse().map_err(|_| failed("it is not of the form http://HOST:8222".to_owned()))?;
    let client = hyper_util::client::legacy::Client::builder(TokioExecutor::new());
    let client = client.build::<_, Full<Bytes>>(HttpConnector::new());
    let asked = async {
        let answer = client.get(uri).await.map_err(|error| error.to_string())?;
        let body = Limited::new(answer.into_body(), ANSWER).collect().await.map_err(|error| error.to_string())?;
        serde_json::from_slice::<Jsz>(&body.to_bytes()).map_err(|error| error.to_string())
    };
    let asked = tokio::time::timeout(WITHIN, asked).await.map_err(|_| failed("no answer in time".to_owned()))?;
    let config = asked.map_err(&failed)?.config.ok_or_else(|| failed("JetStream is off there".to_owned()))?;
    Ok(match config.sync_always {
        true => Flushing::Always,
        false => Flushing::Every(Duration::from_nanos(config.sync_interval)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_without_permissions_of_his_own_may_everything() {
        let told = |json: &str| serde_json::from_str::<Told>(json).unwrap().data;
        let free = told(r#"{"server":{"time":"x"},"data":{"user":"b","account":"A"}}"#);
        assert!(free.permissions.is_none() && free.user == "b");
        let bound = r#"{"server":{"time":"x"},"data":{"user":"a","permissions":{"publish":{"allow":["x"]},"responses":{"max":1}}}}"#;
        let permissions = told(bound).permissions.unwrap();
        assert_eq!(permissions.publish.unwrap().allow, ["x"]);
        assert!(permissions.subscribe.is_none() && permissions.responses.is_some());
    }

    #[test]
    fn versions_are_numbers() {
        assert_eq!(numbers("v2.12.8"), Some((2, 12)));
        assert_eq!(numbers("3.0.0-RC.1"), Some((3, 0)));
        assert_eq!(numbers("devel"), None);
    }
}
