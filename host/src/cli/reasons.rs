//! Why a handler does not run, for people. In: what its host says. Out: the same in one line, ending in what to do next. Pure.
//! Never: adds to a reason that says so itself.

use super::output::legible;
use crate::lag::FAILING;

/// The reason, with a hint where it is a person's turn and it has none.
pub(super) fn with_hint(handler: &str, state: &str, reason: &str, has_before: bool) -> String {
    let reason = legible(reason);
    if state != FAILING || reason.contains("hint: ") {
        return reason.into_owned();
    }
    let back = match has_before {
        true => format!(", or put the version before back with `millstream rollback {handler}`"),
        false => String::new(),
    };
    match event(&reason) {
        Some((stream, sequence)) => format!(
            "{reason}; hint: look at it with `nats stream get {stream} {sequence}`; mend the module and deploy it{back}, or, if nobody \
             needs the event, remove it with `nats stream rmm {stream} {sequence} -f` and deploy with another --label"
        ),
        None => format!("{reason}; hint: mend that and deploy again{back}"),
    }
}

/// The reason for which a version was refused while another goes on: the event is that one's to take, and stays.
pub(super) fn with_hint_beside_another(reason: &str) -> String {
    let reason = legible(reason);
    if reason.contains("hint: ") {
        return reason.into_owned();
    }
    let look = match event(&reason) {
        Some((stream, sequence)) => format!("look at it with `nats stream get {stream} {sequence}`; "),
        None => String::new(),
    };
    format!("{reason}; hint: {look}mend that and deploy again")
}

/// What to do about a generation beside the live one that cannot go on.
pub(super) fn hint_for_generation(handler: &str, generation: u32, reason: &str) -> String {
    let look = match event(reason) {
        Some((stream, sequence)) => format!("look at it with `nats stream get {stream} {sequence}`; "),
        None => String::new(),
    };
    format!(
        "{look}remove it with `millstream abandon {handler} --generation {generation}`, mend the module, and build another with \
         `millstream rebuild {handler} --module FILE`"
    )
}

/// The place of the event that a reason begins with: `event ORDERS:2 on subject ...`.
fn event(reason: &str) -> Option<(&str, u64)> {
    let (place, _) = reason.strip_prefix("event ")?.split_once(' ')?;
    let (stream, sequence) = place.rsplit_once(':')?;
    Some((stream, sequence.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_stop_ends_in_what_to_do() {
        let reason = "event ORDERS:2 on subject orders.x cannot be applied: \u{1b}no";
        let told = with_hint("h", FAILING, reason, true);
        assert!(told.starts_with(r"event ORDERS:2 on subject orders.x cannot be applied: \u{1b}no; hint: "), "{told}");
        assert!(
            told.contains("`nats stream get ORDERS 2`") && told.contains("`nats stream rmm ORDERS 2 -f`"),
            "{told}"
        );
        assert!(with_hint("h", FAILING, "bucket h was deleted", true).ends_with("`millstream rollback h`"));
        assert!(with_hint("h", FAILING, "bucket h was deleted", false).ends_with("deploy again"));
        let told = with_hint_beside_another(reason);
        assert!(told.ends_with("`nats stream get ORDERS 2`; mend that and deploy again"), "{told}");
        assert_eq!(with_hint_beside_another("gone; hint: do this"), "gone; hint: do this");
        for (state, reason) in [(FAILING, "gone; hint: do this"), ("retrying", "timed out"), ("paused", "by hand")] {
            assert_eq!(with_hint("h", state, reason, true), reason);
        }
    }
}
