//! Why a promotion that is asked for does not get on. In: the ledger's wish, and what hosts say. Out: one sentence, or nothing where
//! nobody knows of a reason. Never: writes.

use super::Fault;
use crate::generation::ledger::Promotion;
use crate::progress::{Report, State};
use crate::registry::{Desired, Registry};

/// The sentence, where no live host looks after the handler.
pub(super) async fn nobody(registry: &Registry, handler: &str) -> Result<Option<String>, Fault> {
    let hosts = registry.live_hosts().await?;
    if hosts.iter().any(|host| host.looks_after(handler)) {
        return Ok(None);
    }
    Ok(Some(match hosts.is_empty() {
        true => "no host is running".to_owned(),
        false => format!("no host that is running looks after {handler}"),
    }))
}

/// What holds a promotion back; empty where it gets on.
pub(super) async fn what_holds(
    registry: &Registry,
    handler: &str,
    desired: Desired,
    promotion: &Promotion,
) -> Result<String, Fault> {
    if let Some(reason) = nobody(registry, handler).await? {
        return Ok(reason);
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
