//! Who may come in, and what every answer carries. In: requests. Out: the ones that may pass. A page of somebody else's, open in a
//! browser on this machine, must neither read (a name that was made to lead to loopback) nor act (another origin). Never:
//! compares a token in a time that tells how much of it was right.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use super::answer::{in_json, refuse};

/// Nothing that is asked here has a longer body.
const BODY_BYTES: u64 = 4096;

/// What is not answered by then is not answered: a story of a hundred thousand messages takes some seconds.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// What is asked by whoever restarts processes.
const PROBES: [&str; 2] = ["/healthz", "/readyz"];

/// Shorter ones can be guessed.
pub const TOKEN_LETTERS: usize = 16;

/// What opens the actions, as its digest: two digests compare in the same time whatever the token's length.
pub(super) struct Token([u8; 32]);

impl Token {
    pub(super) fn new(token: &str) -> Self {
        Self(Sha256::digest(token).into())
    }

    /// Whether `Authorization` shows it.
    pub(super) fn is_shown_by(&self, headers: &HeaderMap) -> bool {
        let shown = headers.get(header::AUTHORIZATION).and_then(|shown| shown.to_str().ok()).unwrap_or_default();
        let (scheme, token) = shown.split_once(' ').unwrap_or_default();
        let digest: [u8; 32] = Sha256::digest(token.trim()).into();
        scheme.eq_ignore_ascii_case("bearer") && bool::from(digest.ct_eq(&self.0))
    }
}

/// Where the door is.
#[derive(Clone)]
pub(super) struct Guard {
    /// Only this machine can come.
    pub(super) loopback: bool,
    /// Names, beside addresses and those of this machine, under which actions may be asked for.
    pub(super) known_as: Arc<[String]>,
}

/// Lets pass what may, and adds what every answer carries.
pub(super) async fn check(State(guard): State<Guard>, mut request: Request, next: Next) -> Response {
    // A probe of the oldest kind names no host, and learns nothing that a page of others could use.
    if PROBES.contains(&request.uri().path()) && !request.headers().contains_key(header::HOST) {
        request.headers_mut().insert(header::HOST, HeaderValue::from_static("localhost"));
    }
    let mut response = match guard.objection(request.method(), request.headers()) {
        Some(refusal) => refusal,
        None => match tokio::time::timeout(ANSWER_WITHIN, next.run(request)).await {
            Ok(response) => in_json(response).await,
            Err(_) => {
                let error = format!("NATS has not answered for {} s", ANSWER_WITHIN.as_secs());
                refuse(StatusCode::GATEWAY_TIMEOUT, error, "see what is amiss at /readyz")
            }
        },
    };
    for (name, value) in [
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
    ] {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    let headers = response.headers_mut();
    headers.insert("cross-origin-resource-policy", HeaderValue::from_static("same-origin"));
    if !headers.contains_key(header::CONTENT_SECURITY_POLICY) {
        let nothing = HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'");
        headers.insert(header::CONTENT_SECURITY_POLICY, nothing);
    }
    response
}

impl Guard {
    fn objection(&self, method: &Method, headers: &HeaderMap) -> Option<Response> {
        let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
        if self.loopback && !is_of_this_machine(host) {
            let hint = "ask for http://localhost or http://127.0.0.1; a proxy must send one of these as Host";
            return Some(refuse(StatusCode::MISDIRECTED_REQUEST, "this host is not known by that name", hint));
        }
        if headers.contains_key(header::TRANSFER_ENCODING) {
            let hint = "nothing that is asked here needs a body; send none, or its Content-Length";
            return Some(refuse(StatusCode::LENGTH_REQUIRED, "a body of unknown length is not taken", hint));
        }
        if has_large_body(headers) {
            let error = format!("a body of more than {BODY_BYTES} bytes is not taken");
            return Some(refuse(StatusCode::PAYLOAD_TOO_LARGE, error, "nothing that is asked here needs a body"));
        }
        if method != Method::GET && method != Method::HEAD {
            if !self.loopback && !is_of_this_machine(host) && !self.is_known_as(host) {
                let hint = "ask under its address, or start it with --http-name and this name";
                return Some(refuse(StatusCode::MISDIRECTED_REQUEST, "this host does not act under that name", hint));
            }
            if is_from_elsewhere(headers, host) {
                let hint = "act from this host's own page, or with a program";
                return Some(refuse(StatusCode::FORBIDDEN, "a page of another origin may not act here", hint));
            }
        }
        None
    }

    fn is_known_as(&self, host: &str) -> bool {
        let name = host.parse::<Authority>().ok();
        name.is_some_and(|name| self.known_as.iter().any(|known| known.eq_ignore_ascii_case(name.host())))
    }
}

/// An address, or the one name that leads nowhere else.
fn is_of_this_machine(host: &str) -> bool {
    let Ok(authority) = host.parse::<Authority>() else { return false };
    let name = authority.host();
    let address = name.trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost") || address.parse::<std::net::IpAddr>().is_ok()
}

/// Browsers say where a request comes from; programs do not.
fn is_from_elsewhere(headers: &HeaderMap, host: &str) -> bool {
    let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    let other_site = text("sec-fetch-site").is_some_and(|site| site != "same-origin" && site != "none");
    let other_origin = text("origin").is_some_and(|origin| {
        origin.split_once("://").is_none_or(|(_, authority)| !authority.eq_ignore_ascii_case(host))
    });
    other_site || other_origin
}

fn has_large_body(headers: &HeaderMap) -> bool {
    let length = headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok());
    let length = length.and_then(|length| length.parse::<u64>().ok()).unwrap_or_default();
    length > BODY_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn only_the_token_opens() {
        let token = Token::new("a token of some length");
        for (shown, opens) in [
            ("Bearer a token of some length", true),
            ("bearer a token of some length", true),
            ("Bearer a token of some lengt", false),
            ("Basic a token of some length", false),
            ("a token of some length", false),
            ("Bearer ", false),
            ("", false),
        ] {
            assert_eq!(token.is_shown_by(&headers(&[("authorization", shown)])), opens, "{shown}");
        }
        assert!(!token.is_shown_by(&HeaderMap::new()));
    }

    #[test]
    fn a_name_that_was_made_to_lead_here_is_refused_on_loopback() {
        for (host, known) in [
            ("localhost:7070", true),
            ("127.0.0.1:7070", true),
            ("[::1]:7070", true),
            ("192.168.1.4", true),
            ("evil.example:7070", false),
            ("localhost.evil.example", false),
            ("", false),
        ] {
            assert_eq!(is_of_this_machine(host), known, "{host}");
        }
        let asked = headers(&[("host", "evil.example")]);
        let guard = |loopback| Guard { loopback, known_as: ["mill.example".to_owned()].into() };
        assert!(guard(true).objection(&Method::GET, &asked).is_some());
        assert!(guard(false).objection(&Method::GET, &asked).is_none(), "it only reads");
        assert!(guard(false).objection(&Method::POST, &asked).is_some());
        for known in ["Mill.example:7070", "10.0.0.7:7070", "localhost"] {
            assert!(guard(false).objection(&Method::POST, &headers(&[("host", known)])).is_none(), "{known}");
        }
    }

    #[test]
    fn nothing_that_is_asked_may_bring_much_with_it() {
        let guard = Guard { loopback: true, known_as: [].into() };
        for (pair, taken) in [
            (("content-length", "4096"), true),
            (("content-length", "4097"), false),
            (("transfer-encoding", "chunked"), false),
        ] {
            let asked = headers(&[("host", "localhost"), pair]);
            for method in [Method::GET, Method::POST] {
                assert_eq!(guard.objection(&method, &asked).is_none(), taken, "{method} {pair:?}");
            }
        }
    }

    #[test]
    fn another_origin_may_not_act() {
        for (pairs, refused) in [
            (vec![], false),
            (vec![("origin", "http://localhost:1")], false),
            (vec![("sec-fetch-site", "same-origin"), ("origin", "http://localhost:1")], false),
            (vec![("origin", "http://localhost:2")], true),
            (vec![("origin", "null")], true),
            (vec![("sec-fetch-site", "cross-site")], true),
            (vec![("sec-fetch-site", "same-site")], true),
        ] {
            assert_eq!(is_from_elsewhere(&headers(&pairs), "localhost:1"), refused, "{pairs:?}");
        }
    }
}
