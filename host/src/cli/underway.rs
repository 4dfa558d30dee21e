//! Why a promotion that is asked for does not get on. In: the ledger's wish, and what hosts say. Out: one sentence, or nothing where
//! nobody knows of a reason. Never: writes.

use super::Fault;
use crate::generation::ledger::Promotion;
use crate::progress::{Report, State};
use crate::registry::{Desired, Host, Registry};

/// Nobody is there to do it.
#[derive(Debug)]
pub(super) struct Nobody {
    pub(super) reason: String,
    /// What to do about it.
    pub(super) hint: String,
}

/// The sentence, where no live host looks after the handler.
pub(super) async fn nobody(registry: &Registry, handler: &str) -> Result<Option<Nobody>, Fault> {
    Ok(nobody_of(&registry.live_hosts().await?, handler))
}

/// The same, of hosts that are known.
pub(super) fn nobody_of(hosts: &[Host], handler: &str) -> Option<Nobody> {
    if hosts.iter().any(|host| host.looks_after(handler)) {
        return None;
    }
    let Some(Host { name, handlers, .. }) = hosts.first() else {
        let hint = "start one with `millstream run`".to_owned();
        return Some(Nobody { reason: "no host is running".to_owned(), hint });
    };
    let only: Vec<String> = handlers.iter().map(|other| format!("--handler {other}")).collect();
    Some(Nobody {
        reason: format!("no host that is running looks after {handler}"),
        hint: format!(
            "host {name} runs with `{}`: add `--handler {handler}` there, or start another with `millstream run`",
            only.join(" ")
        ),
    })
}

/// What holds a promotion back; empty where it gets on.
pub(super) async fn what_holds(
    registry: &Registry,
    handler: &str,
    desired: Desired,
    promotion: &Promotion,
) -> Result<String, Fault> {
    if let Some(nobody) = nobody(registry, handler).await? {
        return Ok(nobody.reason);
    }
    if desired == Desired::Paused {
        return Ok("the handler is paused".to_owned());
    }
    if !promotion.trouble.is_empty() {
        let end = if promotion.cut { "; it goes through as soon as that is mended" } else { "" };
        return Ok(format!("its host tries again: {}{end}", promotion.trouble));
    }
    let Report { host, state, reason, .. } = registry.status(handler).await?.unwrap_or_default();
    Ok(match state {
        State::Failing | State::Retrying if !reason.is_empty() => format!("host {host} says: {reason}"),
        _ => String::new(),
    })
}
