//! 561,470 events of real traffic fines give the penalties that Python and DuckDB computed.

#[path = "../../real_data.rs"]
mod real_data;

use fine_penalty::FinePenalty;
use real_data::{answer_and_replayed, sha256_of_rows};

#[test]
fn every_penalty_comes_60_days_after_the_notification() {
    let Some((mut answer, replayed)) = answer_and_replayed::<FinePenalty>("traffic-fines", "S1_penaltyAfter60Days")
    else {
        return;
    };

    let field = |sent: &millstream_sdk::testing::Sent, name: &str| sent.payload[name].as_str().unwrap().to_owned();
    let rows = replayed.sent.iter().map(|sent| {
        format!("{}\t{}\t{}\t{}", field(sent, "aggregateId"), sent.name, field(sent, "eventId"), field(sent, "at"))
    });
    // That is about the log, not about this handler.
    answer.as_object_mut().unwrap().remove("sameInstantAsTheRealAddPenalty");
    let counted = serde_json::json!({
        "AddPenalty": replayed.sent.len(),
        "pendingAtEnd": replayed.pending_timers,
        "sha256": sha256_of_rows(rows),
        "started": replayed.states.len(),
    });
    assert_eq!(counted, answer);
}
