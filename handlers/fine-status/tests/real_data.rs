//! 561,470 events of real traffic fines give the answers that Python and DuckDB computed.

#[path = "../../real_data.rs"]
mod real_data;

use std::collections::BTreeMap;

use fine_status::FineStatus;
use real_data::{answer_and_documents, sha256_of_rows};

#[test]
fn the_status_of_every_fine_is_as_computed_elsewhere() {
    let Some((answer, fines)) = answer_and_documents::<FineStatus>("traffic-fines", "P2_statusAtEnd") else {
        return;
    };

    let status = |fine: &FineStatus| {
        fine.status
            .map_or_else(String::new, |status| serde_json::to_value(status).unwrap().as_str().unwrap().to_owned())
    };
    let mut by_status: BTreeMap<String, (u64, u64, u64)> = BTreeMap::new();
    for fine in fines.values() {
        let (count, paying, paid) = by_status.entry(status(fine)).or_default();
        *count += 1;
        *paying += u64::from(fine.paid > 0);
        *paid += fine.paid;
    }
    let by_status: Vec<_> =
        by_status.into_iter().map(|(status, (count, paying, paid))| (status, count, paying, paid)).collect();
    let rows = fines.iter().map(|(key, fine)| format!("{key}\t{}\t{}\t{}", status(fine), fine.paid, fine.events));
    assert_eq!(
        serde_json::json!({ "byStatus": by_status, "rows": fines.len(), "sha256": sha256_of_rows(rows) }),
        answer
    );
}
