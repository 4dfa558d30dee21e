//! 561,470 events of real traffic fines give the commands that Python and DuckDB computed.

#[path = "../../real_data.rs"]
mod real_data;

use std::collections::BTreeMap;

use fine_collection::FineCollection;
use real_data::{answer_and_replayed, sha256_of_rows};

#[test]
fn collection_and_appeal_are_kept_apart_as_computed_elsewhere() {
    let Some((answer, replayed)) = answer_and_replayed::<FineCollection>("traffic-fines", "S2_collectionVersusAppeal")
    else {
        return;
    };

    let mut commands: BTreeMap<&str, u64> = BTreeMap::new();
    for sent in &replayed.sent {
        *commands.entry(&sent.name).or_default() += 1;
    }
    let commands: Vec<_> = commands.into_iter().collect();
    let rows = replayed.sent.iter().map(|sent| {
        let field = |name: &str| sent.payload[name].as_str().unwrap().to_owned();
        format!("{}\t{}\t{}\t{}", field("aggregateId"), sent.name, field("eventId"), field("at"))
    });
    let counted = serde_json::json!({
        "commands": commands,
        "inCollectionAtEnd": replayed.states.values().filter(|fine| fine.in_collection).count(),
        "sha256": sha256_of_rows(rows),
        "suspendedAtEnd": replayed.states.values().filter(|fine| fine.suspended).count(),
    });
    assert_eq!(counted, answer);
}
