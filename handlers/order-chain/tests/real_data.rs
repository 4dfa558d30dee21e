//! Real events of two sources arrive once and in order: the hashes are those that Python and DuckDB computed.

#[path = "../../real_data.rs"]
mod real_data;

use order_chain::OrderChain;
use real_data::{answer_and_documents, sha256_of_rows};

#[test]
fn the_hash_of_every_aggregate_is_as_computed_elsewhere() {
    for pack in ["wikipedia-edits", "traffic-fines"] {
        let Some((answer, chains)) = answer_and_documents::<OrderChain>(pack, "P6_orderChain") else {
            continue;
        };
        let rows = chains.iter().map(|(key, chain)| format!("{key}\t{}", chain.hash));
        assert_eq!(serde_json::json!({ "rows": chains.len(), "sha256": sha256_of_rows(rows) }), answer, "{pack}");
    }
}
